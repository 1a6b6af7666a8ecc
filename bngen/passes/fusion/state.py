"""What has been decided of a cut so far: kernels under way, stored values, refusals.

In: a `Dataflow`. Out: tables that `slots` fills and that `legality` and `profit` read. No decision
is taken here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from bngen.ir.node import Node
from bngen.ir.types import Value
from bngen.passes.fusion.dataflow import Dataflow, chains
from bngen.passes.fusion.precedence import Downstream, Precedence
from bngen.plan.kernel import Refusal, Slot


@dataclass
class Draft:
    """A kernel under way.

    Attributes:
        anchor: the node that it was opened for.
        members: the anchor and the nodes whose results it writes, in the order of the graph.
        held: positions of all nodes that it is known to compute.
    """

    anchor: Node
    members: list[Node] = field(default_factory=list)
    held: frozenset[int] = frozenset()


class Cut:
    """The decisions under way.

    Attributes:
        flow: the graph.
        drafts: kernels, in the order in which they were opened.
        owner: for nodes that a kernel writes or holds in its store slot: that kernel.
        written: the nodes that write to memory.
        stored: values in memory.
        precedence: which node has to wait for which.
    """

    def __init__(self, flow: Dataflow):
        self.flow = flow
        self.drafts: list[Draft] = []
        self.owner: dict[Node, Draft] = {}
        self.written: set[Node] = set()
        self.stored: set[Value] = set(flow.inputs)
        successors = [
            [flow.order[r] for v in n.outputs for r in flow.readers(v)] for n in flow.graph.nodes
        ]
        predecessors = [
            [flow.order[flow.producer[v]] for v in n.operands if v in flow.producer]
            for n in flow.graph.nodes
        ]
        for first, second in chains(flow.graph, flow.backward):
            successors[flow.order[first]].append(flow.order[second])
            predecessors[flow.order[second]].append(flow.order[first])
        self.precedence = Precedence(successors, predecessors)
        self._refusals: dict[tuple[int, int, Slot], Refusal] = {}

    def after(self, node: Node) -> Downstream:
        """Positions of what cannot run before ``node``'s kernel has, given the kernels so far."""
        return self.precedence.after(self.flow.order[node])

    def owners(self, nodes: Iterable[Node]) -> list[Draft]:
        """The kernels that nodes belong to, each once, as far as that is known."""
        found = {id(draft): draft for n in nodes if (draft := self.owner.get(n))}
        return list(found.values())

    def claim(self, draft: Draft, written: Iterable[Node], held: Iterable[Node]) -> None:
        """Give a kernel the nodes whose results it writes, and those it holds on the way."""
        for node in written:
            self.written.add(node)
            draft.members.append(node)
        inside = [*draft.members, *held]
        for node in inside:
            self.owner[node] = draft
        # What is only held waits for the kernel and is waited for by it: they run together.
        self.precedence.join([self.flow.order[n] for n in inside])

    def refuse(self, slot: Slot, producer: Node, consumer: Node, reason: str) -> None:
        """Note why ``consumer`` does not read ``producer``'s result inside a kernel.

        The first reason for each slot stands.
        """
        key = (self.flow.order[producer], self.flow.order[consumer], slot)
        lines = (self.flow.lines[producer], self.flow.lines[consumer])
        refusal = Refusal(slot, reason, producer.out.name, consumer.out.name, lines)
        self._refusals.setdefault(key, refusal)

    def refusals(self, bodies: Iterable[Iterable[Node]]) -> tuple[Refusal, ...]:
        """What was refused and did not come about in another way, in the order of the graph.

        Args:
            bodies: the nodes of every kernel.
        """
        homes: dict[int, set[int]] = {}
        for i, body in enumerate(bodies):
            for node in body:
                homes.setdefault(self.flow.order[node], set()).add(i)
        apart = [
            (key, refusal)
            for key, refusal in self._refusals.items()
            if key[1] in homes and homes[key[1]].isdisjoint(homes.get(key[0], ()))
        ]
        return tuple(refusal for _, refusal in sorted(apart, key=lambda pair: pair[0]))
