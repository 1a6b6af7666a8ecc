"""Reductions over the channels of a map in channel blocks: one partial result a lane, then folded.

======================= ==================================================================
block                   computes
======================= ==================================================================
part                    for each pixel and lane, the fold of all channel blocks
fold, mid_*             a pixel's lanes folded, and the result in the value's own type
store_*                 the store slot
======================= ==================================================================

Floats are summed exactly, as all whole reductions are. Lanes that hold no channel change nothing.
"""

from __future__ import annotations

import math

from tvm import te

from bngen.dtypes import DTYPES
from bngen.lower.body import Body
from bngen.lower.coords import Lane
from bngen.lower.facts import Layouts
from bngen.lower.lowered import Lowered
from bngen.lower.opaque import exactly
from bngen.lower.pointwise import maximum_over
from bngen.lower.reduce import define_scaled
from bngen.plan.kernel import Kernel


def lower_pixels(kernel: Kernel, layouts: Layouts) -> Lowered:
    """A sum, mean or largest element over channels, for `bngen.scheduling.pixels`."""
    node, body = kernel.anchor, Body(kernel, layouts)
    x, out = node.inputs[0], node.out
    layout = layouts[x]
    (n, channels, h, w), largest = x.shape, node.row.combine == "max"
    how = maximum_over(x.dtype) if largest else te.sum
    least = _least(x.dtype) if largest else 0

    def element(image, row, column, lane):
        value = body.masked(x, (image, Lane(cb, lane, layout), row, column), least)
        return exactly(value) if x.type.is_float and not largest else value

    cb = te.reduce_axis((0, layout.blocks), "cb")
    lane = te.reduce_axis((0, layout.lanes), "lane")
    part = te.compute((n, h, w, layout.lanes), lambda *i: how(element(*i), axis=cb), name="part")

    def folded(*index):
        image, row, column = index if len(index) == 3 else (index[0], *index[2:])
        return how(part(image, row, column, lane), axis=lane)

    total = te.compute(out.shape, folded, name="fold")
    define_scaled(body, out, total, channels if node.row.averages else 1)
    body.store_slot()
    return body.finish("fold")


def _least(dtype: str) -> int | float:
    """What no element is less than."""
    row = DTYPES[dtype]
    return -math.inf if row.is_float else row.least
