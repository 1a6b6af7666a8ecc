"""Reductions that leave the last axis of plain values: sums of columns, chunk by chunk.

======================= ==================================================================
block                   computes
======================= ==================================================================
part                    the fold of each chunk of the first axis that is reduced, if there are
                        several
fold, mid_*             all of them, and the result in the value's own type
store_*                 the store slot
======================= ==================================================================

Floats are summed exactly, as all whole reductions are.
"""

from __future__ import annotations

from tvm import te

from bngen.ir.ops.reduce import normalize_axes
from bngen.lower.body import Body
from bngen.lower.facts import Layouts
from bngen.lower.lowered import Lowered
from bngen.lower.opaque import exactly
from bngen.lower.pointwise import maximum_over
from bngen.lower.reduce import define_scaled
from bngen.lower.sweep_facts import ColumnFacts
from bngen.plan.kernel import Kernel


def lower_columns(kernel: Kernel, layouts: Layouts, facts: ColumnFacts) -> Lowered:
    """A sum, mean or largest element of columns, for `bngen.scheduling.columns`."""
    node, body = kernel.anchor, Body(kernel, layouts)
    x, out = node.inputs[0], node.out
    first, *others = normalize_axes(node.attrs["axes"], len(x.shape))
    chunks, extent = facts.chunks, x.shape[first] // facts.chunks
    largest = node.row.combine == "max"
    how = maximum_over(x.dtype) if largest else te.sum
    folded = {a: te.reduce_axis((0, x.shape[a]), f"a{a}") for a in others}
    step = te.reduce_axis((0, extent), f"a{first}")

    def element(chunk, index):
        kept = list(index)
        coord = []
        for axis in range(len(x.shape)):
            if axis != first and axis not in folded:
                coord.append(kept.pop(0))
                continue
            if node.attrs["keepdims"]:
                kept.pop(0)
            coord.append(folded[axis] if axis in folded else chunk * extent + step)
        value = body.at(x, tuple(coord))
        wide = x.type.is_float and not largest
        return how(exactly(value) if wide else value, axis=[step, *folded.values()])

    if chunks == 1:
        total = te.compute(out.shape, lambda *i: element(0, i), name="fold")
    else:
        part = te.compute((chunks, *out.shape), lambda c, *i: element(c, i), name="part")
        chunk = te.reduce_axis((0, chunks), "chunk")
        total = te.compute(out.shape, lambda *i: how(part(chunk, *i), axis=chunk), name="fold")
    define_scaled(body, out, total, facts.reduced if node.row.averages else 1)
    body.store_slot()
    return body.finish("fold")
