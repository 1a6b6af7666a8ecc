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
only stored, ``g`` is. In and out: graphs of equal meaning.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bngen.ir.build import GraphBuilder
from bngen.ir.node import Graph, Node
from bngen.ir.types import Value
from bngen.passes.conversions import converted, converts
from bngen.passes.simplify import emit_slice


@dataclass(frozen=True)
class Deferred:
    """``core + slope*(x - mean) + offset``; a missing core is zero.

    The core has the type of the value, perhaps one that is only stored: it is rounded, and what is
    added to it when it is read is not, before both are.
    """

    core: Value | None
    x: Value
    mean: Value
    slope: Value
    offset: Value


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
            return Deferred(None, *(self.b.resolve(v) for v in node.inputs))
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
            core = self.plus(du.core, dv.core)
            slope, offset = self.plus(du.slope, dv.slope), self.plus(du.offset, dv.offset)
            return Deferred(core, du.x, du.mean, slope, offset)
        d, other = (du, v) if du is not None else (dv, u)
        return Deferred(self.plus(d.core, self.b.resolve(other)), d.x, d.mean, d.slope, d.offset)

    def combine_conversion(self, node: Node) -> Deferred:
        d = self.deferred[node.inputs[0]]
        return replace(d, core=d.core and converted(self.b, d.core, node.out.dtype))

    def combine_slice(self, node: Node) -> Deferred | None:
        d = self.deferred.get(node.inputs[0])
        if d is None or node.attrs["axis"] != node.out.type.channel_axis:
            return None
        start, stop = node.attrs["start"], node.attrs["stop"]

        def cut(v: Value | None, axis: int) -> Value | None:
            return v and emit_slice(self.b, v, axis, start, stop)

        vectors = (cut(v, 0) for v in (d.mean, d.slope, d.offset))
        return Deferred(cut(d.core, 1), cut(d.x, 1), *vectors)

    def plus(self, a: Value | None, c: Value | None) -> Value | None:
        if a is None or c is None:
            return a if c is None else c
        return self.b.emit("add", a, c)
