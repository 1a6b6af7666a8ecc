"""All that happens to a program before code is generated.

In: the graph of a program, coarse ops. Out: a `Prepared`: kernels, layouts and places of the
program and, where it is asked for, its gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from bngen.dtypes import DTYPES, FLOAT
from bngen.ir.build import GraphBuilder
from bngen.ir.node import Graph, Node
from bngen.ir.types import Value
from bngen.passes.autodiff import differentiate, targets_of
from bngen.passes.pipeline import Dump, Planned, plan_program
from bngen.plan.calls import nodes_given
from bngen.plan.formats import C_ORDER, Formats


@dataclass(frozen=True)
class Joint:
    """A program, with its gradient if asked for.

    Attributes:
        graph: the results of the program, and then its gradients.
        program: the program alone.
        cotangents: the inputs that only ``backward`` is given: the gradient of each floating-point
            result, in order. None where there is no ``backward``.
        gradients: names of the inputs whose gradients are the graph's last outputs, in order.
        independent: inputs that no output depends on, whose gradient is zero.
        formats: of ``graph``.
    """

    graph: Graph
    program: Graph
    cotangents: tuple[Value, ...] | None = None
    gradients: tuple[str, ...] = ()
    independent: tuple[str, ...] = ()
    formats: Formats = C_ORDER


class Prepared(NamedTuple):
    """A program before code is generated.

    Attributes:
        joint: the program; an input that an update overwrites too early is read through a copy.
        planned: kernels, layouts and places.
        unaligned: values in users' memory, which starts anywhere, and those that lie within another
            one where no vector of floats need start: slices of what takes fewer bytes.
    """

    joint: Joint
    planned: Planned
    unaligned: frozenset[Value]


def join_gradient(
    graph: Graph, wrt: Sequence[str] | None = None, formats: Formats = C_ORDER
) -> Joint:
    """A program and its gradient.

    Args:
        graph: the program.
        wrt: names of the inputs to differentiate with respect to, perhaps none; by default every
            floating-point argument and parameter.
        formats: of the program.
    """
    independent: list[str] = []
    joint = differentiate(graph, wrt, "inputs", independent.extend)
    own = set(graph.input_values())
    cotangents = tuple(v for v in joint.input_values() if v not in own)
    gradients = tuple(v.name for v in targets_of(graph, wrt))
    formats = formats.with_gradient(graph, cotangents, gradients)
    return Joint(joint, graph, cotangents, gradients, tuple(independent), formats)


def prepare(
    joint: Joint,
    lanes: int,
    fusion: str = "icf",
    dump: Dump | None = None,
    *,
    pairs: str = "",
) -> Prepared:
    """Plan a program.

    Args:
        joint: the program.
        lanes: float32 lanes of a vector.
        fusion: a fusion level.
        dump: called after each pass with its name and the graph.
        pairs: which convolutions of bfloat16 multiply pairs of channels, see `Target.pairs`.
    """
    graph = keep_old_values(joint.graph, joint.cotangents or ())
    planned = plan_program(
        graph,
        fusion,
        lanes,
        cotangents=joint.cotangents,
        dump=dump,
        formats=joint.formats,
        pairs=pairs,
    )
    users = {i.value for i in graph.inputs if i.kind == "input"}
    vector = lanes * DTYPES[FLOAT].nbytes
    unaligned = frozenset(
        v for v, p in planned.memory.places.items() if p.root in users or p.offset % vector
    )
    return Prepared(replace(joint, graph=graph), planned, unaligned)


def keep_old_values(graph: Graph, cotangents: Iterable[Value] = ()) -> Graph:
    """Let whoever still needs an updated input once the update is made read a copy of it.

    An update is made when ``forward`` ends. The old value is needed after that by ``backward``
    (a dropout mask drawn again from a step counter), by a call that returns it, and by an update
    of another input with it. The copy lies in the call's own memory: a later ``forward`` that
    updates the input again takes nothing from a call whose ``backward`` is still to come.

    Args:
        graph: a program, or a differentiated one.
        cotangents: inputs that only ``backward`` is given.
    """
    targets = {target for target, _ in graph.updates}
    needed = targets & {*graph.outputs, *(new for target, new in graph.updates if new != target)}
    needed |= targets & _read_by(graph, nodes_given(graph, cotangents))
    if not needed:
        return graph
    b = GraphBuilder.rewriting(graph)
    for target in graph.input_values():
        if target in needed:
            b.replace(target, b.emit("copy", target))
    for node in graph.nodes:
        b.add(node)
    # What is written stays the input itself: only readers look at the copy.
    updates = [(target, b.resolve(new)) for target, new in graph.updates]
    return replace(b.finish(), updates=tuple(updates))


def _read_by(graph: Graph, goals: frozenset[Node]) -> set[Value]:
    """The values that any of the nodes depends on."""
    found: set[Value] = set()
    for node in reversed(graph.nodes):
        if node in goals or not found.isdisjoint(node.outputs):
            found.update(node.operands)
    return found
