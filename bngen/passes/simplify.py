"""Algebra that fusion relies on: common subexpressions, slices of concatenations, shared statistics.

In and out: graphs of equal meaning. Nothing here knows of kernels.
"""

from __future__ import annotations

from bngen.ir.build import GraphBuilder
from bngen.ir.node import Graph, Node, Value
from bngen.passes.fission import rewrite


def share_common_subexpressions(graph: Graph) -> Graph:
    """Compute equal nodes once.

    Before: ``a = exp(x); b = exp(x); return a + b``. After: ``a = exp(x); return a + a``.
    """
    b = GraphBuilder.rewriting(graph)
    seen: dict[tuple, Node] = {}
    for node in graph.nodes:
        inputs = tuple(v and b.resolve(v) for v in node.inputs)
        key = (node.op, inputs, node.attrs)
        if key in seen:
            for old, new in zip(node.outputs, seen[key].outputs, strict=True):
                b.replace(old, new)
        else:
            seen[key] = node
            b.add(node)
    return b.finish()


def emit_slice(b: GraphBuilder, x: Value, axis: int, start: int, stop: int) -> Value:
    """``x[start:stop]`` along an axis, looked up through slices and concatenations."""
    if (start, stop) == (0, x.shape[axis]):
        return x
    source = b.producer(x)
    if source is not None and source.attrs.get("axis") == axis:
        if source.op == "slice":
            first = source.attrs["start"]
            return emit_slice(b, source.inputs[0], axis, first + start, first + stop)
        offset = 0
        for part in source.inputs if source.op == "cat" else ():
            extent = part.shape[axis]
            if offset <= start and stop <= offset + extent:
                return emit_slice(b, part, axis, start - offset, stop - offset)
            offset += extent
    return b.emit("slice", x, axis=axis, start=start, stop=stop)


def _forward_slice(b: GraphBuilder, node: Node) -> tuple[Value, ...]:
    return (emit_slice(b, node.inputs[0], *(node.attrs[k] for k in ("axis", "start", "stop"))),)


def forward_slices(graph: Graph) -> Graph:
    """A slice that lies within one part of a concatenation reads that part.

    Before: ``c = cat(a, b); s = slice(c, 0, a.channels)``. After: ``s`` is ``a``.
    """
    return rewrite(graph, {"slice": _forward_slice})


def share_statistics(graph: Graph) -> Graph:
    """ICF: statistics of a concatenation are the concatenated statistics of its parts.

    Before: ``bn_stats(cat(a, b))``. After: ``cat(bn_stats(a), bn_stats(b))``, through nested
    concatenations, so that common subexpressions leave one ``bn_stats`` a feature map.
    """
    known: dict[Value, tuple[Value, Value]] = {}

    def stats(b: GraphBuilder, x: Value, node: Node) -> tuple[Value, Value]:
        if x not in known:
            source = b.producer(x)
            if source is not None and source.op == "cat" and source.attrs["axis"] == 1:
                parts = [stats(b, part, node) for part in source.inputs]
                known[x] = tuple(
                    b.emit("cat", *(p[i] for p in parts), axis=0, loc=node.loc) for i in (0, 1)
                )
            else:
                known[x] = b.emit("bn_stats", x, loc=node.loc)
        return known[x]

    return rewrite(graph, {"bn_stats": lambda b, node: stats(b, node.inputs[0], node)})
