"""The weight gradient: a register block of input lanes x output lanes sums over a tile of pixels.

::

    parallel chunk of the batch, output block tile, input block tile:
        clear partial
        for image, row tile:
            pad, grad <- load slots of both operands
            for output block, input block, r, s, part of the input lanes:
                tile sum in registers <- sum over the tile's pixels of x * dy
                partial[input lanes, output blocks, lanes] += tile sum
    dweight <- partial in the weight's own order, summed over the chunks

No two tasks write one element, so there is nothing to merge and the bits do not depend on timing.
"""

from __future__ import annotations

from typing import Any

from tvm import IRModule, s_tir, tirx

from bngen.lower.body import Lowered
from bngen.scheduling.knobs import Knobs, divisors
from bngen.scheduling.tools import attach_loads, extent, loops_inside, spell_out, vectorize_last

WRITTEN_OUT = 8
"""Most pixels of a row that are written out."""


def schedule_weight_gradient(low: Lowered, knobs: Knobs) -> s_tir.Schedule:
    """Apply knobs to a ``wgrad`` kernel, or a ``winograd_wgrad`` one: its pixels are tiles.

    ``out_blocks`` x ``in_blocks`` of one of ``chunks`` of the batch belong to a task, ``rows`` to a
    pixel tile, and ``blocks`` output blocks x ``in_lanes`` input channels to the register block.
    """
    sch = s_tir.Schedule(IRModule({low.name: low.func}))
    sch.work_on(low.name)
    partial = sch.get_sblock("partial")
    wide = low.extents["in_lanes"] > 1
    if knobs["chunks"] > 1:
        *_, n, _, _ = sch.get_loops(partial)
        chunks, _ = sch.split(n, [knobs["chunks"], None])
        merged, partial = partial, sch.rfactor(chunks, 0)
        _merge_chunks(sch, merged)
    *_, n, h, w = sch.get_loops(partial)
    h_tile, h_in = sch.split(h, [None, knobs["rows"]])
    sch.reorder(n, h_tile, h_in, w)
    tile_sum = sch.rfactor(sch.fuse(n, h_tile), 0)
    kb, cb, r, s, cl, lane, *chunk, tile = sch.get_loops(partial)
    kb_task, kb_in = sch.split(kb, [None, knobs["out_blocks"]])
    cb_task, cb_in = sch.split(cb, [None, knobs["in_blocks"]])
    kb_in, kb_register = sch.split(kb_in, [None, knobs["blocks"]])
    if wide:
        cl, cl_register = sch.split(cl, [None, knobs["in_lanes"]])
        outer, registers = [kb_in, cb_in, r, s, cl], [cl_register, kb_register]
    else:
        outer, registers = [kb_in, cb_in, r, cl], [s, kb_register]
    tasks = [*chunk, kb_task, cb_task]
    sch.reorder(*tasks, tile, *outer, *registers, lane)
    sch.parallel(sch.fuse(*tasks))
    _register_block(sch, tile_sum, outer[-1], wide)
    attach_loads(sch, low, tile)
    sch.vectorize(lane)
    _clear(sch, sch.decompose_reduction(partial, tile))
    for loop in registers:
        sch.unroll(loop)
    if low.points:
        *blocks, i, j, cl, lane = sch.get_loops(sch.get_sblock("windows"))
        sch.reorder(*blocks, cl, i, j, lane)
        sch.parallel(sch.fuse(*blocks))
        spell_out(sch, i, j, lane)
    _unpack(sch)
    return sch


def _clear(sch: s_tir.Schedule, init: Any) -> None:
    """One loop over all vectors: of a nest, LLVM writes out thousands of stores."""
    _, kb, *rest, kb_register, _ = sch.get_loops(init)
    sch.reorder(kb, kb_register, *rest)
    sch.fuse(kb, kb_register, *rest)


def _merge_chunks(sch: s_tir.Schedule, merged: Any) -> None:
    """The sum over the chunks of the batch: one task an output block."""
    kb, *inner, lane, chunk = sch.get_loops(merged)
    sch.reorder(*inner, chunk, lane)
    sch.parallel(kb)
    sch.vectorize(lane)
    vectorize_last(sch, sch.decompose_reduction(merged, chunk))


def _register_block(sch: s_tir.Schedule, tile_sum: Any, at: Any, wide_input: bool) -> None:
    """The sum over a pixel tile, in registers, below the loop ``at``."""
    sch.compute_at(tile_sum, at, preserve_unit_loops=True)
    sch.set_scope(tile_sum, 0, "local")
    loops, sums = loops_inside(sch, tile_sum, at), _reductions(sch, tile_sum)
    *_, kb, cb, r, s, cl, lane = loops[:-sums]
    *rows, w = loops[-sums:]
    outer, registers = ([cb, r, s], [cl, kb]) if wide_input else ([cb, r, cl], [s, kb])
    # Some pixels are written out: a row is too short to pay for a branch at each, and one missed.
    together = max(d for d in divisors(extent(sch, w)) if d <= WRITTEN_OUT)
    w, pixels = sch.split(w, [None, together])
    sch.reorder(*outer, *rows, w, pixels, *registers, lane)
    for loop in (pixels, *registers):
        sch.unroll(loop)
    sch.vectorize(lane)
    vectorize_last(sch, sch.decompose_reduction(tile_sum, rows[0] if rows else w))


def _reductions(sch: s_tir.Schedule, block: Any) -> int:
    """How many axes a block sums over."""
    return sum(axis.iter_type == tirx.IterVar.CommReduce for axis in sch.get(block).iter_vars)


def schedule_depthwise_gradient(low: Lowered, knobs: Knobs) -> s_tir.Schedule:
    """One task a channel block; the window's taps are the accumulators."""
    sch = s_tir.Schedule(IRModule({low.name: low.func}))
    sch.work_on(low.name)
    partial = sch.get_sblock("partial")
    kb, r, s, lane, n, h, w = sch.get_loops(partial)
    h_tile, h_in = sch.split(h, [None, knobs["rows"]])
    sch.reorder(kb, n, h_tile, r, h_in, w, s, lane)
    sch.parallel(kb)
    attach_loads(sch, low, h_tile)
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
