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
    attach_pads,
    attach_store_slot,
    local,
    loops_inside,
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
    ragged = low.extents["w"] % knobs["columns"] != 0
    if ragged:
        # Whole and ragged column tiles are written out one by one, so that every bound is constant.
        sch.unroll(w_tile)
    attach_store_slot(sch, low, w_tile, h_row, h_group, unroll=True)
    attach_pads(sch, low, task)
    for loop in (w_in, kb_in):
        sch.unroll(loop)
    sch.vectorize(lane)
    sch.decompose_reduction(conv, reduction[0])
    return sch


def schedule_phased(low: Lowered, knobs: Knobs) -> s_tir.Schedule:
    """The same for a strided data gradient: a tile holds every phase of its rows and columns.

    Knobs as for `schedule_conv`; ``columns`` counts those of one phase.
    """
    sch = s_tir.Schedule(IRModule({low.name: low.func}))
    sch.work_on(low.name)
    merge = sch.get_sblock("merge")
    kb, n, h, w, lane = sch.get_loops(merge)
    sh, sw = low.extents["spread_h"], low.extents["spread_w"]
    group = low.extents.get("group_rows", sh)
    h_task, h_group, h_row, h_phase = sch.split(h, [None, knobs["rows"] // group, group // sh, sh])
    w_tile, w_in, w_phase = sch.split(w, [None, knobs["columns"], sw])
    kb_tile, kb_in = sch.split(kb, [None, knobs["blocks"]])
    sch.reorder(n, h_task, kb_tile, h_group, h_row, w_tile, h_phase, w_in, w_phase, kb_in, lane)
    task = sch.fuse(n, h_task)
    sch.parallel(task)
    local(sch, ["merge"])
    attach_store_slot(sch, low, w_tile, h_row, h_group, unroll=True)
    for name in low.nests:
        local(sch, [name])
        _schedule_nest(sch, name, w_tile)
    attach_pads(sch, low, task)
    for loop in (h_phase, w_in, w_phase, kb_in):
        sch.unroll(loop)
    sch.vectorize(lane)
    return sch


def _schedule_nest(sch: s_tir.Schedule, name: str, at) -> None:
    """One phase's sum of products, in registers, below the column tile."""
    nest = sch.get_sblock(name)
    sch.compute_at(nest, at, preserve_unit_loops=True)
    kb, n, h, w, lane, *reduction = loops_inside(sch, nest, at)
    sch.reorder(n, h, *reduction, w, kb, lane)
    for loop in (w, kb):
        sch.unroll(loop)
    sch.vectorize(lane)
    sch.decompose_reduction(nest, reduction[0])
    vectorize_last(sch, sch.get_sblock(f"{name}_init"))
