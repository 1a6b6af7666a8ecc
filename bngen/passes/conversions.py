"""Conversions to and from types that are only stored: what they are, and seen through.

In and out: graphs. The rules of other passes look for what made a value; where a cast lies between,
as it does after each op in mixed precision, they ask here.

================================== =============================================================
before                             after
================================== =============================================================
cast(cast(x, float32), bfloat16)   x, which is bfloat16
cast(x, its own type)              x
================================== =============================================================
"""

from __future__ import annotations

from bngen.ir.build import GraphBuilder, prune
from bngen.ir.node import Graph, Node
from bngen.ir.types import Value
from bngen.passes.rewrite import rewrite


def widens(node: Node) -> bool:
    """Whether a node makes numbers to compute with of what is only stored."""
    (x,) = node.inputs if node.row.converts else (None,)
    return (
        x is not None and x.type.element.stored_only and node.out.dtype == x.type.element.computed
    )


def narrows(node: Node) -> bool:
    """Whether a node rounds numbers to what is only stored."""
    (x,) = node.inputs if node.row.converts else (None,)
    out = node.out.type.element
    return x is not None and out.stored_only and x.dtype == out.computed


def converts(node: Node | None) -> bool:
    """Whether a node does either."""
    return node is not None and (widens(node) or narrows(node))


def join_conversions(graph: Graph) -> Graph:
    """Leave out conversions that lead back to where they came from."""

    def cast(b: GraphBuilder, node: Node) -> tuple[Value, ...] | None:
        (x,) = node.inputs
        if x.dtype == node.out.dtype:
            return (x,)
        before = b.producer(x)
        back = before is not None and widens(before) and before.inputs[0].dtype == node.out.dtype
        return (before.inputs[0],) if back else None

    return prune(rewrite(graph, {"cast": cast}))


def converted(b: GraphBuilder, v: Value, dtype: str) -> Value:
    """A value in another type, or itself."""
    if v.dtype == dtype:
        return v
    before = b.producer(v)
    if before is not None and widens(before) and before.inputs[0].dtype == dtype:
        return before.inputs[0]
    widening = dtype == v.type.element.computed
    return b.widened(v) if widening else b.emit("cast", v, dtype=dtype)


def source_of(b: GraphBuilder, v: Value) -> Node | None:
    """The node that makes a value, conversions looked through; None for an input."""
    node = b.producer(v)
    while node is not None and converts(node):
        node = b.producer(node.inputs[0])
    return node
