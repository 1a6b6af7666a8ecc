"""Conversions to and from types that are only stored: what they are, and seen through.

In and out: graphs. The rules of other passes look for what made a value; where a cast lies between,
as it does after each op in mixed precision, they ask here.

================================== =============================================================
before                             after
================================== =============================================================
cast(cast(x, float32), bfloat16)   x, which is bfloat16
cast(x, its own type)              x
slice(cast(x, float32))            cast(slice(x), float32): what is moved is what lies in memory
================================== =============================================================
"""

from __future__ import annotations

import math

from bngen.ir.build import GraphBuilder, prune
from bngen.ir.node import Graph, Node
from bngen.ir.ops import OPS
from bngen.ir.types import Value
from bngen.passes.rewrite import rewrite


def widens(node: Node) -> bool:
    """Whether a node makes numbers to compute with of what is only stored."""
    (x,) = node.inputs if node.row.converts else (None,)
    return x is not None and is_stored_only(x) and node.out.dtype == x.type.element.computed


def is_stored_only(v: Value) -> bool:
    """Whether nothing is computed in the type of a value."""
    return v.type.element.stored_only


def narrows(node: Node) -> bool:
    """Whether a node rounds numbers to what is only stored."""
    (x,) = node.inputs if node.row.converts else (None,)
    out = node.out.type.element
    return x is not None and out.stored_only and x.dtype == out.computed


def converts(node: Node | None) -> bool:
    """Whether a node does either."""
    return node is not None and (widens(node) or narrows(node))


def join_conversions(graph: Graph) -> Graph:
    """Leave out conversions that lead back to where they came from, and move before widening."""

    def cast(b: GraphBuilder, node: Node) -> tuple[Value, ...] | None:
        (x,) = node.inputs
        if x.dtype == node.out.dtype:
            return (x,)
        before = b.producer(x)
        back = before is not None and widens(before) and before.inputs[0].dtype == node.out.dtype
        return (before.inputs[0],) if back else None

    def moved(b: GraphBuilder, node: Node) -> tuple[Value, ...] | None:
        made = [b.producer(v) for v in node.inputs]
        if not all(m is not None and widens(m) for m in made) or not _is_exact(node):
            return None
        narrow = b.emit(node.op, *(m.inputs[0] for m in made), loc=node.loc, **node.attrs)
        return (b.widened(narrow, node.loc),)

    moving = [row.name for row in OPS.values() if row.moves or row.gathers]
    return prune(rewrite(graph, {"cast": cast, **dict.fromkeys(moving, moved)}))


def _is_exact(node: Node) -> bool:
    """Whether the number that an op puts where there is no element is one of any type."""
    fill = node.attrs.get("fill", 0)
    return fill == 0 or math.isinf(fill)


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
