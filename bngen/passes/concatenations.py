"""Concatenations: nested where they share a prefix, and written in place by who makes their parts.

`nest_concatenations` comes first. In: a graph. Out: the same graph with other operands on some
``cat`` nodes, so that each adds only what is new to an earlier one; no node comes or goes. A dense
block written with flat concatenations then accumulates its gradient feature map by feature map:
what flows back through a ``cat`` is one slice for all of its predecessor, one for the rest.

`split_concatenations` comes last before the layouts: no ``cat`` has more parts than code can read.

`place_concatenations` comes after the layouts. In: a graph, layouts. Out: the same with copies of
those parts that cannot lie in the concatenation's memory; the memory plan puts the others there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from bngen.ir.build import GraphBuilder
from bngen.ir.node import Graph, Node
from bngen.ir.types import Value
from bngen.passes.rewrite import rewrite
from bngen.plan.layout import Blocked, Layout

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
        if node.row.moves == "joins" and node.attrs["axis"] == CHANNEL_AXIS:
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


MOST_PARTS = 64
"""Operands of a concatenation: what a kernel reads is declared one thing within the other, and TVM
walks that by recursion."""


def split_concatenations(graph: Graph) -> Graph:
    """Join many parts in groups first, which are concatenations, too."""

    def split(b: GraphBuilder, node: Node) -> tuple[Value, ...] | None:
        parts, axis = node.inputs, node.attrs["axis"]
        if len(parts) <= MOST_PARTS:
            return None
        while len(parts) > MOST_PARTS:
            size = math.ceil(len(parts) / math.ceil(len(parts) / MOST_PARTS))
            groups = [parts[i : i + size] for i in range(0, len(parts), size)]
            parts = [b.emit("cat", *group, axis=axis, loc=node.loc) for group in groups]
        return (b.emit("cat", *parts, axis=axis, loc=node.loc),)

    return rewrite(graph, {"cat": split})


# --- concatenations without copies ----------------------------------------------------------------


def is_placed(cat: Node, layouts: Mapping[Value, Layout]) -> bool:
    """Whether all parts of a concatenation were made to lie in its memory."""
    return cat.attrs["axis"] == cat.out.type.channel_axis and isinstance(layouts[cat.out], Blocked)


def place_concatenations(
    graph: Graph, layouts: dict[Value, Layout]
) -> tuple[Graph, dict[Value, Layout]]:
    """ICF: let producers write into slices of a concatenation's memory.

    Before: ``c = cat(a, b)``. After: the same where ``a`` and ``b`` can lie inside ``c``;
    ``c = cat(copy(a), b)`` where ``a`` is an input, a view, or lies in another concatenation.
    Later, larger concatenations choose first, so that nested ones end up inside them.
    """
    producers = graph.producers()
    taken: set[Value] = set()
    copied: dict[Node, tuple[int, ...]] = {}
    for node in reversed(graph.nodes):
        if node.row.moves != "joins" or not is_placed(node, layouts):
            continue
        bad = []
        for i, v in enumerate(node.inputs):
            source = producers.get(v)
            view = source is not None and source.row.kind == "view" and source.row.moves != "joins"
            exact = isinstance(layouts[v], Blocked)
            free = source is not None and not view and exact
            if not free or v in taken:
                bad.append(i)
            else:
                taken.add(v)
        if bad:
            copied[node] = tuple(bad)
    if not copied:
        return graph, layouts
    b = GraphBuilder.rewriting(graph)
    table = dict(layouts)
    for node in graph.nodes:
        operands = list(node.inputs)
        for i in copied.get(node, ()):
            v = b.resolve(operands[i])
            copy = b.emit("copy", v)
            cut = layouts[node.out].slice(*_span(node, i))
            table[copy] = cut[0]
            operands[i] = copy
        b.add(node.with_inputs(operands))
    return b.finish(), table


def _span(cat: Node, i: int) -> tuple[int, int]:
    """Channels of a concatenation that its i-th operand fills."""
    axis = cat.attrs["axis"]
    start = sum(v.shape[axis] for v in cat.inputs[:i])
    return start, start + cat.inputs[i].shape[axis]
