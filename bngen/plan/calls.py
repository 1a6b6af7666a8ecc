"""Calls: which kernels of a plan run in which call, and what one call leaves to the next.

In: a graph, its kernels, the inputs that only the second call is given. Out: `Call`s, spans of the
kernels in execution order.

A program is one call, ``forward``. One with its gradient is two: ``backward`` is given the
gradients of the results, the *cotangents*. Its kernels are those that need a cotangent, and what
serves only those. All others run in ``forward``, gradients that need no cotangent among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from bngen.ir.node import Graph, Node
from bngen.ir.types import Value
from bngen.plan.kernel import Call, Kernel, KernelPlan

FORWARD, BACKWARD = "forward", "backward"


def nodes_given(graph: Graph, given: Iterable[Value]) -> frozenset[Node]:
    """The nodes that cannot run before the inputs ``given`` are there."""
    waiting, found = set(given), set()
    for node in graph.nodes:
        if not waiting.isdisjoint(node.operands):
            found.add(node)
            waiting.update(node.outputs)
    return frozenset(found)


def backward_kernels(
    graph: Graph,
    kernels: Sequence[Kernel],
    readers: Callable[[int], set[int]],
    cotangents: Iterable[Value],
) -> frozenset[int]:
    """Positions of the kernels of ``backward``: those that need a cotangent, and what serves them.

    Of what serves only them those that read nothing but the program's inputs (weights packed for
    the data gradient): their results need not be kept from ``forward`` on. Inputs that ``forward``
    updates have to be read in it.

    Args:
        graph: what the kernels compute.
        kernels: in any order.
        readers: gives for a kernel the positions of those that read its results.
        cotangents: the inputs that only ``backward`` is given.
    """
    needing = nodes_given(graph, cotangents)
    found = {i for i, k in enumerate(kernels) if not needing.isdisjoint(k.nodes)}
    inputs = set(graph.input_values())
    stay = {*graph.results(), *(target for target, _ in graph.updates)}
    serving = {
        i
        for i, kernel in enumerate(kernels)
        if not kernel.is_collective
        and inputs.issuperset(kernel.inputs)
        and stay.isdisjoint((*kernel.inputs, *kernel.outputs))
        and (reading := readers(i))
        and found.issuperset(reading)
    }
    return frozenset(found | serving)


def divided(kernels: int, backward: int | None) -> tuple[Call, ...]:
    """The calls of so many kernels, of which the last so many are ``backward``'s.

    Args:
        kernels: their number.
        backward: how many run in ``backward``; None where there is no such call.
    """
    if backward is None:
        return (Call(FORWARD, 0, kernels),)
    return Call(FORWARD, 0, kernels - backward), Call(BACKWARD, kernels - backward, kernels)


def kernels_of(plan: KernelPlan, name: str) -> tuple[Kernel, ...]:
    """The kernels of a call, in execution order; none of a call that the plan has not."""
    return tuple(k for c in plan.calls if c.name == name for k in plan.kernels[c.start : c.stop])


def collectives_of(plan: KernelPlan, name: str) -> tuple[Kernel, ...]:
    """The collectives of a call, in the order in which they are started."""
    return tuple(k for k in kernels_of(plan, name) if k.is_collective)


def saved(plan: KernelPlan) -> tuple[Value, ...]:
    """What kernels of ``forward`` write and those of ``backward`` read, in order of writing.

    Views are looked through: a kernel that reads a concatenation reads what was written into it.
    The program's inputs are not among them, they are the caller's.
    """
    views = {v: n for n in plan.views for v in n.outputs}
    read: set[Value] = set()
    work = [v for k in kernels_of(plan, BACKWARD) for v in k.inputs]
    while work:
        v = work.pop()
        if v not in read:
            read.add(v)
            work += views[v].operands if v in views else ()
    return tuple(v for k in kernels_of(plan, FORWARD) for v in k.outputs if v in read)
