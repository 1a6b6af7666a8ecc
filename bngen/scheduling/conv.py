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

from typing import TYPE_CHECKING

from bngen.lower.facts import ConvFacts, Declined, Layouts, element_bytes, group_rows
from bngen.lower.geometry import Geometry
from bngen.lower.joined_rows import with_joined_rows
from bngen.lower.lowered import Lowered
from bngen.plan.kernel import Kernel
from bngen.plan.layout import PackedWeight, physical_shape
from bngen.scheduling.knobs import Knobs, register_tiles, rows_per_task
from bngen.scheduling.legality import Space, tile_blocks, tile_columns, whole_groups
from bngen.scheduling.tools import (
    attach_loads,
    attach_store_slot,
    local,
    opened,
    set_apart,
)
from bngen.target.machine import Machine

if TYPE_CHECKING:
    from tvm import s_tir

FEW_REGISTERS, SHARED_BROADCASTS = 32, 3
"""Of fewer vector registers, so many are taken where taps share the broadcasts of a row."""


def applies(kernel: Kernel, layouts: Layouts) -> ConvFacts | Declined:
    """Any convolution or data gradient whose weight is packed in blocks."""
    packed = packing(kernel, layouts)
    if packed.depthwise:
        return Declined("it has one input channel an output channel")
    if packed.shuffled:
        return Declined("its groups cut channel blocks")
    kernel, layouts = with_joined_rows(kernel, layouts)
    return conv_facts(kernel, layouts, Geometry.of_convolution(kernel.anchor))


def packing(kernel: Kernel, layouts: Layouts) -> PackedWeight:
    """How the weight of a convolution, or data gradient, is packed for its nest."""
    return layouts[kernel.anchor.inputs[1]]


def conv_facts(kernel: Kernel, layouts: Layouts, geo: Geometry) -> ConvFacts:
    """The facts of a convolution over a packed weight."""
    node = kernel.anchor
    x, weight = node.inputs
    packed: PackedWeight = layouts[weight]
    n, _, h, w = node.out.shape
    in_blocks, in_lanes = 1, 1
    if packed.shuffled:
        _, in_blocks, *_ = physical_shape(weight.type, packed)
    elif not packed.depthwise:
        _, in_blocks, _, _, in_lanes, *_ = physical_shape(weight.type, packed)
    return ConvFacts(
        element_bytes=element_bytes(node.out), group_rows=group_rows(kernel),
        pairs=int(packed.paired), n=n, h=h, w=w, groups=packed.groups,
        out_blocks=packed.outer.blocks, lanes=packed.outer.lanes,
        in_blocks=in_blocks, in_lanes=in_lanes,
        r=geo.window[0], s=geo.window[1], padded_w=geo.padded_w(kernel, x, layouts),
        stride_h=geo.stride[0], stride_w=geo.stride[1],
        dilation_h=geo.dilation[0], dilation_w=geo.dilation[1],
    )  # fmt: skip


def conv_knobs(facts: ConvFacts, machine: Machine) -> Knobs:
    """Register tile and rows per task."""
    registers = machine.traits.vector_registers
    # Taps of one channel's row share broadcasts, and LLVM holds on to them: none is folded, and
    # where registers are few, fewer are left.
    shared = facts.in_lanes == 1
    if shared and registers < FEW_REGISTERS:
        registers -= SHARED_BROADCASTS
    _, columns, blocks = max(
        register_tiles(
            facts.w,
            facts.out_blocks // facts.groups,
            facts.terms,
            registers,
            machine,
            shared=shared,
        )
    )
    row_bytes = facts.element_bytes * facts.in_blocks * facts.in_lanes * facts.padded_w

    def scratch(rows: int) -> int:
        return ((rows - 1) * facts.stride_h + facts.r) * row_bytes

    return {"columns": columns, "blocks": blocks, "rows": rows_per_task(facts, machine, scratch)}


def conv_space(facts: ConvFacts) -> Space:
    """Register tile, and rows per task."""
    return {
        "columns": tile_columns(facts.w),
        "blocks": tile_blocks(facts, facts.groups),
        "rows": whole_groups(facts),
    }


def schedule_conv(low: Lowered, facts: ConvFacts, knobs: Knobs) -> s_tir.Schedule:
    """Apply knobs ``columns``, ``blocks``, ``rows`` and, where a kind has it, ``images``."""
    sch = opened(low)
    conv = sch.get_sblock("conv")
    kb, n, h, w, lane, *reduction = sch.get_loops(conv)
    group = facts.group_rows or 1
    h_task, h_group, h_row = sch.split(h, [None, knobs["rows"] // group, group])
    w_tile, w_in = sch.split(w, [None, knobs["columns"]])
    kb_tile, kb_in = sch.split(kb, [None, knobs["blocks"]])
    images = []
    if "images" in knobs:
        n, *images = sch.split(n, [None, knobs["images"]])
    inside = (h_group, h_row, w_tile, *reduction, w_in, kb_in, lane)
    sch.reorder(n, h_task, kb_tile, *images, *inside)
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
