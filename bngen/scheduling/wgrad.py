"""The weight gradient: a register block of input lanes x output lanes sums over a tile of pixels.

::

    parallel output block tile, input block tile:
        clear partial
        for image, row tile:
            pad, grad <- load slots of both operands
            for output block, input block, r, s, part of the input lanes:
                for pixel in tile: partial[input lanes, output blocks, lanes] += x * dy
    dweight <- partial in the weight's own order

No two tasks write one element, so there is nothing to merge and the bits do not depend on timing.
"""

from __future__ import annotations

from tvm import IRModule, s_tir

from bngen.lower.body import Lowered
from bngen.scheduling.knobs import Knobs
from bngen.scheduling.tools import attach_pads, extent, vectorize_last


def schedule_weight_gradient(low: Lowered, knobs: Knobs) -> s_tir.Schedule:
    """Apply knobs to a ``wgrad`` kernel.

    ``out_blocks`` x ``in_blocks`` belong to a task, ``rows`` to a pixel tile, and ``blocks`` output
    blocks x ``in_lanes`` input channels to the register block.
    """
    sch = s_tir.Schedule(IRModule({low.name: low.func}))
    sch.work_on(low.name)
    partial = sch.get_sblock("partial")
    kb, cb, r, s, cl, lane, n, h, w = sch.get_loops(partial)
    kb_task, kb_in = sch.split(kb, [None, knobs["out_blocks"]])
    cb_task, cb_in = sch.split(cb, [None, knobs["in_blocks"]])
    h_tile, h_in = sch.split(h, [None, knobs["rows"]])
    kb_in, kb_register = sch.split(kb_in, [None, knobs["blocks"]])
    if low.extents["in_lanes"] > 1:
        cl, cl_register = sch.split(cl, [None, knobs["in_lanes"]])
        registers = [cl_register, kb_register]
        sch.reorder(kb_task, cb_task, n, h_tile, kb_in, cb_in, r, s, cl, h_in, w, *registers, lane)
    else:
        registers = [s, kb_register]
        sch.reorder(kb_task, cb_task, n, h_tile, kb_in, cb_in, r, cl, h_in, w, *registers, lane)
    task = sch.fuse(kb_task, cb_task)
    sch.parallel(task)
    attach_pads(sch, low, h_tile)
    for loop in registers:
        sch.unroll(loop)
    sch.vectorize(lane)
    sch.decompose_reduction(partial, n)
    vectorize_last(sch, sch.get_sblock("partial_init"))
    _unpack(sch)
    return sch


def schedule_depthwise_gradient(low: Lowered, knobs: Knobs) -> s_tir.Schedule:
    """One task a channel block; the window's taps are the accumulators."""
    sch = s_tir.Schedule(IRModule({low.name: low.func}))
    sch.work_on(low.name)
    partial = sch.get_sblock("partial")
    kb, r, s, lane, n, h, w = sch.get_loops(partial)
    h_tile, h_in = sch.split(h, [None, knobs["rows"]])
    sch.reorder(kb, n, h_tile, r, h_in, w, s, lane)
    sch.parallel(kb)
    attach_pads(sch, low, h_tile)
    sch.unroll(s)
    sch.vectorize(lane)
    sch.decompose_reduction(partial, n)
    vectorize_last(sch, sch.get_sblock("partial_init"))
    _unpack(sch)
    return sch


def _unpack(sch: s_tir.Schedule) -> None:
    block = sch.get_sblock("dweight")
    loops = sch.get_loops(block)
    if extent(sch, loops[0]) > 1:
        sch.parallel(loops[0])
