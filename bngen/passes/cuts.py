"""Where the channels of a map are cut: by slices of it, or of what is made of it by channel.

In: a graph. Out: for each map that is cut, the channels at which its parts begin. `passes.layout`
pads each part by itself, where that is worth it: a slice is then a range of whole channel blocks,
which moves no data.

::

    y = conv2d(x, w)          cut at 58, as what is made of it
    z = relu(y)               cut at 58
    a = slice(z, 0, 58)       a view
    b = slice(z, 58, 116)     a view
"""

from __future__ import annotations

from collections import defaultdict

from bngen.ir.node import Graph, Node
from bngen.ir.types import Value

MAP_RANK, CHANNEL_AXIS = 4, 1


def channel_cuts(graph: Graph) -> dict[Value, tuple[int, ...]]:
    """For each map that is cut: the channels, in order, at which a part begins that is no first."""
    cuts: dict[Value, set[int]] = defaultdict(set)
    for node in reversed(graph.nodes):
        if len(node.out.shape) == MAP_RANK:
            for v, channels in _cut_operands(node, cuts.get(node.out, set())):
                cuts[v] |= {c for c in channels if 0 < c < v.shape[CHANNEL_AXIS]}
    return {v: tuple(sorted(found)) for v, found in cuts.items() if found}


def _cut_operands(node: Node, cuts: set[int]) -> list[tuple[Value, set[int]]]:
    """The operands of a node that are cut where its result is, and by the node itself."""
    row, x = node.row, node.operands[0] if node.operands else None
    along = node.attrs.get("axis") == CHANNEL_AXIS
    if row.moves == "cuts" and along:
        start = node.attrs["start"]
        return [(x, {start, node.attrs["stop"], *(start + c for c in cuts)})]
    if row.moves == "joins" and along:
        found, start = [], 0
        for v in node.operands:
            found.append((v, {c - start for c in cuts}))
            start += v.shape[CHANNEL_AXIS]
        return found
    if row.kind == "pointwise" and not row.gathers:
        return [(v, cuts) for v in node.operands if v.shape == node.out.shape]
    if row.kind == "window" or (row.direction == "forward" and _is_depthwise(node)):
        return [(x, cuts)]
    return []


def _is_depthwise(node: Node) -> bool:
    return (
        node.attrs["groups"] == node.out.shape[CHANNEL_AXIS] == node.inputs[0].shape[CHANNEL_AXIS]
    )
