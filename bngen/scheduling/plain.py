"""Pointwise kernels, and moves, of values in plain order: rows of vectors, or one of all elements.

::

    parallel row:
        for vector of it:
            main, and what the store slot makes of it

Where every operand is a number or lies as the result does, all of it is one row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bngen.ir.types import Value
from bngen.lower.facts import Declined, Layouts, element_bytes, partial_sums
from bngen.lower.lowered import Lowered
from bngen.lower.sweep_facts import PlainFacts
from bngen.plan.kernel import Kernel
from bngen.plan.layout import Plain
from bngen.scheduling.fallback import SERIAL_BELOW, schedule_block
from bngen.scheduling.knobs import Knobs, divisors
from bngen.scheduling.tools import opened, set_apart

if TYPE_CHECKING:
    from tvm import s_tir

SHORTEST = 8
"""Elements of a row that are worth a loop of their own."""

VECTORS = 128
"""Vectors of a task, where all elements are one row."""


def applies(kernel: Kernel, layouts: Layouts) -> PlainFacts | Declined:
    """Results of one shape in plain order, whose rows are vectors at least."""
    domain = kernel.outputs[0]
    layout = layouts[domain]
    if not isinstance(layout, Plain) or not domain.shape:
        return Declined("what it goes over does not lie in plain order")
    if kernel.anchor and any(layouts[v] != layout for v in kernel.anchor.operands):
        return Declined("what it moves lies in another order")
    if partial_sums(kernel):
        return Declined("it sums groups of rows")
    columns = domain.shape[layout.order(len(domain.shape))[-1]]
    flat = _is_flat(kernel, layouts, domain)
    if not flat and (columns < SHORTEST or len(domain.shape) == 1):
        return Declined(f"rows of {columns} are no vectors")
    return PlainFacts(
        element_bytes=element_bytes(domain), size=domain.type.size, columns=columns, flat=int(flat)
    )


def _is_flat(kernel: Kernel, layouts: Layouts, domain: Value) -> bool:
    """Whether all that is read lies as what is written does, element by element."""
    alike = all(
        not v.shape or (v.shape == domain.shape and layouts[v] == layouts[domain])
        for v in (*kernel.inputs, *kernel.outputs)
    )
    shapes = all(not v.shape or v.shape == domain.shape for n in kernel.nodes for v in n.outputs)
    moves = any(n.row.gathers or n.row.channel or n.row.moves for n in kernel.nodes)
    return alike and shapes and not moves


def schedule_plain(low: Lowered, facts: PlainFacts, _: Knobs) -> s_tir.Schedule:
    """Rows are shared out; what is made of a vector follows it at once."""
    sch = opened(low)
    names = low.tiles or [low.main]
    nests = [_cut(sch, name, facts) for name in names]
    task, vectors = (sch.merge(*loops) if len(nests) > 1 else loops[0]
                     for loops in zip(*nests, strict=True))  # fmt: skip
    for name in names:
        sch.vectorize(sch.get_loops(sch.get_sblock(name))[-1])
    if facts.row % facts.lanes:
        set_apart(sch, vectors)
    if facts.size >= SERIAL_BELOW:
        sch.parallel(task)
    for name in low.separate:
        schedule_block(sch, sch.get_sblock(name), facts.lanes)
    return sch


def _cut(sch: s_tir.Schedule, name: str, facts: PlainFacts) -> tuple[Any, Any]:
    """A block's loops over tasks and over vectors of them."""
    *outer, columns = sch.get_loops(sch.get_sblock(name))
    if facts.flat:
        row = sch.fuse(*outer, columns) if outer else columns
        several = [d for d in divisors(facts.row // facts.lanes) if d <= VECTORS]
        per_task = max(several) if facts.row % facts.lanes == 0 else VECTORS
        task, vector, _ = sch.split(row, [None, per_task, facts.lanes])
        return task, vector
    vector, _ = sch.split(columns, [None, facts.lanes])
    row = sch.fuse(*outer) if len(outer) > 1 else outer[0]
    return row, vector
