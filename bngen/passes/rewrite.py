"""Rewriting by a table: op -> what takes its place.

In: a graph and a `Rule` an op. Out: the graph in which every node that its rule does not decline is
replaced. Passes that look at more than one node at a time walk the graph themselves.
"""

from __future__ import annotations

from collections.abc import Callable

from bngen.ir.build import GraphBuilder
from bngen.ir.node import Graph, Node
from bngen.ir.types import Value

Rule = Callable[[GraphBuilder, Node], tuple[Value, ...] | None]
"""Emits what replaces a node and returns it, or None to let the node stand."""


def rewrite(graph: Graph, rules: dict[str, Rule]) -> Graph:
    """Replace every node whose op has a rule that does not decline (return None)."""
    b = GraphBuilder.rewriting(graph)
    for node in graph.nodes:
        rule = rules.get(node.op)
        resolved = node.with_inputs(v and b.resolve(v) for v in node.inputs)
        results = rule(b, resolved) if rule else None
        if results is None:
            b.add(node)
            continue
        for old, new in zip(node.outputs, results, strict=True):
            b.replace(old, new)
    return b.finish()
