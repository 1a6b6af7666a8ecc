"""conv2d and its data gradient, packed: one register tile of columns x output blocks.

::

    parallel image, row tile:
        pad  <- load slot of the rows this tile needs
        for output block tile, group of rows, row, column tile:
            conv[columns, blocks, lanes] in registers <- sum over input block, r, s, input lane
            store slot on the registers, sums of the tile
        second pass of moments over the group of rows

The output blocks lie inside the columns: with the two swapped LLVM keeps every broadcast alive.
"""

from __future__ import annotations

from tvm import IRModule, s_tir

from bngen.lower.body import Lowered
from bngen.scheduling.knobs import Knobs
from bngen.scheduling.tools import (
    attach_loads,
    attach_store_slot,
    cut_into_tasks,
    local,
    loops_inside,
    set_apart,
    vectorize_last,
)


def schedule_conv(low: Lowered, knobs: Knobs) -> s_tir.Schedule:
    """Apply knobs ``columns``, ``blocks``, ``rows`` to a ``conv`` kernel."""
    sch = s_tir.Schedule(IRModule({low.name: low.func}))
    sch.work_on(low.name)
    conv = sch.get_sblock("conv")
    kb, n, h, w, lane, *reduction = sch.get_loops(conv)
    group = low.extents.get("group_rows", 1)
    h_task, h_group, h_row = sch.split(h, [None, knobs["rows"] // group, group])
    w_tile, w_in = sch.split(w, [None, knobs["columns"]])
    kb_tile, kb_in = sch.split(kb, [None, knobs["blocks"]])
    sch.reorder(n, h_task, kb_tile, h_group, h_row, w_tile, *reduction, w_in, kb_in, lane)
    task = sch.fuse(n, h_task)
    sch.parallel(task)
    local(sch, ["conv"])
    set_apart(sch, w_tile)
    attach_store_slot(sch, low, w_tile, h_row, h_group, unroll=True)
    attach_loads(sch, low, task)
    for loop in (w_in, kb_in):
        sch.unroll(loop)
    sch.vectorize(lane)
    sch.decompose_reduction(conv, reduction[0])
    return sch


def schedule_phased(low: Lowered, knobs: Knobs) -> s_tir.Schedule:
    """A strided data gradient: each phase of a row sums into memory, then they are put together.

    ::

        parallel image, row tile:
            pad  <- load slot of the rows this tile needs
            for output block tile, group of rows, row of phases:
                for each phase:
                    for column tile:
                        phase[columns, blocks, lanes] in registers <- sum over its taps
                merge <- phases; store slot on the rows, sums
            second pass of moments over the group of rows

    A phase's sums leave the registers before the next one's begin: kept there until they are put
    together, LLVM spills accumulators. Knobs as for `schedule_conv`; ``columns`` counts those of
    one phase.
    """
    sch = s_tir.Schedule(IRModule({low.name: low.func}))
    sch.work_on(low.name)
    steps = low.extents["spread_h"], low.extents["spread_w"]
    group = low.extents.get("group_rows", steps[0])
    task, _, h_group, h_row, inside = cut_into_tasks(sch, low, knobs, group, steps)
    h_phase, _, w_phase, kb_in, lane = inside
    attach_store_slot(sch, low, h_row, h_row, h_group, unroll=False)
    for name in low.nests:
        local(sch, [name])
        _schedule_nest(sch, name, h_row, knobs["columns"])
    attach_loads(sch, low, task)
    for loop in (h_phase, w_phase, kb_in):
        sch.unroll(loop)
    sch.vectorize(lane)
    return sch


def _schedule_nest(sch: s_tir.Schedule, name: str, at, columns: int) -> None:
    """One phase's sum of products, a register tile at a time, below a row of phases."""
    nest = sch.get_sblock(name)
    sch.compute_at(nest, at, preserve_unit_loops=True)
    kb, n, h, w, lane, *reduction = loops_inside(sch, nest, at)
    w_tile, w_in = sch.split(w, [None, columns])
    sch.reorder(n, h, w_tile, *reduction, w_in, kb, lane)
    set_apart(sch, w_tile)
    for loop in (w_in, kb):
        sch.unroll(loop)
    sch.vectorize(lane)
    sch.decompose_reduction(nest, reduction[0])
    vectorize_last(sch, sch.get_sblock(f"{name}_init"))
