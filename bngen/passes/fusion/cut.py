"""The greedy cut of a graph into kernels.

In: a graph after fission and layout, a level. Out: a `KernelPlan`. The walk asks; what may be done
is answered in `legality`, what pays in `profit`, and `slots` does it.
"""

from __future__ import annotations

from bngen.ir.node import Graph
from bngen.ir.types import Value
from bngen.passes.fusion.conversions import Unconverted
from bngen.passes.fusion.dataflow import Dataflow, is_pointwise
from bngen.passes.fusion.kernels import kernel_of
from bngen.passes.fusion.levels import FusionLevel
from bngen.passes.fusion.order import in_execution_order
from bngen.passes.fusion.profit import Costs
from bngen.passes.fusion.slots import leave_virtual, open_kernel
from bngen.passes.fusion.state import Cut
from bngen.plan.kernel import KernelPlan
from bngen.plan.layout import Layout


def fuse(
    graph: Graph,
    layouts: dict[Value, Layout],
    level: FusionLevel,
    cotangents: frozenset[Value] | None = None,
) -> KernelPlan:
    """Cut a graph into kernels.

    Args:
        graph: after `assign_layouts`; with ``level.across``, after `place_concatenations`.
        layouts: layout of every value.
        level: what may be joined.
        cotangents: inputs that only ``backward`` is given; no kernel of ``forward`` may need them.
            None where there is no such call.
    """
    plain = Unconverted.of(graph)
    cut = Cut(Dataflow.of(plain.graph, layouts, level, cotangents or frozenset()))
    _decide(cut)
    kernels = [kernel_of(cut, draft) for draft in cut.drafts]
    refused = cut.refusals(k.nodes for k in kernels)
    views = tuple(n for n in plain.graph.nodes if n in cut.flow.views)
    ordered, calls, waits = in_execution_order(cut, kernels, cotangents)
    restored = tuple(plain.restored(ordered))
    return KernelPlan(graph, restored, views, dict(layouts), refused, calls, waits)


def _decide(cut: Cut) -> None:
    """Anchors first, in order, each with its store slot; then pointwise ops that are left over."""
    costs = Costs(cut)
    pointwise = []
    for node in cut.flow.graph.nodes:
        if is_pointwise(node):
            pointwise.append(node)
        elif node not in cut.owner and node not in cut.flow.views:
            open_kernel(cut, costs, node)
    for node in pointwise:
        costs.settle(node)
        if node not in cut.owner and not leave_virtual(cut, costs, node):
            open_kernel(cut, costs, node)
