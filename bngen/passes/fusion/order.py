"""When kernels run: in which of the two calls, after whom, under which number.

In: kernels as they were found, and all decisions. Out: the same in execution order, numbered.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import replace

from bngen.ir.types import Value
from bngen.passes.fusion.state import Cut
from bngen.plan.kernel import Kernel


def in_execution_order(cut: Cut, kernels: Sequence[Kernel]) -> tuple[tuple[Kernel, ...], int]:
    """Kernels in an order that respects dependencies, and otherwise that of the graph.

    Args:
        cut: all decisions.
        kernels: one for each of ``cut.drafts``.

    Returns:
        The kernels, and how many of them, the last ones, run in ``backward``.
    """
    order, drafts = cut.flow.order, cut.drafts
    waiting = _Waiting(cut, kernels)
    backward = _in_backward_call(cut, kernels, waiting)
    rank = [(i in backward, order[draft.members[0]]) for i, draft in enumerate(drafts)]
    ready = [(rank[i], i) for i in waiting.ready()]
    heapq.heapify(ready)
    done: list[Kernel] = []
    while ready:
        _, i = heapq.heappop(ready)
        done.append(kernels[i])
        for j in waiting.done(i):
            heapq.heappush(ready, (rank[j], j))
    if len(done) != len(kernels):
        stuck = [k.outputs[0].name for k in kernels if k not in done]
        raise AssertionError(f"kernels wait for one another: {stuck[:4]}")
    numbered = tuple(replace(k, name=f"k{i:03d}_{k.name}") for i, k in enumerate(done))
    return numbered, len(backward)


class _Waiting:
    """What waits for what: kernels by number, and after them the views between them.

    A view is no step: it is done as soon as what it views is.
    """

    def __init__(self, cut: Cut, kernels: Sequence[Kernel]):
        self._kernels = len(kernels)
        steps = [(k.inputs, k.outputs) for k in kernels]
        steps += [(n.operands, n.outputs) for n in cut.flow.graph.nodes if n in cut.flow.views]
        writer = {v: i for i, (_, outputs) in enumerate(steps) for v in outputs}
        self.readers: list[list[int]] = [[] for _ in steps]
        self._missing = [0] * len(steps)
        for i, (inputs, _) in enumerate(steps):
            for j in {writer[v] for v in inputs if v in writer} - {i}:
                self.readers[j].append(i)
                self._missing[i] += 1

    def ready(self) -> list[int]:
        """The kernels that wait for nothing."""
        return [i for i in range(self._kernels) if not self._missing[i]]

    def done(self, kernel: int) -> list[int]:
        """The kernels that waited for this one last."""
        found: list[int] = []
        work = [kernel]
        while work:
            for i in self.readers[work.pop()]:
                self._missing[i] -= 1
                if not self._missing[i]:
                    (found if i < self._kernels else work).append(i)
        return found

    def only_read_in(self, backward: set[int]) -> list[bool]:
        """For each step whether all kernels that read it, views looked through, are among these."""
        only = [True] * len(self.readers)
        # Views come in the order of the graph: what reads one comes after it, or is a kernel.
        for i in reversed(range(len(self.readers))):
            only[i] = all(j in backward if j < self._kernels else only[j] for j in self.readers[i])
        return only


def _in_backward_call(cut: Cut, kernels: Sequence[Kernel], waiting: _Waiting) -> set[int]:
    """Kernels of the backward call: those that need its inputs, and what serves only them.

    Of the latter those that read nothing but the program's inputs (weights packed for the data
    gradient): their results need not be kept from the forward call on. Inputs that the forward
    call updates have to be read in it.
    """
    flow = cut.flow
    backward = {i for i, draft in enumerate(cut.drafts) if draft.anchor in flow.backward}
    stay: set[Value] = {*flow.results, *(target for target, _ in flow.graph.updates)}
    only = waiting.only_read_in(backward)
    serving = {
        i
        for i, kernel in enumerate(kernels)
        if flow.inputs.issuperset(kernel.inputs)
        and stay.isdisjoint((*kernel.inputs, *kernel.outputs))
        and waiting.readers[i]
        and only[i]
    }
    return backward | serving
