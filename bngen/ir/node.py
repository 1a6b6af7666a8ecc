"""The nouns of the graph language, nodes and graphs, and their text form.

A `Graph` is a straight-line program in single-assignment form: typed inputs, a topologically
ordered tuple of `Node`s, outputs, and *updates* (an input that takes a new value when the program
ends: running statistics, parameters under SGD). Everything is frozen and compares by structure;
source locations are carried along but do not take part in equality.

Types, values and attributes are in `types`. The text form is described where it is read, in `text`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from bngen.errors import SourceLoc
from bngen.ir.ops import OPS
from bngen.ir.ops.row import OpDef
from bngen.ir.types import Attrs, Value


@dataclass(frozen=True)
class Node:
    """One application of an op. A missing optional operand is ``None``."""

    op: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    attrs: Attrs = Attrs()
    loc: SourceLoc | None = field(default=None, compare=False)

    def __hash__(self) -> int:
        # Results are assigned once: their name tells nodes of one graph apart.
        return hash(self.outputs[0].name)

    @property
    def row(self) -> OpDef:
        """The op's row; `KeyError` for an op that is none, which `verify` refuses."""
        return OPS[self.op]

    @property
    def out(self) -> Value:
        """The first output."""
        return self.outputs[0]

    @property
    def operands(self) -> tuple[Value, ...]:
        """The inputs that are there."""
        return tuple(v for v in self.inputs if v is not None)

    def with_inputs(self, inputs: Iterable[Value | None]) -> Node:
        """The same node over other operands."""
        return replace(self, inputs=tuple(inputs))

    def __str__(self) -> str:
        """One line: results, op, operands, attributes that are no defaults, types."""
        results = ", ".join(_name(v.name) for v in self.outputs)
        operands = ", ".join("_" if v is None else _name(v.name) for v in self.inputs)
        types = ", ".join(str(v.type) for v in self.outputs)
        defaults = OPS[self.op].defaults if self.op in OPS else {}
        shown = [
            f"{key}={_literal(value)}"
            for key, value in self.attrs.items()
            # repr, not ==: 1, 1.0 and True are equal, 0.0 and -0.0 too.
            if key not in defaults or repr(value) != repr(defaults[key])
        ]
        attrs = f" {{{', '.join(shown)}}}" if shown else ""
        return f"{results} = {self.op}({operands}){attrs} : {types}"


INPUT_KINDS = ("input", "parameter", "buffer")


@dataclass(frozen=True)
class Input:
    """An input of a graph.

    Attributes:
        value: its name and type.
        kind: ``input`` (an argument of the call), ``parameter`` (trained, held by the module) or
            ``buffer`` (held by the module, not trained: running statistics).
        init: how `Module.init` fills it, e.g. ``("kaiming_uniform", 5 ** 0.5)``; of a constant of
            the program ``("values", ...)``, each element.
    """

    value: Value
    kind: str = "input"
    init: tuple[Any, ...] = ()

    @property
    def is_constant(self) -> bool:
        """Whether the program itself says what it holds."""
        return self.init[:1] == ("values",)

    @property
    def name(self) -> str:
        """The name by which arguments, parameters and gradients are known to the user."""
        return self.value.name

    def __str__(self) -> str:
        init = f" init={_literal(self.init)}" if self.init else ""
        return f"{self.kind} {_name(self.name)} : {self.value.type}{init}"


@dataclass(frozen=True)
class Graph:
    """A program: inputs, nodes in execution order, outputs, in-place updates of inputs.

    Attributes:
        name: the program's name.
        inputs: in call order; parameters and buffers follow the arguments.
        nodes: topologically ordered.
        outputs: what a call returns.
        updates: pairs (input value, value it holds after the call).
        output_names: one label an output (``grad:weight`` and so on); may be empty.
        tuple_output: whether a call returns a tuple even for a single output.
    """

    name: str
    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]
    updates: tuple[tuple[Value, Value], ...] = ()
    output_names: tuple[str, ...] = ()
    tuple_output: bool = False

    def producers(self) -> Mapping[Value, Node]:
        """The node that assigns each non-input value."""
        return MappingProxyType({v: n for n in self.nodes for v in n.outputs})

    def consumers(self) -> Mapping[Value, tuple[Node, ...]]:
        """The nodes that read each value, in order, each once."""
        table: dict[Value, list[Node]] = {}
        for node in self.nodes:
            for v in dict.fromkeys(node.operands):
                table.setdefault(v, []).append(node)
        return MappingProxyType({v: tuple(ns) for v, ns in table.items()})

    def results(self) -> tuple[Value, ...]:
        """Everything that must be computed: outputs and updated values."""
        return tuple(dict.fromkeys((*self.outputs, *(new for _, new in self.updates))))

    def input_values(self) -> tuple[Value, ...]:
        """The values of all inputs, in order."""
        return tuple(i.value for i in self.inputs)

    def constants(self) -> dict[str, Sequence[Any]]:
        """The elements, in order, of each input that is a constant, by name."""
        return {i.name: i.init[1:] for i in self.inputs if i.is_constant}

    def values(self) -> Iterator[Value]:
        """Every value: inputs first, then in order of assignment."""
        yield from self.input_values()
        for node in self.nodes:
            yield from node.outputs

    def __str__(self) -> str:
        return self.text()

    def text(self, *, locations: bool = False) -> str:
        """The text form, which `text.parse_graph` reads back.

        Args:
            locations: add the user's file and line to each node, as a comment.
        """
        lines = [f"program {_name(self.name)} {{"]
        lines += [f"  {item}" for item in self.inputs]
        for node in self.nodes:
            # A file may have any name, but a comment ends with its line.
            where = f"  # {' '.join(str(node.loc).split())}" if locations and node.loc else ""
            lines.append(f"  {node}{where}")
        lines += [f"  update {_name(old.name)} = {_name(new.name)}" for old, new in self.updates]
        lines += [f"  {self._return_line()}".rstrip(), "}"]
        return "\n".join(lines) + "\n"

    def _return_line(self) -> str:
        items = [_name(v.name) for v in self.outputs]
        if self.output_names:
            labels = map(_name, self.output_names)
            items = [f"{label} = {item}" for label, item in zip(labels, items, strict=True)]
        listed = ", ".join(items)
        if not self.tuple_output:
            return f"return {listed}"
        return f"return ({listed},)" if len(items) == 1 else f"return ({listed})"


# --- words of the text form -----------------------------------------------------------------------

NAME = re.compile(r"[A-Za-z_]\w*(?:[.:]\w+)*")
"""A name that needs no quotes."""
KEYWORDS = (*INPUT_KINDS, "update", "return")
"""Words that start a line: names only in quotes."""


def _name(name: str) -> str:
    return name if NAME.fullmatch(name) and name not in ("_", *KEYWORDS) else _literal(name)


def _literal(value: Any) -> str:
    if isinstance(value, tuple):
        inner = ", ".join(map(_literal, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    raise TypeError(f"attribute value {value!r} has no text form")
