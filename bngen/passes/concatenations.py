"""Nest concatenations that share a prefix, so that each adds only what is new to an earlier one.

In: a graph. Out: the same graph with other operands on some ``cat`` nodes; no node comes or goes.
A dense block written with flat concatenations then accumulates its gradient feature map by feature
map: what flows back through a ``cat`` is one slice for all of its predecessor, one for the rest.
"""

from __future__ import annotations

from dataclasses import replace

from bngen.ir.node import Graph, Node
from bngen.ir.types import Value

CHANNEL_AXIS = 1


def nest_concatenations(graph: Graph) -> Graph:
    """Rewrite channel concatenations over the longest earlier concatenation that starts them.

    Before::

        c1 = cat(f0, f1)
        c2 = cat(f0, f1, f2)
        c3 = cat(f0, f1, f2, f3)

    After::

        c1 = cat(f0, f1)
        c2 = cat(c1, f2)
        c3 = cat(c2, f3)

    Operands that are concatenations themselves count as what they join, and are never split.
    """
    leaves: dict[Value, tuple[Value, ...]] = {}
    joined: dict[tuple[Value, ...], Value] = {}
    nodes = []
    for node in graph.nodes:
        if node.op == "cat" and node.attrs["axis"] == CHANNEL_AXIS:
            node = _nest(node, leaves, joined)
            leaves[node.out] = _flatten(node.operands, leaves)
            joined.setdefault(leaves[node.out], node.out)
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes))


def _flatten(
    operands: tuple[Value, ...], leaves: dict[Value, tuple[Value, ...]]
) -> tuple[Value, ...]:
    return tuple(leaf for v in operands for leaf in leaves.get(v, (v,)))


def _nest(
    node: Node,
    leaves: dict[Value, tuple[Value, ...]],
    joined: dict[tuple[Value, ...], Value],
) -> Node:
    operands = node.operands
    for count in range(len(operands) - 1, 0, -1):
        prefix = _flatten(operands[:count], leaves)
        # A concatenation of one operand is no prefix worth having: it would only hide the operand.
        if len(prefix) > 1 and prefix in joined:
            return node.with_inputs((joined[prefix], *operands[count:]))
    return node
