"""Reductions along the last axes of plain values: one partial result a lane, then those folded.

======================= ==================================================================
block                   computes
======================= ==================================================================
part                    for each lane, the fold of every so many elements of a row, or of each
                        chunk of a long one
fold, mid_*             a row's lanes folded, and the result in the value's own type
store_*                 the store slot
======================= ==================================================================

Floats are summed exactly, as all whole reductions are.
"""

from __future__ import annotations

from tvm import te, tirx

from bngen.lower.body import Body
from bngen.lower.coords import unravelled, zero
from bngen.lower.facts import Layouts
from bngen.lower.lowered import Lowered
from bngen.lower.opaque import dtype_of, exactly
from bngen.lower.pointwise import maximum_over
from bngen.lower.reduce import define_scaled
from bngen.lower.sweep_facts import RowFacts
from bngen.plan.kernel import Kernel
from bngen.plan.layout import physical_shape


def lower_rows(kernel: Kernel, layouts: Layouts, facts: RowFacts) -> Lowered:
    """A sum, mean or largest element along the last axes, for `bngen.scheduling.rows`."""
    node, body = kernel.anchor, Body(kernel, layouts)
    x, out = node.inputs[0], node.out
    k, rank = facts.columns, len(x.shape) - len(set(node.attrs["axes"]))
    outer, inner = x.shape[:rank], x.shape[rank:]
    largest, lanes = node.row.combine == "max", facts.lanes
    how = maximum_over(x.dtype) if largest else te.sum

    def at(row, e):
        value = body.at(x, (*row, *unravelled(e, inner)))
        return exactly(value) if x.type.is_float and not largest else value

    def element(row, e):
        value = at(row, e)
        if k % lanes == 0:
            return value
        # What lies beyond the end of a row changes nothing: the last element once more, or zero.
        beyond = at(row, k - 1) if largest else zero(dtype_of(value))
        return tirx.if_then_else(e < k, value, beyond)

    each = facts.steps // facts.chunks
    step, chunk = te.reduce_axis((0, each), "step"), te.reduce_axis((0, facts.chunks), "chunk")
    lane = te.reduce_axis((0, lanes), "lane")
    part = te.compute(
        (*outer, facts.chunks, lanes),
        lambda *i: how(element(i[:-2], (i[-2] * each + step) * lanes + i[-1]), axis=step),
        name="part",
    )
    shape = physical_shape(out.type, layouts[out]) or (1,)
    total = te.compute(
        shape, lambda *i: how(part(*i[:rank], chunk, lane), axis=[chunk, lane]), name="fold"
    )
    define_scaled(body, out, total, k if node.row.averages else 1)
    body.store_slot()
    return body.finish("fold")
