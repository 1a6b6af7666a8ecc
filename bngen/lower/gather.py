"""Index maps: which element of the operand an element of the result is.

In: the node and a coordinate of its result. Out: the coordinate of the operand, always inside it
(an element that is a number is chosen afterwards, from one that need not have been read), and
whether the element is one at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from tvm import tirx

from bngen.ir.node import Node
from bngen.ir.ops.gather import Piece, as_pieces, factors_of_axes, pieces_of, piecewise
from bngen.ir.ops.resize import taps_of
from bngen.lower.coords import Coord, Lane, logical
from bngen.lower.opaque import Expr


def _gathered(node: Node, coord: Coord) -> Coord:
    axis = node.attrs["axis"]
    source = list(coord)
    source[axis] = _along(node, _number(coord[axis], node.out.shape[axis]))
    return tuple(source)


def _number(axis: Any, extent: int) -> Expr:
    """A coordinate as a number within its axis, also in lanes that hold no channel."""
    if isinstance(axis, Lane) and axis.valid() is not None:
        return tirx.min(axis.logical(), extent - 1)
    return logical(axis)


def _along(node: Node, at: Expr) -> Expr:
    """The element for the result ``at``, and any where that is a number."""
    last = node.inputs[0].shape[node.attrs["axis"]] - 1

    def element(i: int, number: Expr) -> Expr:
        return tirx.max(tirx.min(number, last), 0) if runs[i][1] else number

    runs = _runs(pieces_of(node.attrs))
    return _chosen([run for run, _ in runs], at, element)


def _chosen(pieces: Sequence[Piece], at: Expr, element: Callable[[int, Expr], Expr]) -> Expr:
    """``element(number of a piece, index)`` of the piece that holds the place ``at``."""
    result, begin = None, sum(piece.count for piece in pieces)
    for i, piece in reversed([*enumerate(pieces)]):
        end, begin = begin, begin - piece.count
        here = element(i, piece.start + (at - begin) * piece.step)
        result = here if result is None else tirx.Select(at < end, here, result)
    return result


def _runs(pieces: list[Piece]) -> list[tuple[Piece, bool]]:
    """Pieces of elements, each with the numbers around it, which count as elements beyond its ends.

    True for those that have numbers around them.
    """
    runs: list[tuple[Piece, bool]] = []
    before = 0
    for piece in pieces:
        if not piece.is_filled:
            start = piece.start - before * piece.step
            runs.append((Piece(before + piece.count, start, piece.step), before > 0))
            before = 0
        elif runs:
            run, _ = runs[-1]
            runs[-1] = (run._replace(count=run.count + piece.count), True)
        else:
            before += piece.count
    return runs or [(Piece(before, 0, 0), False)]


def filled(node: Node, coord: Coord) -> Expr | None:
    """Whether the element of a ``gather`` at a coordinate is a number; None where none is."""
    axis, begin, tests = node.attrs["axis"], 0, []
    at, extent = logical(coord[axis]), node.out.shape[axis]
    for piece in pieces_of(node.attrs):
        end = begin + piece.count
        if piece.is_filled:
            bounds = ([at >= begin] if begin else []) + ([at < end] if end < extent else [])
            tests.append(tirx.all(*bounds) if bounds else tirx.const(1, "bool"))
        begin = end
    return tirx.any(*tests) if tests else None


def _rearranged(node: Node, coord: Coord) -> Coord:
    """Axes into their factors, those into the operand's axes; what stays whole stays as it is."""
    (x,), split, order = node.inputs, node.attrs["split"], node.attrs["order"]
    digits: dict[int, Any] = {}
    moved = [split[i] for i in order]
    for axis, extent, factors in zip(
        coord, node.out.shape, factors_of_axes(node.out.shape, moved), strict=True
    ):
        if len(factors) == 1:
            digits[order[factors[0]]] = axis
            continue
        rest = _number(axis, extent)
        for k in reversed(factors):
            whole = k == factors[0]
            digits[order[k]] = rest if whole else tirx.floormod(rest, moved[k])
            rest = tirx.floordiv(rest, moved[k])
    source = []
    for factors in factors_of_axes(x.shape, split):
        if len(factors) == 1:
            source.append(digits[factors[0]])
            continue
        number: Expr = tirx.const(0, "int32")
        for k in factors:
            number = number * split[k] + _number(digits[k], split[k])
        source.append(number)
    return tuple(source)


# --- the nearest element ------------------------------------------------------------------------

MOST_INT32 = 2**31 - 1

Formula = Callable[[Expr], Expr]


def nearest_formulas(node: Node, shape: Sequence[int]) -> list[Formula]:
    """For h and w of an operand of ``shape``: the place of a result -> its nearest element."""
    return [
        _formula(taps.elements[0], scale)
        for taps, scale in zip(
            taps_of(node.op, shape, node.attrs), node.attrs["scale"], strict=True
        )
    ]


def _formula(indices: np.ndarray, scale: float) -> Formula:
    """An expression that gives these indices, found by trying: floats would round elsewhere."""
    out, last = len(indices), int(indices[-1])
    exact = Fraction(scale)
    ratios = [Fraction(last + 1, out), *(exact.limit_denominator(2**k) for k in range(15))]
    for ratio in dict.fromkeys(ratios):
        num, den = 2 * ratio.numerator, 2 * ratio.denominator
        for offset in (0, ratio.numerator):
            found = (np.arange(out) * num + offset) // den
            fits = out * num + offset <= MOST_INT32
            if fits and np.array_equal(np.minimum(found, last), indices):
                return _quotient(num, den, offset, last if found[-1] > last else None)
    pieces = [piece for _, piece in piecewise(as_pieces(indices.tolist()))]
    return lambda at: _chosen(pieces, at, lambda i, number: number)


def _quotient(num: int, den: int, offset: int, most: int | None) -> Formula:
    def at_most(at: Expr) -> Expr:
        found = tirx.floordiv(at * num + offset, den)
        return found if most is None else tirx.min(found, most)

    return at_most


def _nearest(node: Node, coord: Coord) -> Coord:
    rows, columns = nearest_formulas(node, node.inputs[0].shape)
    return (coord[0], coord[1], rows(logical(coord[2])), columns(logical(coord[3])))


SOURCES: dict[str, Callable[[Node, Coord], Coord]] = {
    "gather": _gathered,
    "rearrange": _rearranged,
    "resize_nearest": _nearest,
}
"""Op -> the coordinate of its operand for one of its result."""
