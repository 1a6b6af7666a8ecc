"""The body of a kernel: placeholders, load slots, store slots, as TE expressions and stages.

In: a `Kernel` and the layouts. `Body.at` is the one way to read a value at a coordinate: from
memory, from a stage computed earlier in the kernel, or by recomputing a load slot's expression.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from tvm import te, tirx

from bngen.ir.node import Node
from bngen.ir.ops import OPS
from bngen.ir.types import Value
from bngen.lower.coords import Coord, Lane, logical_coord, read
from bngen.lower.opaque import Expr, bind, chooses
from bngen.lower.pointwise import maximum_over
from bngen.lower.recompute import element_of
from bngen.plan.kernel import Kernel
from bngen.plan.layout import Blocked, Layout, physical_shape


@dataclass(frozen=True)
class Argument:
    """One buffer of a kernel's signature."""

    value: Value
    shape: tuple[int, ...]
    part: str = ""


@dataclass
class Lowered:
    """An unscheduled kernel.

    Attributes:
        name: symbol.
        kind: which scheduling rule made for it applies (``conv``, ``window``, ...).
        func: the TE function, blocks named as listed below.
        arguments: inputs then outputs, in the order of the signature.
        main: block of the anchor's loop nest.
        tiles: elementwise blocks of the store slot, in order; they follow ``main``'s tile.
        separate: stores that do not follow from the main block: nests of their own.
        sums: reductions that read one tile at a time.
        second: reductions that need a whole group of rows first.
        nests: sums of products that ``main`` puts together.
        pads: scratch blocks of the load slots.
        points: blocks that hold tiles of an operand at Winograd's points, and what each reads.
        extents: facts that knobs are chosen from (channels, rows, groups, ...).
    """

    name: str
    kind: str
    func: tirx.PrimFunc | None = None
    arguments: list[Argument] = field(default_factory=list)
    main: str = ""
    tiles: list[str] = field(default_factory=list)
    separate: list[str] = field(default_factory=list)
    sums: list[str] = field(default_factory=list)
    second: list[str] = field(default_factory=list)
    nests: list[str] = field(default_factory=list)
    pads: list[str] = field(default_factory=list)
    points: dict[str, str] = field(default_factory=dict)
    extents: dict[str, int] = field(default_factory=dict)


class Body:
    """Expressions and stages of one kernel under construction."""

    def __init__(self, kernel: Kernel, layouts: dict[Value, Layout], kind: str):
        self.kernel, self.layouts = kernel, layouts
        self.lowered = Lowered(kernel.name, kind)
        self.producer: dict[Value, Node] = {v: n for n in kernel.nodes for v in n.outputs}
        self.stages: dict[Value, Callable[[Coord], Expr]] = {}
        self.results: dict[Value, te.Tensor] = {}
        self.rooted: set[Value] = set()
        self.tensors: dict[Value, te.Tensor] = {}
        for v in kernel.inputs:
            shape = physical_shape(v.type, layouts[v])
            self.tensors[v] = te.placeholder(shape or (1,), v.dtype, name=identifier(v.name))

    # --- reading ------------------------------------------------------------------------------

    def at(self, v: Value, coord: Coord) -> Expr:
        """The element of ``v`` at a logical coordinate (channels may be a `Lane`)."""
        return element_of(v, coord, self.producer, self.stored)

    def stored(self, v: Value, coord: Coord) -> Expr | None:
        """The element of ``v`` from a stage or from memory; None where it is to be recomputed."""
        if v in self.stages:
            return self.stages[v](coord)
        return self.load(v, coord) if v in self.tensors else None

    def load(self, v: Value, coord: Coord) -> Expr:
        """The element of an input, from memory."""
        tensor = self.tensors[v]
        return tensor(0) if not v.shape else read(tensor, v.type, self.layouts[v], coord)

    def masked(self, v: Value, coord: Coord, fill: float = 0.0) -> Expr:
        """Like `at`, but ``fill`` in lanes that hold no channel."""
        element = self.at(v, coord)
        for axis in coord:
            valid = axis.valid() if isinstance(axis, Lane) else None
            if valid is not None:
                return tirx.Select(chooses(valid), element, tirx.const(fill, v.dtype))
        return element

    def is_loaded(self, v: Value) -> bool:
        """Whether ``v`` is read from memory as it is."""
        return v in self.tensors and v not in self.stages

    # --- stages -------------------------------------------------------------------------------

    def define(self, v: Value, tensor: te.Tensor) -> None:
        """Later reads of ``v`` read this stage, which has ``v``'s physical shape."""
        layout = self.layouts[v]

        def from_stage(coord: Coord) -> Expr:
            return read(tensor, v.type, layout, coord) if v.shape else tensor(0)

        self.stages[v] = from_stage

    def stage(self, v: Value, name: str) -> te.Tensor:
        """Compute ``v`` over its whole physical extent as a stage of its own."""
        layout = self.layouts[v]
        shape = physical_shape(v.type, layout) or (1,)
        if not v.shape:
            tensor = te.compute(shape, lambda _: self.at(v, ()), name=name)
        else:
            tensor = te.compute(
                shape, lambda *i: self.at(v, logical_coord(v.type, layout, i)), name=name
            )
        self.define(v, tensor)
        return tensor

    def store_slot(self) -> None:
        """Stages for what the store slot writes or several stages need, then its reductions."""
        anchor_outputs = self.kernel.anchor.outputs if self.kernel.anchor else ()
        reductions = [n for n in self.kernel.store if OPS[n.op].kind == "reduce"]
        twice = {n.inputs[0] for n in reductions if n.op == "bn_partial_stats"}
        shared = self.shared({*self.kernel.outputs, *twice})
        for v in anchor_outputs:
            self.rooted.add(v)
            if v in self.kernel.outputs or v in twice:
                self.write(v)
        for node in self.kernel.store:
            if OPS[node.op].kind == "reduce":
                continue
            if not self.rooted.isdisjoint(node.operands):
                self.rooted.update(node.outputs)
            for v in node.outputs:
                if v in self.kernel.outputs or v in twice:
                    self.write(v)
                elif v in shared:
                    self.hold(v)
        for node in reductions:
            self.reduce_rows(node)

    def shared(self, written: set[Value]) -> set[Value]:
        """Values of the store slot that several of its stages need, and that a tile may hold.

        A stage is something written, held or summed; within one, an element has a name however
        often it is used (see `bngen.lower.recompute`).
        """
        found: set[Value] = set()
        stages: dict[Value, set[tuple[Node, Value]]] = {}
        for node in reversed(self.kernel.store):
            own: set[tuple[Node, Value]] = set()
            for v in node.outputs:
                users = stages.get(v, set())
                fits = v.dtype != "bool" and v.shape == self.domain.shape
                if v not in written and len(users) > 1 and fits:
                    found.add(v)
                a_stage = v in written or v in found or OPS[node.op].kind == "reduce"
                own |= {(node, v)} if a_stage else users
            for v in node.operands:
                stages.setdefault(v, set()).update(own)
        return found

    def hold(self, v: Value) -> None:
        """Keep what several stages need in a stage of the tile, if the tile can hold it.

        A value that does not follow from the main block has no place in its tile; it is spelled
        out wherever it is used.
        """
        if v in self.rooted:
            self.lowered.tiles.append(self.stage(v, f"mid_{identifier(v.name)}").op.name)

    def write(self, v: Value) -> None:
        """Store ``v`` to memory: a stage of the tile or, unrelated to it, a nest of its own."""
        if v in self.results:
            return
        if not self.rooted:
            self.rooted.add(v)
        tensor = self.stage(v, f"store_{identifier(v.name)}")
        tiles = self.lowered.tiles if v in self.rooted else self.lowered.separate
        tiles.append(tensor.op.name)
        if v in self.kernel.outputs:
            self.results[v] = tensor

    @property
    def domain(self) -> Value:
        """A value with the shape over which the kernel's loops run."""
        return self.kernel.anchor.out if self.kernel.anchor else self.kernel.outputs[0]

    # --- reductions over groups of rows -------------------------------------------------------

    def reduce_rows(self, node: Node) -> None:
        """Stages of a partial reduction; results have shape ``(Cb, N, groups/N, lanes)``."""
        x = node.inputs[0]
        layout: Blocked = self.layouts[x]
        n, _, h, w = x.shape
        per_image = node.attrs["row_groups"] // n
        rows = h // per_image
        shape = (layout.blocks, n, per_image, layout.lanes)
        self.lowered.extents["group_rows"] = rows
        names = [identifier(v.name) for v in node.outputs]

        def fold(term: Callable[[Coord], Expr], name: str, how=te.sum) -> te.Tensor:
            hi, wi = te.reduce_axis((0, rows), "hi"), te.reduce_axis((0, w), "wi")

            def element(cb, image, group, lane):
                coord = (image, Lane(cb, lane, layout), group * rows + hi, wi)
                return how(term(coord), axis=[hi, wi])

            return te.compute(shape, element, name=name)

        if node.op in ("partial_sum", "partial_max"):
            how = te.sum if node.op == "partial_sum" else maximum_over(x.dtype)
            parts = [fold(lambda c: self.at(x, c), f"sum_{names[0]}", how)]
            self.lowered.sums.append(parts[0].op.name)
        elif node.op == "bn_partial_var":
            mean = node.inputs[1]

            def square(c: Coord) -> Expr:
                return bind(self.at(x, c) - self.at(mean, (c[1],)), lambda d: d * d)

            parts = [fold(square, f"sum_{names[0]}")]
            self.lowered.sums.append(parts[0].op.name)
        elif node.op == "bn_grad_partial_sums":
            value, mean = node.inputs[1:]
            parts = [
                fold(lambda c: self.at(x, c), f"sum_{names[0]}"),
                fold(
                    lambda c: self.at(x, c) * (self.at(value, c) - self.at(mean, (c[1],))),
                    f"sum_{names[1]}",
                ),
            ]
            self.lowered.sums += [p.op.name for p in parts]
        elif node.op == "bn_partial_mean":
            parts = self.wide_sum(x, names, rows)
        else:
            parts = self.moments(x, fold, names, rows * w, rows)
        for v, part in zip(node.outputs, parts, strict=True):
            if v in self.kernel.outputs:
                self.results[v] = part

    def moments(
        self, x: Value, fold: Callable[..., te.Tensor], names: list[str], count: int, rows: int
    ) -> list[te.Tensor]:
        """Sum, then squares and sum of the deviations from the group's own rounded mean.

        Two passes over a group that is still in cache: no cancellation however large the mean. The
        mean is a division, which no compiler contracts with the subtraction that follows; the merge
        repeats it bit by bit.
        """
        total = fold(lambda c: self.at(x, c), f"sum_{names[0]}")
        layout: Blocked = self.layouts[x]
        hi, wi = te.reduce_axis((0, rows), "hi"), te.reduce_axis((0, x.shape[3]), "wi")

        def element(cb, image, group, lane):
            coord = (image, Lane(cb, lane, layout), group * rows + hi, wi)
            centre = total(cb, image, group, lane) / tirx.const(count, x.dtype)
            # Two expressions: one that binds a name must not appear twice in a function.
            squared = bind(self.at(x, coord) - centre, lambda d: d * d)
            return both_sums((squared, self.at(x, coord) - centre), axis=[hi, wi])

        spread, residual = te.compute(total.shape, element, name=f"m2_{names[1]}")
        self.lowered.sums.append(total.op.name)
        self.lowered.second.append(spread.op.name)
        return [total, spread, residual]

    def wide_sum(self, x: Value, names: list[str], rows: int) -> list[te.Tensor]:
        """A group's sum in float64, as a rounded sum and the rest."""
        layout: Blocked = self.layouts[x]
        n, _, h, w = x.shape
        hi, wi = te.reduce_axis((0, rows), "hi"), te.reduce_axis((0, w), "wi")
        shape = (layout.blocks, n, h // rows, layout.lanes)

        def element(cb, image, group, lane):
            coord = (image, Lane(cb, lane, layout), group * rows + hi, wi)
            return te.sum(tirx.Cast("float64", self.at(x, coord)), axis=[hi, wi])

        wide = te.compute(shape, element, name="wide")
        rounded = te.compute(shape, lambda *i: tirx.Cast(x.dtype, wide(*i)), name=f"sum_{names[0]}")
        rest = te.compute(
            shape,
            lambda *i: tirx.Cast(x.dtype, wide(*i) - tirx.Cast("float64", rounded(*i))),
            name=f"rest_{names[1]}",
        )
        self.lowered.kind = "generic"
        return [rounded, rest]

    # --- closing ------------------------------------------------------------------------------

    def finish(self, **extents: int) -> Lowered:
        """Build the function from what was defined."""
        low = self.lowered
        low.extents.update(extents)
        tensors = [self.tensors[v] for v in self.kernel.inputs]
        results = [self.results[v] for v in self.kernel.outputs]
        low.arguments = [
            Argument(v, tuple(int(s) for s in t.shape))
            for v, t in zip(
                (*self.kernel.inputs, *self.kernel.outputs), tensors + results, strict=True
            )
        ]
        low.func = te.create_prim_func(tensors + results).with_attr("global_symbol", low.name)
        return low


both_sums = te.comm_reducer(
    lambda a, b: (a[0] + b[0], a[1] + b[1]),
    lambda s, t: (tirx.const(0, s), tirx.const(0, t)),
    name="both_sums",
)
"""Two sums in one sweep."""


def identifier(name: str) -> str:
    """A value's name as a TIR identifier."""
    return re.sub(r"\W", "_", name)
