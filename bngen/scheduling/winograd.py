"""3x3 convolutions at the points of Winograd's tiles; see `bngen.lower.winograd`.

::

    parallel block of taps: taps <- weights
    parallel image, row tile:
        for input block:
            pad <- load slot of the rows this tile needs
            points <- pad
        for output block tile:
            for each point, column tile:
                product[columns, blocks, lanes] in registers <- sum over input block, lane
            for group of rows:
                merge <- product
                store slot on these rows, sums, second pass of moments

The weight gradient at these points goes by the schedule of any other, `bngen.scheduling.wgrad`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bngen.ir.node import Node
from bngen.ir.types import Value
from bngen.lower.facts import ConvFacts, Declined, GradientFacts, Layouts, group_rows
from bngen.lower.geometry import POINTS, TILE, Geometry
from bngen.lower.lowered import Lowered
from bngen.plan.kernel import Kernel
from bngen.plan.layout import Blocked
from bngen.scheduling.conv import conv_facts
from bngen.scheduling.knobs import TASKS, Knobs, divisors, register_tiles
from bngen.scheduling.legality import MOST_REGISTERS, Space, tile_blocks
from bngen.scheduling.tools import (
    attach_loads,
    attach_store_slot,
    cut_into_tasks,
    in_other_sets,
    loops_inside,
    opened,
    set_apart,
    spell_out,
    vectorize_last,
)
from bngen.scheduling.wgrad import gradient_facts, gradient_task, register_block
from bngen.target.machine import Machine

if TYPE_CHECKING:
    from tvm import s_tir

WINDOW = (3, 3)

FEWEST_TILES = 16
"""Tiles of a batch; a transformed weight costs as much as some eight products of it."""

MOST_WASTE = 1.5
"""Outputs computed for one that is wanted; products save a factor of 2.25."""


# --- where it pays ----------------------------------------------------------------------------


def applies(kernel: Kernel, layouts: Layouts) -> ConvFacts | Declined:
    """A convolution or data gradient for which `pays`, over channel blocks."""
    node = kernel.anchor
    reason = pays(node, node.out, node.inputs[1], group_rows(kernel))
    if reason or not isinstance(layouts[node.inputs[0]], Blocked):
        return reason or _PLAIN
    return conv_facts(kernel, layouts, Geometry.of_convolution(node).of_whole_tiles(TILE))


def applies_to_gradient(kernel: Kernel, layouts: Layouts) -> GradientFacts | Declined:
    """A weight gradient for which `pays`, over channel blocks."""
    node = kernel.anchor
    reason = pays(node, node.inputs[1], node.out)
    if reason or not isinstance(layouts[node.inputs[0]], Blocked):
        return reason or _PLAIN
    geo = Geometry.weight_gradient(node).of_whole_tiles(TILE)
    h, w = (e // TILE for e in geo.out)
    return gradient_facts(kernel, layouts, geo, h=h, w=w, r=POINTS, s=POINTS)


_PLAIN = Declined("its input is plain, without channel blocks")


def pays(node: Node, image: Value, weight: Value, rows: int | None = None) -> Declined | None:
    """Why a convolution, or a gradient of one, is not computed this way; None where it is.

    It must have a dense 3x3 window, no tile may lie in two groups of rows, and tiles must be many
    enough to pay for the transform of the weights and must not reach far over the image.

    Args:
        node: the op, for its attributes.
        image: the map that tiles cut up.
        weight: the weight or its gradient.
        rows: of a partial sum over the map, if there is one.
    """
    attrs, (n, _, h, w) = node.attrs, image.shape
    tiles = n * -(-h // TILE) * -(-w // TILE)
    if weight.shape[2:] != WINDOW:
        return Declined(f"its window is {'x'.join(map(str, weight.shape[2:]))}, not 3x3")
    if not attrs["stride"] == attrs["dilation"] == (1, 1):
        return Declined("it is strided or dilated")
    if attrs["groups"] != 1:
        return Declined("it is grouped")
    if rows and rows % TILE and rows != h:
        return Declined(f"tiles lie in two groups of {rows} rows")
    if tiles < FEWEST_TILES:
        return Declined(f"{tiles} tiles do not pay for the transform of the weight")
    if tiles * TILE**2 > MOST_WASTE * n * h * w:
        return Declined(f"tiles reach far over a map of {h}x{w}")
    return None


def products(kernel: Kernel) -> int:
    """Multiplications of a convolution, or a gradient of one; transforms are not counted."""
    node = kernel.anchor
    is_gradient = node.row.direction == "weight"
    image, weight = (node.inputs[1], node.out) if is_gradient else (node.out, node.inputs[1])
    (n, _, h, w), (k, c, _, _) = image.shape, weight.shape
    return n * k * c * POINTS**2 * -(-h // TILE) * -(-w // TILE)


# --- knobs ------------------------------------------------------------------------------------

LARGE_SCRATCH = 0.06
"""What a task's scratch beyond a third of L2 costs: its share to this power."""

STREAMED_TAPS = 4
"""Tiles in the time of whose products taps are read that L2 does not hold: once a task."""


def winograd_knobs(facts: ConvFacts, machine: Machine) -> Knobs:
    """Rows per task, and the register tile of products over the 2x2 tiles of those rows.

    Points, products and what the store slot reads and writes of a task should stay in a third of
    L2, as prefetched maps that fall out of it are read twice: four times that much takes some 8 %
    more time. Where L2 cannot hold the taps, each task reads all of them from further away.
    """
    channels, columns = facts.in_blocks * facts.in_lanes, math.ceil(facts.w / TILE)
    taps = facts.element_bytes * POINTS**2 * channels * facts.out_blocks * facts.lanes
    best: list[tuple[float, Knobs]] = []
    least, *more = rows_of_tiles(facts)
    enough = TASKS * machine.threads
    for rows in (least, *(r for r in more if facts.n * (facts.h // r) >= enough)):
        tiles = (rows // TILE) * columns
        found = register_tiles(
            tiles,
            facts.out_blocks,
            channels,
            machine.traits.vector_registers,
            machine,
        )
        score, width, blocks = max(found)
        out = blocks * facts.lanes
        maps = 3 * TILE**2 * out  # what the store slot reads and writes
        scratch = facts.element_bytes * tiles * (POINTS**2 * (channels + out) + maps)
        score *= min(1.0, machine.l2 / (3 * scratch)) ** LARGE_SCRATCH
        if taps > machine.l2:
            score /= 1 + STREAMED_TAPS / tiles
        best.append((score, {"columns": width, "blocks": blocks, "rows": rows}))
    return max(best, key=lambda found: (found[0], found[1]["rows"]))[1]


def winograd_space(facts: ConvFacts) -> Space:
    """Rows per task, and the register tile over the tiles of those rows."""

    def columns(chosen: Knobs) -> Sequence[int]:
        tiles = (chosen["rows"] // TILE) * math.ceil(facts.w / TILE)
        return range(1, min(tiles, MOST_REGISTERS) + 1)

    return {
        "rows": lambda _: rows_of_tiles(facts),
        "columns": columns,
        "blocks": tile_blocks(facts, facts.groups),
    }


def rows_of_tiles(facts: ConvFacts) -> list[int]:
    """Rows that a task may have, in whole tiles of 2x2 outputs and whole groups."""
    group, whole = group_of_tiles(facts), facts.h + facts.h % TILE
    return [r for r in divisors(whole) if r % group == 0]


def group_of_tiles(facts: ConvFacts) -> int:
    """Rows of a group in whole tiles: an odd group is the whole image and has a row to spare."""
    group = facts.group_rows or TILE
    return group + group % TILE


def winograd_wgrad_knobs(facts: GradientFacts, machine: Machine) -> Knobs:
    """Those of any weight gradient, for rows of tiles: those of a task should stay in L2."""
    chunks, kb, cb = gradient_task(facts, machine)
    blocks, lanes = register_block(kb, divisors(facts.in_lanes), machine)
    rows = 1
    for r in divisors(facts.h):
        panel = facts.element_bytes * facts.lanes * r * facts.w
        scratch = facts.r * facts.s * panel * (kb + cb)
        if scratch <= 3 * machine.l2 // 4 and panel * (1 + blocks) <= machine.l1 // 2:
            rows = r
    return {
        "chunks": chunks, "out_blocks": kb, "in_blocks": cb, "rows": rows, "blocks": blocks,
        "in_lanes": lanes,
    }  # fmt: skip


# --- schedule ---------------------------------------------------------------------------------


def schedule_winograd(low: Lowered, facts: ConvFacts, knobs: Knobs) -> s_tir.Schedule:
    """Apply knobs ``rows``, ``columns`` (tiles of a task), ``blocks``."""
    sch = opened(low)
    group = group_of_tiles(facts)
    task, kb_tile, h_group, _, inside = cut_into_tasks(sch, low, knobs, group, (TILE, TILE))
    h_in, w, w_in, kb_in, lane = inside
    sch.reorder(w, kb_in, h_in, w_in, lane)
    attach_store_slot(sch, low, h_group, None, h_group, unroll=False)
    spell_out(sch, h_in, w_in, lane)
    _schedule_product(sch, kb_tile, knobs["columns"])
    attach_loads(sch, low, task)
    i, j, kb, cb, cl, lane = sch.get_loops(sch.get_sblock("taps"))
    sch.reorder(kb, cb, cl, i, j, lane)
    sch.parallel(sch.fuse(kb, cb))
    spell_out(sch, i, j, lane)
    in_other_sets(sch, "taps", 1)
    return sch


def _schedule_product(sch: s_tir.Schedule, at, columns: int) -> None:
    """The products of matrices of a task, a register tile at a time."""
    product = sch.get_sblock("product")
    sch.compute_at(product, at, preserve_unit_loops=True)
    in_other_sets(sch, "product", 1)
    i, j, kb, n, h, w, lane, cb, cl = loops_inside(sch, product, at)
    t_tile, t_in = sch.split(sch.fuse(n, h, w), [None, columns])
    sch.reorder(i, j, t_tile, cb, cl, t_in, kb, lane)
    set_apart(sch, t_tile)
    for loop in (t_in, kb):
        sch.unroll(loop)
    sch.vectorize(lane)
    sch.decompose_reduction(product, cb)
    vectorize_last(sch, sch.get_sblock("product_init"))
