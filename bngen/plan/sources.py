"""Which kernels have to have run before another: those that write what it reads.

In: a `KernelPlan`. Out: positions. Analysis only.
"""

from __future__ import annotations

from bngen.ir.types import Value
from bngen.plan.kernel import KernelPlan


def sources_of(plan: KernelPlan) -> list[tuple[int, ...]]:
    """Of each kernel, the positions of those that write what it reads; views are looked through."""
    views = {v: n for n in plan.views for v in n.outputs}
    writer = {v: i for i, k in enumerate(plan.kernels) for v in k.outputs}
    origins: dict[Value, frozenset[int]] = {}

    def origin(v: Value) -> frozenset[int]:
        if v not in origins:
            through = views[v].operands if v in views else ()
            own = {writer[v]} if v in writer else set()
            origins[v] = frozenset(own.union(*(origin(x) for x in through)))
        return origins[v]

    for node in plan.views:  # in the order of the graph, so that no recursion is deep
        for v in node.outputs:
            origin(v)
    return [
        tuple(sorted(frozenset().union(*map(origin, k.inputs)) - {i}))
        for i, k in enumerate(plan.kernels)
    ]
