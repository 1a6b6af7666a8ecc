"""Invariants of a plan and of its memory, checked after the last pass.

In: a `KernelPlan` and its `MemoryPlan`. Out: nothing, or an `InternalError` that names the
invariant and the kernel. What is found here is a bug in bngen. Checking takes
a hundredth of the time that planning takes.
"""

from __future__ import annotations

import bisect
import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from bngen.ir.node import Node
from bngen.ir.types import Value
from bngen.ir.verify import InternalError
from bngen.plan.kernel import Kernel, KernelPlan
from bngen.plan.layout import same_bytes
from bngen.plan.memory import MemoryPlan, align

Check = Callable[[KernelPlan, MemoryPlan], Iterator[str]]
"""Yields one line for each breach."""


def _one_writer(plan: KernelPlan, memory: MemoryPlan) -> Iterator[str]:
    writers = Counter(v for k in plan.kernels for v in k.outputs)
    for v, times in writers.items():
        if times > 1:
            yield f"{v.name!r} is written by {times} kernels"
    inputs = set(plan.graph.input_values())
    viewed = {v for n in plan.views for v in n.outputs}
    for v in plan.graph.results():
        if v not in writers and v not in inputs and v not in viewed:
            yield f"result {v.name!r} is written by no kernel"


def _written_before_read(plan: KernelPlan, memory: MemoryPlan) -> Iterator[str]:
    views = {v: n for n in plan.views for v in n.outputs}
    written = set(plan.graph.input_values())
    for kernel in plan.kernels:
        for v in kernel.inputs:
            for missing in _missing(v, views, written):
                yield f"{kernel.name} reads {missing.name!r} before it is written"
        written.update(kernel.outputs)


def _missing(v: Value, views: Mapping[Value, Node], written: set[Value]) -> list[Value]:
    """What is not written of what a value, perhaps a view, is made of.

    Views that are whole are added to ``written``: each is looked through once.
    """
    missing: list[Value] = []
    seen, work = {v}, [v]
    while work:
        u = work.pop()
        if u in written:
            continue
        if u in views:
            new = [w for w in views[u].operands if w not in seen]
            seen.update(new)
            work += new
        else:
            missing.append(u)
    if not missing:
        written.update(seen)
    return missing


def _complete_bodies(plan: KernelPlan, memory: MemoryPlan) -> Iterator[str]:
    for kernel in plan.kernels:
        known = set(kernel.inputs)
        for node in kernel.nodes:
            for v in node.operands:
                if v not in known:
                    yield f"{kernel.name} computes {node.out.name!r} without {v.name!r}"
            known.update(node.outputs)
        for v in kernel.outputs:
            if v not in known:
                yield f"{kernel.name} writes {v.name!r}, which it does not compute"


def _inside_buffers(plan: KernelPlan, memory: MemoryPlan) -> Iterator[str]:
    for v, place in memory.places.items():
        end = place.offset + plan.nbytes(v)
        if place.offset < 0 or end > plan.nbytes(place.root):
            yield f"{v.name!r} ends at byte {end} of {place.root.name!r}"
    for root, at in memory.arena.items():
        if at < 0 or at + plan.nbytes(root) > memory.nbytes:
            yield f"{root.name!r} lies outside of the arena of {memory.nbytes} bytes"


def _disjoint_lives(plan: KernelPlan, memory: MemoryPlan) -> Iterator[str]:
    alive: list[tuple[int, int, int, str]] = []  # first byte, end, last kernel; by first byte
    ending: list[tuple[int, tuple[int, int, int, str]]] = []
    for v in sorted(memory.arena, key=lambda v: memory.lives[v]):
        begin, last = memory.lives[v]
        start = memory.arena[v]
        end = start + align(max(plan.nbytes(v), 1))
        while ending and ending[0][0] < begin:
            row = heapq.heappop(ending)[1]
            del alive[bisect.bisect_left(alive, row)]
        row = (start, end, last, v.name)
        at = bisect.bisect(alive, row)
        # Those alive are disjoint, or were reported: a neighbour overlaps if any of them does.
        for other_start, other_end, _, name in alive[max(at - 1, 0) : at + 1]:
            if other_start < end and start < other_end:
                yield f"{name!r} and {v.name!r} share bytes while both live"
        alive.insert(at, row)
        heapq.heappush(ending, (last, row))


def _within_lives(plan: KernelPlan, memory: MemoryPlan) -> Iterator[str]:
    for i, kernel in enumerate(plan.kernels):
        for v in (*kernel.inputs, *kernel.outputs):
            root = memory.places[v].root
            begin, end = memory.lives.get(root, (i, i))
            if not begin <= i <= end:
                yield f"{kernel.name} touches {v.name!r} outside of its life"
    for wait in plan.waits:
        kernel = plan.kernels[wait.kernel]
        for root in (memory.places[v].root for v in kernel.outputs):
            if root in memory.lives and memory.lives[root][1] < wait.before - 1:
                yield f"{kernel.name} may write {root.name!r} after its life"
    for v in plan.graph.results():
        root = memory.places[v].root
        if root in memory.lives and memory.lives[root][1] < len(plan.kernels):
            yield f"result {v.name!r} does not live to the end"


def _in_place_once(plan: KernelPlan, memory: MemoryPlan) -> Iterator[str]:
    """A kernel writes over an operand only as a whole, and where one store slot reads it."""
    for kernel in plan.kernels:
        for out in kernel.outputs:
            for v in kernel.inputs:
                if _overlap(plan, memory, out, v) and not _overwrites(kernel, memory, out, v):
                    yield f"{kernel.name} writes {out.name!r} over {v.name!r}, which it still reads"


def _overlap(plan: KernelPlan, memory: MemoryPlan, a: Value, b: Value) -> bool:
    first, second = memory.places[a], memory.places[b]
    return (
        first.root == second.root
        and first.offset < second.offset + plan.nbytes(b)
        and second.offset < first.offset + plan.nbytes(a)
    )


def _overwrites(kernel: Kernel, memory: MemoryPlan, out: Value, v: Value) -> bool:
    readers = [n for n in kernel.nodes if v in n.operands]
    whole = memory.places[out] == memory.places[v] and out.shape == v.shape
    return whole and len(readers) == 1 and readers[0] in kernel.store


def _updates_fit(plan: KernelPlan, memory: MemoryPlan) -> Iterator[str]:
    for target, new in plan.graph.updates:
        if not same_bytes(new.type, plan.layouts[new], plan.layouts[target]):
            layouts = f"{plan.layouts[target]} with {plan.layouts[new]}"
            yield f"{target.name!r} is updated with {new.name!r}: {layouts}"


def _awaited(plan: KernelPlan, memory: MemoryPlan) -> Iterator[str]:
    """Every collective is over before it is read, in its own call."""
    views = {v: n for n in plan.views for v in n.outputs}
    awaited = {wait.kernel: wait.before for wait in plan.waits}
    over = {v: awaited.get(i, len(plan.kernels) + 1) for i, k in enumerate(plan.kernels)
            if k.is_collective for v in k.outputs}  # fmt: skip
    for i, kernel in enumerate(plan.kernels if over else ()):
        read, work = set(kernel.inputs), list(kernel.inputs)
        while work:
            v = work.pop()
            new = [w for w in views[v].operands if w not in read] if v in views else []
            read.update(new)
            work += new
        for v in read & over.keys():
            if over[v] > i:
                yield f"{kernel.name} reads {v.name!r} before it is waited for"
    for i, kernel in enumerate(plan.kernels):
        inside = any(c.start <= i < awaited.get(i, -1) <= c.stop for c in plan.calls)
        if kernel.is_collective and (not inside or kernel.load or kernel.store):
            yield f"{kernel.name} is not exchanged in one call and by itself"


PLAN_INVARIANTS: dict[str, Check] = {
    "one writer": _one_writer,
    "written before read": _written_before_read,
    "complete bodies": _complete_bodies,
    "inside buffers": _inside_buffers,
    "disjoint lives": _disjoint_lives,
    "within lives": _within_lives,
    "in place once": _in_place_once,
    "updates fit": _updates_fit,
    "awaited": _awaited,
}
"""What holds for every plan."""


def check_plan(plan: KernelPlan, memory: MemoryPlan) -> None:
    """Check every invariant.

    Raises:
        InternalError: naming the invariant and the first breaches.
    """
    for name, check in PLAN_INVARIANTS.items():
        breaches = list(check(plan, memory))
        if breaches:
            more = f" (and {len(breaches) - 3} more)" if len(breaches) > 3 else ""
            listed = "; ".join(breaches[:3])
            raise InternalError(f"the plan of {plan.graph.name!r} breaks {name!r}: {listed}{more}")
