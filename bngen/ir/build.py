"""Building and editing graphs: the helper every pass uses.

In: a `Graph` to extend or to rewrite. Out: a new `Graph`; the old one is never touched. The builder
infers result types with the op table and keeps names unique; it takes no decisions. `substitute`
and `prune` are the two edits that need no builder.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from bngen.dtypes import BOOL, DTYPES, FLOAT
from bngen.errors import SourceLoc
from bngen.ir.attributes import type_misfit
from bngen.ir.node import Graph, Input, Node
from bngen.ir.ops import complete_attrs, infer, op_def
from bngen.ir.ops.row import ShapeError, check_dtypes, widens
from bngen.ir.types import Attrs, TensorType, Value

Operand = Value | float | int | bool | None


def plain(value: Any) -> Any:
    """An attribute value as plain Python: NumPy scalars and lists become numbers and tuples."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (tuple, list)):
        return tuple(plain(v) for v in value)
    # One NaN object, so that attributes compare equal (tuples compare elements by identity first).
    return math.nan if isinstance(value, float) and math.isnan(value) else value


class GraphBuilder:
    """Appends nodes in execution order and gives each result a fresh name.

    ``GraphBuilder(graph)`` goes on after the graph's last node; ``GraphBuilder.rewriting(graph)``
    starts with its inputs alone, and the pass copies or replaces node by node::

        b = GraphBuilder.rewriting(graph)
        for node in graph.nodes:
            if node.op == "silu":
                b.replace(node.out, b.emit("mul", node.inputs[0], b.emit("sigmoid", ...)))
            else:
                b.add(node)
        return b.finish()

    Operands given in terms of the old graph are looked up, so a replaced value never comes back.

    Args:
        graph: the graph to extend; without one the builder starts empty.
        name: the name of a program that starts empty.

    Attributes:
        loc: the user's line that emitted nodes stem from, unless `emit` is told another.
    """

    def __init__(self, graph: Graph | None = None, *, name: str = "program"):
        self._start(graph or Graph(name, (), (), ()))
        for node in self._origin.nodes:
            self._append(node)

    @classmethod
    def rewriting(cls, graph: Graph, *, copies: bool = True) -> GraphBuilder:
        """A builder with the inputs of ``graph``, none of its nodes, and all its names taken.

        Args:
            graph: what is rewritten.
            copies: whether nodes may be added as they are; else their names are free.
        """
        builder = cls.__new__(cls)
        builder._start(graph)
        if not copies:
            builder._names = {i.name for i in graph.inputs}
        return builder

    def _start(self, graph: Graph) -> None:
        self.loc: SourceLoc | None = None
        self._origin = graph
        self._inputs = list(graph.inputs)
        self._nodes: list[Node] = []
        self._names = {v.name for v in graph.values()}
        self._next: dict[str, int] = {}
        self._producers: dict[Value, Node] = {}
        self._constants: dict[tuple[str, str], Value] = {}
        self._replaced: dict[Value, Value] = {}
        self._widened: dict[Value, Value] = {}

    # --- names and look-ups -------------------------------------------------------------------

    def fresh(self, stem: str) -> str:
        """``stem``, ``stem_1``, ``stem_2``, ...: the first that is free, which is then taken."""
        name, count = stem, self._next.get(stem, 0)
        while name in self._names:
            count += 1
            name = f"{stem}_{count}"
        self._next[stem] = count
        self._names.add(name)
        return name

    def resolve(self, value: Value) -> Value:
        """What now stands for ``value``: itself unless it was replaced."""
        while value in self._replaced:
            value = self._replaced[value]
        return value

    def producer(self, value: Value) -> Node | None:
        """The node built so far that assigns ``value``; None for an input."""
        return self._producers.get(self.resolve(value))

    def number(self, value: Value) -> float | int | bool | None:
        """The number that a constant holds; None where ``value`` is none."""
        node = self.producer(value)
        return node.attrs["value"] if node is not None and node.row.literal else None

    # --- building -----------------------------------------------------------------------------

    def input(
        self, name: str, type: TensorType, kind: str = "input", init: tuple[Any, ...] = ()
    ) -> Value:
        """Declare an input; arguments of the call come before parameters and buffers.

        Raises:
            ShapeError: for a type that no tensor can have.
        """
        if wrong := type_misfit(type):
            raise ShapeError(f"{kind} {name!r}: {wrong}")
        value = Value(self.fresh(name), type)
        at = len(self._inputs)
        if kind == "input":
            at = 1 + max((i for i, x in enumerate(self._inputs) if x.kind == kind), default=-1)
        self._inputs.insert(at, Input(value, kind, plain(init)))
        return value

    def emit(
        self,
        op: str,
        *operands: Operand,
        loc: SourceLoc | None = None,
        name: str | None = None,
        **attrs: Any,
    ) -> Any:
        """Append one op.

        Args:
            op: a name of the op table.
            *operands: values; None for a missing optional one (trailing ones may be left out); a
                number becomes a constant of the type of the values beside it.
            loc: the user's line this op stems from.
            name: name of the result, or stem of the results; the op's name otherwise.
            **attrs: attributes that differ from their defaults.

        An op that computes gets operands that are only stored in the type they are computed in,
        and its results are rounded: casts around it.

        Returns:
            The result, or a tuple of them for an op with several.

        Raises:
            ShapeError: for operands or attributes that do not fit.
        """
        inputs = self._operands(op, operands)
        full = complete(op, attrs)
        if widens(op_def(op), [v and v.type for v in inputs]):
            return self._computed(op, inputs, full, loc, name or op)
        types = infer(op, [v and v.type for v in inputs], full)
        names = self._result_names(op, name or op, len(types))
        outputs = tuple(Value(n, t) for n, t in zip(names, types, strict=True))
        self._append(Node(op, inputs, outputs, full, loc or self.loc))
        return outputs[0] if len(outputs) == 1 else outputs

    def constant(self, value: float | int | bool, dtype: str = FLOAT) -> Value:
        """A zero-dimensional constant; asking again for the same one gives the same value."""
        value = plain(value)
        known = self._constants.get((repr(value), dtype))
        return known or self.emit("constant", value=value, dtype=dtype)

    def zeros(self, type: TensorType) -> Value:
        """Zeros of a type, nothing but a broadcast constant."""
        zero = self.constant(0.0 if type.is_float else 0, type.dtype)
        return self.emit("broadcast_to", zero, shape=type.shape) if type.shape else zero

    def add(self, node: Node) -> None:
        """Copy a node of the graph under way, its operands looked up."""
        self._append(node.with_inputs(v and self.resolve(v) for v in node.inputs))

    def replace(self, old: Value, new: Value) -> None:
        """Let ``new`` stand for ``old`` from here on, in the outputs and updates too."""
        if old != new:
            self._replaced[old] = self.resolve(new)

    def finish(
        self,
        outputs: Iterable[Value] | None = None,
        *,
        updates: Iterable[tuple[Value, Value]] | None = None,
        output_names: Iterable[str] | None = None,
        tuple_output: bool | None = None,
    ) -> Graph:
        """The graph; what is not given is taken from the graph the builder started from."""
        given = {
            "outputs": outputs,
            "updates": updates,
            "output_names": output_names,
            "tuple_output": tuple_output,
        }
        graph = replace(self._origin, inputs=tuple(self._inputs), nodes=tuple(self._nodes))
        graph = replace(graph, **{
            k: v if isinstance(v, bool) else tuple(v) for k, v in given.items() if v is not None
        })  # fmt: skip
        return replace(
            graph,
            outputs=tuple(self.resolve(v) for v in graph.outputs),
            updates=tuple((target, self.resolve(new)) for target, new in graph.updates),
        )

    # --- inside -------------------------------------------------------------------------------

    def _operands(self, op: str, operands: tuple[Operand, ...]) -> tuple[Value | None, ...]:
        types = [v.type for v in operands if isinstance(v, Value)]
        beside = next((t.dtype for t in types if t.dtype != BOOL), FLOAT)
        if op_def(op).rounds:  # A number is not rounded to what it meets before that is computed.
            beside = DTYPES[beside].computed

        def value(operand: Operand) -> Value | None:
            if operand is None or isinstance(operand, Value):
                return operand and self.resolve(operand)
            return self.constant(operand, beside)

        return with_missing_operands(op, map(value, operands))

    def _computed(
        self,
        op: str,
        inputs: tuple[Value | None, ...],
        attrs: Attrs,
        loc: SourceLoc | None,
        name: str,
    ) -> Any:
        """An op in the type that operands which are only stored are computed in."""
        row = op_def(op)
        meeting = [v and self._met(v, inputs) for v in inputs]
        check_dtypes(row, meeting)
        types = row.infer(meeting, attrs)
        wide = self.widened_apart(inputs, loc)
        stem = f"{name}:wide" if any(t.element.stored_only for t in types) else name
        results = self.emit(op, *wide, loc=loc, name=stem, **attrs)
        results = results if isinstance(results, tuple) else (results,)
        several = map(str, range(len(types))) if len(types) > 1 else ("",)
        parts = row.results or tuple(several)
        rounded = tuple(
            self.emit("cast", v, dtype=t.dtype, loc=loc, name=f"{name}_{part}" if part else name)
            if v.dtype != t.dtype
            else v
            for v, t, part in zip(results, types, parts, strict=True)
        )
        return rounded[0] if len(rounded) == 1 else rounded

    def _met(self, v: Value, others: Iterable[Value | None]) -> TensorType:
        """The type as which an operand meets others: a number takes that of what is stored."""
        if self.number(v) is None or v.type.element.kind != "float":
            return v.type
        stored = (o.dtype for o in others if o is not None and o.type.element.stored_only)
        return TensorType(v.shape, next(stored, v.dtype))

    def widened(self, value: Value, loc: SourceLoc | None = None) -> Value:
        """A value in the type it is computed in: itself, unless it is only stored."""
        value = self.resolve(value)
        if not value.type.element.stored_only:
            return value
        return self._widened.get(value) or self._wide(value, loc)

    def widened_apart(
        self, operands: Iterable[Value | None], loc: SourceLoc | None = None
    ) -> list[Value | None]:
        """Operands in the type they are computed in, by conversions of their own.

        Gradients that arrive at one conversion add up before they are rounded: those of different
        ops, which may lie far apart, do not.
        """
        made = {
            v: self._wide(v, loc)
            for v in dict.fromkeys(self.resolve(o) for o in operands if o is not None)
            if v.type.element.stored_only
        }
        return [v and made.get(self.resolve(v), self.resolve(v)) for v in operands]

    def _wide(self, v: Value, loc: SourceLoc | None) -> Value:
        kind = v.type.element.computed
        return self.emit("cast", v, dtype=kind, loc=loc, name=f"{v.name}:wide")

    def _result_names(self, op: str, stem: str, count: int) -> list[str]:
        if count == 1:
            return [self.fresh(stem)]
        parts = op_def(op).results or map(str, range(count))
        return [self.fresh(f"{stem}_{part}" if part else stem) for part in parts]

    def _append(self, node: Node) -> None:
        self._nodes.append(node)
        self._names.update(v.name for v in node.outputs)
        self._producers.update((v, node) for v in node.outputs)
        if node.row.converts and node.inputs[0].type.element.stored_only:
            if node.out.dtype == node.inputs[0].type.element.computed:
                self._widened.setdefault(node.inputs[0], node.out)
        if node.row.literal:
            key = (repr(node.attrs["value"]), node.attrs["dtype"])
            self._constants.setdefault(key, node.out)


def with_missing_operands(op: str, inputs: Iterable[Value | None]) -> tuple[Value | None, ...]:
    """The operands, with None for trailing optional ones that were left out.

    Raises:
        ShapeError: for too many, and for a missing one that is not optional.
    """
    row, inputs = op_def(op), tuple(inputs)
    repeated = len(inputs) - len(row.operands) if row.variadic else 0
    names = row.operands + row.operands[-1:] * repeated
    full = inputs + (None,) * (len(names) - len(inputs))
    takes = ", ".join(row.operands)
    if len(inputs) > len(names):
        raise ShapeError(f"{op} takes ({takes}), got {len(inputs)} operands")
    for name, value in zip(names, full, strict=True):
        if value is None and not name.endswith("?"):
            raise ShapeError(f"{op} takes ({takes}), and {name} is missing")
    return full


def substitute(graph: Graph, mapping: Mapping[Value, Value]) -> Graph:
    """Every use of a key reads the mapped value instead: operands, outputs, updated values.

    Before: ``c = add(a, b); return c`` with ``{b: d}``. After: ``c = add(a, d); return c``.
    The caller sees to it that the new values are defined where the old ones are used.
    """

    def new(v: Value | None) -> Value | None:
        return v if v is None else mapping.get(v, v)

    return replace(
        graph,
        nodes=tuple(n.with_inputs(map(new, n.inputs)) for n in graph.nodes),
        outputs=tuple(map(new, graph.outputs)),
        updates=tuple((target, new(v)) for target, v in graph.updates),
    )


def prune(graph: Graph) -> Graph:
    """Drop nodes that no output and no update needs; inputs stay, they are the signature.

    Before: ``a = exp(x); b = log(x); return b``. After: ``b = log(x); return b``.
    """
    live, kept = set(graph.results()), []
    for node in reversed(graph.nodes):
        if not live.isdisjoint(node.outputs):
            kept.append(node)
            live.update(node.operands)
    return replace(graph, nodes=tuple(reversed(kept)))


def complete(op: str, attrs: Mapping[str, Any]) -> Attrs:
    """All attributes of an op from those given, in plain Python types."""
    return complete_attrs(op, {k: plain(v) for k, v in attrs.items()})
