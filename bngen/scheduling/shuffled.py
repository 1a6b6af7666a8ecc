"""Grouped convolutions whose groups cut channel blocks; see `bngen.lower.shuffled`.

::

    parallel output blocks of a period, image, row tile:
        for row, column of what the tile reads:
            pad <- load slot
            for each term: shuffle <- pad
        for group of rows, row, column tile:
            conv[columns, lanes] in registers <- sum over r, term, s
            store slot on the registers, sums of the tile
        second pass of moments over the group of rows

The weight gradient::

    parallel chunk of the batch, output block:
        clear partial
        for image, row tile:
            shuffle, grad <- load slots of both operands
            for r, some terms:
                tile sum[terms, s, lanes] in registers <- sum over the tile's pixels of x * dy
                partial += tile sum
    dweight <- partial in the weight's own order, summed over the chunks
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bngen.lower.facts import Declined, Layouts, ShuffledFacts, ShuffledGradientFacts
from bngen.lower.geometry import Geometry
from bngen.lower.lowered import Lowered
from bngen.plan.groups import groups_of, holds_whole
from bngen.plan.kernel import Kernel
from bngen.scheduling.conv import conv_facts, packing
from bngen.scheduling.knobs import SCRATCH, Knobs, divisors, rows_per_task
from bngen.scheduling.legality import Space, few, tile_columns, whole_groups
from bngen.scheduling.tools import (
    attach_loads,
    attach_scratch,
    attach_store_slot,
    local,
    loops_inside,
    opened,
    set_apart,
    vectorize_last,
    write_out,
)
from bngen.scheduling.wgrad import WRITTEN_OUT, gradient_facts, merge_chunks, reductions, unpack
from bngen.target.machine import Machine

if TYPE_CHECKING:
    from tvm import s_tir


def applies(kernel: Kernel, layouts: Layouts) -> ShuffledFacts | Declined:
    """A convolution, or data gradient, whose weight is packed lane by lane."""
    packed = packing(kernel, layouts)
    if not packed.shuffled:
        return Declined("no group cuts a channel block")
    node = kernel.anchor
    groups = groups_of(node.attrs["groups"], node.inputs[0], node.out, layouts)
    usual = conv_facts(kernel, layouts, Geometry.of_convolution(node))
    return ShuffledFacts(**asdict(usual), period=groups.period, alike=int(groups.alike))


MOST_WRITTEN = 512
"""Multiply-adds that are written out."""

MOST_TERMS = 32
"""Terms of a nest that shuffles: it is written out for each."""

MOST_COLUMNS = 10
"""Columns of a register tile: of a row of the window, so many vectors lie in registers, too, and as
many that they were shuffled to."""

ENOUGH_IN_FLIGHT = 7 / 8
"""Accumulators that are enough, of those that hide the latency."""


def shuffled_knobs(facts: ShuffledFacts, machine: Machine) -> Knobs:
    """Columns of a register tile, rows per task, and whether terms are kept in memory."""
    enough = ENOUGH_IN_FLIGHT * machine.traits.multiply_adds_in_flight

    def share(columns: int) -> tuple[float, int]:
        """The share of time that the multiply-add units work; of equal tiles, the smaller."""
        full = facts.w / (-(-facts.w // columns) * columns)
        return full * min(1.0, columns / enough), -columns

    scratch = _scratch(facts)
    tiles = range(1, min(facts.w, MOST_COLUMNS) + 1)
    columns = max(written_out(tiles, 1 if scratch else facts.in_blocks), key=share)
    row_bytes = _row_bytes(facts, scratch)

    def tile(rows: int) -> int:
        return ((rows - 1) * facts.stride_h + facts.r) * row_bytes

    rows = rows_per_task(facts, machine, tile, tasks=facts.out_blocks)
    return {"scratch": scratch, "columns": columns, "rows": rows}


def _scratch(facts: ShuffledFacts | ShuffledGradientFacts) -> int:
    """Whether terms are kept: where every block is alike, shuffling anew costs less than memory."""
    return 0 if 0 in _either(facts)["scratch"]({}) else 1


def _row_bytes(facts: ShuffledFacts | ShuffledGradientFacts, scratch: int) -> int:
    """Bytes of a row of what the nest reads."""
    vectors = max(1, facts.period) * facts.in_blocks if scratch else 1
    return facts.element_bytes * vectors * facts.lanes * facts.padded_w


def shuffled_space(facts: ShuffledFacts) -> Space:
    """Whether terms are kept; columns of a register tile; rows per task."""
    columns = tile_columns(facts.w)
    return {
        **_either(facts),
        "columns": lambda chosen: written_out(
            columns(chosen), 1 if chosen["scratch"] else facts.in_blocks
        ),
        "rows": whole_groups(facts),
    }


def written_out(choices: Sequence[int], terms: int) -> list[int]:
    """Extents of what is written out for each of some terms."""
    return [c for c in choices if c == 1 or c * terms <= MOST_WRITTEN]


def _either(facts: ShuffledFacts | ShuffledGradientFacts) -> Space:
    """Whether terms are kept in memory."""
    shuffles = facts.alike and facts.in_blocks <= MOST_TERMS
    return {"scratch": lambda chosen: (0, 1) if shuffles else (1,)}


def schedule_shuffled(low: Lowered, facts: ShuffledFacts, knobs: Knobs) -> s_tir.Schedule:
    """Apply knobs ``columns``, ``rows``, ``scratch``."""
    sch = opened(low)
    conv = sch.get_sblock("conv")
    kb, n, h, w, lane, j, r, s = sch.get_loops(conv)
    reduction = [r, j, s]  # Terms within a row of the window: they share its vectors.
    group, period = facts.group_rows or 1, max(1, facts.period)
    kb, kb_in = sch.split(kb, [None, period])
    h_task, h_group, h_row = sch.split(h, [None, knobs["rows"] // group, group])
    w_tile, w_in = sch.split(w, [None, knobs["columns"]])
    if not knobs["scratch"]:
        sch.compute_inline(sch.get_sblock("shuffle"))
    sch.reorder(kb, n, h_task, kb_in, h_group, h_row, w_tile, *reduction, w_in, lane)
    task = sch.fuse(kb, n, h_task)
    sch.parallel(task)
    local(sch, ["conv"])
    set_apart(sch, w_tile)
    attach_store_slot(sch, low, w_tile, h_row, h_group, unroll=True)
    if knobs["scratch"]:
        attach_shuffle(sch, low, task)
    else:
        attach_loads(sch, low, task)
        sch.unroll(j)
    sch.unroll(w_in)
    sch.vectorize(lane)
    sch.decompose_reduction(conv, reduction[0])
    return sch


def attach_shuffle(sch: s_tir.Schedule, low: Lowered, at: Any) -> None:
    """All terms of a pixel after one another, so that what they are made of stays in registers."""
    block = sch.get_sblock("shuffle")
    sch.compute_at(block, at, preserve_unit_loops=True)
    kb, j, n, y, x, lane = loops_inside(sch, block, at)
    sch.reorder(n, y, x, kb, j, lane)
    sch.vectorize(lane)
    for loop in (kb, j):
        write_out(sch, loop)
    set_apart(sch, x)
    if "pad" in low.pads:
        pad = sch.get_sblock("pad")
        sch.compute_at(pad, x, preserve_unit_loops=True)
        local(sch, ["pad"])
        vectorize_last(sch, pad)


# --- the weight gradient ----------------------------------------------------------------------

SUMS_IN_FLIGHT = 1.5
"""Accumulators that are enough, of those that hide the latency: the rest of the registers hold
what neighbouring taps share."""


def applies_to_gradient(kernel: Kernel, layouts: Layouts) -> ShuffledGradientFacts | Declined:
    """A weight gradient whose groups cut channel blocks."""
    node = kernel.anchor
    groups, cg = node.attrs["groups"], node.out.shape[1]
    if groups == 1 or all(holds_whole(layouts[v], groups) for v in node.inputs):
        return Declined("no group cuts a channel block")
    geo, (x, dy) = Geometry.weight_gradient(node), node.inputs
    usual = gradient_facts(kernel, layouts, geo, in_blocks=cg, in_lanes=1)
    of = groups_of(groups, x, dy, layouts)
    return ShuffledGradientFacts(**asdict(usual), period=of.period, alike=int(of.alike))


def gradient_knobs(facts: ShuffledGradientFacts, machine: Machine) -> Knobs:
    """Chunks of the batch, rows of a pixel tile, rows of the window and terms of the registers."""
    most = SUMS_IN_FLIGHT * machine.traits.multiply_adds_in_flight
    window = facts.r if facts.in_blocks * facts.r * facts.s <= most else 1
    held = [t for t in divisors(facts.in_blocks) if t * window * facts.s <= most] or [1]
    each = facts.in_blocks * window * facts.s
    pixels = [p for p in written_out(divisors(facts.w), each) if p <= WRITTEN_OUT]

    def idle(chunks: int) -> float:
        tasks = chunks * facts.out_blocks
        return -(-tasks // machine.threads) * machine.threads / tasks + chunks / 64

    scratch = _scratch(facts)
    row_bytes, row_of_dy = _row_bytes(facts, scratch), facts.element_bytes * facts.lanes * facts.w

    def panel(rows: int) -> int:
        """Bytes of both operands that a tile of so many rows reads, once a tap."""
        return ((rows - 1) * facts.stride_h + facts.r) * row_bytes + rows * row_of_dy

    room = machine.l2 // SCRATCH if scratch else machine.l1
    rows = [rows for rows in divisors(facts.h) if rows == 1 or panel(rows) <= room]
    chunks = min(divisors(facts.n), key=idle)
    return {
        "chunks": chunks, "rows": rows[-1], "window": window, "terms": held[-1],
        "pixels": pixels[-1], "scratch": scratch,
    }  # fmt: skip


def gradient_space(facts: ShuffledGradientFacts) -> Space:
    """As `gradient_knobs` has them."""
    return {
        "chunks": lambda chosen: divisors(facts.n),
        "rows": lambda chosen: divisors(facts.h),
        "window": lambda chosen: few(sorted({1, facts.r}), facts.s),
        "terms": lambda chosen: few(divisors(facts.in_blocks), facts.s * chosen["window"]),
        "pixels": lambda chosen: written_out(
            divisors(facts.w), facts.in_blocks * facts.s * chosen["window"]
        ),
        **_either(facts),
    }


def gradient_registers(facts: ShuffledGradientFacts, knobs: Knobs) -> int:
    """Vector registers of the sums, of dy and of what it is multiplied with."""
    return knobs["terms"] * knobs["window"] * facts.s + 2


def schedule_shuffled_gradient(
    low: Lowered, facts: ShuffledGradientFacts, knobs: Knobs
) -> s_tir.Schedule:
    """Apply knobs ``chunks``, ``rows``, ``window``, ``terms``, ``pixels``, ``scratch``."""
    sch = opened(low)
    partial = sch.get_sblock("partial")
    if not knobs["scratch"]:
        sch.compute_inline(sch.get_sblock("shuffle"))
    if knobs["chunks"] > 1:
        *_, n, _, _ = sch.get_loops(partial)
        chunks, _ = sch.split(n, [knobs["chunks"], None])
        merged, partial = partial, sch.rfactor(chunks, 0)
        merge_chunks(sch, merged)
    *_, n, h, w = sch.get_loops(partial)
    h_tile, h_in = sch.split(h, [None, knobs["rows"]])
    sch.reorder(n, h_tile, h_in, w)
    tile_sum = sch.rfactor(sch.fuse(n, h_tile), 0)
    kb, j, r, s, lane, *chunk, tile = sch.get_loops(partial)
    kb, kb_in = sch.split(kb, [None, max(1, facts.period)])
    j, j_register = sch.split(j, [None, knobs["terms"]])
    r, r_register = sch.split(r, [None, knobs["window"]])
    tasks, registers = [*chunk, kb], [j_register, r_register, s]
    sch.reorder(*tasks, tile, kb_in, r, j, *registers, lane)
    sch.parallel(sch.fuse(*tasks))
    _register_block(sch, tile_sum, j, knobs["pixels"])
    if knobs["scratch"]:
        attach_shuffle(sch, low, tile)
    else:
        sch.unroll(j)
    for name in low.pads:
        if name != "pad" or not knobs["scratch"]:
            attach_scratch(sch, name, tile)
    sch.vectorize(lane)
    init = sch.decompose_reduction(partial, tile)
    for loop in registers:
        sch.unroll(loop)
    vectorize_last(sch, init)
    unpack(sch)
    return sch


def _register_block(sch: s_tir.Schedule, tile_sum: Any, at: Any, together: int) -> None:
    """The sum over a pixel tile, in registers, below the loop ``at``."""
    sch.compute_at(tile_sum, at, preserve_unit_loops=True)
    sch.set_scope(tile_sum, 0, "local")
    loops, sums = loops_inside(sch, tile_sum, at), reductions(sch, tile_sum)
    *_, j, r, s, lane = loops[:-sums]
    *rows, w = loops[-sums:]
    w, pixels = sch.split(w, [None, together])
    sch.reorder(*rows, w, pixels, j, r, s, lane)
    for loop in (pixels, j, r, s):
        sch.unroll(loop)
    sch.vectorize(lane)
    vectorize_last(sch, sch.decompose_reduction(tile_sum, rows[0] if rows else w))
