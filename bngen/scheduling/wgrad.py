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

Of a single chunk the last is done in the task, too: its sums are in L2 then, and never leave it.

No two tasks write one element, so there is nothing to merge and the bits do not depend on timing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bngen.lower.facts import Declined, GradientFacts, Layouts, element_bytes
from bngen.lower.geometry import Geometry
from bngen.lower.lowered import Lowered
from bngen.plan.groups import holds_whole
from bngen.plan.kernel import Kernel
from bngen.plan.layout import Blocked
from bngen.scheduling.knobs import (
    SEVERAL_BLOCKS,
    Knobs,
    divisors,
    tile_cycles,
    tile_registers,
)
from bngen.scheduling.legality import Space, few
from bngen.scheduling.tools import (
    attach_loads,
    extent,
    loops_inside,
    opened,
    spell_out,
    vectorize_last,
)
from bngen.target.machine import Machine

if TYPE_CHECKING:
    from tvm import s_tir

# --- where it applies -------------------------------------------------------------------------


def applies(kernel: Kernel, layouts: Layouts) -> GradientFacts | Declined:
    """Any weight gradient whose groups are whole channel blocks."""
    node = kernel.anchor
    groups = node.attrs["groups"]
    if groups > 1 and not all(holds_whole(layouts[v], groups) for v in node.inputs):
        return Declined("its groups cut channel blocks")
    geo, inner = Geometry.weight_gradient(node), layouts[node.inputs[0]]
    if groups > 1 and inner.padded:
        channels = node.out.shape[1]
        return gradient_facts(kernel, layouts, geo, in_blocks=1, in_lanes=channels)
    return gradient_facts(kernel, layouts, geo)


def gradient_facts(kernel: Kernel, layouts: Layouts, geo: Geometry, **other: int) -> GradientFacts:
    """The facts of a weight gradient as of whole channel blocks, but for ``other`` ones."""
    node = kernel.anchor
    x, dy = node.inputs
    inner, outer, groups = layouts[x], layouts[dy], node.attrs["groups"]
    is_blocked = isinstance(inner, Blocked)
    usual = {
        "h": geo.out[0], "w": geo.out[1], "r": geo.window[0], "s": geo.window[1],
        "in_blocks": (inner.blocks if is_blocked else x.shape[1]) // groups,
        "in_lanes": inner.lanes if is_blocked else 1,
    }  # fmt: skip
    return GradientFacts(
        element_bytes=element_bytes(node.out), n=dy.shape[0],
        out_blocks=outer.blocks, lanes=outer.lanes, groups=groups,
        stride_h=geo.stride[0], stride_w=geo.stride[1], dilation_h=geo.dilation[0],
        padded_w=geo.padded_w(kernel, x, layouts), **usual | other,
    )  # fmt: skip


# --- knobs ------------------------------------------------------------------------------------

VECTOR_COST = 16
"""Multiply-adds in whose time a load slot is applied to a vector, or one of a chunk's sums is
written, read and added."""

FREE_TILE = 12
"""Accumulators that a tile of pixels should have where broadcasts are free."""


def wgrad_knobs(facts: GradientFacts, machine: Machine) -> Knobs:
    """What a task owns, rows per pixel tile, and the register block of a weight gradient."""
    chunks, kb, cb = gradient_task(facts, machine)
    wide = facts.in_lanes > 1
    # Only blocks of one group share what they are multiplied with.
    together = math.gcd(kb, max(1, facts.out_blocks // facts.groups))
    blocks, lanes = register_block(
        together, _input_lanes(facts) if wide else divisors(facts.s), machine
    )

    def panel(rows: int) -> int:
        """Bytes of both operands that a tile of so many rows reads."""
        columns = ((rows - 1) * facts.stride_h + facts.r) * facts.padded_w
        return facts.element_bytes * facts.lanes * (columns + blocks * rows * facts.w)

    # A window reads the tile once a tap; without one, it should leave room for what comes next.
    room = machine.l1 if facts.r * facts.s > 1 else machine.l1 // 2
    fits = [rows for rows in divisors(facts.h) if panel(rows) <= room]
    knobs = {"chunks": chunks, "out_blocks": kb, "in_blocks": cb, "rows": fits[-1] if fits else 1}
    return knobs | {"blocks": blocks} | ({"in_lanes": lanes} if wide else {})


def gradient_task(facts: GradientFacts, machine: Machine) -> tuple[int, int, int]:
    """Chunks of the batch, and the output and input blocks that a task owns."""
    taps = facts.r * facts.s
    out, inner = facts.out_blocks, facts.in_blocks
    per_block = facts.element_bytes * facts.in_lanes * facts.lanes * taps

    def cost(chunks: int, kb: int, cb: int) -> float:
        """Time relative to the multiply-adds alone."""
        task_out, task_in = out // kb, inner // cb
        tasks = chunks * task_out * task_in
        idle = math.ceil(tasks / machine.threads) * machine.threads / tasks
        spilled = max(1.0, kb * cb * per_block / (machine.l2 // 4))
        # Each task applies the load slots anew, against multiply-adds.
        vectors = inner * task_out + out * task_in
        slots = VECTOR_COST * vectors / (out * inner * taps * facts.in_lanes)
        # Each sum of a chunk is written, read and added.
        pixels = facts.n * facts.h * facts.w
        merge = VECTOR_COST * chunks / pixels if chunks > 1 else 0.0
        return idle * spilled * (1 + slots + merge)

    choices = ((n, k, c) for n in divisors(facts.n) for k in divisors(out) for c in divisors(inner))
    return min(choices, key=lambda t: cost(*t))


def _input_lanes(facts: GradientFacts) -> list[int]:
    """Input channels of a register block: some of a channel block, or of a small group all."""
    small = facts.in_lanes <= facts.lanes
    return [d for d in divisors(facts.in_lanes) if small or facts.lanes % d == 0]


def register_block(out_blocks: int, in_lanes: Sequence[int], machine: Machine) -> tuple[int, int]:
    """Output blocks and input channels of the accumulators; all of ``in_lanes`` for a window row.

    The score is that of `register_tiles`: latency hidden, and loads per multiply-add.
    """
    traits = machine.traits

    def score(kb: int, cl: int) -> tuple[float, int]:
        if traits.broadcasts_are_free:
            return min(1.0, kb * cl / FREE_TILE) * (1.0 if kb == 1 else SEVERAL_BLOCKS), kb * cl
        return kb * cl / tile_cycles(cl, kb, traits), kb * cl

    fitting = [
        (kb, cl)
        for kb in divisors(out_blocks)
        for cl in in_lanes
        if tile_registers(cl, kb) <= machine.traits.vector_registers
    ]
    return max(fitting, key=lambda t: score(*t))


def gradient_space(facts: GradientFacts) -> Space:
    """What a task owns, rows per pixel tile, register block.

    A plain input (an image) has no lanes; its register block is a row of the window.
    """
    wide = facts.in_lanes > 1
    space: Space = {
        "chunks": lambda _: divisors(facts.n),
        "out_blocks": lambda _: divisors(facts.out_blocks),
        "in_blocks": lambda _: divisors(facts.in_blocks),
        "rows": lambda _: divisors(facts.h),
        "blocks": lambda chosen: few(divisors(chosen["out_blocks"]), 1 if wide else facts.s),
    }
    lanes = {"in_lanes": lambda chosen: few(_input_lanes(facts), chosen["blocks"])}
    return {**space, **lanes} if wide else space


def block_registers(facts: GradientFacts, knobs: Knobs) -> int:
    """Vector registers of the register block."""
    return tile_registers(knobs.get("in_lanes", facts.s), knobs["blocks"])


# --- schedule ---------------------------------------------------------------------------------

WRITTEN_OUT = 8
"""Most pixels of a row that are written out."""


def schedule_weight_gradient(low: Lowered, facts: GradientFacts, knobs: Knobs) -> s_tir.Schedule:
    """Apply knobs to a weight gradient, or one at Winograd's points: its pixels are tiles.

    ``out_blocks`` x ``in_blocks`` of one of ``chunks`` of the batch belong to a task, ``rows`` to a
    pixel tile, and ``blocks`` output blocks x ``in_lanes`` input channels to the register block.
    """
    sch = opened(low)
    partial = sch.get_sblock("partial")
    wide = facts.in_lanes > 1
    if knobs["chunks"] > 1:
        *_, n, _, _ = sch.get_loops(partial)
        chunks, _ = sch.split(n, [knobs["chunks"], None])
        merged, partial = partial, sch.rfactor(chunks, 0)
        merge_chunks(sch, merged)
    *_, n, h, w = sch.get_loops(partial)
    h_tile, h_in = sch.split(h, [None, knobs["rows"]])
    sch.reorder(n, h_tile, h_in, w)
    tile_sum = sch.rfactor(sch.fuse(n, h_tile), 0)
    square = _is_of_squares(sch, facts)
    task = _task_of_result(sch, facts, knobs) if square and knobs["chunks"] == 1 else None
    tile, kb, cb, r, s, cl, lane = _loops_of_task(sch, low, partial, knobs, task)
    kb, kb_register = sch.split(kb, [None, knobs["blocks"]])
    if wide:
        cl, cl_register = sch.split(cl, [None, knobs["in_lanes"]])
        outer, registers = [kb, cb, r, s, cl], [cl_register, kb_register]
    else:
        outer, registers = [kb, cb, r, cl], [s, kb_register]
    sch.reorder(tile, *outer, *registers, lane)
    _register_block(sch, tile_sum, outer[-1], wide)
    attach_loads(sch, low, tile)
    sch.vectorize(lane)
    _clear(sch, sch.decompose_reduction(partial, tile))
    for loop in registers:
        sch.unroll(loop)
    if low.points:
        _windows(sch, task)
    if square and task is None:
        task = _task_of_result(sch, facts, {"out_blocks": 1, "in_blocks": 1})
    if square:
        _turn(sch, task)
    else:
        unpack(sch)
    return sch


def _loops_of_task(
    sch: s_tir.Schedule, low: Lowered, partial: Any, knobs: Knobs, task: Any | None
) -> list[Any]:
    """The sums' loops within a task: tile of pixels, blocks, window, lanes.

    Args:
        sch: the schedule.
        low: the kernel.
        partial: the sums.
        knobs: what a task owns.
        task: loop over the tasks of the result, whose sums need never leave L2; None: the sums have
            tasks of their own, several to an element of the result.
    """
    if task is not None:
        for name in (*(["windows"] if low.points else []), "partial"):
            sch.compute_at(sch.get_sblock(name), task, preserve_unit_loops=True)
        return loops_inside(sch, partial, task)
    kb, cb, r, s, cl, lane, *chunk, tile = sch.get_loops(partial)
    kb_task, kb = sch.split(kb, [None, knobs["out_blocks"]])
    cb_task, cb = sch.split(cb, [None, knobs["in_blocks"]])
    loops = [tile, kb, cb, r, s, cl, lane]
    sch.reorder(*chunk, kb_task, cb_task, *loops)
    sch.parallel(sch.fuse(*chunk, kb_task, cb_task))
    return loops


def _windows(sch: s_tir.Schedule, task: Any | None) -> None:
    """Windows of sums at Winograd's points: in their task, or in tasks of their own."""
    block = sch.get_sblock("windows")
    loops = sch.get_loops(block) if task is None else loops_inside(sch, block, task)
    *blocks, i, j, cl, lane = loops
    sch.reorder(*blocks, cl, i, j, lane)
    if task is None:
        sch.parallel(sch.fuse(*blocks))
    spell_out(sch, i, j, lane)


def _clear(sch: s_tir.Schedule, init: Any) -> None:
    """One loop over all vectors: of a nest, LLVM writes out thousands of stores."""
    _, kb, *rest, kb_register, _ = sch.get_loops(init)
    sch.reorder(kb, kb_register, *rest)
    sch.fuse(kb, kb_register, *rest)


def merge_chunks(sch: s_tir.Schedule, merged: Any) -> None:
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
    loops, sums = loops_inside(sch, tile_sum, at), reductions(sch, tile_sum)
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


def reductions(sch: s_tir.Schedule, block: Any) -> int:
    """How many axes a block sums over."""
    from tvm import tirx

    return sum(axis.iter_type == tirx.IterVar.CommReduce for axis in sch.get(block).iter_vars)


def unpack(sch: s_tir.Schedule) -> None:
    """The gradient in the weight's own order, a task an output channel."""
    block = sch.get_sblock("dweight")
    loops = sch.get_loops(block)
    if extent(sch, loops[0]) > 1:
        sch.parallel(loops[0])


def _is_of_squares(sch: s_tir.Schedule, facts: GradientFacts) -> bool:
    """Whether the gradient is made of whole squares of blocks."""
    k, c, *taps = (extent(sch, loop) for loop in sch.get_loops(sch.get_sblock("dweight")))
    return (
        k == facts.out_blocks * facts.lanes
        and c == facts.in_blocks * facts.in_lanes
        and facts.in_lanes * math.prod(taps) % facts.lanes == 0
    )


def _task_of_result(sch: s_tir.Schedule, facts: GradientFacts, knobs: Knobs) -> Any:
    """Cut the gradient into tasks of some blocks, squares innermost; the loop over them."""
    k, c, *taps = sch.get_loops(sch.get_sblock("dweight"))
    k_task, kb, k = sch.split(k, [None, knobs["out_blocks"], facts.lanes])
    c_task, cb, c = sch.split(c, [None, knobs["in_blocks"], facts.in_lanes])
    sch.reorder(k_task, c_task, kb, cb, k, c, *taps)
    task = sch.fuse(k_task, c_task)
    sch.parallel(task)
    return task


_MOST_TURNED = 9
"""Squares that are written out: all taps of a window of 3x3."""


def _turn(sch: s_tir.Schedule, task: Any) -> None:
    """Squares of channels turned over in registers (`bngen.codegen.transposes`).

    A vector is of neighbours in the weight's order, input channels with their taps; as many of them
    are written out as a block has output channels.
    """
    _, _, k, *inner = loops_inside(sch, sch.get_sblock("dweight"), task)
    vectors, lane = sch.split(sch.fuse(*inner), [None, extent(sch, k)])
    sch.reorder(vectors, k, lane)
    if extent(sch, vectors) <= _MOST_TURNED:
        sch.unroll(vectors)
    sch.unroll(k)
    sch.vectorize(lane)
