"""Matrix products. Blocks: ``fold`` (the sums), ``merge`` (of lanes), then the store slot."""

from __future__ import annotations

from tvm import te, tirx

from bngen.lower.body import Body
from bngen.lower.facts import Layouts
from bngen.lower.lowered import Lowered
from bngen.lower.opaque import exactly
from bngen.plan.kernel import Kernel

LONG_SUM = 2048
"""Products that a matrix product sums in the element's own type, one after the other."""


def _long_sum(value, axis):
    """A sum over one axis, in the exact type where it is so long that digits would go."""
    long = int(axis.dom.extent) > LONG_SUM
    return te.sum(exactly(value) if long else value, axis=axis)


def lower_matmul(kernel: Kernel, layouts: Layouts) -> Lowered:
    """``op(a) @ op(b)``; one partial sum a lane where both lie along the inner extent."""
    node = kernel.anchor
    body = Body(kernel, layouts)
    a, b = node.inputs
    ta, tb = node.attrs["trans_a"], node.attrs["trans_b"]
    (m, n), k = node.out.shape, a.shape[0] if ta else a.shape[1]

    def product(i, j, e):
        return body.at(a, (e, i) if ta else (i, e)) * body.at(b, (j, e) if tb else (e, j))

    lanes = next((v for v in (16, 8, 4) if k % v == 0), 1)
    if tb and not ta and lanes > 1:
        eo, lane = te.reduce_axis((0, k // lanes), "eo"), te.reduce_axis((0, lanes), "lane")
        wide = te.compute(
            (m, n, lanes),
            lambda i, j, el: _long_sum(product(i, j, eo * lanes + el), eo),
            name="fold",
        )
        total = te.compute((m, n), lambda i, j: te.sum(wide(i, j, lane), axis=lane), name="merge")
    else:
        e = te.reduce_axis((0, k), "e")
        total = te.compute((m, n), lambda i, j: _long_sum(product(i, j, e), e), name="fold")
    if str(total.dtype) != node.out.dtype:
        long = total
        total = te.compute(
            (m, n), lambda i, j: tirx.Cast(node.out.dtype, long(i, j)), name="mid_product"
        )
        body.lowered.tiles.append("mid_product")
    body.define(node.out, total)
    body.store_slot()
    return body.finish("fold")
