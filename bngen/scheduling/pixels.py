"""Reductions over the channels of a map in channel blocks: a vector of partial results a pixel.

::

    parallel image, row:
        for some channel blocks:
            for column:
                part[column, lane] += the blocks, one after the other, in registers
        fold <- part, lane by lane
    the result in its own type, and the store slot: nests of their own
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bngen.ir.ops.reduce import normalize_axes
from bngen.lower.facts import Declined, Layouts, MapFacts, element_bytes
from bngen.lower.lowered import Lowered
from bngen.plan.kernel import Kernel
from bngen.plan.layout import PLAIN, Blocked
from bngen.scheduling.columns import ROWS
from bngen.scheduling.fallback import SERIAL_BELOW, schedule_block
from bngen.scheduling.knobs import Knobs, divisors
from bngen.scheduling.tools import local, loops_inside, opened, vectorize_last

if TYPE_CHECKING:
    from tvm import s_tir

CHANNEL_AXIS = 1


def applies(kernel: Kernel, layouts: Layouts) -> MapFacts | Declined:
    """A reduction of a map over its channels, and no other axis."""
    node = kernel.anchor
    x, out = node.inputs[0], node.out
    layout = layouts[x]
    if not isinstance(layout, Blocked) or layouts[out] != PLAIN:
        return Declined("what it reduces does not lie in channel blocks")
    if normalize_axes(node.attrs["axes"], len(x.shape)) != (CHANNEL_AXIS,) or len(x.shape) != 4:
        return Declined("it reduces other axes than the channels")
    n, _, h, w = x.shape
    return MapFacts(
        element_bytes=element_bytes(x), n=n, h=h, w=w, out_blocks=layout.blocks, lanes=layout.lanes
    )


def schedule_pixels(low: Lowered, facts: MapFacts, _: Knobs) -> s_tir.Schedule:
    """A task a row of an image."""
    sch = opened(low)
    names = [sch.get(b).name_hint for b in sch.get_child_blocks(sch.get_sblock("root"))]
    fold, part = sch.get_sblock("fold"), sch.get_sblock("part")
    *outer, column, lane = sch.get_loops(fold)
    row = sch.fuse(*outer)
    sch.compute_at(part, row, preserve_unit_loops=True)
    *_, columns, lanes, block = loops_inside(sch, part, row)
    block, near = sch.split(block, [None, max(d for d in divisors(facts.out_blocks) if d <= ROWS)])
    sch.reorder(block, columns, near, lanes)
    sch.unroll(near)
    sch.vectorize(lanes)
    local(sch, ["part"])
    if facts.n * facts.h * facts.w * facts.out_blocks * facts.lanes >= SERIAL_BELOW:
        sch.parallel(row)
    sch.decompose_reduction(fold, lane)
    vectorize_last(sch, sch.decompose_reduction(part, block))
    for name in names:
        if name not in ("fold", "part"):
            schedule_block(sch, sch.get_sblock(name), facts.lanes)
    return sch
