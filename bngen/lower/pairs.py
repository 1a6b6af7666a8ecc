"""Pairs of bfloat16: words of two, and sums of their products.

A word is 32 bits, the first of the pair in the low half. A sum of products of pairs is written as
any other, ``te.sum(product(a, b), ..)``, over half as many terms, and scheduled as any other; what
instructions become of it is `bngen.codegen.pairs`'s to say.

=================== ==========================================================================
``product(a, b)``   of two words: both products, added; the word that all lanes share comes first
``pair(low, high)`` the word of two numbers that bfloat16 holds, see `bngen.lower.stored`
``half(number)``    one such number as 16 bits
``word(low, high)`` the word of two numbers of 16 bits, as memory has them
=================== ==========================================================================

Instructions for products take subnormal numbers for zero, and so those that round to what is only
multiplied may do so, too: a result differs by less than 2**-126 of what it is multiplied with.
"""

from __future__ import annotations

from tvm import tirx

from bngen.lower.opaque import Expr, dtype_of, like, opaque

WORD = "uint32"
"""TVM's name of the type of words."""
_HALF, _UPPER = 16, 0xFFFF0000


def _as(kind: str, x: Expr) -> Expr:
    """The bits of a scalar or a vector as another type of that size."""
    _, by, lanes = dtype_of(x).partition("x")
    return tirx.reinterpret(kind + by + lanes, x)


def added(sums: Expr | None, a: Expr, b: Expr) -> Expr:
    """Sums and the products of both pairs of two words, in the order in which they are added."""
    first = high(a) * high(b)
    return (first if sums is None else sums + first) + low(a) * low(b)


def _half(number: Expr) -> Expr:
    bits = _as("uint32", number)
    _, by, lanes = dtype_of(number).partition("x")
    return tirx.Cast(f"uint16{by}{lanes}", bits >> like(bits, _HALF))


def _pair(low: Expr, high: Expr) -> Expr:
    low, high = _as("uint32", low), _as("uint32", high)
    return (low >> like(low, _HALF)) | (high & like(high, _UPPER))


product = opaque("pair_product", lambda a, b: added(None, a, b), "float32")
pair = opaque("pair", _pair, WORD)
half = opaque("half", _half, "uint16")


def low(word: Expr) -> Expr:
    """The first number of a word."""
    return _as("float32", word << like(word, _HALF))


def high(word: Expr) -> Expr:
    """The second number of a word."""
    return _as("float32", word & like(word, _UPPER))


def word(low: Expr, high: Expr) -> Expr:
    """Two numbers of 16 bits as one word."""
    wide = [tirx.Cast(WORD, part) for part in (low, high)]
    return tirx.BitwiseOr(wide[0], wide[1] << tirx.const(_HALF, WORD))


def halves(value: Expr) -> tuple[Expr, Expr] | None:
    """The numbers that a `word`, or a vector of words, is made of; None for anything else."""
    if not isinstance(value, tirx.BitwiseOr) or not isinstance(value.b, tirx.LShift):
        return None
    both = value.a, value.b.a
    if not all(isinstance(h, tirx.Cast) and dtype_of(h.value).startswith("uint16") for h in both):
        return None
    return both[0].value, both[1].value
