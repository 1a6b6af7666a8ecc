"""Pairs of bfloat16: words of two, and sums of their products.

A word is 32 bits, the first of the pair in the low half. A sum of products of pairs is written as
any other, ``te.sum(pair_product(a, b), ..)``, over half as many terms, and scheduled as any other;
what instructions become of it is `bngen.codegen.pairs`'s to say.
"""

from __future__ import annotations

from tvm import tirx

from bngen.lower.opaque import Expr, dtype_of

_HALF = 16


def word(low: Expr, high: Expr) -> Expr:
    """Two numbers of 16 bits as one word."""
    wide = [tirx.Cast("uint32", half) for half in (low, high)]
    return tirx.BitwiseOr(wide[0], wide[1] << tirx.const(_HALF, "uint32"))


def halves(value: Expr) -> tuple[Expr, Expr] | None:
    """The numbers that a `word`, or a vector of words, is made of; None for anything else."""
    if not isinstance(value, tirx.BitwiseOr) or not isinstance(value.b, tirx.LShift):
        return None
    both = value.a, value.b.a
    if not all(isinstance(h, tirx.Cast) and dtype_of(h.value).startswith("uint16") for h in both):
        return None
    return both[0].value, both[1].value
