"""Invariants of a graph, checked between passes.

In: a graph and the name of the pass that made it. Out: nothing, or an `InternalError` that names
the pass, the invariant and the node. What users can get wrong is reported while tracing, with their
own line; whatever is found here is a bug in bngen.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator

from bngen.ir.attributes import type_misfit
from bngen.ir.build import prune
from bngen.ir.node import INPUT_KINDS, Graph, Node
from bngen.ir.ops import OPS, complete_attrs, infer
from bngen.ir.ops.row import ShapeError


class InternalError(Exception):
    """A bug in bngen: a stage broke one of its own invariants."""


Check = Callable[[Graph], Iterator[str]]
"""Yields one line for each breach."""


def _single_assignment(graph: Graph) -> Iterator[str]:
    for value, times in Counter(v.name for v in graph.values()).items():
        if times > 1:
            yield f"{value!r} is assigned {times} times"


def _defined_before_use(graph: Graph) -> Iterator[str]:
    defined = {v.name: v.type for v in graph.input_values()}
    for node in graph.nodes:
        for v in node.operands:
            if v.name not in defined:
                yield f"{v.name!r} is used before it is assigned: {node}"
            elif defined[v.name] != v.type:
                yield f"{v.name!r} is {defined[v.name]}, used as {v.type}: {node}"
        defined.update((v.name, v.type) for v in node.outputs)


def _known_ops(graph: Graph) -> Iterator[str]:
    for node in graph.nodes:
        if node.op not in OPS:
            yield f"unknown op: {node}"
        elif not _fits(node):
            yield f"takes ({', '.join(OPS[node.op].operands)}): {node}"


def _fits(node: Node) -> bool:
    """Whether the operand count fits and only optional operands are missing."""
    row = OPS[node.op]
    if row.variadic:
        return len(node.inputs) >= len(row.operands) and None not in node.inputs
    return len(node.inputs) == len(row.operands) and all(
        v is not None or name.endswith("?")
        for v, name in zip(node.inputs, row.operands, strict=True)
    )


def _complete_attrs(graph: Graph) -> Iterator[str]:
    return filter(None, map(_incomplete, _known(graph)))


def _inferred_types(graph: Graph) -> Iterator[str]:
    return filter(None, map(_mistyped, _known(graph)))


# Most nodes are in the graph after a pass that were in the one before it.
@functools.lru_cache(1 << 14)
def _incomplete(node: Node) -> str:
    """What is wrong with a node's attributes; "" if nothing is."""
    try:
        if complete_attrs(node.op, dict(node.attrs)) != node.attrs:
            missing = set(OPS[node.op].defaults) - set(node.attrs)
            return f"attributes {sorted(missing)} are not filled in: {node}"
    except ShapeError as error:
        return f"{error}: {node}"
    return ""


@functools.lru_cache(1 << 14)
def _mistyped(node: Node) -> str:
    """What is wrong with the types of a node's results; "" if nothing is."""
    if set(node.attrs) != set(OPS[node.op].defaults) or not _fits(node):
        return ""  # reported by the invariants above
    try:
        types = infer(node.op, [v and v.type for v in node.inputs], node.attrs)
    except ShapeError as error:
        return f"{error}: {node}"
    if types != tuple(v.type for v in node.outputs):
        return f"gives {', '.join(map(str, types))}: {node}"
    return ""


def _known(graph: Graph) -> Iterator[Node]:
    return (node for node in graph.nodes if node.op in OPS)


def _signature(graph: Graph) -> Iterator[str]:
    for item in graph.inputs:
        if item.kind not in INPUT_KINDS:
            yield f"input {item.name!r} is of unknown kind {item.kind!r}"
    for value in graph.values():
        if wrong := type_misfit(value.type):
            yield f"{value.name!r} has no valid type: {wrong}"
    if graph.output_names and len(graph.output_names) != len(graph.outputs):
        yield f"{len(graph.output_names)} labels for {len(graph.outputs)} outputs"
    for label, times in Counter(graph.output_names).items():
        if times > 1:
            yield f"{times} outputs are called {label!r}"


def _outputs_defined(graph: Graph) -> Iterator[str]:
    defined = {v.name: v.type for v in graph.values()}
    for value in graph.results():
        if defined.get(value.name) != value.type:
            yield f"result {value.name!r} : {value.type} is not assigned"


def _updates_of_inputs(graph: Graph) -> Iterator[str]:
    inputs = {v.name: v.type for v in graph.input_values()}
    for target, times in Counter(target.name for target, _ in graph.updates).items():
        if target not in inputs:
            yield f"update of {target!r}, which is no input"
        if times > 1:
            yield f"{target!r} is updated {times} times"
    for target, new in graph.updates:
        if inputs.get(target.name, new.type) != new.type:
            yield f"{target.name!r} : {inputs[target.name]} is updated with {new.type}"


def _no_coarse_ops(graph: Graph) -> Iterator[str]:
    for node in _known(graph):
        if OPS[node.op].kind == "coarse":
            yield f"coarse op is left: {node}"


def _no_dead_nodes(graph: Graph) -> Iterator[str]:
    live = set(prune(graph).nodes)
    for node in graph.nodes:
        if node not in live:
            yield f"nothing needs {node}"


INVARIANTS: dict[str, Check] = {
    "known ops": _known_ops,
    "single assignment": _single_assignment,
    "defined before use": _defined_before_use,
    "complete attributes": _complete_attrs,
    "inferred types": _inferred_types,
    "signature": _signature,
    "outputs defined": _outputs_defined,
    "updates of inputs": _updates_of_inputs,
}
"""What holds for every graph."""

STAGE_INVARIANTS: dict[str, Check] = {
    "no coarse ops": _no_coarse_ops,
    "no dead nodes": _no_dead_nodes,
}
"""What holds after certain passes; asked for by name."""


def verify(graph: Graph, stage: str = "graph", also: tuple[str, ...] = ()) -> None:
    """Check every invariant of graphs, and the stage's own.

    Args:
        graph: what to check.
        stage: the pass that made it, for the message.
        also: names from `STAGE_INVARIANTS`.

    Raises:
        InternalError: naming the stage, the invariant and the first breaches.
    """
    checks = {**INVARIANTS, **{name: STAGE_INVARIANTS[name] for name in also}}
    for name, check in checks.items():
        breaches = list(check(graph))
        if breaches:
            more = f" (and {len(breaches) - 3} more)" if len(breaches) > 3 else ""
            raise InternalError(
                f"after {stage}: {graph.name!r} breaks {name!r}: {'; '.join(breaches[:3])}{more}"
            )
