"""Partial results put together: for each vector of channels all of it, one stage after the other.

::

    parallel channel block (and image):
        fold over the groups; what follows from it; the next fold, ...; the store slot
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from bngen.ir.ops.reduce import normalize_axes
from bngen.lower.facts import Declined, Layouts, element_bytes
from bngen.lower.lowered import Lowered
from bngen.lower.sweep_facts import MergeFacts
from bngen.plan.kernel import Kernel
from bngen.plan.layout import Blocked
from bngen.scheduling.fallback import SERIAL_BELOW, schedule_block
from bngen.scheduling.knobs import Knobs
from bngen.scheduling.tools import extent, opened, vectorize_last

if TYPE_CHECKING:
    from tvm import s_tir


def applies(kernel: Kernel, layouts: Layouts) -> MergeFacts | Declined:
    """Folds of ``[groups, C]`` in channel blocks over the groups, or each image's."""
    node = kernel.anchor
    x, out = node.inputs[0], node.out
    layout = layouts[out]
    if len(x.shape) != 2 or not isinstance(layouts[x], Blocked) or layouts[x] != layout:
        return Declined("what it reduces is no partial result in channel blocks")
    if "axes" in node.attrs and normalize_axes(node.attrs["axes"], 2) != (0,):
        return Declined("it reduces the channels")
    return MergeFacts(
        element_bytes=element_bytes(x), groups=x.shape[0],
        images=out.shape[0] if len(out.shape) == 2 else 1, blocks=layout.blocks, lanes=layout.lanes,
    )  # fmt: skip


def schedule_merges(low: Lowered, facts: MergeFacts, _: Knobs) -> s_tir.Schedule:
    """A task a channel block, or a block of an image."""
    sch = opened(low)
    names = [sch.get(b).name_hint for b in sch.get_child_blocks(sch.get_sblock("root"))]
    nests = {name: _nest(sch, name) for name in names}
    alike = [name for name in names if nests[name].extents == nests["fold"].extents]
    apart = [name for name in names if name not in alike]
    tasks = []
    for name in alike:
        nest = nests[name]
        sch.reorder(*nest.outer, *nest.folds, nest.lane)
        sch.vectorize(nest.lane)
        tasks.append(sch.fuse(*nest.outer) if len(nest.outer) > 1 else nest.outer[0])
    task = sch.merge(*tasks) if len(tasks) > 1 else tasks[0]
    if facts.groups * facts.blocks * facts.lanes >= SERIAL_BELOW:
        sch.parallel(task)
    for name in alike:
        if nests[name].folds:
            vectorize_last(sch, sch.decompose_reduction(sch.get_sblock(name), nests[name].folds[0]))
    for name in apart:
        schedule_block(sch, sch.get_sblock(name), facts.lanes)
    return sch


class _Nest(NamedTuple):
    """The loops of a block: over results, the last one over lanes, and over what is folded."""

    outer: list[Any]
    lane: Any
    folds: list[Any]
    extents: list[int]


def _nest(sch: s_tir.Schedule, name: str) -> _Nest:
    block = sch.get_sblock(name)
    kinds = [int(v.iter_type) for v in sch.get(block).iter_vars]
    loops = list(zip(sch.get_loops(block), kinds, strict=True))
    results = [loop for loop, kind in loops if kind == 0]
    folds = [loop for loop, kind in loops if kind == 2]
    return _Nest(results[:-1], results[-1], folds, [extent(sch, loop) for loop in results])
