"""One row an element type: nothing else in bngen knows that a float32 has four bytes.

In: a type's name. Out: its row: how many bytes an element takes, what others call the type, what it
becomes beside another, what its sums run in. The rows stand in the order of promotion, so a new
type is a new row in its place; only a strategy that wants special instructions names a type.

Names of types are plain strings in programs, plans and bundles; this module imports nothing, so
that the runtime, which sees no compiler room, reads the same rows.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DType:
    """An element type.

    Attributes:
        name: as programs and plans write it.
        short: as the text form writes it.
        kind: ``bool``, ``int`` or ``float``; in this order, a kind beats the one before.
        nbytes: bytes of an element in memory.
        code: DLPack's (``DLDataTypeCode``).
        least: the least finite number it holds; numbers of an integer kind are exact.
        most: the greatest.
        ulp: unit in the last place: from 1 to the next number; 0 unless ``float``.
        accumulator: the type that sums of products run in: convolutions, sums of gradients.
        exact: the type that statistics and folds over whole axes are summed in.
        numpy: NumPy's name, perhaps one that ``ml_dtypes`` tells it.
        tvm: TVM's name for what lies in memory.
        torch: PyTorch's name.
        stored_only: numbers of this type only lie in memory: whoever computes with them does so in
            the accumulator and rounds what is to be of this type again, by casts in the graph.
    """

    name: str
    short: str
    kind: str
    nbytes: int
    code: int
    least: int | float
    most: int | float
    ulp: float
    accumulator: str
    exact: str
    numpy: str
    tvm: str
    torch: str
    stored_only: bool = False

    @property
    def computed(self) -> str:
        """The type that elements are computed in: itself, unless they are only stored."""
        return self.accumulator if self.stored_only else self.name

    @property
    def bits(self) -> int:
        """Bits of an element in memory."""
        return 8 * self.nbytes

    @property
    def is_float(self) -> bool:
        """Whether gradients can flow through its values."""
        return self.kind == "float"

    @property
    def overflow(self) -> float:
        """The least number that rounds to infinity: half a unit beyond the greatest."""
        _, exponent = math.frexp(self.most)
        return self.most + math.ldexp(self.ulp / 2, exponent - 1)

    @property
    def scalar(self) -> type:
        """The Python type of its numbers."""
        return {"bool": bool, "int": int, "float": float}[self.kind]

    @property
    def public(self) -> str:
        """What ``bngen`` exports it as: its name, unless that would hide one of Python's."""
        return f"{self.name}_" if hasattr(builtins, self.name) else self.name


def _whole(name: str, short: str, nbytes: int, kind: str = "int") -> DType:
    """A row of exact numbers, whose sums wrap in their own type."""
    bits, signed = (1 if kind == "bool" else 8 * nbytes), name.startswith("int")
    least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    code = 6 if kind == "bool" else 0 if signed else 1
    return DType(name, short, kind, nbytes, code, least, most, 0.0, name, name, name, name, name)


def _floating(
    name: str,
    short: str,
    nbytes: int,
    digits: int,
    exponent: int,
    accumulator: str,
    exact: str,
    **more: Any,
) -> DType:
    """A row of binary floats: fraction bits of the significand, exponent of the greatest."""
    ulp = math.ldexp(1.0, -digits)
    most = math.ldexp(2.0 - ulp, exponent)
    names = {"code": 2, "numpy": name, "tvm": name, "torch": name, **more}
    return DType(
        name, short, "float", nbytes, least=-most, most=most, ulp=ulp, accumulator=accumulator,
        exact=exact, **names,
    )  # fmt: skip


def _stored(*row: Any, **more: Any) -> DType:
    """A row of floats that are only stored; kernels know their bits as an integer of that size."""
    return _floating(*row, **more, stored_only=True)


_ROWS = (
    _whole("bool", "b1", 1, "bool"),
    _whole("uint8", "u8", 1),
    _whole("int32", "i32", 4),
    _whole("int64", "i64", 8),
    _stored(
        "bfloat16",
        "bf16",
        2,
        7,
        127,
        accumulator="float32",
        exact="float64",
        code=4,
        tvm="uint16",
    ),
    _floating("float32", "f32", 4, 23, 127, accumulator="float32", exact="float64"),
    _floating("float64", "f64", 8, 52, 1023, accumulator="float64", exact="float64"),
)

DTYPES: dict[str, DType] = {row.name: row for row in _ROWS}
"""Name -> row, in the order of promotion."""
OF_SHORT: dict[str, DType] = {row.short: row for row in _ROWS}
"""The text form's name -> row."""
FLOAT = "float32"
"""What floats are that come out of nothing: Python's numbers, random ones, ratios of integers."""
BOOL = "bool"
"""What comparisons give and conditions are."""
INDEX = "int64"
"""What integers are that come out of nothing, and what counts and labels are computed in."""
PAIRED = "bfloat16"
"""What some CPUs have an instruction for that adds the products of two pairs to a float."""
TILES = "tiles"
"""Of convolutions that multiply such pairs: those alone whose sums fill a matrix unit's tiles."""
EXACT = "float64"
"""What is computed once a step, and for all of it, in."""
NAMES = ", ".join(sorted(DTYPES, key=lambda n: (not DTYPES[n].is_float, n == "bool", n)))
"""All of them, as messages list them: floats first, bool last."""

_RANK = {name: rank for rank, name in enumerate(DTYPES)}
_KINDS = ("bool", "int", "float")


def meet(tiers: Iterable[Iterable[str]]) -> str:
    """The type in which operands meet: PyTorch's promotion rule.

    Args:
        tiers: types of the tensors with axes, of those without, and of the numbers. Within a tier
            the later row wins; a later tier counts only where it is of a higher kind.

    Returns:
        A type's name; empty where nothing meets.
    """
    result = ""
    for tier in tiers:
        top = max(tier, key=_RANK.__getitem__, default="")
        if top and (not result or _kind(top) > _kind(result)):
            result = top
    return result


def _kind(name: str) -> int:
    return _KINDS.index(DTYPES[name].kind)
