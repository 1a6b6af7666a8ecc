"""Element types that are only stored: bits in memory, numbers of a wider type to compute with.

In: elements of memory, or numbers that are to go there. Out: the other. An expression for a value
of such a type is a number of the type it is computed in that the stored one holds exactly: what is
to be rounded was rounded by a ``cast`` of the program, and storing drops zeros.

====================== ==============================================================
``widened(bits)``      the number; exact
``rounded(number)``    the nearest number that the stored type holds, ties to even; NaN stays NaN
``narrowed(number)``   the bits of such a number
====================== ==============================================================

Where an instruction rounds (`bngen.codegen.pairs`), subnormal numbers become zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx

from bngen.dtypes import DTYPES
from bngen.ir.types import Value
from bngen.lower.opaque import Expr, dtype_of, like, opaque


@dataclass(frozen=True)
class Conversion:
    """How numbers of a type become those of the one it is computed in, and back."""

    widened: Callable[[Expr], Expr]
    rounded: Callable[[Expr], Expr]
    narrowed: Callable[[Expr], Expr]


def computed(v: Value) -> str:
    """TVM's name of the type in which elements of a value are computed."""
    return v.type.element.computed


def is_narrow(v: Value) -> bool:
    """Whether what lies in memory of a value is not what it is computed in."""
    return v.type.element.stored_only


def in_memory(v: Value) -> str:
    """TVM's name of the type of a value's elements in memory."""
    return v.type.element.tvm


def widened(element: Expr, dtype: str) -> Expr:
    """An element of memory as a number; one that is a number already stays."""
    row = DTYPES[dtype]
    if not row.stored_only or dtype_of(element) != row.tvm:
        return element
    return CONVERSIONS[dtype].widened(element)


def narrowed(number: Expr, dtype: str) -> Expr:
    """A number as memory holds it."""
    return CONVERSIONS[dtype].narrowed(number) if DTYPES[dtype].stored_only else number


def rounded(number: Expr, dtype: str) -> Expr:
    """The nearest number that elements of a type in memory can be."""
    return CONVERSIONS[dtype].rounded(number) if DTYPES[dtype].stored_only else number


@dataclass(frozen=True)
class Widened:
    """A buffer of bits, indexed for numbers."""

    tensor: te.Tensor
    dtype: str

    @property
    def shape(self) -> Any:
        """Extents of the buffer."""
        return self.tensor.shape

    def __getitem__(self, index: Any) -> Expr:
        return self(*index)

    def __call__(self, *index: Expr) -> Expr:  # noqa: D102
        return widened(self.tensor(*index), self.dtype)


# --- bfloat16: the upper half of a float32 ------------------------------------------------------

_HALF, _LAST, _UPPER, _QUIET = 0x7FFF, 1, 0xFFFF0000, 0x00400000


def _as(kind: str, x: Expr) -> Expr:
    """The bits of a scalar or a vector as another type of that size."""
    _, by, lanes = dtype_of(x).partition("x")
    return tirx.reinterpret(kind + by + lanes, x)


def _round_upper(x: Expr) -> Expr:
    bits = _as("uint32", x)
    # Half a unit, less one where the last digit that stays is even; a carry is the next exponent.
    odd = tirx.bitwise_and(tirx.shift_right(bits, like(bits, 16)), like(bits, _LAST))
    near = tirx.bitwise_and(bits + (odd + like(bits, _HALF)), like(bits, _UPPER))
    nan = tirx.bitwise_and(tirx.bitwise_or(bits, like(bits, _QUIET)), like(bits, _UPPER))
    return _as("float32", tirx.Select(tirx.EQ(x, x), near, nan))


_rounded_upper = opaque("round_to_bfloat16", _round_upper)


def _widen_upper(bits: Expr) -> Expr:
    return tirx.reinterpret("float32", tirx.Cast("uint32", bits) << tirx.const(16, "uint32"))


def _upper(x: Expr) -> Expr:
    return tirx.Cast("uint16", tirx.reinterpret("uint32", x) >> tirx.const(16, "uint32"))


CONVERSIONS: dict[str, Conversion] = {
    "bfloat16": Conversion(_widen_upper, _rounded_upper, _upper),
}
"""Type that is only stored -> how it is converted."""
