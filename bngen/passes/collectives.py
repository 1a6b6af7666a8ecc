"""Sums over ranks come last: of what is added up on each rank first, and of several values at once.

A sum over ranks is linear, so that sums of vectors move before it, and slices of them::

    a, b = all_reduce(s1, o1)                s = add(s1, s2)
    c, d = all_reduce(s2, o2)                o = add(o1, o2)
    s = add(a, c)                  ->        s, o = all_reduce(s, o)
    o = add(b, d)
    g = bn_grad_affine(x, mean, s, o)        g = bn_grad_affine(x, mean, s, o)

After `defer_affine_gradients` that leaves one slope and one offset for each feature map, however
many normalizations read it; what one op reads is exchanged at once.

In and out: graphs of equal meaning. Programs without collectives are not touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bngen.ir.build import GraphBuilder
from bngen.ir.node import Graph, Node
from bngen.ir.types import Attrs, Value
from bngen.passes.simplify import emit_slice


@dataclass(frozen=True)
class Late:
    """A vector that is a sum over ranks of ``own``, not exchanged yet.

    Attributes:
        own: what one rank has.
        node: the first ``all_reduce`` that it stems from.
        mates: what that one exchanges with it, as long as nothing has been done to any of them.
    """

    own: Value
    node: Node
    mates: tuple[Value, ...] = ()

    @property
    def attrs(self) -> Attrs:
        """How it is exchanged."""
        return self.node.attrs


def sum_over_ranks_last(graph: Graph, *, slices: bool) -> Graph:
    """Exchange vectors as late and as few times as can be; see the module's text.

    Args:
        graph: after fission and deferral.
        slices: whether parts of a vector are exchanged by themselves.
    """
    if not any(n.row.across for n in graph.nodes):
        return graph
    return _Walk(graph, slices).run()


class _Walk:
    """One walk over a graph; ``late`` knows what is not exchanged yet, ``done`` what is."""

    def __init__(self, graph: Graph, slices: bool):
        self.graph, self.slices = graph, slices
        self.b = GraphBuilder.rewriting(graph)
        self.late: dict[Value, Late] = {}
        self.done: dict[Value, Value] = {}

    def run(self) -> Graph:
        for node in self.graph.nodes:
            late = self.combined(node)
            self.late |= late
            if not late:
                self.exchange(node.operands)
                self.b.add(node)
        for v in self.graph.results():
            self.exchange([v])
        return self.b.finish()

    def combined(self, node: Node) -> dict[Value, Late]:
        """What a node's results are sums over ranks of, if they can still be that."""
        operands = node.operands
        if any(len(v.shape) != 1 for v in node.outputs):
            return {}
        if node.row.across and node.row.variadic:
            self.exchange(operands)
            own = tuple(self.b.resolve(v) for v in operands)
            return {out: Late(v, node, own) for out, v in zip(node.outputs, own, strict=True)}
        found = [self.late[v] for v in operands if v in self.late]
        if len(found) != len(operands) or len({late.attrs for late in found}) != 1:
            return {}
        if self.slices and node.row.moves == "cuts":
            axis, start, stop = (node.attrs[k] for k in ("axis", "start", "stop"))
            own = emit_slice(self.b, found[0].own, axis, start, stop)
            return {node.out: Late(own, found[0].node)}
        if node.op in LINEAR and found[0].own.shape == found[1].own.shape:
            own = self.b.emit(node.op, *(late.own for late in found), loc=node.loc)
            return {node.out: Late(own, found[0].node)}
        return {}

    def exchange(self, values: Sequence[Value]) -> None:
        """Exchange what is late of these, all that may be in one go."""
        waiting: dict[Attrs, dict[Value, Node]] = {}
        asked = [v for v in dict.fromkeys(values) if v in self.late]
        for late in (self.late[v] for v in asked):
            if late.own not in self.done:
                owned = waiting.setdefault(late.attrs, {})
                owned |= {v: owned.get(v, late.node) for v in (*late.mates, late.own)}
        for attrs, owned in waiting.items():
            for dtype in dict.fromkeys(v.dtype for v in owned):
                group = [v for v in owned if v.dtype == dtype]
                first = owned[group[0]]
                made = self.b.emit(first.op, *group, name=first.out.name, loc=first.loc, **attrs)
                self.done |= zip(group, made if isinstance(made, tuple) else (made,), strict=True)
        for v in asked:
            self.b.replace(v, self.done[self.late[v].own])


LINEAR = {"add", "sub"}
"""Ops that a sum over ranks may be taken after as well as before."""
