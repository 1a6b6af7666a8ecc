"""What a kernel moves: its values as they lie in memory, and the bytes to and from there.

In: a kernel of a plan. Out: `Map`s and `Traffic`.
"""

from __future__ import annotations

from collections.abc import Iterable, Set

from bngen.explain.report import Map, Traffic
from bngen.ir.types import Value
from bngen.plan.kernel import Kernel, KernelPlan


def described_map(v: Value, plan: KernelPlan, maps: Set[Value]) -> Map:
    """A value as it lies in memory."""
    return Map(v.name, str(v.type), str(plan.layouts[v]), plan.nbytes(v), v in maps)


def traffic(reads: Iterable[Map], writes: Iterable[Map]) -> Traffic:
    """What reading and writing these comes to, each swept once."""
    reads, writes = tuple(reads), tuple(writes)
    read, written = ([m for m in side if m.is_map] for side in (reads, writes))
    others = [m for m in (*reads, *writes) if not m.is_map]
    return Traffic(
        len(read), len(written), *(sum(m.nbytes for m in s) for s in (read, written, others))
    )


def traffic_alone(kernel: Kernel, plan: KernelPlan, maps: Set[Value]) -> Traffic:
    """The same if each op of a kernel read its operands from memory and wrote its results there."""

    def shown(values: Iterable[Value]) -> list[Map]:
        return [described_map(v, plan, maps) for v in dict.fromkeys(values)]

    parts = (traffic(shown(n.operands), shown(n.outputs)) for n in kernel.nodes)
    return sum(parts, Traffic())
