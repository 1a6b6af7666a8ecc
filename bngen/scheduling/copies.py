"""Maps in another layout, or another place: squares of pixels and channels turned in registers.

::

    parallel image, rows of a task:
        load slot, in the layout of what it reads
        for channel block, pixels:
            copy: a vector of channels for each of some pixels, or of pixels for each of some
                  channels, whichever lies together in the result
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bngen.lower.facts import Declined, Layouts, element_bytes
from bngen.lower.lowered import Lowered
from bngen.lower.sweep_facts import CopyFacts
from bngen.plan.kernel import Kernel
from bngen.plan.layout import PLAIN, Blocked, Plain
from bngen.scheduling.fallback import SERIAL_BELOW
from bngen.scheduling.knobs import Knobs, divisors
from bngen.scheduling.tools import opened, set_apart, vectorize_last

if TYPE_CHECKING:
    from tvm import s_tir

MAP_RANK = 4

PIXELS = 64
"""Pixels of a task at least, if its image has as many."""

SIDE = 16
"""Pixels, or channels, that are turned over together at most."""


def applies(kernel: Kernel, layouts: Layouts) -> CopyFacts | Declined:
    """Copies, slices and concatenations of maps."""
    node = kernel.anchor
    out, layout = node.out, layouts[node.out]
    shapes = {len(v.shape) for v in (*node.operands, out)}
    if shapes != {MAP_RANK} or node.row.moves == "reshapes":
        return Declined("it moves something other than maps")
    sources = [layouts[v] for v in node.operands]
    if not isinstance(layout, Plain | Blocked):
        return Declined("what it writes is a packed weight")
    blocks = [x for x in (layout, *sources) if isinstance(x, Blocked)]
    if not blocks:
        return Declined("nothing of it lies in channel blocks")
    n, c, h, w = out.shape
    return CopyFacts(
        element_bytes=element_bytes(out), n=n, c=c, h=h, w=w, lanes=blocks[0].lanes,
        to_blocks=int(isinstance(layout, Blocked)),
        turned=int(PLAIN in sources),
        last=int(layout == Plain(channels_last=True)),
    )  # fmt: skip


def schedule_copies(low: Lowered, facts: CopyFacts, _: Knobs) -> s_tir.Schedule:
    """Tasks of some rows of an image each."""
    sch = opened(low)
    copy = sch.get_sblock(low.main)
    rows = next(d for d in divisors(facts.h) if d * facts.w >= PIXELS or d == facts.h)
    cut = _CUTS[bool(facts.to_blocks), bool(facts.last)]
    task = cut(sch, copy, facts, rows)
    for name in low.pads:
        block = sch.get_sblock(name)
        sch.compute_at(block, task, preserve_unit_loops=True)
        vectorize_last(sch, block)
    if facts.n * facts.c * facts.h * facts.w >= SERIAL_BELOW:
        sch.parallel(task)
    return sch


def _to_blocks(sch: s_tir.Schedule, copy: Any, facts: CopyFacts, rows: int) -> Any:
    """Vectors of channels; of several pixels, where those lie together in what is read."""
    cb, n, h, w, lane = sch.get_loops(copy)
    h, h_in = sch.split(h, [None, rows])
    pixel = sch.fuse(h_in, w)
    sch.reorder(n, h, cb, pixel, lane)
    if facts.turned:
        _turned(sch, pixel, rows * facts.w)
    sch.vectorize(lane)
    return sch.fuse(n, h)


def _to_plain(sch: s_tir.Schedule, copy: Any, facts: CopyFacts, rows: int) -> Any:
    """Vectors of pixels, of several channels of a block."""
    n, c, h, w = sch.get_loops(copy)
    h, h_in = sch.split(h, [None, rows])
    pixel, lane = sch.split(sch.fuse(h_in, w), [None, min(SIDE, rows * facts.w)])
    c, near = sch.split(c, [None, max(d for d in divisors(facts.c) if d <= SIDE)])
    sch.reorder(n, h, c, pixel, near, lane)
    sch.unroll(near)
    sch.vectorize(lane)
    if rows * facts.w % SIDE:
        set_apart(sch, pixel)
    return sch.fuse(n, h)


def _to_last(sch: s_tir.Schedule, copy: Any, facts: CopyFacts, rows: int) -> Any:
    """Vectors of channels, side by side in the result."""
    n, h, w, c = sch.get_loops(copy)
    h, h_in = sch.split(h, [None, rows])
    c, lane = sch.split(c, [None, min(facts.lanes, facts.c)])
    sch.reorder(n, h, c, h_in, w, lane)
    sch.vectorize(lane)
    if facts.c % facts.lanes:
        set_apart(sch, c)
    return sch.fuse(n, h)


_CUTS = {
    (True, False): _to_blocks,
    (False, False): _to_plain,
    (False, True): _to_last,
}
"""Whether it goes to channel blocks, or channels are to be last -> how its loops are cut."""


def _turned(sch: s_tir.Schedule, pixel: Any, pixels: int) -> None:
    """Write out as many pixels as are turned over together."""
    side = min(SIDE, pixels)
    pixel, near = sch.split(pixel, [None, side])
    sch.unroll(near)
    if pixels % side:
        set_apart(sch, pixel)
