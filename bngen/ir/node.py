"""The nouns of the graph language: types, values, nodes, graphs.

A `Graph` is a straight-line program in single-assignment form: typed inputs, a topologically
ordered tuple of `Node`s, outputs, and *updates* (an input that takes a new value when the program
ends: running statistics, parameters under SGD). Everything is frozen and compares by structure;
source locations are carried along but do not take part in equality.

This module knows nothing of what an op means: see `ops`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from bngen.dtypes import DTYPES, FLOAT, DType
from bngen.errors import SourceLoc


@dataclass(frozen=True)
class TensorType:
    """Logical shape (NCHW for feature maps) and element type of a value."""

    shape: tuple[int, ...]
    dtype: str = FLOAT

    def __str__(self) -> str:
        return f"{self.element.short}[{','.join(map(str, self.shape))}]"

    @property
    def element(self) -> DType:
        """The row of the element type."""
        return DTYPES[self.dtype]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the dense logical tensor."""
        return self.size * self.element.nbytes

    @property
    def is_float(self) -> bool:
        """Whether gradients can flow through a value of this type."""
        return self.element.is_float


@dataclass(frozen=True)
class Value:
    """A name that is assigned once. Values of one graph are told apart by name alone."""

    name: str
    type: TensorType

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape."""
        return self.type.shape

    @property
    def dtype(self) -> str:
        """Element type."""
        return self.type.dtype


@dataclass(frozen=True)
class Attrs(Mapping[str, Any]):
    """An immutable, hashable attribute dictionary; keys are kept sorted."""

    items_: tuple[tuple[str, Any], ...] = ()

    @staticmethod
    def of(**attrs: Any) -> Attrs:
        """Build from keyword arguments; lists become tuples."""
        frozen = {k: tuple(v) if isinstance(v, list) else v for k, v in attrs.items()}
        return Attrs(tuple(sorted(frozen.items())))

    def __getitem__(self, key: str) -> Any:
        for k, v in self.items_:
            if k == key:
                return v
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return (k for k, _ in self.items_)

    def __len__(self) -> int:
        return len(self.items_)


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


INPUT_KINDS = ("input", "parameter", "buffer")


@dataclass(frozen=True)
class Input:
    """An input of a graph.

    Attributes:
        value: its name and type.
        kind: ``input`` (an argument of the call), ``parameter`` (trained, held by the module) or
            ``buffer`` (held by the module, not trained: running statistics).
        init: how `Module.init` fills it, e.g. ``("kaiming_uniform", 5 ** 0.5)`` or ``("ones",)``.
    """

    value: Value
    kind: str = "input"
    init: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        """The name by which arguments, parameters and gradients are known to the user."""
        return self.value.name


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

    def values(self) -> Iterator[Value]:
        """Every value: inputs first, then in order of assignment."""
        yield from self.input_values()
        for node in self.nodes:
            yield from node.outputs

    def __str__(self) -> str:
        from bngen.ir.text import print_graph  # the printer imports this module

        return print_graph(self)
