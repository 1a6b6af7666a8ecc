"""Where the channels of a map are cut: by slices of it, or of what is made of it by channel.

In: a graph. Out: for each map that is cut, the channels at which its parts begin. `Laid.block` pads
each part by itself, where that is worth it: a slice is then a range of whole channel blocks, which
moves no data.

::

    y = conv2d(x, w)          cut at 58, as what is made of it
    z = relu(y)               cut at 58
    a = slice(z, 0, 58)       a view
    b = slice(z, 58, 116)     a view
"""

from __future__ import annotations

import itertools
from collections import defaultdict

from bngen.ir.node import Graph, Node
from bngen.ir.types import Value

MAP_RANK, CHANNEL_AXIS = 4, 1


Span = tuple[int, int]
"""The first channel of a slice, and the one after its last."""


def channel_cuts(graph: Graph) -> dict[Value, tuple[int, ...]]:
    """For each map that is cut: the channels, in order, at which a part begins that is no first.

    A map whose slices overlap is not cut: one of them would be in several parts, and its readers
    would meet maps that are not.
    """
    slices: dict[Value, set[Span]] = defaultdict(set)
    for node in reversed(graph.nodes):
        if len(node.out.shape) == MAP_RANK:
            for v, spans in _cut_operands(node, slices.get(node.out, set())):
                slices[v] |= spans
    cuts = {v: _borders(spans, v.shape[CHANNEL_AXIS]) for v, spans in slices.items()}
    return {v: found for v, found in cuts.items() if found}


def _borders(spans: set[Span], channels: int) -> tuple[int, ...]:
    """Where parts begin and end within a map; nothing where parts overlap."""
    ordered = sorted(spans)
    if any(stop > start for (_, stop), (start, _) in itertools.pairwise(ordered)):
        return ()
    return tuple(sorted({c for span in spans for c in span if 0 < c < channels}))


def _cut_operands(node: Node, spans: set[Span]) -> list[tuple[Value, set[Span]]]:
    """The operands of a node that are cut where its result is, or by the node itself."""
    row, x = node.row, node.operands[0] if node.operands else None
    along = node.attrs.get("axis") == CHANNEL_AXIS
    if row.moves == "cuts" and along:
        first, after = node.attrs["start"], node.attrs["stop"]
        inner = {(first + a, first + b) for a, b in spans}
        return [(x, inner or {(first, after)})]
    if row.moves == "joins" and along:
        found, first = [], 0
        for v in node.operands:
            extent = v.shape[CHANNEL_AXIS]
            inside = {(max(a - first, 0), min(b - first, extent)) for a, b in spans}
            found.append((v, {(a, b) for a, b in inside if a < b and b - a < extent}))
            first += extent
        return found
    if row.kind == "pointwise" and not row.gathers:
        return [(v, spans) for v in node.operands if v.shape == node.out.shape]
    if row.kind == "window" or (row.direction == "forward" and _is_depthwise(node)):
        return [(x, spans)]
    return []


def _is_depthwise(node: Node) -> bool:
    return (
        node.attrs["groups"] == node.out.shape[CHANNEL_AXIS] == node.inputs[0].shape[CHANNEL_AXIS]
    )
