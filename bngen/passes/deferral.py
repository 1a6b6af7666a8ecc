"""Linear deferral: the affine part of BN's gradient is applied by whoever reads the gradient next.

The gradient that arrives at a feature map x is a sum, over its consumers, of terms
``a_i*dy_i + slope_i*(x - mean) + offset_i``. The second halves add up per channel, so only
``G = sum(a_i*dy_i)`` needs the feature map's memory:

Before::

    g1 = add(d1, bn_grad_affine(x, mean, s1, o1))
    g2 = add(d2, bn_grad_affine(x, mean, s2, o2))
    dx = add(g1, g2); dw = conv2d_grad_weight(y, dx)

After::

    g  = add(d1, d2)
    dx = add(g, bn_grad_affine(x, mean, add(s1, s2), add(o1, o2)))   # recomputed where loaded
    dw = conv2d_grad_weight(y, dx)

Slices along the channels move through the same way, and conversions do: of gradients that are
only stored, ``g`` is. Of a gradient that is one number for all pixels, as that of a mean over them
is, ``a*dy`` is not rounded: all pixels would have the same error, and the other half, which is not
rounded, would not cancel it. In and out: graphs of equal meaning.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from bngen.ir.build import GraphBuilder
from bngen.ir.node import Graph, Node
from bngen.ir.types import Value
from bngen.passes.conversions import converted, converts
from bngen.passes.simplify import emit_slice


@dataclass(frozen=True)
class Deferred:
    """``core + slope*(x - mean) + offset``; a missing core is zero.

    Attributes:
        core: of the value's type, perhaps one that is only stored, or not rounded to that.
        dtype: the value's type; what is added to the core when it is read is not rounded before.
    """

    core: Value | None
    x: Value
    mean: Value
    slope: Value
    offset: Value
    dtype: str


def defer_affine_gradients(graph: Graph) -> Graph:
    """Push deferrable terms (``bn_grad_affine``) outwards through sums and channel slices."""
    return _Deferral(graph).run()


class _Deferral:
    """One walk over a graph; ``deferred`` knows split forms, ``spelled`` what was emitted."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.b = GraphBuilder.rewriting(graph)
        self.deferred: dict[Value, Deferred] = {}
        self.spelled: set[Value] = set()

    def run(self) -> Graph:
        for node in self.graph.nodes:
            split = self.combine(node)
            if split is not None:
                self.deferred[node.out] = split
                continue
            for v in node.operands:
                self.spell(v)
            self.b.add(node)
        for v in self.graph.results():
            self.spell(v)
        return self.b.finish()

    def spell(self, value: Value) -> None:
        """Write a deferred value out, once, for a reader that is neither a sum nor a slice."""
        d = self.deferred.get(value)
        if d is None or value in self.spelled:
            return
        self.spelled.add(value)
        whole = self.b.emit("bn_grad_affine", d.x, d.mean, d.slope, d.offset)
        if d.core is not None:
            whole = self.b.emit("add", self.b.widened(d.core), whole)
        self.b.replace(value, converted(self.b, whole, value.dtype))

    def combine(self, node: Node) -> Deferred | None:
        if node.row.deferrable:
            return Deferred(None, *(self.b.resolve(v) for v in node.inputs), node.out.dtype)
        if converts(node) and node.inputs[0] in self.deferred:
            return self.combine_conversion(node)
        through = {"add": self.combine_sum, "slice": self.combine_slice}.get(node.op)
        return through(node) if through else None

    def combine_sum(self, node: Node) -> Deferred | None:
        u, v = node.inputs
        du, dv = self.deferred.get(u), self.deferred.get(v)
        if du is None and dv is None or u.shape != v.shape:
            return None
        if du is not None and dv is not None:
            if (du.x, du.mean) != (dv.x, dv.mean):
                return None
            core = self.plus(du.core, dv.core, node.out.dtype)
            slope, offset = self.plus(du.slope, dv.slope), self.plus(du.offset, dv.offset)
            return replace(du, core=core, slope=slope, offset=offset)
        d, other = (du, v) if du is not None else (dv, u)
        return replace(d, core=self.plus(d.core, self.b.resolve(other), node.out.dtype))

    def combine_conversion(self, node: Node) -> Deferred:
        d = replace(self.deferred[node.inputs[0]], dtype=node.out.dtype)
        if d.core is None or self.is_spread(d.core):
            return d
        return replace(d, core=converted(self.b, d.core, d.dtype))

    def is_spread(self, v: Value) -> bool:
        """Whether pixels differ in no more than a mask: one number was spread to all of them."""
        pending, seen = [v], {v}
        while pending:
            node = self.b.producer(pending.pop())
            operands = node.operands if node else ()
            alike = [u for u in operands if u.shape == v.shape and u.type.is_float]
            few = (u for u in operands if prod(u.shape[2:]) == 1)
            if alike and node.row.kind != "pointwise":
                return False
            if not alike and not any(u.shape[:2] == v.shape[:2] for u in few):
                return False
            pending += (u for u in alike if u not in seen)
            seen.update(alike)
        return True

    def combine_slice(self, node: Node) -> Deferred | None:
        d = self.deferred.get(node.inputs[0])
        if d is None or node.attrs["axis"] != node.out.type.channel_axis:
            return None
        start, stop = node.attrs["start"], node.attrs["stop"]

        def cut(v: Value | None, axis: int) -> Value | None:
            return v and emit_slice(self.b, v, axis, start, stop)

        core = d.core and converted(self.b, d.core, d.dtype)
        vectors = (cut(v, 0) for v in (d.mean, d.slope, d.offset))
        return Deferred(cut(core, 1), cut(d.x, 1), *vectors, d.dtype)

    def plus(self, a: Value | None, c: Value | None, dtype: str | None = None) -> Value | None:
        """A sum of what there is; of two terms it is rounded to a type that is only stored."""
        if a is None or c is None:
            return a if c is None else c
        total = self.b.emit("add", self.b.widened(a), self.b.widened(c))
        return converted(self.b, total, dtype or total.dtype)
