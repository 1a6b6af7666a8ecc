"""A kernel as its slots have become: everything between memory and its results.

In: a `Draft` and all decisions. Out: a `Kernel` without a number.
"""

from __future__ import annotations

from bngen.ir.node import Node
from bngen.ir.types import Value
from bngen.passes.fusion.dataflow import is_pointwise
from bngen.passes.fusion.state import Cut, Draft
from bngen.plan.kernel import Kernel


def kernel_of(cut: Cut, draft: Draft) -> Kernel:
    """Gather the body of a kernel; its name tells the sub-layers that it holds."""
    anchor = draft.anchor
    outputs = tuple(v for n in draft.members for v in n.outputs if v in cut.stored)
    body, inputs = _body(cut, draft.members, set(outputs))
    if is_pointwise(anchor):
        return Kernel(_sublayers(body), None, (), tuple(body), inputs, outputs)
    after = dependents(anchor, body)
    load = tuple(n for n in body if n is not anchor and n not in after)
    store = tuple(n for n in body if n in after)
    return Kernel(_sublayers([*load, anchor, *store]), anchor, load, store, inputs, outputs)


def _body(cut: Cut, members: list[Node], own: set[Value]) -> tuple[list[Node], tuple[Value, ...]]:
    """The nodes that a kernel computes, in graph order, and the values that it reads."""
    flow = cut.flow
    nodes: set[Node] = set()
    inputs: dict[Value, None] = {}
    # Depth first, operands in order: inputs come in the order of their first use.
    work: list[Value | Node] = list(reversed(members))
    while work:
        v = work.pop()
        node = v if isinstance(v, Node) else flow.producer.get(v)
        stored = isinstance(v, Value) and v in cut.stored and v not in own
        if node is None or stored or node in flow.views:
            inputs.setdefault(v)
        elif node not in nodes:
            nodes.add(node)
            work += reversed(node.operands)
    return sorted(nodes, key=flow.order.__getitem__), tuple(inputs)


def dependents(anchor: Node, body: list[Node]) -> set[Node]:
    """Nodes of the body that read the anchor's result, directly or not."""
    tainted, found = set(anchor.outputs), set()
    for node in body:
        if node is not anchor and not tainted.isdisjoint(node.operands):
            found.add(node)
            tainted.update(node.outputs)
    return found


def _sublayers(nodes: list[Node]) -> str:
    """The ops of a kernel, runs of the same one written once."""
    parts: list[str] = []
    for node in nodes:
        if node.row.sublayer and (not parts or parts[-1] != node.op):
            parts.append(node.op)
    return "_".join(parts)[:80].rstrip("_")
