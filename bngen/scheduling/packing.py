"""Weights in the order in which a convolution reads them: squares turned over in registers.

::

    parallel block of outputs, block of inputs:
        rows <- vectors of outputs, in the weight's own order
        main <- rows, each vector in its place

The weight of a data gradient has its outputs next to each other where the window is one tap. Then
nothing is turned, and what a cache line or two hold of several blocks is moved together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bngen.lower.facts import Declined, Layouts, element_bytes
from bngen.lower.lowered import Lowered
from bngen.lower.sweep_facts import PackingFacts
from bngen.plan.kernel import Kernel
from bngen.plan.layout import PackedWeight
from bngen.scheduling.knobs import Knobs, divisors
from bngen.scheduling.tools import extent, loops_inside, opened

if TYPE_CHECKING:
    from tvm import s_tir

SIDE = 16
"""Vectors that are turned over together at most."""

TOGETHER = 4
"""Blocks of outputs that are read together where nothing is turned: a few cache lines of a row."""


def applies(kernel: Kernel, layouts: Layouts) -> PackingFacts | Declined:
    """Any copy to a packed weight."""
    out = kernel.anchor.out
    layout = layouts[out]
    if not isinstance(layout, PackedWeight):
        return Declined("what it writes is no packed weight")
    if layout.paired:
        return Declined("it packs words of two inputs")
    r, s = out.shape[2:]
    return PackingFacts(
        element_bytes=element_bytes(out), blocks=layout.outer.blocks, lanes=layout.outer.lanes,
        taps=r * s, flipped=int(layout.flipped),
    )  # fmt: skip


def schedule_packing(low: Lowered, facts: PackingFacts, _: Knobs) -> s_tir.Schedule:
    """A task a block of outputs and, in it, of inputs."""
    sch = opened(low)
    main, names = sch.get_sblock("main"), _names(sch)
    ob, *inside, lane = sch.get_loops(main)
    in_blocks = inside[:-3] if len(inside) == 4 else []
    if "rows" not in names:
        _, _, _, il = inside
        if facts.flipped:
            ob, ob_in = sch.split(
                ob, [None, max(d for d in divisors(facts.blocks) if d <= TOGETHER)]
            )
            sch.reorder(ob, *inside, ob_in, lane)
        else:
            _square(sch, il)
        sch.vectorize(lane)
        sch.parallel(sch.fuse(ob, *in_blocks))
        return sch
    task = sch.fuse(ob, *in_blocks)
    sch.parallel(task)
    sch.vectorize(lane)
    rows = sch.get_sblock("rows")
    sch.compute_at(rows, task, preserve_unit_loops=True)
    *_, il, r, s, lane = loops_inside(sch, rows, task)
    _square(sch, sch.fuse(r, s) if facts.flipped else sch.fuse(il, r, s))
    sch.vectorize(lane)
    return sch


def _names(sch: s_tir.Schedule) -> list[str]:
    return [sch.get(b).name_hint for b in sch.get_child_blocks(sch.get_sblock("root"))]


def _square(sch: s_tir.Schedule, loop: Any) -> None:
    """Write out as many vectors as are turned over together."""
    side = extent(sch, loop)
    if side > SIDE:
        _, loop = sch.split(loop, [None, max(d for d in divisors(side) if d <= SIDE)])
    sch.unroll(loop)
