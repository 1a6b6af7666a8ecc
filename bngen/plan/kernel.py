"""KernelPlan: a graph cut into kernels with load and store slots, and where each value lies.

A collective has a place among the kernels, too, though no loop nest computes it: it starts there.

A kernel is a set of the graph's own nodes around at most one *anchor* (a convolution, a pool, a
reduction, a copy). Nodes that its load slots recompute may appear in several kernels; every other
node appears in exactly one. Views belong to no kernel: the memory plan turns them into offsets.

In: nothing (nouns only). Out: what fusion, layout and memory planning decide, what lowering reads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bngen.errors import SourceLoc
from bngen.ir.node import Graph, Node
from bngen.ir.types import Value
from bngen.plan.layout import Layout, physical_bytes


@dataclass(frozen=True)
class Kernel:
    """A group of nodes that one loop nest computes.

    Attributes:
        name: unique in the plan: its place in the order of execution and the sub-layers it holds.
        anchor: the node whose loop nest this is; None for a purely pointwise kernel.
        load: nodes recomputed wherever the anchor (or the store slot) reads, in graph order.
        store: nodes computed where the anchor's result is stored, in graph order.
        inputs: values read from memory, in order of first use.
        outputs: values written to memory.
    """

    name: str
    anchor: Node | None
    load: tuple[Node, ...]
    store: tuple[Node, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Everything computed here: load slots, anchor, store slots."""
        return (*self.load, *((self.anchor,) if self.anchor else ()), *self.store)

    @property
    def is_collective(self) -> bool:
        """Whether it is none: what several processes compute together."""
        return self.anchor is not None and self.anchor.row.across is not None

    @property
    def sublayers(self) -> tuple[str, ...]:
        """Names of the ops held, load slots first."""
        return tuple(n.op for n in self.nodes)


Slot = Literal["load", "store"]
"""``load``: a reader computes it again as it loads. ``store``: it is computed as its operand is
stored."""


@dataclass(frozen=True)
class Refusal:
    """Why two ops, the second of which reads the first, are not in one kernel.

    Attributes:
        slot: where they would have met: in the load slots of the consumer's kernel, or in the store
            slot of the producer's.
        reason: a rule of `bngen.passes.fusion`, in words.
        producer: name of the value that lies in memory for it.
        consumer: name of the first result of the op that reads it.
        lines: the user's lines that the two stem from, where known.
    """

    slot: Slot
    reason: str
    producer: str
    consumer: str
    lines: tuple[SourceLoc | None, SourceLoc | None] = field(default=(None, None), compare=False)


@dataclass(frozen=True)
class Call:
    """One call of a program.

    Attributes:
        name: ``forward`` or ``backward``.
        start: its first kernel.
        stop: the kernel after its last.
    """

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Wait:
    """When a collective has to be over.

    What it exchanges is taken when it is started, and what it gives lies in memory when it is over.

    Attributes:
        kernel: its position.
        before: the position of the kernel that it has to be over for, or of the end of its call.
    """

    kernel: int
    before: int


@dataclass(frozen=True)
class KernelPlan:
    """The cut of a graph into kernels, in execution order.

    Attributes:
        graph: the graph that was cut.
        kernels: in execution order.
        views: view nodes that move no data.
        layouts: physical layout of every value that lies in memory.
        refused: pairs of ops that were candidates for one kernel and are not, with reasons.
        calls: which kernels run in which call.
        waits: one for each collective, in their order.
    """

    graph: Graph
    kernels: tuple[Kernel, ...]
    views: tuple[Node, ...]
    layouts: dict[Value, Layout] = field(default_factory=dict)
    refused: tuple[Refusal, ...] = ()
    calls: tuple[Call, ...] = ()
    waits: tuple[Wait, ...] = ()

    @property
    def computed(self) -> tuple[Kernel, ...]:
        """All kernels that are some, in execution order."""
        return tuple(k for k in self.kernels if not k.is_collective)

    def nbytes(self, value: Value) -> int:
        """Bytes that a value takes in memory."""
        return physical_bytes(value.type, self.layouts[value])
