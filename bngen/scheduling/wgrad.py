"""The weight gradient: a register block of input lanes x output lanes sums over a tile of pixels.

::

    parallel output block tile, input block tile:
        clear partial
        for image, row tile:
            pad, grad <- load slots of both operands
            for output block, input block, r, s, part of the input lanes:
                tile sum in registers <- sum over the tile's pixels of x * dy
                partial[input lanes, output blocks, lanes] += tile sum
    dweight <- partial in the weight's own order

No two tasks write one element, so there is nothing to merge and the bits do not depend on timing.
"""

from __future__ import annotations

from typing import Any

from tvm import IRModule, s_tir

from bngen.lower.body import Lowered
from bngen.scheduling.knobs import Knobs
from bngen.scheduling.tools import attach_pads, extent, loops_inside, vectorize_last


def schedule_weight_gradient(low: Lowered, knobs: Knobs) -> s_tir.Schedule:
    """Apply knobs to a ``wgrad`` kernel.

    ``out_blocks`` x ``in_blocks`` belong to a task, ``rows`` to a pixel tile, and ``blocks`` output
    blocks x ``in_lanes`` input channels to the register block.
    """
    sch = s_tir.Schedule(IRModule({low.name: low.func}))
    sch.work_on(low.name)
    partial = sch.get_sblock("partial")
    *_, n, h, w = sch.get_loops(partial)
    h_tile, h_in = sch.split(h, [None, knobs["rows"]])
    sch.reorder(n, h_tile, h_in, w)
    tile_sum = sch.rfactor(sch.fuse(n, h_tile), 0)
    kb, cb, r, s, cl, lane, tile = sch.get_loops(partial)
    kb_task, kb_in = sch.split(kb, [None, knobs["out_blocks"]])
    cb_task, cb_in = sch.split(cb, [None, knobs["in_blocks"]])
    kb_in, kb_register = sch.split(kb_in, [None, knobs["blocks"]])
    if low.extents["in_lanes"] > 1:
        cl, cl_register = sch.split(cl, [None, knobs["in_lanes"]])
        outer, registers = [kb_in, cb_in, r, s, cl], [cl_register, kb_register]
    else:
        outer, registers = [kb_in, cb_in, r, cl], [s, kb_register]
    sch.reorder(kb_task, cb_task, tile, *outer, *registers, lane)
    sch.parallel(sch.fuse(kb_task, cb_task))
    _register_block(sch, tile_sum, outer[-1], wide_input=low.extents["in_lanes"] > 1)
    attach_pads(sch, low, tile)
    for loop in registers:
        sch.unroll(loop)
    sch.vectorize(lane)
    sch.decompose_reduction(partial, tile)
    vectorize_last(sch, sch.get_sblock("partial_init"))
    _unpack(sch)
    return sch


def _register_block(sch: s_tir.Schedule, tile_sum: Any, at: Any, *, wide_input: bool) -> None:
    """The sum over a pixel tile, in registers, below the loop ``at``."""
    sch.compute_at(tile_sum, at, preserve_unit_loops=True)
    sch.set_scope(tile_sum, 0, "local")
    tile, kb, cb, r, s, cl, lane, *pixels = loops_inside(sch, tile_sum, at)
    outer, registers = ([cb, r, s], [cl, kb]) if wide_input else ([cb, r, cl], [s, kb])
    sch.reorder(tile, *outer, *pixels, *registers, lane)
    for loop in registers:
        sch.unroll(loop)
    sch.vectorize(lane)
    sch.decompose_reduction(tile_sum, pixels[0])
    vectorize_last(sch, sch.get_sblock("partial_rf_init"))


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
