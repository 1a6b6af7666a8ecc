"""Layout: where the channels of every value lie, with copies only where two neighbours disagree.

In: a graph without coarse ops, the vector width, and which of the users' arrays are channels-last.
Out: the graph with ``copy`` nodes (packing of weights, users' order at the borders) and a table
value -> `Layout`.

Feature maps become `Blocked`; what the user hands in and gets back is `Plain`, in the order that is
declared: a copy that is made anyway is made from that order, or to it, and whoever reads plain
values element by element reads either. A convolution reads a plain input of few channels (an image)
as it is: its load slot writes the scratch tile anyway.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

from bngen.dtypes import PAIRED, TILES
from bngen.ir.build import GraphBuilder
from bngen.ir.node import Graph, Node
from bngen.ir.ops import OPS
from bngen.ir.types import Value
from bngen.passes.channel_axes import fills_channels, keeps_channels, keeps_last_axis
from bngen.passes.conversions import widens
from bngen.passes.cuts import channel_cuts
from bngen.plan.formats import C_ORDER, Formats
from bngen.plan.groups import holds_whole, layouts_of_groups
from bngen.plan.layout import (
    PLAIN,
    Blocked,
    Layout,
    PackedWeight,
    Plain,
    blocked,
    plain,
    same_bytes,
)

FEW_CHANNELS = 8
"""Below so many channels a plain tensor is not worth blocking."""

MOST_PADDED = 1.25
"""Channel blocks of a map that is cut where its slices are, of those that it takes in one."""


def assign_layouts(
    graph: Graph, lanes: int, formats: Formats = C_ORDER, *, pairs: str = ""
) -> tuple[Graph, dict[Value, Layout]]:
    """Choose a layout for every value; see the module's text.

    Args:
        graph: after fission.
        lanes: float32 elements of a vector register.
        formats: the users' arrays that are channels-last.
        pairs: which convolutions of bfloat16 multiply pairs of channels, see `Target.pairs`.
    """
    return _Layouts(graph, lanes, formats, pairs).run()


class _Layouts:
    """One walk in execution order; ``of`` is the growing table over the new graph's values."""

    def __init__(self, graph: Graph, lanes: int, formats: Formats, pairs: str):
        self.graph, self.lanes, self.pairs = graph, lanes, pairs
        self.b = GraphBuilder.rewriting(graph)
        self.of: dict[Value, Layout] = {
            i.value: plain(i.value.type, channels_last=i.name in formats.inputs)
            for i in graph.inputs
        }
        self.results = [
            plain(v.type, channels_last=i in formats.outputs) for i, v in enumerate(graph.outputs)
        ]
        self.goals, self.updating = self.find_goals()
        self.maps = self.find_maps()
        self.cuts = channel_cuts(graph)
        self.innermost: set[Value] = set()
        self.copies: dict[tuple[Value, Layout], Value] = {}
        convolutions = (n for n in graph.nodes if n.row.direction == "forward")
        self.conv_input = {n.inputs[1]: n.inputs[0] for n in convolutions}

    def run(self) -> tuple[Graph, dict[Value, Layout]]:
        for node in self.graph.nodes:
            node = node.with_inputs(v and self.b.resolve(v) for v in node.inputs)
            rule = self.rule(node)
            inputs, layout = rule(node)
            self.b.add(node.with_inputs(inputs))
            self.of.update({v: self.fit(v, layout) for v in node.outputs})
            if self.is_innermost(node):
                self.innermost.update(node.outputs)
        wanted = zip(self.graph.outputs, self.results, strict=True)
        outputs = [self.want(v, layout) for v, layout in wanted]
        updates = [(old, self.want(new, self.of[old])) for old, new in self.graph.updates]
        return self.b.finish(outputs, updates=updates), self.of

    def find_goals(self) -> tuple[dict[Value, Plain], set[Value]]:
        """The order of axes in which plain values are wanted in the end, and those of updates.

        Users want their results in it, and an update that is made element by element all that it
        is made from.
        """
        goals: dict[Value, Plain] = {}
        for v, layout in zip(self.graph.outputs, self.results, strict=True):
            goals.setdefault(v, layout)
        for target, new in self.graph.updates:
            goals.setdefault(new, self.of[target])
        updating = {new for _, new in self.graph.updates}
        for node in reversed(self.graph.nodes):
            if node.out in goals and OPS[node.op].kind == "pointwise":
                for v in node.operands:
                    if v.shape == node.out.shape:
                        goals.setdefault(v, goals[node.out])
                        updating |= {v} if node.out in updating else set()
        return goals, updating

    def find_maps(self) -> dict[Value, Blocked]:
        """Feature maps that are wanted in the layout of groups, see `layouts_of_groups`.

        Whoever makes them can choose: else each would be copied once more.
        """
        maps: dict[Value, Blocked] = {}
        for node in reversed(self.graph.nodes):
            if node.row.direction == "forward":
                if of_groups := self.of_groups(node):
                    maps.setdefault(node.inputs[0], of_groups[0])
            elif node.row.kind == "pointwise" and node.out in maps:
                same = (v for v in node.operands if v.shape == node.out.shape)
                maps |= {v: maps[node.out] for v in same if v not in maps}
        return maps

    def fit(self, v: Value, layout: Layout) -> Layout:
        """``layout`` for a result, or plain where the result has not these channels."""
        if isinstance(layout, Blocked) and layout.channels == v.type.channels:
            return layout
        return self.goals.get(v, layout if isinstance(layout, Plain) else PLAIN)

    # --- helpers ------------------------------------------------------------------------------

    def want(self, v: Value, layout: Layout) -> Value:
        """``v`` in the given layout: itself, or a copy made once."""
        v = self.b.resolve(v)
        # Nests over channel blocks take blocked maps; vectors, plain tensors need only the bytes.
        by_bytes = isinstance(layout, Plain) or len(v.shape) == 1
        if self.of[v] == layout or (by_bytes and same_bytes(v.type, self.of[v], layout)):
            return v
        made = self.b.producer(v)
        if (v, layout) not in self.copies and made is not None and widens(made):
            # What lies in memory is copied, and widened where it is read.
            narrow = self.want(made.inputs[0], layout)
            self.copies[v, layout] = self.b.emit("cast", narrow, dtype=v.dtype)
            self.of[self.copies[v, layout]] = self.of[narrow]
        if (v, layout) not in self.copies:
            copy = self.b.emit("copy", v)
            self.of[copy] = layout
            self.copies[v, layout] = copy
            # The copy of a copy is the original, if that is where it came from.
            self.copies[copy, self.of[v]] = v
        return self.copies[v, layout]

    def plain(self, v: Value) -> Value:
        """``v`` in C order or channels last, for who reads it element by element."""
        v = self.b.resolve(v)
        return v if isinstance(self.of[v], Plain) else self.want(v, PLAIN)

    def plain_block(self, channels: int) -> Blocked:
        return blocked(self.lanes, (channels,))

    def block(self, v: Value) -> Blocked:
        """The channel blocks of a map or vector: cut where slices of it are, that they are views.

        Unless that pads many more channels: they are computed for nothing.
        """
        if v in self.maps:
            return self.maps[v]
        whole, ends = self.plain_block(v.type.channels), [0, *self.cuts.get(v, ()), v.type.channels]
        cut = blocked(self.lanes, [b - a for a, b in itertools.pairwise(ends)])
        return cut if cut.blocks <= MOST_PADDED * whole.blocks else whole

    def feature_layout(self, x: Value) -> Blocked:
        """The blocked layout a feature map, or vector, has or would get."""
        layout = self.of[x]
        return layout if isinstance(layout, Blocked) else self.block(x)

    def feature(self, x: Value) -> tuple[Value, Blocked]:
        layout = self.feature_layout(x)
        return self.want(x, layout), layout

    def rule(self, node: Node) -> Callable:
        specific = {
            "conv2d": self.conv2d,
            "conv2d_grad_input": self.conv2d_grad_input,
            "conv2d_grad_weight": self.conv2d_grad_weight,
            "cat": self.cat,
            "slice": self.slice,
            "reshape": self.reshape,
            "copy": lambda n: (n.inputs, self.of[n.inputs[0]]),
        }
        by_kind = {
            "pointwise": self.pointwise, "reduce": self.reduce, "window": self.window,
            "collective": self.collective,
            "contract": lambda n: ([self.plain(v) for v in n.inputs], PLAIN),
        }  # fmt: skip
        return specific.get(node.op) or by_kind[OPS[node.op].kind]

    # --- convolutions -------------------------------------------------------------------------

    def conv_operand(self, x: Value) -> tuple[Value, Blocked | None]:
        """A convolution's data operand; None as its layout where it is read plain."""
        if isinstance(self.of[x], Plain) and x.shape[1] < FEW_CHANNELS:
            return x, None
        return self.feature(x)

    def conv2d(self, node: Node):
        x, w = node.inputs
        groups, of_groups = node.attrs["groups"], self.of_groups(node)
        if of_groups:
            inner, outer = of_groups
            x = self.want(x, inner)
        else:
            x, inner = self.conv_operand(x) if groups == 1 else self.feature(x)
            outer = self.block(node.out)
        packed = self.packing(w, inner, outer, groups, flipped=False)
        return self.multiplied(x, w, packed), packed.outer

    def of_groups(self, node: Node) -> tuple[Blocked, Blocked] | None:
        """Layouts of a grouped convolution's maps; None for a dense one, or a depthwise one."""
        groups = node.attrs["groups"]
        k, per_group = node.attrs["shape"][:2] if node.row.direction == "weight" else (
            node.inputs[1].shape[:2]
        )  # fmt: skip
        if groups == 1 or (per_group == 1 and k == groups):
            return None
        return layouts_of_groups(self.lanes, groups * per_group, k, groups)

    def packing(self, w, inner, outer, groups, *, flipped) -> PackedWeight:
        """How the weight is packed."""
        paired = bool(self.pairs) and w.dtype == PAIRED
        if groups == 1:
            return PackedWeight(outer, inner, 1, flipped, paired=paired)
        if w.shape[1] == 1 and w.shape[0] == groups:
            return PackedWeight(inner, inner, groups, flipped, depthwise=True)
        whole = holds_whole(inner, groups) and holds_whole(outer, groups)
        packed = PackedWeight(outer, inner, groups, flipped, shuffled=not whole)
        fills_tiles = whole and (self.pairs != TILES or not packed.by_channel)
        return replace(packed, paired=paired and fills_tiles)

    def conv2d_grad_input(self, node: Node):
        dy, w = node.inputs
        if of_groups := self.of_groups(node):
            outer, inner = of_groups
            dy = self.want(dy, inner)
        else:
            dy, inner = self.feature(dy)
            x = self.conv_input.get(w)
            known = self.of.get(self.b.resolve(x)) if x is not None else None
            outer = known if isinstance(known, Blocked) else self.block(node.out)
        packed = self.packing(w, inner, outer, node.attrs["groups"], flipped=True)
        return self.multiplied(dy, w, packed), packed.outer

    def multiplied(self, x: Value, w: Value, packed: PackedWeight) -> tuple[Value, Value]:
        """A map and a weight as operands of a nest: what it does not multiply in pairs is widened.

        A packed weight lies in memory as the floats that it stands for: a nest reads each of its
        vectors once for a few pixels, and would widen it as often.
        """
        if packed.paired or not w.type.element.stored_only:
            return x, self.want(w, packed)
        x, w = self.wide(x), self.wide(self.b.resolve(w))
        if (w, packed) not in self.copies:
            self.copies[w, packed] = self.b.emit("copy", w)
            self.of[self.copies[w, packed]] = packed
        return x, self.copies[w, packed]

    def wide(self, v: Value) -> Value:
        """A value in the type it is computed in, laid out as it is."""
        wide = self.b.widened(v)
        self.of.setdefault(wide, self.of[v])
        return wide

    def conv2d_grad_weight(self, node: Node):
        x, dy = node.inputs
        if of_groups := self.of_groups(node):
            return tuple(map(self.want, (x, dy), of_groups)), PLAIN
        if node.attrs["groups"] > 1:
            x, inner = self.feature(x)
            return (x, self.want(dy, inner)), PLAIN
        return (self.conv_operand(x)[0], self.feature(dy)[0]), PLAIN

    # --- pointwise ----------------------------------------------------------------------------

    def pointwise(self, node: Node):
        out = node.out
        row = OPS[node.op]
        if row.gathers:
            return node.inputs, self.gathered_layout(node)
        if row.converts:
            return node.inputs, self.of[node.inputs[0]]
        roles = [name.rstrip("?") for name in row.operands]
        layout = self.pointwise_layout(node)
        inputs = []
        for role, v in zip(roles, node.inputs, strict=True):
            if v is None or not v.shape:
                inputs.append(v)
            elif isinstance(layout, Blocked) and (
                role in row.channel or v.shape == out.shape or self.spans_channels(v, out)
            ):
                inputs.append(self.want(v, layout))
            else:
                inputs.append(self.plain(v))
        return inputs, layout

    def spans_channels(self, v: Value, out: Value) -> bool:
        """A broadcast operand of the result's rank that has all of its channels."""
        axis = out.type.channel_axis
        return len(v.shape) == len(out.shape) and v.shape[axis] == out.shape[axis] > 1

    def pointwise_layout(self, node: Node) -> Layout:
        out = node.out
        rank = len(out.shape)
        if rank not in (1, 2, 4) or self.reads_innermost(node):
            return PLAIN
        spanning = [v for v in node.operands if self.spans_channels(v, out) or v.shape == out.shape]
        for v in spanning:
            if isinstance(self.of[v], Blocked):
                return self.of[v]
        if out in self.updating and all(isinstance(self.of[v], Plain) for v in spanning):
            return self.goals[out]  # A parameter's update: nothing there lies in blocks.
        if rank == 4 and out.shape[1] >= FEW_CHANNELS:
            return self.block(out)
        return next((self.of[v] for v in spanning if self.of[v] != PLAIN), PLAIN)

    def gathered_layout(self, node: Node) -> Layout:
        """Blocks of channels, if what fills a vector of them lies together in the operand, too."""
        (x,), out = node.inputs, node.out
        layout, inner = self.of[x], x in self.innermost
        if len(out.shape) != 4 or (inner and "order" not in node.attrs):
            return PLAIN
        if len(x.shape) == 4 and isinstance(layout, Blocked) and keeps_channels(node):
            return layout
        together = {1} if isinstance(layout, Blocked) else {len(x.shape) - 1}
        together |= {1} if len(x.shape) == 4 and not inner else set()
        many = out.shape[1] >= FEW_CHANNELS
        return self.block(out) if many and fills_channels(node, together) else PLAIN

    def is_innermost(self, node: Node) -> bool:
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
        return any(v in self.innermost and v.shape == node.out.shape for v in node.operands)

    # --- reductions, pools --------------------------------------------------------------------

    def reduce(self, node: Node):
        x = node.inputs[0]
        row = OPS[node.op]
        if len(x.shape) == 4 and (row.is_partial or x not in self.innermost):
            x, layout = self.feature(x)
            keeps_channel = not row.defaults.get("axes") or self.reduces_only_nhw(node)
            inputs = [x]
            for role, v in zip(row.operands[1:], node.inputs[1:], strict=True):
                blocks = role in row.channel or len(v.shape) == 4
                inputs.append(self.want(v, layout) if blocks else v)
            return inputs, layout if keeps_channel else PLAIN
        if isinstance(self.of[x], Blocked) and len(x.shape) == 2 and self.folds_groups(node):
            layout = self.of[x]
            return [self.want(v, layout) for v in node.inputs], layout
        return [self.want(v, PLAIN) for v in node.inputs], PLAIN

    def reduces_only_nhw(self, node: Node) -> bool:
        axes = {a % 4 for a in node.attrs["axes"]}
        return 1 not in axes and (node.attrs["keepdims"] or axes == {0, 2, 3})

    def folds_groups(self, node: Node) -> bool:
        return node.row.merges or (tuple(a % 2 for a in node.attrs.get("axes", (1,))) == (0,))

    def collective(self, node: Node):
        """Vectors are exchanged channel by channel, wherever each of them lies."""
        if all(len(v.shape) <= 1 for v in node.outputs):
            return node.inputs, self.block(node.out) if node.out.shape else PLAIN
        return [self.want(v, PLAIN) for v in node.inputs], PLAIN

    def window(self, node: Node):
        first, layout = self.feature(node.inputs[0])
        return [first, *(self.want(v, layout) for v in node.inputs[1:])], layout

    # --- views --------------------------------------------------------------------------------

    def cat(self, node: Node):
        axis, rank = node.attrs["axis"], len(node.out.shape)
        along_channels = axis == node.out.type.channel_axis
        some_blocked = any(isinstance(self.of[v], Blocked) for v in node.inputs)
        if not along_channels or rank not in (1, 4) or (rank == 1 and not some_blocked):
            return [self.plain(v) for v in node.inputs], PLAIN
        pairs = [self.feature(v) for v in node.inputs]
        segments = [s for _, layout in pairs for s in layout.segments]
        return [v for v, _ in pairs], blocked(self.lanes, segments)

    def slice(self, node: Node):
        (x,) = node.inputs
        layout, rank = self.of[x], len(x.shape)
        if not isinstance(layout, Blocked) or rank not in (1, 4):
            return [self.plain(x)], PLAIN
        if node.attrs["axis"] != x.type.channel_axis:
            return [x], layout
        cut = layout.slice(node.attrs["start"], node.attrs["stop"])
        return [x], cut[0] if cut else self.plain_block(node.attrs["stop"] - node.attrs["start"])

    def reshape(self, node: Node):
        (x,) = node.inputs
        layout, shape = self.of[x], tuple(node.attrs["shape"])
        vector = (x.type.size,)
        rows = {vector, (1, *vector, 1, 1)}
        # One pixel of each image, which a matrix product does not want in blocks.
        to_map = shape == (*x.shape, 1, 1) and len(x.shape) == 2
        if isinstance(layout, Blocked) and (to_map or {x.shape, shape} <= rows):
            return [x], layout
        return [self.want(x, PLAIN)], PLAIN
