"""Index maps: each element of the result is one of the operand's, at another place, or a number.

``gather`` goes along one axis by a list of *pieces*, which is padding in any mode, a flip, a roll,
every second element. ``rearrange`` changes the order of axes, and of parts of axes: a transpose, a
channel shuffle, a pixel shuffle. Both count as pointwise, so that who reads a result may compute
where it lies; what they have of their own is the facet ``gathers``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from bngen.ir.attributes import shown, value_misfit
from bngen.ir.ops.row import ShapeError, Types, pointwise
from bngen.ir.types import Attrs, TensorType

FILLED = -1
"""Where a piece starts that has the number ``fill`` in place of elements."""


class Piece(NamedTuple):
    """A run of results along an axis: the i-th of ``count`` is element ``start + i * step``."""

    count: int
    start: int
    step: int

    @property
    def is_filled(self) -> bool:
        """Whether it is no element of the operand but the number ``fill``."""
        return self.start == FILLED

    def indices(self) -> list[int]:
        """The elements in order, `FILLED` for the number."""
        return [self.start + i * self.step for i in range(self.count)]


def pieces_of(attrs: Attrs) -> list[Piece]:
    """The pieces of a ``gather``, whose attribute lists their numbers one after the other."""
    return [piece for _, piece in piecewise(attrs["pieces"])]


def indices_of(attrs: Attrs) -> list[int]:
    """For each result along the axis the element that it is, or `FILLED`."""
    return [i for piece in pieces_of(attrs) for i in piece.indices()]


def piecewise(numbers: Sequence[int]) -> list[tuple[int, Piece]]:
    """Pieces as the attribute lists them, each with the place of its first result."""
    found, begin = [], 0
    for i in range(0, len(numbers), 3):
        piece = Piece(*numbers[i : i + 3])
        found.append((begin, piece))
        begin += piece.count
    return found


def flattened(pieces: Iterable[Piece]) -> tuple[int, ...]:
    """Pieces as the attribute lists them."""
    return tuple(number for piece in pieces for number in piece)


def as_pieces(indices: Sequence[int]) -> tuple[int, ...]:
    """The attribute ``pieces`` that gathers elements in this order; `FILLED` for the number.

    Greedy: a run of one step goes on as long as it can.
    """
    found: list[Piece] = []
    for index in indices:
        last = found[-1] if found else None
        if last is not None and last.is_filled == (index == FILLED):
            step = index - last.start if last.count == 1 else last.step
            if index == last.start + last.count * step:
                found[-1] = Piece(last.count + 1, last.start, step)
                continue
        found.append(Piece(1, index, 0))
    return flattened(found)


def inverses(attrs: Attrs, extent: int) -> Iterator[tuple[int, ...]]:
    """Pieces that lead back: the k-th gives each of ``extent`` elements the k-th result it is."""
    places: list[list[int]] = [[] for _ in range(extent)]
    for place, index in enumerate(indices_of(attrs)):
        if index != FILLED:
            places[index].append(place)
    for k in range(max(map(len, places))):
        yield as_pieces([p[k] if k < len(p) else FILLED for p in places])


def factors_of_axes(shape: Sequence[int], factors: Sequence[int]) -> list[list[int]] | None:
    """For each axis the positions of the factors that it is the product of, those of 1 left out.

    None where factors, in order, do not make up the axes.
    """
    found, at = [], 0
    for extent in shape:
        own, product = [], 1
        while product < extent and at < len(factors):
            product *= factors[at]
            own += [at] if factors[at] > 1 else []
            at += 1
        if product != extent:
            return None
        found.append(own)
    return found if all(f == 1 for f in factors[at:]) else None


# --- shape rules ----------------------------------------------------------------------------------


def _infer_gather(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    axis, pieces = attrs["axis"], pieces_of(attrs)
    if not axis < len(x.shape):
        raise ShapeError(f"axis {axis} is out of range for {x}")
    for piece in pieces:
        ends = (piece.start, piece.start + (piece.count - 1) * piece.step)
        inside = all(0 <= end < x.shape[axis] for end in ends)
        if not (inside or (piece.is_filled and not piece.step)):
            raise ShapeError(f"piece {list(piece)} leaves axis {axis} of {x}")
    if wrong := value_misfit(attrs["fill"], x.dtype):
        raise ShapeError(wrong)
    count = sum(piece.count for piece in pieces)
    return (TensorType((*x.shape[:axis], count, *x.shape[axis + 1 :]), x.dtype),)


def _infer_rearrange(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    split, order, shape = attrs["split"], attrs["order"], attrs["shape"]
    if math.prod(split) != x.size or math.prod(shape) != x.size:
        raise ShapeError(
            f"{x} has {x.size} elements, not those of {shown([*split])} and {shown([*shape])}"
        )
    if len(order) != len(split):
        raise ShapeError(f"{shown([*order])} is no order of {len(split)} axes")
    moved = [split[i] for i in order]
    for own, factors in ((x.shape, split), (shape, moved)):
        if factors_of_axes(own, factors) is None:
            raise ShapeError(f"the axes of {shown([*own])} are no products of {shown([*factors])}")
    return (TensorType(tuple(shape), x.dtype),)


# --- meanings -------------------------------------------------------------------------------------


def _gather(arrays, attrs):
    (x,) = arrays
    axis, indices = attrs["axis"], np.asarray(indices_of(attrs))
    taken = np.take(x, np.maximum(indices, 0), axis)
    here = (indices != FILLED).reshape(-1, *(1,) * (x.ndim - 1 - axis))
    return (np.where(here, taken, np.asarray(attrs["fill"], x.dtype)),)


def _rearrange(arrays, attrs):
    split = np.ascontiguousarray(arrays[0]).reshape(attrs["split"])
    return (np.ascontiguousarray(split.transpose(attrs["order"])).reshape(attrs["shape"]),)


GATHER = (
    pointwise(
        "gather", ("x",), _gather, _infer_gather, gathers=True, rounds=False,
        defaults={"axis": ..., "pieces": ..., "fill": 0.0},
    ),
    pointwise(
        "rearrange", ("x",), _rearrange, _infer_rearrange, gathers=True, rounds=False,
        defaults={"split": ..., "order": ..., "shape": ...},
    ),
)  # fmt: skip
