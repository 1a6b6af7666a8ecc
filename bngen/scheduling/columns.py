"""Reductions that leave the last axis of plain values: each lane sums a column of its own.

::

    parallel chunk of the first axis that is reduced, kept axes, columns of a task:
        for some rows:
            for vector of columns:
                part[vector] += the rows, one after the other, in registers
    fold <- parts, where there are several; the result in its own type, and the store slot
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bngen.ir.ops.reduce import normalize_axes
from bngen.lower.facts import Declined, Layouts, element_bytes
from bngen.lower.lowered import Lowered
from bngen.lower.sweep_facts import ColumnFacts
from bngen.plan.kernel import Kernel
from bngen.plan.layout import PLAIN
from bngen.scheduling.fallback import SERIAL_BELOW, schedule_block
from bngen.scheduling.knobs import Knobs, divisors
from bngen.scheduling.tools import opened, set_apart, vectorize_last

if TYPE_CHECKING:
    from tvm import s_tir

ROWS = 8
"""Rows that are added up in registers: more are more places that the hardware has to read ahead."""

COLUMNS = 1024
"""Columns of a task, whose sums stay in the nearest cache."""


def applies(kernel: Kernel, layouts: Layouts) -> ColumnFacts | Declined:
    """A reduction that leaves a last axis of at least a vector."""
    node = kernel.anchor
    x, out = node.inputs[0], node.out
    rank = len(x.shape)
    if layouts[x] != PLAIN or layouts[out] != PLAIN:
        return Declined("its values do not lie in C order")
    axes = normalize_axes(node.attrs["axes"], rank)
    if not axes or rank - 1 in axes:
        return Declined("it leaves no last axis")
    columns = x.shape[-1]
    reduced = math.prod(x.shape[a] for a in axes)
    return ColumnFacts(
        element_bytes=element_bytes(x), first=x.shape[axes[0]], last=x.shape[axes[-1]],
        reduced=reduced, kept=x.type.size // max(1, reduced * columns), columns=columns,
    )  # fmt: skip


def applies_to_statistics(kernel: Kernel, layouts: Layouts) -> ColumnFacts | Declined:
    """Statistics of rows, in which channels are the last axis."""
    node = kernel.anchor
    x = node.inputs[0]
    if len(x.shape) != 2 or any(layouts[v] != PLAIN for v in (*node.operands, *node.outputs)):
        return Declined("it does not go over rows in C order")
    rows, columns = x.shape
    return ColumnFacts(
        element_bytes=element_bytes(x), first=rows, last=rows, reduced=rows, kept=1,
        columns=columns,
    )  # fmt: skip


def schedule_columns(low: Lowered, facts: ColumnFacts, _: Knobs) -> s_tir.Schedule:
    """Rows in registers, columns of a task in the nearest cache."""
    sch = opened(low)
    names = [sch.get(b).name_hint for b in sch.get_child_blocks(sch.get_sblock("root"))]
    name = "part" if "part" in names else "fold"
    block = sch.get_sblock(name)
    kinds = [int(v.iter_type) for v in sch.get(block).iter_vars]
    loops = list(sch.get_loops(block))
    spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == 0]
    *outer, columns = spatial
    # The last axis that is reduced lies innermost in memory.
    *rest, row = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == 2]
    most = max(1, COLUMNS // facts.lanes)
    vectors = -(-facts.columns // facts.lanes)
    task = max(d for d in divisors(vectors) if d <= most)
    columns, vector, lane = sch.split(columns, [None, task, facts.lanes])
    steps = facts.last if rest else facts.first // facts.chunks
    row, near = sch.split(row, [None, max(d for d in divisors(steps) if d <= ROWS)])
    sch.reorder(*outer, columns, *rest, row, vector, near, lane)
    task = sch.fuse(*outer, columns)
    if facts.kept * facts.reduced * facts.columns >= SERIAL_BELOW:
        sch.parallel(task)
    sch.unroll(near)
    sch.vectorize(lane)
    if facts.columns % facts.lanes:
        set_apart(sch, vector)
    vectorize_last(sch, sch.decompose_reduction(block, rest[0] if rest else row))
    for other in names:
        if other != name:
            schedule_block(sch, sch.get_sblock(other), facts.lanes)
    return sch
