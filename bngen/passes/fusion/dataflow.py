"""What fusion knows of a graph before it decides anything.

In: a graph with layouts, a level, the inputs that only ``backward`` is given. Out: a `Dataflow`:
tables, and questions about single nodes that follow from them. No decision is taken here.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from bngen.errors import SourceLoc
from bngen.ir.node import Graph, Node
from bngen.ir.types import Value
from bngen.passes.concatenations import is_placed
from bngen.passes.conversions import converts
from bngen.passes.fusion.levels import FusionLevel
from bngen.plan.calls import nodes_given
from bngen.plan.layout import PLAIN, Blocked, Layout


@dataclass(frozen=True)
class Dataflow:
    """Tables over a graph.

    Attributes:
        graph: after `assign_layouts`.
        layouts: layout of every value.
        level: what may be joined.
        producer: the node that assigns each value which is no input.
        consumers: the nodes that read each value, in order.
        order: position of every node in the graph.
        results: values that the program returns or updates inputs with.
        inputs: the program's inputs.
        views: nodes that are offsets into other values' memory.
        backward: nodes that need an input that only ``backward`` is given.
        lines: the user's line of every node: its own, or that of a neighbour where a pass put it.
    """

    graph: Graph
    layouts: Mapping[Value, Layout]
    level: FusionLevel
    producer: Mapping[Value, Node]
    consumers: Mapping[Value, tuple[Node, ...]]
    order: Mapping[Node, int]
    results: frozenset[Value]
    inputs: frozenset[Value]
    views: frozenset[Node]
    backward: frozenset[Node]
    lines: Mapping[Node, SourceLoc | None]

    @classmethod
    def of(
        cls,
        graph: Graph,
        layouts: Mapping[Value, Layout],
        level: FusionLevel,
        cotangents: frozenset[Value],
    ) -> Dataflow:
        """Read a graph; the arguments are those of `cut.fuse`."""
        inputs = frozenset(graph.input_values())
        views = frozenset(n for n in graph.nodes if _is_view(n, graph, layouts, level, inputs))
        return cls(
            graph,
            layouts,
            level,
            graph.producers(),
            graph.consumers(),
            {n: i for i, n in enumerate(graph.nodes)},
            frozenset(graph.results()),
            inputs,
            views,
            nodes_given(graph, cotangents),
            _lines(graph),
        )

    def readers(self, v: Value) -> tuple[Node, ...]:
        """The nodes that read a value, in order."""
        return self.consumers.get(v, ())

    @property
    def handed_over(self) -> frozenset[Node]:
        """Copies of vectors that are made for whoever the program returns them to."""
        copies = (n for n in self.graph.nodes if n.row.moves == "copies" and is_vector(n.out))
        return frozenset(n for n in copies if n.out in self.results)

    def is_residual(self, node: Node) -> bool:
        """A pointwise op over two feature maps, other than a gradient and its deferred half."""
        maps = [v for v in node.operands if not is_small(v) and v.dtype != "bool"]
        deferred = any(self.producer[v].row.deferrable for v in maps if v in self.producer)
        return len(set(maps)) > 1 and not deferred


def _lines(graph: Graph) -> dict[Node, SourceLoc | None]:
    """Lines of the nodes; without one of its own a node has its reader's, or else its operand's."""
    lines = {n: n.loc for n in graph.nodes}
    near: dict[Value, SourceLoc] = {}
    for node in reversed(graph.nodes):
        lines[node] = lines[node] or next((near[v] for v in node.outputs if v in near), None)
        if lines[node]:
            near.update((v, lines[node]) for v in node.operands)
    for node in graph.nodes:
        lines[node] = lines[node] or next((near[v] for v in node.operands if v in near), None)
        if lines[node]:
            near.update((v, lines[node]) for v in node.outputs)
    return lines


# --- single values and nodes ------------------------------------------------------------------


def is_small(v: Value) -> bool:
    """A value without pixels: a scalar, a vector, or ``[1,C,1,1]``."""
    return len(v.shape) < 2 or (len(v.shape) == 4 and v.type.size == v.shape[1])


def is_vector(v: Value) -> bool:
    """A value of one axis."""
    return len(v.shape) == 1


def is_pointwise(node: Node) -> bool:
    """Whether each element of the result depends on one element of each operand."""
    return node.row.kind == "pointwise"


def is_partial_reduction(node: Node) -> bool:
    """A reduction that a store loop can hold: over the pixels of each group of rows."""
    return node.row.is_partial


def is_collective(node: Node) -> bool:
    """What takes several processes: a step that is no kernel."""
    return node.row.across is not None


def chains(graph: Graph, backward: frozenset[Node]) -> list[tuple[Node, Node]]:
    """Collectives of one call, each with the next: all ranks start them in the graph's order.

    Args:
        graph: the graph.
        backward: the nodes that belong to the second call, whatever else does.
    """
    found = [n for n in graph.nodes if is_collective(n)]
    calls = ([n for n in found if (n in backward) == later] for later in (False, True))
    return [pair for call in calls for pair in itertools.pairwise(call)]


def is_free(node: Node) -> bool:
    """Pointwise results that never deserve memory: masks, constants, identities, conversions."""
    free = node.row.is_free or converts(node)
    return free or node.out.dtype == "bool" or not node.operands


def _is_view(
    node: Node,
    graph: Graph,
    layouts: Mapping[Value, Layout],
    level: FusionLevel,
    inputs: frozenset[Value],
) -> bool:
    if node.row.kind != "view":
        return False
    if node.row.moves == "joins":
        return level.across and is_placed(node, layouts)
    return _moves_no_data(node, layouts, inputs)


def _moves_no_data(node: Node, layouts: Mapping[Value, Layout], inputs: frozenset[Value]) -> bool:
    """Whether a reshape or slice is only an offset into its operand's memory."""
    x = node.inputs[0]
    if node.row.moves == "reshapes":
        both = layouts[x], layouts[node.out]
        return both == (PLAIN, PLAIN) or all(isinstance(layout, Blocked) for layout in both)
    if node.row.moves != "cuts" or x in inputs:
        return False
    layout = layouts[x]
    along = node.attrs["axis"] == x.type.channel_axis
    if not isinstance(layout, Blocked) or not along:
        return False
    return layout.slice(node.attrs["start"], node.attrs["stop"]) is not None
