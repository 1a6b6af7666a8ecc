"""Reverse-mode differentiation of a program, on the coarse ops.

In: a graph, the inputs to differentiate with respect to. Out: one joint graph whose outputs are the
program's own and then the gradients; updates stay. The rules are a table, `GRAD_RULES`; here is the
walk. Which tensors live on between the forward and the backward half is the memory planner's
affair, and gradients of gradients are not supported.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from bngen.errors import ProgramError, warn
from bngen.ir.build import GraphBuilder, prune
from bngen.ir.node import Graph, Node
from bngen.ir.types import TensorType, Value
from bngen.labels import gradient_label
from bngen.passes.concatenations import nest_concatenations
from bngen.passes.conversions import narrows, widens
from bngen.passes.grad_rules import GRAD_RULES, NO_GRADIENT

Adjoints = dict[Value, Value]


def differentiate(
    graph: Graph,
    wrt: Sequence[str] | None = None,
    cotangents: Literal["inputs", "ones"] = "inputs",
    independent: Callable[[Sequence[str]], None] | None = None,
) -> Graph:
    """Add the gradients of a program's outputs to its outputs.

    Before::

        y = conv2d(x, w)
        return y

    After, with ``wrt=["w"]``::

        y = conv2d(x, w)
        conv2d_grad_weight = conv2d_grad_weight(x, grad_0)
        return (output:0 = y, grad:w = conv2d_grad_weight)

    Contributions to the gradient of a value with several consumers are added up from the last
    consumer to the first. A gradient has the type of its value, but that of an input that is
    rounded before use it stays as it is computed.

    Args:
        graph: the program.
        wrt: names of floating-point inputs, perhaps none; all arguments and parameters when None.
        cotangents: ``inputs`` declares an input ``grad_<label or index>`` for each floating-point
            output; ``ones`` differentiates the single scalar output itself.
        independent: told the inputs that no output depends on, whose gradient is zero;
            `warn_of_independent` by default.

    Raises:
        ProgramError: for a name that is no floating-point input, an op without a gradient rule,
            or ``ones`` where there is no single scalar output.
    """
    targets = targets_of(graph, wrt)
    graph = nest_concatenations(graph)
    active = _active_values(graph, targets)
    rounded = _rounded_alone(graph)
    b = GraphBuilder(graph)
    adjoints: Adjoints = {}
    for value, seed in _seeds(b, graph, cotangents):
        _accumulate(b, adjoints, active, value, seed)
    for node in reversed(graph.nodes):
        _push_back(b, node, adjoints, active, rounded)
    b.loc = None
    (independent or warn_of_independent)([v.name for v in targets if v not in adjoints])
    gradients = [adjoints.get(v) or b.zeros(v.type) for v in targets]
    labels = graph.output_names or [f"output:{i}" for i in range(len(graph.outputs))]
    joint = b.finish(
        (*graph.outputs, *gradients),
        output_names=(*labels, *(gradient_label(v.name) for v in targets)),
        tuple_output=True,
    )
    return prune(joint)


# --- what is asked for --------------------------------------------------------------------------


def targets_of(graph: Graph, wrt: Sequence[str] | None) -> list[Value]:
    """The inputs that a program is differentiated with respect to; see `differentiate`."""
    inputs = {i.name: i.value for i in graph.inputs if i.value.type.is_float}
    if wrt is None:
        trained = {i.name for i in graph.inputs if i.kind != "buffer"}
        wrt = [name for name in inputs if name in trained]
        if not wrt:
            raise ProgramError(
                f"{graph.name} has nothing to differentiate with respect to",
                hint="give it a floating-point argument or parameter, or ask for none: wrt=[]",
            )
    listed = isinstance(wrt, Iterable) and not isinstance(wrt, str)
    if not listed or not all(isinstance(name, str) for name in wrt):
        raise ProgramError(f"wrt={wrt!r} is no list of names", hint='write wrt=["weight"]')
    for name in wrt:
        if name not in inputs:
            raise _no_such_input(graph, name, list(inputs))
    if len(set(wrt)) < len(wrt):
        raise ProgramError(f"wrt names an input twice: {list(wrt)}", hint="name each once")
    return [inputs[name] for name in wrt]


def _no_such_input(graph: Graph, name: str, floats: list[str]) -> ProgramError:
    typed = {i.name: i.value.type for i in graph.inputs}
    if name in typed:
        what = f"cannot differentiate {graph.name} with respect to {name!r} : {typed[name]}"
        return ProgramError(what, hint="only floating-point inputs have gradients")
    near = difflib.get_close_matches(name, floats, 3) or floats[:3]
    what = f"cannot differentiate {graph.name} with respect to {name!r}, which is no input of it"
    return ProgramError(what, hint=f"did you mean {' or '.join(map(repr, near))}?")


def _seeds(b: GraphBuilder, graph: Graph, cotangents: str) -> list[tuple[Value, Value]]:
    """Pairs (output, the gradient that arrives at it)."""
    if cotangents == "ones":
        value = _scalar_output(graph)
        one = b.constant(1.0, value.dtype)
        shape = value.shape
        return [(value, b.emit("broadcast_to", one, shape=shape) if shape else one)]
    labels = graph.output_names or range(len(graph.outputs))
    return [
        (value, b.input(f"grad_{label}", value.type))
        for label, value in zip(labels, graph.outputs, strict=True)
        if value.type.is_float
    ]


def _scalar_output(graph: Graph) -> Value:
    if len(graph.outputs) == 1 and graph.outputs[0].type.is_float:
        (value,) = graph.outputs
        if value.type.size == 1:
            return value
    types = ", ".join(str(v.type) for v in graph.outputs)
    raise ProgramError(
        f"{graph.name} must return a single scalar to be differentiated, it returns {types}",
        hint="return the loss alone, such as a cross_entropy or a mean",
    )


def warn_of_independent(names: Sequence[str]) -> None:
    """Say of inputs that no output depends on them; of none, nothing."""
    if names:
        listed = ", ".join(map(repr, names))
        warn(f"no output depends on {listed}: the gradient is zero")


# --- the walk -----------------------------------------------------------------------------------


def _active_values(graph: Graph, targets: Sequence[Value]) -> set[Value]:
    """Floating-point values that depend on a target in a way gradients can follow."""
    active = set(targets)
    for node in graph.nodes:
        if node.op not in NO_GRADIENT and not active.isdisjoint(node.operands):
            active.update(v for v in node.outputs if v.type.is_float)
    return active


def _rounded_alone(graph: Graph) -> dict[Value, Value]:
    """Results of ops in a type that is only stored, and what they are when they are rounded to it.

    An op of which every operand is of such a type is one in that type, as PyTorch has it, which
    keeps the rounded result. What is computed of float32 is rounded for one reader alone: of a
    sigmoid near 1 that leaves nothing of its slope.
    """
    consumers, producers = graph.consumers(), graph.producers()
    results = set(graph.results())
    wide = {v for node in graph.nodes if not _is_narrow(node, producers) for v in node.outputs}
    return {
        v: readers[0].out
        for v, readers in consumers.items()
        if len(readers) == 1 and narrows(readers[0]) and v not in results and v not in wide
    }


def _is_narrow(node: Node, producers: Mapping[Value, Node]) -> bool:
    """Whether an op's tensors are widened to be computed with; a number takes part in any type."""
    operands = [v for v in node.operands if v.type.is_float]
    tensors = [v for v in operands if v.shape] or operands
    made = [producers.get(v) for v in tensors]
    return all(m is not None and (widens(m) or not m.inputs) for m in made)


def _push_back(
    b: GraphBuilder,
    node: Node,
    adjoints: Adjoints,
    active: set[Value],
    rounded: dict[Value, Value],
) -> None:
    """Hand the gradients that arrived at a node's results on to its operands.

    A rule that reads a result reads what is kept of it.
    """
    arrived = [adjoints.get(v) for v in node.outputs]
    if not any(arrived):
        return
    if node.op not in GRAD_RULES:
        raise ProgramError(
            f"no gradient rule for {node.op}",
            loc=node.loc,
            hint="gradients of gradients are not supported; stop_gradient cuts the path",
        )
    b.loc = node.loc
    known = tuple(b.widened(rounded[v]) if v in rounded else v for v in node.outputs)
    gradients = GRAD_RULES[node.op](b, replace(node, outputs=known), *arrived)
    for operand, gradient in zip(node.inputs, gradients, strict=True):
        if gradient is not None:
            _accumulate(b, adjoints, active, operand, gradient)


def _accumulate(
    b: GraphBuilder, adjoints: Adjoints, active: set[Value], value: Value | None, gradient: Value
) -> None:
    if value not in active:
        return
    gradient = _unbroadcast(b, gradient, _adjoint_type(b, value))
    present = adjoints.get(value)
    adjoints[value] = gradient if present is None else b.emit("add", present, gradient)


def _adjoint_type(b: GraphBuilder, value: Value) -> TensorType:
    """The type in which a value's gradient adds up."""
    node = b.producer(_unmoved(b, value))
    if node is None or not narrows(node) or b.producer(_unmoved(b, node.inputs[0])) is not None:
        return value.type
    return TensorType(value.shape, node.inputs[0].dtype)


def _unmoved(b: GraphBuilder, value: Value) -> Value:
    """What a value's elements are those of, in another order or shape."""
    node = b.producer(value)
    while node is not None and (node.row.moves == "reshapes" or node.row.gathers):
        value = node.inputs[0]
        node = b.producer(value)
    return value


def _unbroadcast(b: GraphBuilder, gradient: Value, type_: TensorType) -> Value:
    """Sum over the axes along which an operand of ``type_`` was broadcast."""
    lead = len(gradient.shape) - len(type_.shape)
    padded = (1,) * lead + type_.shape
    stretched = [i for i, s in enumerate(padded) if i < lead or s != gradient.shape[i]]
    if stretched:
        gradient = b.emit("sum", gradient, axes=stretched)
    if gradient.shape != type_.shape:
        gradient = b.emit("reshape", gradient, shape=type_.shape)
    if gradient.dtype != type_.dtype:
        gradient = b.emit("cast", gradient, dtype=type_.dtype)
    return gradient
