"""Coordinates of an element, and how a layout turns them into an index of physical memory.

An element of ``[N,C,H,W]`` has one coordinate an axis. In a loop over channel blocks the channel
coordinate is a `Lane` (block, lane) and stays so: reading another blocked value needs no division.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx

from bngen.dtypes import DTYPES
from bngen.ir.types import TensorType
from bngen.lower.opaque import Expr, dtype_of, holds
from bngen.lower.stored import widened
from bngen.plan.layout import Blocked, Layout, Plain


@dataclass(frozen=True)
class Lane:
    """A channel as (block, lane) of a blocked layout."""

    block: Expr
    lane: Expr
    layout: Blocked

    def logical(self) -> Expr:
        """The channel's number; unspecified for a padding lane."""
        lanes = self.layout.lanes
        if self.layout.even:
            segment, inside = self._in_segment()
            return segment * self.layout.even + inside
        rows = self.layout.block_starts()
        number = self.block * lanes + self.lane
        for channel, block, _ in rows[1:]:
            shifted = (self.block - block) * lanes + self.lane + channel
            number = tirx.Select(self.block >= block, shifted, number)
        return number

    def valid(self) -> Expr | None:
        """Whether the lane holds a channel; None where every lane does."""
        lanes, tests = self.layout.lanes, []
        if self.layout.even:
            return self._in_segment()[1] < self.layout.even if self.layout.padded else None
        for _, block, size in self.layout.block_starts():
            if size % lanes:
                last = block + size // lanes
                tests.append(tirx.any(self.block != last, self.lane < size % lanes))
        return tirx.all(*tests) if tests else None

    def _in_segment(self) -> tuple[Expr, Expr]:
        """Segment, and channel in it, where all have as many."""
        blocks = self.layout.blocks // len(self.layout.segments)
        first, block = tirx.floordiv(self.block, blocks), tirx.floormod(self.block, blocks)
        return first, block * self.layout.lanes + self.lane


Coord = Sequence[Any]


def logical(axis: Any) -> Expr:
    """A coordinate as a number."""
    return axis.logical() if isinstance(axis, Lane) else axis


def lane_of(axis: Any, layout: Blocked) -> Lane:
    """A channel coordinate as a lane of ``layout``."""
    if isinstance(axis, Lane) and axis.layout == layout:
        return axis
    number, lanes = logical(axis), layout.lanes
    if layout.even:
        segment = tirx.floordiv(number, layout.even)
        inside = tirx.floormod(number, layout.even)
        first = segment * (layout.blocks // len(layout.segments))
        return Lane(first + tirx.floordiv(inside, lanes), tirx.floormod(inside, lanes), layout)
    block, lane = number // lanes, number % lanes
    for channel, first, _ in layout.block_starts()[1:]:
        here = number >= channel
        block = tirx.Select(here, (number - channel) // lanes + first, block)
        lane = tirx.Select(here, (number - channel) % lanes, lane)
    return Lane(block, lane, layout)


def physical_index(type_: TensorType, layout: Layout, coord: Coord) -> list[Expr]:
    """Index into the physical array for a logical coordinate."""
    if isinstance(layout, Plain):
        return [logical(coord[axis]) for axis in layout.order(len(coord))]
    axis = type_.channel_axis
    lane = lane_of(coord[axis], layout)
    rest = [logical(c) for i, c in enumerate(coord) if i != axis]
    return [lane.block, *rest, lane.lane]


def logical_coord(type_: TensorType, layout: Layout, index: Sequence[Expr]) -> tuple[Any, ...]:
    """The inverse of `physical_index` for plain and blocked layouts."""
    if isinstance(layout, Plain):
        at = dict(zip(layout.order(len(index)), index, strict=True))
        return tuple(at[axis] for axis in range(len(index)))
    axis = type_.channel_axis
    rest = list(index[1:-1])
    rest.insert(axis, Lane(index[0], index[-1], layout))
    return tuple(rest)


def guard(layout: Layout, coord: Coord) -> Expr | None:
    """The condition under which a value of a layout lies at a coordinate; None for always.

    A padding lane of another layout has the number of a channel that may be the next segment's, or
    none at all.
    """
    tests = [c.valid() for c in coord if isinstance(c, Lane) and c.layout != layout]
    present = [t for t in tests if t is not None]
    return holds(tirx.all(*present)) if present else None


def read(
    tensor: te.Tensor, type_: TensorType, layout: Layout, coord: Coord, *, bits: bool = False
) -> Expr:
    """The element at a coordinate; zero for a lane that holds no channel of another layout.

    Args:
        tensor: a buffer of the physical shape.
        type_: of the value in it.
        layout: how it lies there.
        coord: logical coordinate.
        bits: as it lies in memory, not as a number.
    """
    element = tensor(*physical_index(type_, layout, coord))
    element = element if bits else widened(element, type_.dtype)
    condition = guard(layout, coord)
    return element if condition is None else guarded(condition, element)


def guarded(condition: Expr, element: Expr) -> Expr:
    """An element that may be read only where a condition holds; zero elsewhere.

    Never a `tirx.Select`, which evaluates both of its sides.
    """
    return tirx.if_then_else(condition, element, tirx.const(0, dtype_of(element)))


def zero(dtype: str) -> Expr:
    """The additive identity of a type, or of the one that it is computed in."""
    return tirx.const(0, DTYPES[dtype].computed)


def broadcast_coord(coord: Coord, shape: tuple[int, ...], out: tuple[int, ...]) -> tuple[Any, ...]:
    """The coordinate of a NumPy-broadcast operand of ``shape`` for an element of ``out``."""
    tail = list(coord)[len(out) - len(shape) :]
    extents = out[len(out) - len(shape) :]
    return tuple(
        0 if s == 1 and o != 1 else c for c, s, o in zip(tail, shape, extents, strict=True)
    )


def unravelled(number: Expr, shape: tuple[int, ...]) -> tuple[Expr, ...]:
    """The coordinate of the element of that number, in C order, of an array."""
    coord = []
    for extent in reversed(shape[1:]):
        coord.append(tirx.floormod(number, extent))
        number = tirx.floordiv(number, extent)
    return (number, *reversed(coord)) if shape else ()
