"""Partial reductions over groups of rows, as stages of a kernel.

In: how a kernel reads its values, and a partial reduction. Out: a stage for each of its results, of
shape ``(Cb, N, groups/N, lanes)``; `SUMS` has a row for every such op.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import te, tirx

from bngen.ir.node import Node
from bngen.ir.types import Value
from bngen.lower.coords import Coord, Lane
from bngen.lower.lowered import Lowered, identifier
from bngen.lower.opaque import Expr, bind, exactly
from bngen.lower.pointwise import maximum_over
from bngen.plan.layout import Blocked

Term = Callable[[Coord], Expr]
Read = Callable[[Value, Coord], Expr]
"""(value, coordinate) -> the element, from wherever the kernel has it."""


def sums_of_rows(node: Node, read: Read, layout: Blocked, lowered: Lowered) -> list[te.Tensor]:
    """Stages of a partial reduction, one for each of its results.

    Args:
        node: the reduction.
        read: how the kernel reads an element.
        layout: of the map that is reduced.
        lowered: the kernel, which is told which stages there are.
    """
    return SUMS[node.op](_Rows(node, read, layout, lowered))


@dataclass(frozen=True)
class _Rows:
    """The groups of rows that a reduction goes over."""

    node: Node
    read: Read
    layout: Blocked
    lowered: Lowered

    @property
    def x(self) -> Value:
        """The map that is reduced."""
        return self.node.inputs[0]

    @property
    def names(self) -> list[str]:
        """The results' names, as parts of identifiers."""
        return [identifier(v.name) for v in self.node.outputs]

    @property
    def rows(self) -> int:
        """Rows of a group."""
        n, _, h, _ = self.x.shape
        return h // (self.node.attrs["row_groups"] // n)

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents of a result in memory."""
        n, _, h, _ = self.x.shape
        return (self.layout.blocks, n, h // self.rows, self.layout.lanes)

    def at(self, coord: Coord) -> Expr:
        """The element of the map."""
        return self.read(self.x, coord)

    def over(self, element: Callable[[Coord, tuple[Expr, ...]], Expr], name: str, how=te.sum):
        """A stage that folds ``element(coordinate, index of the result)`` over each group."""
        hi, wi = te.reduce_axis((0, self.rows), "hi"), te.reduce_axis((0, self.x.shape[3]), "wi")

        def folded(cb, image, group, lane):
            coord = (image, Lane(cb, lane, self.layout), group * self.rows + hi, wi)
            return how(element(coord, (cb, image, group, lane)), axis=[hi, wi])

        return te.compute(self.shape, folded, name=name)

    def fold(self, term: Term, name: str, how=te.sum) -> te.Tensor:
        """A stage that folds ``term(coordinate)``, and may read one tile at a time."""
        stage = self.over(lambda coord, _: term(coord), name, how)
        self.lowered.sums.append(name)
        return stage


def _sum(rows: _Rows) -> list[te.Tensor]:
    return [rows.fold(rows.at, f"sum_{rows.names[0]}")]


def _maximum(rows: _Rows) -> list[te.Tensor]:
    return [rows.fold(rows.at, f"sum_{rows.names[0]}", maximum_over(rows.x.dtype))]


def _squares(rows: _Rows) -> list[te.Tensor]:
    """The sum of squared deviations from a given mean."""
    mean = rows.node.inputs[1]

    def square(c: Coord) -> Expr:
        return bind(rows.at(c) - rows.read(mean, (c[1],)), lambda d: d * d)

    return [rows.fold(square, f"sum_{rows.names[0]}")]


def _gradient_sums(rows: _Rows) -> list[te.Tensor]:
    """The sum of a gradient, and of it times the deviation of another map from its mean."""
    value, mean = rows.node.inputs[1:]

    def centred(c: Coord) -> Expr:
        return rows.at(c) * (rows.read(value, c) - rows.read(mean, (c[1],)))

    whole, product = rows.names
    return [rows.fold(rows.at, f"sum_{whole}"), rows.fold(centred, f"sum_{product}")]


def _moments(rows: _Rows) -> list[te.Tensor]:
    """Sum, then squares and sum of the deviations from the group's own rounded mean.

    Two passes over a group that is still in cache: no cancellation however large the mean. The mean
    is a division, which no compiler contracts with the subtraction that follows; the merge repeats
    it bit by bit.
    """
    total = rows.fold(rows.at, f"sum_{rows.names[0]}")
    count = rows.rows * rows.x.shape[3]

    def deviation(coord: Coord, index: tuple[Expr, ...]) -> tuple[Expr, Expr]:
        centre = total(*index) / tirx.const(count, rows.x.dtype)
        # Two expressions: one that binds a name must not appear twice in a function.
        squared = bind(rows.at(coord) - centre, lambda d: d * d)
        return squared, rows.at(coord) - centre

    spread, residual = rows.over(deviation, f"m2_{rows.names[1]}", both_sums)
    rows.lowered.deviations.append(spread.op.name)
    return [total, spread, residual]


both_sums = te.comm_reducer(
    lambda a, b: (a[0] + b[0], a[1] + b[1]),
    lambda s, t: (tirx.const(0, s), tirx.const(0, t)),
    name="both_sums",
)
"""Two sums in one sweep."""


def _wide_sum(rows: _Rows) -> list[te.Tensor]:
    """A group's sum in the exact type, as a rounded sum and the rest."""
    dtype, (rounded_name, rest_name) = rows.x.dtype, rows.names
    wide = rows.over(lambda coord, _: exactly(rows.at(coord)), "wide")
    rounded = te.compute(
        rows.shape, lambda *i: tirx.Cast(dtype, wide(*i)), name=f"sum_{rounded_name}"
    )
    rest = te.compute(
        rows.shape,
        lambda *i: tirx.Cast(dtype, wide(*i) - exactly(rounded(*i))),
        name=f"rest_{rest_name}",
    )
    return [rounded, rest]


SUMS: dict[str, Callable[[_Rows], list[te.Tensor]]] = {
    "partial_sum": _sum,
    "partial_max": _maximum,
    "bn_partial_var": _squares,
    "bn_grad_partial_sums": _gradient_sums,
    "bn_partial_mean": _wide_sum,
    "bn_partial_stats": _moments,
}
"""Partial reduction -> its stages."""
