"""Depthwise convolutions and their gradients: sweeps, a channel block at a time.

The convolution and its data gradient go by `maps.schedule_map`. The weight gradient::

    parallel channel block:
        clear partial
        for image, row tile:
            pad, grad <- load slots of both operands
            for r, row, column:
                partial[s, lanes] += x * dy
    dweight <- partial in the weight's own order
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bngen.lower.facts import ConvFacts, Declined, GradientFacts, Layouts
from bngen.lower.geometry import Geometry
from bngen.lower.lowered import Lowered
from bngen.plan.kernel import Kernel
from bngen.scheduling.conv import conv_facts, packing
from bngen.scheduling.knobs import MAPS_AT_ONCE, Knobs, divisors, rows_per_task
from bngen.scheduling.legality import Space
from bngen.scheduling.tools import attach_loads, opened, vectorize_last
from bngen.scheduling.wgrad import gradient_facts, unpack
from bngen.target.machine import Machine

if TYPE_CHECKING:
    from tvm import s_tir


def applies(kernel: Kernel, layouts: Layouts) -> ConvFacts | Declined:
    """A convolution, or data gradient, of one input channel an output channel."""
    packed = packing(kernel, layouts)
    if not packed.depthwise:
        return Declined("it is not depthwise")
    return conv_facts(kernel, layouts, Geometry.of_convolution(kernel.anchor))


def applies_to_gradient(kernel: Kernel, layouts: Layouts) -> GradientFacts | Declined:
    """A group a channel, both operands laid out alike."""
    node = kernel.anchor
    groups, (k, cg, *_) = node.attrs["groups"], node.out.shape
    if not (groups > 1 and cg == 1 and k == groups):
        return Declined("it is not depthwise")
    if layouts[node.inputs[0]] != layouts[node.inputs[1]]:
        return Declined("its operands are not laid out alike")
    geo = Geometry.weight_gradient(node)
    return gradient_facts(kernel, layouts, geo, in_blocks=1, in_lanes=1)


def depthwise_knobs(facts: ConvFacts, machine: Machine) -> Knobs:
    """Rows per task."""
    return _rows(facts, machine)


def gradient_knobs(facts: GradientFacts, machine: Machine) -> Knobs:
    """Rows that a task fills its scratch with at a time."""
    return _rows(facts, machine, group=1)


def _rows(facts: ConvFacts | GradientFacts, machine: Machine, group: int | None = None) -> Knobs:
    """Rows per task, or per tile, whose windows reach over them."""
    row_bytes = MAPS_AT_ONCE * facts.element_bytes * facts.lanes * facts.w

    def scratch(rows: int) -> int:
        return ((rows - 1) * facts.stride_h + facts.r) * row_bytes

    rows = rows_per_task(facts, machine, scratch, group=group, tasks=facts.out_blocks)
    return {"rows": rows}


def gradient_space(facts: GradientFacts) -> Space:
    """Rows of a tile."""
    return {"rows": lambda _: divisors(facts.h)}


def schedule_depthwise_gradient(low: Lowered, _: GradientFacts, knobs: Knobs) -> s_tir.Schedule:
    """One task a channel block; the window's taps are the accumulators."""
    sch = opened(low)
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
    unpack(sch)
    return sch
