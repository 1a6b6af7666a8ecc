"""Kernels that sweep feature maps: pools, depthwise convolutions, pointwise, partial sums.

::

    parallel channel block, image, row tile:
        pad <- load slot
        for group of rows, row:
            main over the columns, lanes vectorized; store slot and sums of the row
        second pass of moments over the group of rows
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bngen.ir.types import Value
from bngen.lower.facts import (
    Declined,
    Layouts,
    MapFacts,
    element_bytes,
    group_rows,
)
from bngen.lower.lowered import Lowered
from bngen.plan.kernel import Kernel
from bngen.plan.layout import Blocked
from bngen.scheduling.knobs import MAPS_AT_ONCE, Knobs, rows_per_task
from bngen.scheduling.legality import Space, whole_groups
from bngen.scheduling.tools import (
    attach_loads,
    attach_store_slot,
    local,
    opened,
    vectorize_last,
    write_out,
)
from bngen.target.machine import Machine

if TYPE_CHECKING:
    from tvm import s_tir

MAP_RANK = 4

# --- where they apply -------------------------------------------------------------------------


def applies_pointwise(kernel: Kernel, layouts: Layouts) -> MapFacts | Declined:
    """Ops over a feature map in channel blocks."""
    return _map_facts(kernel, layouts, kernel.outputs[0])


def applies_window(kernel: Kernel, layouts: Layouts) -> MapFacts | Declined:
    """Any pool, or gradient of one."""
    return _map_facts(kernel, layouts, kernel.anchor.out)


def applies_partial(kernel: Kernel, layouts: Layouts) -> MapFacts | Declined:
    """A partial sum of a feature map in channel blocks."""
    return _map_facts(kernel, layouts, kernel.anchor.inputs[0])


def _map_facts(kernel: Kernel, layouts: Layouts, v: Value) -> MapFacts | Declined:
    layout = layouts[v]
    if len(v.shape) != MAP_RANK or not isinstance(layout, Blocked):
        return Declined("what it goes over does not lie in channel blocks")
    n, _, h, w = v.shape
    return MapFacts(
        element_bytes=element_bytes(v), group_rows=group_rows(kernel),
        n=n, h=h, w=w, out_blocks=layout.blocks, lanes=layout.lanes,
    )  # fmt: skip


# --- knobs ------------------------------------------------------------------------------------


def map_knobs(facts: MapFacts, machine: Machine) -> Knobs:
    """Rows per task."""
    row_bytes = MAPS_AT_ONCE * facts.element_bytes * facts.lanes * facts.w
    rows = rows_per_task(facts, machine, lambda rows: rows * row_bytes, tasks=facts.out_blocks)
    return {"rows": rows}


def map_space(facts: MapFacts) -> Space:
    """Rows per task."""
    return {"rows": whole_groups(facts)}


# --- schedules --------------------------------------------------------------------------------


def schedule_map(low: Lowered, facts: MapFacts, knobs: Knobs) -> s_tir.Schedule:
    """Apply knob ``rows`` to a kernel whose main block runs over (block, n, h, w, lane)."""
    sch = opened(low)
    main = sch.get_sblock(low.main)
    cb, n, h, w, lane, *window = sch.get_loops(main)
    group = facts.group_rows or 1
    h_task, h_group, h_row = sch.split(h, [None, knobs["rows"] // group, group])
    sch.reorder(cb, n, h_task, h_group, h_row, w, *window, lane)
    task = sch.fuse(cb, n, h_task)
    sch.parallel(task)
    if window:
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


def schedule_partial(low: Lowered, _: MapFacts, __: Knobs) -> s_tir.Schedule:
    """A partial reduction by itself, one task a channel block and image.

    The first sum is the main block; each further one is a nest of its own, and deviations follow a
    whole group of rows of the main block.
    """
    sch = opened(low)
    first, *further = low.sums
    group, row = _by_rows(sch, first)
    for name in low.deviations:
        sch.reverse_compute_at(sch.get_sblock(name), group, preserve_unit_loops=True)
    _cleared(sch, first, row)
    for name in low.deviations:
        *_, lane, row, column = sch.get_loops(sch.get_sblock(name))
        sch.reorder(row, column, lane)
        sch.vectorize(lane)
        _cleared(sch, name, row)
    for name in further:
        _, row = _by_rows(sch, name)
        _cleared(sch, name, row)
    return sch


def _by_rows(sch: s_tir.Schedule, name: str) -> tuple[Any, Any]:
    """A sum over groups of rows, tasks outermost and lanes innermost: its group and row loops."""
    cb, n, group, lane, row, column = sch.get_loops(sch.get_sblock(name))
    sch.reorder(cb, n, group, row, column, lane)
    sch.parallel(sch.fuse(cb, n))
    sch.vectorize(lane)
    return group, row


def _cleared(sch: s_tir.Schedule, name: str, before: Any) -> None:
    """Clear a sum right before a loop of its own."""
    sch.decompose_reduction(sch.get_sblock(name), before)
    vectorize_last(sch, sch.get_sblock(f"{name}_init"))
