"""When kernels run: in which of the two calls, after whom, under which number.

In: kernels as they were found, and all decisions. Out: the same in execution order, numbered, which
of them each call runs, and when collectives have to be over.

A collective is started as soon as what it exchanges is there, and is over before the first kernel
that reads it. Between the two stands what can be found: what leads to a collective goes before what
does not (weight gradients, running statistics), and that is done while one is under way, as is what
the next one needs (weights to be packed).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bngen.ir.types import Value
from bngen.passes.fusion.dataflow import chains
from bngen.passes.fusion.state import Cut
from bngen.plan.calls import backward_kernels, divided
from bngen.plan.kernel import Call, Kernel, Wait

NEVER = 1 << 60


@dataclass(frozen=True, order=True)
class Rank:
    """What comes first.

    Attributes:
        backward: whether a kernel is of that call.
        aside: whether no collective of its call needs it, while there are any.
        place: where the graph has it.
        goal: the number of the first collective that needs it; `NEVER` where none does.
    """

    backward: bool
    aside: bool
    place: int
    goal: int


def in_execution_order(
    cut: Cut, kernels: Sequence[Kernel], cotangents: frozenset[Value] | None
) -> tuple[tuple[Kernel, ...], tuple[Call, ...], tuple[Wait, ...]]:
    """Call after call, dependencies first, otherwise as the graph has them.

    Args:
        cut: all decisions.
        kernels: one for each of ``cut.drafts``.
        cotangents: inputs that only ``backward`` is given; None where there is no such call.

    Returns:
        The kernels, numbered, the spans of them that the calls run, and the waits.
    """
    waiting = _Waiting(cut, kernels)
    backward = backward_kernels(cut.flow.graph, kernels, waiting.readers, cotangents or ())
    done = _ordered(waiting, kernels, _ranks(cut, kernels, waiting, backward))
    if len(done) != len(kernels):
        stuck = [k.outputs[0].name for i, k in enumerate(kernels) if i not in done]
        raise AssertionError(f"kernels wait for one another: {stuck[:4]}")
    numbered = tuple(replace(kernels[i], name=f"k{n:03d}_{kernels[i].name}")
                     for n, i in enumerate(done))  # fmt: skip
    calls = divided(len(done), None if cotangents is None else len(backward))
    return numbered, calls, _waits(done, kernels, waiting, calls)


def _ranks(
    cut: Cut, kernels: Sequence[Kernel], waiting: _Waiting, backward: frozenset[int]
) -> list[Rank]:
    """The order in which kernels run, as far as they may."""
    order = [cut.flow.order[draft.members[0]] for draft in cut.drafts]
    given = cut.flow.handed_over
    for i in backward:  # what is handed over is so at once
        if kernels[i].anchor in given:
            order[i] = max((order[j] for j in waiting.writers(i)), default=order[i])
    collectives = [i for i, k in enumerate(kernels) if k.is_collective]
    collectives.sort(key=lambda i: (i in backward, order[i]))
    goals = waiting.goals(collectives)
    found = []
    for i, place in enumerate(order):
        later = i in backward
        goal = goals.get(i, NEVER)
        leads = goal < NEVER and (collectives[goal] in backward) == later
        goal = goal if leads else NEVER
        found.append(Rank(later, bool(collectives) and not leads, place, goal))
    return found


def _ordered(waiting: _Waiting, kernels: Sequence[Kernel], rank: Sequence[Rank]) -> list[int]:
    """Kernels by number; one that would wait for a collective lets those before it go first."""
    reads = {i: waiting.readers(i) for i, k in enumerate(kernels) if k.is_collective}
    ready = [(rank[i], i) for i in waiting.ready()]
    heapq.heapify(ready)
    done: list[int] = []
    under_way: set[int] = set()
    while ready:
        _, i = heapq.heappop(ready)
        waits = set().union(*(reads[c] for c in under_way))
        if i in waits:
            i = _meanwhile(ready, rank, i, waits)
            under_way = {c for c in under_way if i not in reads[c]}
        done.append(i)
        if i in reads:
            under_way.add(i)
        for j in waiting.done(i):
            heapq.heappush(ready, (rank[j], j))
    return done


def _meanwhile(
    ready: list[tuple[Rank, int]],
    rank: Sequence[Rank],
    blocked: int,
    waits: set[int],
) -> int:
    """A kernel that does not wait, of those that are due by then; else the blocked one."""
    own = rank[blocked]
    fitting = [
        (r.place, i)
        for r, i in ready
        if r.backward == own.backward
        and (r.place < own.place or r.goal <= own.goal < NEVER)
        and i not in waits
    ]
    if not fitting:
        return blocked
    _, found = min(fitting)
    ready.remove((rank[found], found))
    ready.append((rank[blocked], blocked))
    heapq.heapify(ready)
    return found


def _waits(
    done: Sequence[int], kernels: Sequence[Kernel], waiting: _Waiting, calls: Sequence[Call]
) -> tuple[Wait, ...]:
    """When each collective is over: before its first reader, or at the end of its call."""
    at = {i: n for n, i in enumerate(done)}
    found = []
    for n, i in enumerate(done):
        if kernels[i].is_collective:
            (end,) = (call.stop for call in calls if call.start <= n < call.stop)
            found.append(Wait(n, min([end, *(at[j] for j in waiting.readers(i))])))
    return tuple(found)


class _Waiting:
    """What waits for what: kernels by number, and after them the views between them.

    A view is no step: it is done as soon as what it views is. A collective waits for the one that
    is started before it, too.
    """

    def __init__(self, cut: Cut, kernels: Sequence[Kernel]):
        self._kernels = len(kernels)
        steps = [(k.inputs, k.outputs) for k in kernels]
        steps += [(n.operands, n.outputs) for n in cut.flow.graph.nodes if n in cut.flow.views]
        writer = {v: i for i, (_, outputs) in enumerate(steps) for v in outputs}
        self._readers: list[list[int]] = [[] for _ in steps]
        self._writers: list[set[int]] = []
        for i, (inputs, _) in enumerate(steps):
            self._writers.append({writer[v] for v in inputs if v in writer} - {i})
            for j in self._writers[i]:
                self._readers[j].append(i)
        self._later: dict[int, int] = {
            writer[first.out]: writer[second.out]
            for first, second in chains(cut.flow.graph, cut.flow.backward)
        }
        self._missing = [len(writers) for writers in self._writers]
        for i in self._later.values():
            self._missing[i] += 1

    def ready(self) -> list[int]:
        """The kernels that wait for nothing, or for views of inputs alone; to be asked once."""
        first = [i for i, missing in enumerate(self._missing) if not missing]
        views = [i for i in first if i >= self._kernels]
        return [i for i in first if i < self._kernels] + self._after(views)

    def done(self, kernel: int) -> list[int]:
        """The kernels that waited for this one last."""
        found = self._after([kernel])
        if kernel in self._later:
            found += self._counted(self._later[kernel])
        return found

    def _after(self, work: list[int]) -> list[int]:
        """The kernels that waited for these steps last, views looked through."""
        found: list[int] = []
        while work:
            for i in self._readers[work.pop()]:
                (found if i < self._kernels else work).extend(self._counted(i))
        return found

    def _counted(self, step: int) -> list[int]:
        """A step that waits for one less, if that was the last."""
        self._missing[step] -= 1
        return [] if self._missing[step] else [step]

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

    def writers(self, kernel: int) -> set[int]:
        """The kernels whose results this one reads as they lie."""
        return {i for i in self._writers[kernel] if i < self._kernels}

    def goals(self, kernels: Sequence[int]) -> dict[int, int]:
        """The number of the first of these kernels that has to wait for each step, or is it."""
        found: dict[int, int] = {}
        for number, kernel in enumerate(kernels):
            work = [kernel]
            while work:
                step = work.pop()
                if step not in found:
                    found[step] = number
                    work += self._writers[step]
        return found
