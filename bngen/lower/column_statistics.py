"""Statistics of the columns of rows ``[N, C]``, and the sums of their gradient: one sweep.

======================= ==================================================================
block                   computes
======================= ==================================================================
first                   what deviations are taken from: the first row
part                    the sums of each chunk of rows, if there are several
fold                    all of them, in the exact type
mid_*                   the results in the value's own type
store_*                 the store slot
======================= ==================================================================

The first row is as good as the mean. With ``D`` its deviation from that, the squares summed exceed
the variance by ``D**2``, and as the row is one of the ``N`` the variance is at least ``D**2 / N``:
what cancels is a factor of ``N`` at most, of the exact type's digits. See Chan, Golub and LeVeque,
*Algorithms for computing the sample variance* (1983), on shifted data.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import te, tirx

from bngen.ir.node import Node
from bngen.lower.body import Body
from bngen.lower.facts import Layouts
from bngen.lower.lowered import Lowered
from bngen.lower.opaque import Expr, bind, dtype_of, exactly
from bngen.lower.reduce import define_scaled
from bngen.lower.sums import both_sums
from bngen.lower.sweep_facts import ColumnFacts
from bngen.plan.kernel import Kernel

Terms = Callable[[Expr, Expr], tuple[Expr, ...]]
"""(row, column) -> what is summed up, one or two numbers of the exact type."""


def lower_column_statistics(kernel: Kernel, layouts: Layouts, facts: ColumnFacts) -> Lowered:
    """A reduction of `STATISTICS`, for `bngen.scheduling.columns`."""
    body = Body(kernel, layouts)
    STATISTICS[kernel.anchor.op](body, kernel.anchor, facts)
    body.store_slot()
    return body.finish("fold")


def _sums(facts: ColumnFacts, terms: Terms) -> list[te.Tensor]:
    """Vectors of the sums of terms over all rows, chunk by chunk."""
    chunks, columns = facts.chunks, facts.columns
    each = facts.first // chunks
    row, chunk = te.reduce_axis((0, each), "row"), te.reduce_axis((0, chunks), "chunk")

    def folded(values: tuple[Expr, ...], axis: te.IterVar) -> Expr:
        return both_sums(values, axis=axis) if len(values) > 1 else te.sum(*values, axis=axis)

    def stages(found: te.Tensor | list[te.Tensor]) -> list[te.Tensor]:
        return [found] if isinstance(found, te.Tensor) else list(found)

    if chunks == 1:
        return stages(te.compute((columns,), lambda c: folded(terms(row, c), row), name="fold"))
    parts = stages(
        te.compute(
            (chunks, columns), lambda p, c: folded(terms(p * each + row, c), row), name="part"
        )
    )
    return stages(
        te.compute(
            (columns,), lambda c: folded(tuple(p(chunk, c) for p in parts), chunk), name="fold"
        )
    )


def _stats(body: Body, node: Node, facts: ColumnFacts) -> None:
    """Mean and biased variance, from the sums of deviations from the first row and their squares.

    Of an infinite first row nothing deviates by a number: zero takes its place, and the mean is
    that infinity.
    """
    (x,), (mean, var) = node.inputs, node.outputs

    def finite(c: Expr) -> Expr:
        return bind(
            body.at(x, (0, c)),
            lambda v: tirx.Select(
                tirx.abs(v) < tirx.const(math.inf, dtype_of(v)), v, tirx.const(0, dtype_of(v))
            ),
        )

    first = te.compute((facts.columns,), finite, name="first")

    def terms(i: Expr, c: Expr) -> tuple[Expr, Expr]:
        def deviation() -> Expr:
            return exactly(body.at(x, (i, c))) - exactly(first(c))

        return deviation(), bind(deviation(), lambda d: d * d)

    total, squares = _sums(facts, terms)
    share = tirx.const(1.0 / facts.first, str(total.dtype))

    def centre(c: Expr) -> Expr:
        return tirx.Cast(mean.dtype, exactly(first(c)) + total(c) * share)

    def spread(c: Expr) -> Expr:
        zero = tirx.const(0, str(total.dtype))
        rest = squares(c) - total(c) * total(c) * share
        return tirx.Cast(var.dtype, bind(rest, lambda r: tirx.Select(r < zero, zero, r)) * share)

    body.define(mean, te.compute(total.shape, centre, name="mid_mean"))
    body.define(var, te.compute(total.shape, spread, name="mid_var"))


def _mean(body: Body, node: Node, facts: ColumnFacts) -> None:
    (x,) = node.inputs
    (total,) = _sums(facts, lambda i, c: (exactly(body.at(x, (i, c))),))
    define_scaled(body, node.out, total, facts.first)


def _var(body: Body, node: Node, facts: ColumnFacts) -> None:
    x, mean = node.inputs

    def square(i: Expr, c: Expr) -> tuple[Expr]:
        centred = body.at(x, (i, c)) - body.at(mean, (c,))
        return (exactly(bind(centred, lambda d: d * d)),)

    (total,) = _sums(facts, square)
    define_scaled(body, node.out, total, facts.first)


def _gradient_sums(body: Body, node: Node, facts: ColumnFacts) -> None:
    dy, x, mean = node.inputs

    def terms(i: Expr, c: Expr) -> tuple[Expr, Expr]:
        centred = body.at(dy, (i, c)) * (body.at(x, (i, c)) - body.at(mean, (c,)))
        return exactly(body.at(dy, (i, c))), exactly(centred)

    for v, total in zip(node.outputs, _sums(facts, terms), strict=True):
        define_scaled(body, v, total, 1)


STATISTICS: dict[str, Callable[[Body, Node, ColumnFacts], None]] = {
    "bn_stats": _stats,
    "bn_mean": _mean,
    "bn_var": _var,
    "bn_grad_sums": _gradient_sums,
}
"""Op -> the stages that define its results."""
