"""Kernels that sweep feature maps: pools, depthwise convolutions, pointwise, partial sums.

::

    parallel channel block, image, row tile:
        pad <- load slot
        for group of rows, row:
            main over the columns, lanes vectorized; store slot and sums of the row
        second pass of moments over the group of rows
"""

from __future__ import annotations

from tvm import IRModule, s_tir

from bngen.lower.body import Lowered
from bngen.scheduling.knobs import Knobs
from bngen.scheduling.tools import (
    attach_loads,
    attach_store_slot,
    local,
    vectorize_last,
    write_out,
)


def schedule_map(low: Lowered, knobs: Knobs) -> s_tir.Schedule:
    """Apply knob ``rows`` to a kernel whose main block runs over (block, n, h, w, lane)."""
    sch = s_tir.Schedule(IRModule({low.name: low.func}))
    sch.work_on(low.name)
    main = sch.get_sblock(low.main)
    cb, n, h, w, lane, *window = sch.get_loops(main)
    group = low.extents.get("group_rows", 1)
    h_task, h_group, h_row = sch.split(h, [None, knobs["rows"] // group, group])
    sch.reorder(cb, n, h_task, h_group, h_row, w, *window, lane)
    task = sch.fuse(cb, n, h_task)
    sch.parallel(task)
    if low.main in ("window", "conv"):
        local(sch, [low.main])
    attach_store_slot(sch, low, h_row, h_row, h_group, unroll=False)
    attach_loads(sch, low, task)
    for name in low.separate:
        block = sch.get_sblock(name)
        *outer, _ = sch.get_loops(block)
        sch.parallel(sch.fuse(*outer[:2]))
        vectorize_last(sch, block)
    sch.vectorize(lane)
    if window:
        for loop in window:
            write_out(sch, loop)
        sch.decompose_reduction(main, window[0])
    return sch


def schedule_partial(low: Lowered, knobs: Knobs) -> s_tir.Schedule:
    """A partial reduction by itself: one task a channel block and image."""
    sch = s_tir.Schedule(IRModule({low.name: low.func}))
    sch.work_on(low.name)
    main = sch.get_sblock(low.main)
    cb, n, group, lane, row, column = sch.get_loops(main)
    sch.reorder(cb, n, group, row, column, lane)
    task = sch.fuse(cb, n)
    for name in [*low.sums[1:], *low.second]:
        block = sch.get_sblock(name)
        sch.reverse_compute_at(
            block, group, preserve_unit_loops=True
        ) if name in low.second else None
    sch.parallel(task)
    sch.vectorize(lane)
    sch.decompose_reduction(main, row)
    vectorize_last(sch, sch.get_sblock(f"{low.main}_init"))
    for name in low.second:
        block = sch.get_sblock(name)
        *_, a, b, c = sch.get_loops(block)
        sch.reorder(b, c, a)
        sch.vectorize(a)
        sch.decompose_reduction(block, b)
        vectorize_last(sch, sch.get_sblock(f"{name}_init"))
    for name in low.sums[1:]:
        _sweep(sch, name)
    return sch


def _sweep(sch: s_tir.Schedule, name: str) -> None:
    """A further sum over the same rows, as a loop nest of its own."""
    block = sch.get_sblock(name)
    cb, n, group, lane, row, column = sch.get_loops(block)
    sch.reorder(cb, n, group, row, column, lane)
    sch.parallel(sch.fuse(cb, n))
    sch.vectorize(lane)
    sch.decompose_reduction(block, row)
    vectorize_last(sch, sch.get_sblock(f"{name}_init"))
