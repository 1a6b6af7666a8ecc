"""The data gradient of a strided convolution, phase by phase; see `bngen.lower.phased`.

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
together, LLVM spills accumulators.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bngen.ir.node import Node
from bngen.lower.facts import Declined, Layouts, PhasedFacts, element_bytes, group_rows
from bngen.lower.geometry import Phases
from bngen.lower.lowered import Lowered
from bngen.plan.groups import groups_of
from bngen.plan.kernel import Kernel
from bngen.plan.layout import physical_shape
from bngen.scheduling.conv import packing
from bngen.scheduling.knobs import Knobs, register_tiles, rows_per_task
from bngen.scheduling.legality import Space, tile_blocks, tile_columns, whole_groups
from bngen.scheduling.shuffled import MOST_COLUMNS, MOST_TERMS, written_out
from bngen.scheduling.tools import (
    attach_loads,
    attach_store_slot,
    cut_into_tasks,
    local,
    loops_inside,
    opened,
    set_apart,
    vectorize_last,
)
from bngen.target.machine import Machine

if TYPE_CHECKING:
    from tvm import s_tir


def applies(kernel: Kernel, layouts: Layouts) -> PhasedFacts | Declined:
    """Strided and undilated, over whole phases, sums over groups of rows that hold all phases."""
    node = kernel.anchor
    packed, (sh, sw) = packing(kernel, layouts), node.attrs["stride"]
    n, _, h, w = node.out.shape
    rows = group_rows(kernel)
    if packed.shuffled and not _shuffles(node, layouts):
        return Declined("its output blocks read their channels from different lanes")
    if (sh, sw) == (1, 1):
        return Declined("its stride is 1")
    if node.attrs["dilation"] != (1, 1):
        return Declined("it is dilated")
    if h % sh or w % sw:
        return Declined(f"{h}x{w} is no multiple of the stride {sh}x{sw}")
    if rows and rows % sh:
        return Declined(f"partial sums over {rows} rows do not hold all of {sh} phases")
    weight = node.inputs[1]
    in_blocks, in_lanes = 1, packed.outer.lanes
    groups = 1 if packed.depthwise else packed.groups
    if packed.shuffled:
        _, in_blocks, *_ = physical_shape(weight.type, packed)
        in_lanes, groups = 1, packed.outer.blocks
    elif not packed.depthwise:
        _, in_blocks, _, _, in_lanes, *_ = physical_shape(weight.type, packed)
    return PhasedFacts(
        element_bytes=element_bytes(node.out), group_rows=rows, pairs=int(packed.paired),
        n=n, h=h, w=w, out_blocks=packed.outer.blocks, lanes=packed.outer.lanes,
        in_blocks=in_blocks, in_lanes=in_lanes, r=weight.shape[2], s=weight.shape[3],
        spread_h=sh, spread_w=sw, groups=groups,
        padded_w=Phases.of(node).padded_w(kernel, node.inputs[0], layouts),
    )  # fmt: skip


def _shuffles(node: Node, layouts: Layouts) -> bool:
    """Whether every output block finds its lanes' channels alike, and not too many."""
    groups = groups_of(node.attrs["groups"], node.inputs[0], node.out, layouts)
    return groups.period == 1 and groups.in_per <= MOST_TERMS


def _written_out(facts: PhasedFacts) -> int:
    """Terms that a nest is written out for: of shuffled lanes, all; else they are a loop."""
    return facts.in_blocks if facts.in_lanes == 1 else 1


def phased_knobs(facts: PhasedFacts, machine: Machine) -> Knobs:
    """As of a convolution; the register tile belongs to one phase."""
    width, registers = facts.w // facts.spread_w, machine.traits.vector_registers
    most = MOST_COLUMNS if facts.in_lanes == 1 else width
    tiles = register_tiles(width, facts.out_blocks // facts.groups, facts.terms, registers, machine)
    _, columns, blocks = max(tile for tile in tiles if tile[1] <= most)
    inner = facts.element_bytes * facts.in_blocks * facts.in_lanes
    row_bytes = inner * facts.padded_w // facts.spread_h
    # Each task reads all weights. Where L2 cannot hold them, few tasks count for more than scratch.
    if facts.element_bytes * facts.lanes * facts.out_blocks * facts.terms > machine.l2:
        row_bytes = 0
    rows = rows_per_task(
        facts, machine, lambda rows: rows * row_bytes, group=facts.group_rows or facts.spread_h
    )
    return {"columns": columns, "blocks": blocks, "rows": rows}


def phased_space(facts: PhasedFacts) -> Space:
    """Register tile of one phase, and rows per task."""
    columns = tile_columns(facts.w // facts.spread_w)
    return {
        "columns": lambda chosen: written_out(columns(chosen), _written_out(facts)),
        "blocks": tile_blocks(facts, facts.groups),
        "rows": whole_groups(facts, facts.spread_h),
    }


def schedule_phased(low: Lowered, facts: PhasedFacts, knobs: Knobs) -> s_tir.Schedule:
    """Apply knobs ``columns`` (of one phase), ``blocks``, ``rows``."""
    sch = opened(low)
    steps = facts.spread_h, facts.spread_w
    group = facts.group_rows or steps[0]
    task, _, h_group, h_row, inside = cut_into_tasks(sch, low, knobs, group, steps)
    h_phase, _, w_phase, kb_in, lane = inside
    attach_store_slot(sch, low, h_row, h_row, h_group, unroll=False)
    for name in low.shuffles:
        sch.compute_inline(sch.get_sblock(name))
    for name in low.nests:
        local(sch, [name])
        _schedule_nest(sch, name, h_row, knobs["columns"], shuffled=bool(low.shuffles))
    attach_loads(sch, low, task)
    for loop in (h_phase, w_phase, kb_in):
        sch.unroll(loop)
    sch.vectorize(lane)
    return sch


def _schedule_nest(sch: s_tir.Schedule, name: str, at, columns: int, *, shuffled: bool) -> None:
    """One phase's sum of products, a register tile at a time, below a row of phases."""
    nest = sch.get_sblock(name)
    sch.compute_at(nest, at, preserve_unit_loops=True)
    kb, n, h, w, lane, *reduction = loops_inside(sch, nest, at)
    w_tile, w_in = sch.split(w, [None, columns])
    if shuffled:
        j, t, u = reduction
        reduction = [t, j, u]
        sch.unroll(j)
    sch.reorder(n, h, w_tile, *reduction, w_in, kb, lane)
    set_apart(sch, w_tile)
    for loop in (w_in, kb):
        sch.unroll(loop)
    sch.vectorize(lane)
    sch.decompose_reduction(nest, reduction[0])
    vectorize_last(sch, sch.get_sblock(f"{name}_init"))
