"""Conversions decide nothing: a graph is cut as if values had one type, that they are stored in.

In: a graph with casts to and from types that are only stored. Out: the graph without those that
cost nothing wherever they are, to be cut; then kernels of that one with them put back::

    z = conv2d(x, w)     float32           z = conv2d(x, w)
    s = cast(z)          bfloat16    ->    r = relu(z)            z is what was s
    t = cast(s)          float32
    r = exp(t)           float32

A widening cast is done wherever its operand is read. One that narrows is done where its operand is
made, if nobody else reads that. Another one, of weights that are float32 in memory say, is an op
like any other, which never deserves memory for its own sake.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from bngen.ir.node import Graph, Node
from bngen.ir.types import Value
from bngen.passes.conversions import narrows, widens
from bngen.passes.fusion.kernels import dependents
from bngen.plan.kernel import Kernel


@dataclass(frozen=True)
class Unconverted:
    """A graph without conversions.

    Attributes:
        whole: the graph with them.
        graph: to be cut.
        home: for each value that is not in ``graph``, the one that stands for it.
        casts: the conversion that makes a value, or that a value is made narrow by.
    """

    whole: Graph
    graph: Graph
    home: dict[Value, Value]
    casts: dict[Value, Node]

    @classmethod
    def of(cls, graph: Graph) -> Unconverted:
        """Leave out what costs nothing."""
        consumers, producers = graph.consumers(), graph.producers()
        results = set(graph.results())
        # A collective sends what lies in memory, and converts nothing.
        moved = {v for n in graph.nodes if n.row.moves or n.row.across for v in n.operands}
        home: dict[Value, Value] = {}
        casts: dict[Value, Node] = {}
        for node in graph.nodes:
            if not node.row.converts:
                continue
            (x,) = node.inputs
            made = producers.get(x)
            alone = made is not None and x not in results and consumers[x] == (node,)
            if widens(node) and node.out not in results and node.out not in moved:
                home[node.out], casts[node.out] = x, node
            elif narrows(node) and alone and _stores_converted(made):
                home[x], casts[x] = node.out, node
        gone = set(casts.values())

        def at_home(v: Value | None) -> Value | None:
            while v in home:
                v = home[v]
            return v

        nodes = tuple(
            replace(n, inputs=tuple(map(at_home, n.inputs)), outputs=tuple(map(at_home, n.outputs)))
            for n in graph.nodes
            if n not in gone
        )
        return cls(graph, replace(graph, nodes=nodes), home, casts)

    def restored(self, kernels: Iterable[Kernel]) -> Iterator[Kernel]:
        """Kernels of ``graph`` as kernels of ``whole``."""
        if not self.casts:
            yield from kernels
            return
        original = dict(zip(self.graph.nodes, self._kept(), strict=True))
        order = {n: i for i, n in enumerate(self.whole.nodes)}
        for kernel in kernels:
            yield self._with_conversions(kernel, original, order)

    def _kept(self) -> list[Node]:
        gone = set(self.casts.values())
        return [n for n in self.whole.nodes if n not in gone]

    def _with_conversions(
        self, kernel: Kernel, original: dict[Node, Node], order: dict[Node, int]
    ) -> Kernel:
        body = {original[n] for n in kernel.nodes}
        body |= {self.casts[v] for n in [*body] for v in n.outputs if v in self.casts}
        read = {self.casts[v] for n in body for v in n.operands if v in self.casts}
        body |= {cast for cast in read if widens(cast)}
        nodes = sorted(body, key=order.__getitem__)
        if kernel.anchor is None:
            return replace(kernel, store=tuple(nodes))
        anchor = original[kernel.anchor]
        store = _after(anchor, nodes)
        load = tuple(n for n in nodes if n is not anchor and n not in store)
        return replace(
            kernel, anchor=anchor, load=load, store=tuple(n for n in nodes if n in store)
        )


def _stores_converted(made: Node) -> bool:
    """Whether the kernel that makes a value can round it as it is stored."""
    return made.row.store_slot and not made.row.is_partial and not widens(made)


def _after(anchor: Node, nodes: list[Node]) -> set[Node]:
    """What follows from an anchor's results, and the conversions that only this reads."""
    found = dependents(anchor, nodes)
    for node in nodes:
        readers = [n for n in nodes if node.out in n.operands]
        if widens(node) and readers and found.issuperset(readers):
            found.add(node)
    return found
