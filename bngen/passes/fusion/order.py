"""When kernels run: in which of the two calls, after whom, under which number.

In: kernels as they were found, and all decisions. Out: the same in execution order, numbered, and
which of them each call runs.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import replace

from bngen.ir.types import Value
from bngen.passes.fusion.state import Cut
from bngen.plan.calls import backward_kernels, divided
from bngen.plan.kernel import Call, Kernel


def in_execution_order(
    cut: Cut, kernels: Sequence[Kernel], cotangents: frozenset[Value] | None
) -> tuple[tuple[Kernel, ...], tuple[Call, ...]]:
    """Call after call, dependencies first, otherwise as the graph has them.

    Args:
        cut: all decisions.
        kernels: one for each of ``cut.drafts``.
        cotangents: inputs that only ``backward`` is given; None where there is no such call.

    Returns:
        The kernels, numbered, and the spans of them that the calls run.
    """
    order, drafts = cut.flow.order, cut.drafts
    waiting = _Waiting(cut, kernels)
    backward = backward_kernels(cut.flow.graph, kernels, waiting.readers, cotangents or ())
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
    return numbered, divided(len(done), None if cotangents is None else len(backward))


class _Waiting:
    """What waits for what: kernels by number, and after them the views between them.

    A view is no step: it is done as soon as what it views is.
    """

    def __init__(self, cut: Cut, kernels: Sequence[Kernel]):
        self._kernels = len(kernels)
        steps = [(k.inputs, k.outputs) for k in kernels]
        steps += [(n.operands, n.outputs) for n in cut.flow.graph.nodes if n in cut.flow.views]
        writer = {v: i for i, (_, outputs) in enumerate(steps) for v in outputs}
        self._readers: list[list[int]] = [[] for _ in steps]
        self._missing = [0] * len(steps)
        for i, (inputs, _) in enumerate(steps):
            for j in {writer[v] for v in inputs if v in writer} - {i}:
                self._readers[j].append(i)
                self._missing[i] += 1

    def ready(self) -> list[int]:
        """The kernels that wait for nothing, or for views of inputs alone; to be asked once."""
        first = [i for i, missing in enumerate(self._missing) if not missing]
        views = [i for i in first if i >= self._kernels]
        return [i for i in first if i < self._kernels] + self._after(views)

    def done(self, kernel: int) -> list[int]:
        """The kernels that waited for this one last."""
        return self._after([kernel])

    def _after(self, work: list[int]) -> list[int]:
        """The kernels that waited for these steps last, views looked through."""
        found: list[int] = []
        while work:
            for i in self._readers[work.pop()]:
                self._missing[i] -= 1
                if not self._missing[i]:
                    (found if i < self._kernels else work).append(i)
        return found

    def readers(self, kernel: int) -> set[int]:
        """The kernels that read what this one writes, views looked through."""
        found: set[int] = set()
        seen, work = {kernel}, [kernel]
        while work:
            for i in self._readers[work.pop()]:
                if i < self._kernels:
                    found.add(i)
                elif i not in seen:
                    seen.add(i)
                    work.append(i)
        return found
