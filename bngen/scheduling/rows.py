"""Reductions along the last axes of plain values: a row after the other, a vector of lanes.

::

    parallel row:
        part[lanes] in registers <- fold over the row, a vector after the other
        fold <- part
    the result in its own type, and the store slot: nests of their own
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bngen.ir.ops.reduce import normalize_axes
from bngen.lower.facts import Declined, Layouts, element_bytes
from bngen.lower.lowered import Lowered
from bngen.lower.sweep_facts import RowFacts
from bngen.plan.kernel import Kernel
from bngen.plan.layout import PLAIN
from bngen.scheduling.fallback import SERIAL_BELOW, schedule_block
from bngen.scheduling.knobs import Knobs
from bngen.scheduling.tools import local, opened, set_apart, vectorize_last

if TYPE_CHECKING:
    from tvm import s_tir

SHORTEST = 32
"""Elements of a row that are worth partial results."""


def applies(kernel: Kernel, layouts: Layouts) -> RowFacts | Declined:
    """A reduction along the last axes, of several rows."""
    node = kernel.anchor
    x, out = node.inputs[0], node.out
    rank = len(x.shape)
    axes = normalize_axes(node.attrs["axes"], rank)
    if layouts[x] != PLAIN or layouts[out] != PLAIN or axes != tuple(range(rank - len(axes), rank)):
        return Declined("its rows do not lie in one piece")
    columns = math.prod(x.shape[a] for a in axes)
    if columns < SHORTEST:
        return Declined(f"rows of {columns} are worth no partial results")
    return RowFacts(element_bytes=element_bytes(x), rows=x.type.size // columns, columns=columns)


def schedule_rows(low: Lowered, facts: RowFacts, _: Knobs) -> s_tir.Schedule:
    """One row, or chunk of one, a task, where they are long or many enough for tasks."""
    sch = opened(low)
    fold, part = sch.get_sblock("fold"), sch.get_sblock("part")
    others = [b for b in sch.get_child_blocks(sch.get_sblock("root"))
              if sch.get(b).name_hint not in ("fold", "part")]  # fmt: skip
    *outer, chunk, _ = sch.get_loops(fold)
    row = sch.fuse(*outer) if len(outer) > 1 else outer[0]
    if facts.chunks == 1:
        sch.compute_at(part, row, preserve_unit_loops=True)
        local(sch, ["part"])
        task = row
    else:
        *around, _, _, _ = sch.get_loops(part)
        task = sch.fuse(*around, sch.get_loops(part)[-3])
    *_, wide, step = sch.get_loops(part)
    sch.reorder(step, wide)
    sch.vectorize(wide)
    set_apart(sch, step)
    if facts.rows * facts.columns >= SERIAL_BELOW:
        sch.parallel(task)
    sch.decompose_reduction(fold, chunk)
    vectorize_last(sch, sch.decompose_reduction(part, step))
    for block in others:
        schedule_block(sch, block, facts.lanes)
    return sch
