"""The body of a kernel: placeholders, load slots, store slots, as TE expressions and stages.

In: a `Kernel` and the layouts. `Body.at` is the one way to read a value at a coordinate: from
memory, from a stage computed earlier in the kernel, or by recomputing a load slot's expression.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import te, tirx

from bngen.ir.node import Node
from bngen.ir.types import Value
from bngen.lower.coords import Coord, Lane, logical_coord, read
from bngen.lower.facts import Layouts
from bngen.lower.lowered import Argument, Lowered, identifier
from bngen.lower.opaque import Expr, chooses, dtype_of
from bngen.lower.pairs import WORD
from bngen.lower.recompute import element_of
from bngen.lower.roundings import not_rounded
from bngen.lower.stored import Widened, in_memory, is_narrow, narrowed, widened
from bngen.lower.sums import sums_of_rows
from bngen.plan.kernel import Kernel
from bngen.plan.layout import PLAIN, Layout, PackedWeight, physical_shape


def in_words(layout: Layout) -> bool:
    """Whether kernels take a value for words of two elements."""
    return isinstance(layout, PackedWeight) and layout.paired


def buffer_of(v: Value, layout: Layout) -> tuple[tuple[int, ...], str]:
    """Extents and TVM's element type of the buffer that a value lies in."""
    shape = physical_shape(v.type, layout) or (1,)
    return (shape[:-1], WORD) if in_words(layout) else (shape, in_memory(v))


class Body:
    """Expressions and stages of one kernel under construction.

    Args:
        kernel: what it computes.
        layouts: how values lie.
        bits: take elements as they lie in memory: nothing is computed with them.
    """

    def __init__(self, kernel: Kernel, layouts: Layouts, *, bits: bool = False):
        self.kernel, self.layouts, self.bits = kernel, layouts, bits
        self.lowered = Lowered(kernel.name)
        self.producer: dict[Value, Node] = {v: n for n in kernel.nodes for v in n.outputs}
        self.not_rounded = not_rounded(kernel)
        self.stages: dict[Value, Callable[[Coord], Expr]] = {}
        self.results: dict[Value, te.Tensor] = {}
        self.from_main: set[Value] = set()
        self.tensors: dict[Value, te.Tensor] = {}
        for v in kernel.inputs:
            shape, dtype = buffer_of(v, layouts[v])
            self.tensors[v] = te.placeholder(shape, dtype, name=identifier(v.name))

    # --- reading ------------------------------------------------------------------------------

    def at(self, v: Value, coord: Coord) -> Expr:
        """The element of ``v`` at a logical coordinate (channels may be a `Lane`)."""
        return element_of(
            v, coord, self.producer, self.stored, lambda node: node.out not in self.not_rounded
        )

    def factor(self, v: Value, coord: Coord) -> Expr:
        """The element of ``v`` as a factor of floats: what is recomputed for it is not rounded.

        A multiply-add takes any float, and rounding takes as long as six of them.
        """
        return element_of(v, coord, self.producer, self.stored, lambda node: False)

    def stored(self, v: Value, coord: Coord) -> Expr | None:
        """The element of ``v`` from a stage or from memory; None where it is to be recomputed."""
        if v in self.stages:
            return self.stages[v](coord)
        return self.load(v, coord) if v in self.tensors else None

    def load(self, v: Value, coord: Coord) -> Expr:
        """The element of an input, from memory."""
        return self._read(self.tensors[v], v, coord)

    def _read(self, tensor: te.Tensor, v: Value, coord: Coord) -> Expr:
        """The element of ``v`` in a buffer of its physical shape."""
        if v.shape:
            return read(tensor, v.type, self.layouts[v], coord, bits=self.bits)
        return tensor(0) if self.bits else widened(tensor(0), v.dtype)

    def memory(self, v: Value) -> te.Tensor | Widened:
        """An input as it lies in memory, for who indexes it by itself; words stay words."""
        numbers = is_narrow(v) and not in_words(self.layouts[v])
        return Widened(self.tensors[v], v.dtype) if numbers else self.tensors[v]

    def lies_narrow(self, v: Value) -> bool:
        """Whether a value is read from memory, where it is not what it is computed in."""
        return v in self.tensors and v not in self.stages and is_narrow(v)

    def can_lie_in_words(self, v: Value) -> bool:
        """Whether an input can be taken for words of neighbours in its rows.

        They are then of even length, and the anchor alone reads them.
        """
        reads = sum(o == v for n in self.kernel.nodes for o in n.operands)
        even = v.shape[-1] % 2 == 0 and self.layouts[v] == PLAIN
        return self.lies_narrow(v) and even and reads == 1

    def take_for_words(self, v: Value) -> te.Tensor:
        """That input as a buffer of such words."""
        *rows, row = v.shape
        words = te.placeholder((*rows, row // 2), WORD, name=identifier(v.name))
        self.tensors[v] = words
        return words

    def lying_at(self, v: Value, coord: Coord) -> Expr:
        """The element of an input as it lies in memory."""
        return read(self.tensors[v], v.type, self.layouts[v], coord, bits=True)

    def masked(
        self,
        v: Value,
        coord: Coord,
        fill: float = 0.0,
        at: Callable[[Value, Coord], Expr] | None = None,
    ) -> Expr:
        """Like `at`, or another way to read, but ``fill`` in lanes that hold no channel."""
        element = (at or self.at)(v, coord)
        for axis in coord:
            valid = axis.valid() if isinstance(axis, Lane) else None
            if valid is not None:
                return tirx.Select(chooses(valid), element, tirx.const(fill, dtype_of(element)))
        return element

    def is_loaded(self, v: Value) -> bool:
        """Whether ``v`` is read from memory as it is."""
        return v in self.tensors and v not in self.stages and not is_narrow(v)

    # --- stages -------------------------------------------------------------------------------

    def define(self, v: Value, tensor: te.Tensor) -> None:
        """Later reads of ``v`` read this stage, which has ``v``'s physical shape."""
        self.stages[v] = lambda coord: self._read(tensor, v, coord)

    def stage(self, v: Value, name: str, *, stored: bool = False) -> te.Tensor:
        """Compute ``v`` over its whole physical extent as a stage of its own.

        Args:
            v: a value of the kernel.
            name: of the stage.
            stored: whether it holds what goes to memory, else numbers to compute with.
        """
        layout = self.layouts[v]
        shape = physical_shape(v.type, layout) or (1,)

        def element(*index: Expr) -> Expr:
            number = self.at(v, logical_coord(v.type, layout, index) if v.shape else ())
            return narrowed(number, v.dtype) if stored else number

        tensor = te.compute(shape, element, name=name)
        self.define(v, tensor)
        return tensor

    def store_slot(self) -> None:
        """Stages for what the store slot writes or several stages need, then its reductions."""
        anchor_outputs = self.kernel.anchor.outputs if self.kernel.anchor else ()
        reductions = [n for n in self.kernel.store if n.row.kind == "reduce"]
        twice = {self.lying(n.inputs[0]) for n in reductions if n.row.combine == "moments"}
        shared = self.shared({*self.kernel.outputs, *twice})
        for v in anchor_outputs:
            self.from_main.add(v)
            if v in self.kernel.outputs or v in twice:
                self.write(v)
        for node in self.kernel.store:
            if node.row.kind == "reduce":
                continue
            if not self.from_main.isdisjoint(node.operands):
                self.from_main.update(node.outputs)
            for v in node.outputs:
                if v in self.kernel.outputs or v in twice:
                    self.write(v)
                elif v in shared:
                    self.hold(v)
        for node in reductions:
            self.sum_rows(node)

    def lying(self, v: Value) -> Value:
        """What may lie in memory in a value's place: what is only widened is not kept as well."""
        node = self.producer.get(v)
        narrow = node is not None and node.row.converts and is_narrow(node.inputs[0])
        return node.inputs[0] if narrow else v

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
                fits = v.dtype != "bool" and v.shape == self.domain.shape and self.lying(v) == v
                if v not in written and len(users) > 1 and fits:
                    found.add(v)
                a_stage = v in written or v in found or node.row.kind == "reduce"
                own |= {(node, v)} if a_stage else users
            for v in node.operands:
                stages.setdefault(v, set()).update(own)
        return found

    def hold(self, v: Value) -> None:
        """Keep what several stages need in a stage of the tile, if the tile can hold it.

        A value that does not follow from the main block has no place in its tile; it is spelled
        out wherever it is used.
        """
        if v in self.from_main:
            self.lowered.tiles.append(self.stage(v, f"mid_{identifier(v.name)}").op.name)

    def write(self, v: Value) -> None:
        """Store ``v`` to memory: a stage of the tile or, unrelated to it, a nest of its own."""
        if v in self.results:
            return
        if not self.from_main:
            self.from_main.add(v)
        name = f"store_{identifier(v.name)}"
        tensor = self.stage(v, name, stored=v in self.kernel.outputs)
        tiles = self.lowered.tiles if v in self.from_main else self.lowered.separate
        tiles.append(tensor.op.name)
        if v in self.kernel.outputs:
            self.results[v] = tensor

    @property
    def domain(self) -> Value:
        """A value with the shape over which the kernel's loops run."""
        return self.kernel.anchor.out if self.kernel.anchor else self.kernel.outputs[0]

    def sum_rows(self, node: Node) -> None:
        """Stages of a partial reduction, and its results."""
        layout = self.layouts[node.inputs[0]]
        sums = sums_of_rows(node, self.at, layout, self.lowered)
        for v, part in zip(node.outputs, sums, strict=True):
            if v in self.kernel.outputs:
                self.results[v] = part

    # --- closing ------------------------------------------------------------------------------

    def finish(self, main: str) -> Lowered:
        """Build the function from what was defined; ``main`` is the block of the anchor's nest."""
        low = self.lowered
        low.main = main
        tensors = [self.tensors[v] for v in self.kernel.inputs]
        results = [self.results[v] for v in self.kernel.outputs]
        low.arguments = [
            Argument(v, physical_shape(v.type, self.layouts[v]) or (1,))
            for v in (*self.kernel.inputs, *self.kernel.outputs)
        ]
        low.func = te.create_prim_func(tensors + results).with_attr("global_symbol", low.name)
        return low
