"""Where the values lie that the walk has met so far, and the copies of them that were made.

In: a graph and what is wanted of its values. Out: a `Laid`, which grows node by node; the rules ask
it for operands in the layouts that they take, and for the layouts of results. What an op takes is
not known here.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from bngen.ir.build import GraphBuilder
from bngen.ir.node import Graph, Node
from bngen.ir.ops import OPS
from bngen.ir.types import Value
from bngen.passes.conversions import widens
from bngen.passes.layout.channel_axes import keeps_last_axis
from bngen.passes.layout.wishes import Wishes
from bngen.plan.layout import PLAIN, Blocked, Layout, Plain, blocked, same_bytes

FEW_CHANNELS = 8
"""Below so many channels a plain tensor is not worth blocking."""

MOST_PADDED = 1.25
"""Channel blocks of a map that is cut where its slices are, of those that it takes in one."""

Ruling = tuple[Sequence[Value | None], Layout]
"""What a rule says of a node: its operands where it takes them, and where its results lie."""


class Laid:
    """A graph in the making, each of whose values lies somewhere.

    Attributes:
        lanes: float32 elements of a vector register.
        pairs: which convolutions of bfloat16 multiply pairs of channels, see `Target.pairs`.
        wishes: what is wanted of the old graph's values.
        b: the new graph.
        of: where its values lie.
        innermost: its maps ``[N,H,W,C]``, whose vectors run along their last axis.
    """

    def __init__(self, graph: Graph, lanes: int, pairs: str, wishes: Wishes):
        self.lanes, self.pairs, self.wishes = lanes, pairs, wishes
        self.b = GraphBuilder.rewriting(graph)
        self.of: dict[Value, Layout] = dict(wishes.inputs)
        self.innermost: set[Value] = set()
        self._copies: dict[tuple[Value, Layout], Value] = {}

    # --- growing --------------------------------------------------------------------------

    def add(self, node: Node, ruling: Ruling) -> None:
        """Append a node as a rule has it; its results lie where that says, if they can."""
        inputs, layout = ruling
        self.b.add(node.with_inputs(inputs))
        self.of.update({v: self._fit(v, layout) for v in node.outputs})
        if self._is_innermost(node):
            self.innermost.update(node.outputs)

    def _fit(self, v: Value, layout: Layout) -> Layout:
        """``layout`` for a result, or plain where the result has not these channels."""
        if isinstance(layout, Blocked) and layout.channels == v.type.channels:
            return layout
        return self.wishes.goals.get(v, layout if isinstance(layout, Plain) else PLAIN)

    def _is_innermost(self, node: Node) -> bool:
        """Whether the result is a map ``[N,H,W,C]``, whose vectors run along its last axis."""
        row, out = OPS[node.op], node.out
        if len(out.shape) != 4 or self.of[out] != PLAIN or not node.operands:
            return False
        x = node.operands[0]
        if row.gathers:
            return "order" in node.attrs or x in self.innermost
        if row.moves == "reshapes":
            return keeps_last_axis(node, x in self.innermost)
        return row.kind == "pointwise" and self.reads_innermost(node)

    def reads_innermost(self, node: Node) -> bool:
        """Whether an operand of the result's shape is such a map."""
        return any(v in self.innermost and v.shape == node.out.shape for v in node.operands)

    # --- values where they are wanted -----------------------------------------------------

    def want(self, v: Value, layout: Layout) -> Value:
        """``v`` in the given layout: itself, or a copy made once."""
        v = self.b.resolve(v)
        # Nests over channel blocks take blocked maps; vectors, plain tensors need only the bytes.
        by_bytes = isinstance(layout, Plain) or len(v.shape) == 1
        if self.of[v] == layout or (by_bytes and same_bytes(v.type, self.of[v], layout)):
            return v
        made = self.b.producer(v)
        if (v, layout) not in self._copies and made is not None and widens(made):
            # What lies in memory is copied, and widened where it is read.
            narrow = self.want(made.inputs[0], layout)
            self._copies[v, layout] = self.b.emit("cast", narrow, dtype=v.dtype)
            self.of[self._copies[v, layout]] = self.of[narrow]
        return self.copied(v, layout)

    def copied(self, v: Value, layout: Layout) -> Value:
        """A copy of ``v`` as it is, in the given layout; made once."""
        if (v, layout) not in self._copies:
            copy = self.b.emit("copy", v)
            self.of[copy] = layout
            self._copies[v, layout] = copy
            # The copy of a copy is the original, if that is where it came from.
            self._copies[copy, self.of[v]] = v
        return self._copies[v, layout]

    def plain(self, v: Value) -> Value:
        """``v`` in C order or channels last, for who reads it element by element."""
        v = self.b.resolve(v)
        return v if isinstance(self.of[v], Plain) else self.want(v, PLAIN)

    def feature(self, x: Value) -> tuple[Value, Blocked]:
        """A feature map, or vector, in the blocked layout that it has or would get."""
        layout = self.of[x]
        layout = layout if isinstance(layout, Blocked) else self.block(x)
        return self.want(x, layout), layout

    def wide(self, v: Value) -> Value:
        """A value in the type it is computed in, laid out as it is."""
        wide = self.b.widened(v)
        self.of.setdefault(wide, self.of[v])
        return wide

    # --- channel blocks -------------------------------------------------------------------

    def plain_block(self, channels: int) -> Blocked:
        """So many channels in blocks, cut nowhere."""
        return blocked(self.lanes, (channels,))

    def block(self, v: Value) -> Blocked:
        """The channel blocks of a map or vector: cut where slices of it are, that they are views.

        Unless that pads many more channels: they are computed for nothing.
        """
        if v in self.wishes.maps:
            return self.wishes.maps[v]
        channels = v.type.channels
        whole, ends = self.plain_block(channels), [0, *self.wishes.cuts.get(v, ()), channels]
        cut = blocked(self.lanes, [b - a for a, b in itertools.pairwise(ends)])
        return cut if cut.blocks <= MOST_PADDED * whole.blocks else whole
