"""The schedule that closes the list: right for any function, fast for none.

Each stage stays a loop nest of its own: outer loops parallel, the innermost spatial loop
vectorized where it is short, reductions outside of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bngen.lower.facts import AnyFacts
from bngen.lower.lowered import Lowered
from bngen.scheduling.knobs import Knobs
from bngen.scheduling.tools import extent, opened, set_apart, vectorize_last
from bngen.target.machine import Machine

if TYPE_CHECKING:
    from tvm import s_tir

SERIAL_BELOW = 16384
"""Iterations under which waking threads costs more than it gains."""


def no_knobs(_: AnyFacts, __: Machine) -> Knobs:
    """None."""
    return {}


def schedule_fallback(low: Lowered, facts: AnyFacts, _: Knobs) -> s_tir.Schedule:
    """Schedule every block by itself."""
    sch = opened(low)
    for block in list(sch.get_child_blocks(sch.get_sblock("root"))):
        schedule_block(sch, block, facts.lanes)
    return sch


def schedule_block(sch: s_tir.Schedule, block: Any, lanes: int) -> None:
    """Schedule a block by itself, as this strategy does."""
    kinds = [int(v.iter_type) for v in sch.get(block).iter_vars]
    loops = sch.get_loops(block)
    spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == 0]
    reduction = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == 2]
    work = 1
    for loop in loops:
        work *= extent(sch, loop)
    if not spatial:
        if reduction:
            sch.decompose_reduction(block, reduction[0])
        return
    *outer, last = spatial
    size = extent(sch, last)
    ragged = bool(size > lanes and size % lanes and outer and not reduction)
    if size > lanes and (ragged or size % lanes == 0):
        more, last = sch.split(last, [None, lanes])
        if ragged:  # The last vector has code of its own; LLVM makes none of a fenced product.
            set_apart(sch, more)
        else:
            outer.append(more)
        size = lanes
    wide = 1 < size <= lanes
    if not wide:
        outer.append(last)
    if reduction:
        sch.reorder(*outer, *reduction, *([last] if wide else []))
    if wide:
        sch.vectorize(last)
    if outer and work >= SERIAL_BELOW:
        sch.parallel(sch.fuse(*outer) if len(outer) > 1 else outer[0])
    if reduction:
        name = sch.get(block).name_hint
        sch.decompose_reduction(block, reduction[0])
        if wide:
            vectorize_last(sch, sch.get_sblock(f"{name}_init"), lanes)
