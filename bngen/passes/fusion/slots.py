"""*Do* it: the slots of one kernel.

In: a node and the decisions so far. Out: further decisions: a value is left virtual, so that its
readers compute it in their load slots; or a kernel is opened around the node, with what its store
slot takes.

::

    z = conv2d(x, w)                 anchor
    r = relu(z)                      joins: reads z, element by element
    s = partial_sum(r)               joins: over the pixels of r
    t = add(r, m)                    joins if m does not depend on z in another way
    m = mul(mean_of_s, r)            does not: it needs the end of s
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import Iterable

from bngen.ir.node import Node
from bngen.ir.types import Value
from bngen.passes.fusion import legality
from bngen.passes.fusion.dataflow import (
    is_collective,
    is_free,
    is_partial_reduction,
    is_pointwise,
    is_small,
)
from bngen.passes.fusion.precedence import Downstream
from bngen.passes.fusion.profit import Costs
from bngen.passes.fusion.state import Cut, Draft

MOST_MAPS = 2
"""Feature maps from which a value of a store slot is computed again rather than stored as well."""

BESIDE = "it is stored for another reader"
ELSEWHERE = "its readers compute it again as they load"
UNSTORED = "it is computed from what its kernel does not store"
MAPS = f"it is computed from more than {MOST_MAPS} feature maps"


# --- load slots -------------------------------------------------------------------------------


def leave_virtual(cut: Cut, costs: Costs, node: Node) -> bool:
    """Let all readers of a pointwise node compute it again, if they may and if that pays."""
    readers = _kernels_reading(cut, node.out)
    free = is_free(node)
    stored = legality.is_stored(cut, node, free=free)
    if stored is None:
        refused = _refused_loads(cut, costs, node, readers, free=free)
    else:
        refused = dict.fromkeys(readers, stored)
    if stored is None and not refused:
        for draft in cut.owners(readers):
            draft.held |= costs.ops_of(node.out)
        return True
    _note_loads(cut, node, readers, refused)
    return False


def _kernels_reading(cut: Cut, v: Value) -> tuple[Node, ...]:
    """The readers of a value that are no views: candidates for computing it again."""
    return tuple(r for r in cut.flow.readers(v) if r not in cut.flow.views)


def _refused_loads(
    cut: Cut, costs: Costs, node: Node, readers: tuple[Node, ...], *, free: bool
) -> dict[Node, str]:
    """Readers that do not compute ``node`` again, with the reason."""
    if not free:
        refused = {r: why for r in readers if (why := legality.may_load(cut, node, r))}
        if refused:
            return refused
    why = costs.too_long(node, readers)
    if why is None and not free:
        why = costs.too_many_sweeps(node)
    return dict.fromkeys(readers, why) if why else {}


def _note_loads(cut: Cut, node: Node, readers: tuple[Node, ...], refused: dict[Node, str]) -> None:
    """Note for each reader of a stored value why it is loaded. Vectors cost no sweep."""
    if not is_small(node.out):
        for reader in readers:
            cut.refuse("load", node, reader, refused.get(reader, BESIDE))


# --- store slots ------------------------------------------------------------------------------


def open_kernel(cut: Cut, costs: Costs, anchor: Node) -> None:
    """Make a kernel of ``anchor`` and of what its store slot takes."""
    draft = Draft(anchor)
    cut.drafts.append(draft)
    slot = _StoreSlot(cut, costs, anchor)
    inside = [anchor, *(slot.fill() if legality.may_hold(anchor) else ())]
    keep = _kept(cut, anchor, inside)
    needed = _leading_to(cut, keep, set(inside))
    if anchor.out not in keep and _meet_again(keep, needed):
        keep.add(anchor.out)
    for node in set(inside).difference(needed):
        slot.note(node, ELSEWHERE)
    written = [n for n in needed if n is anchor or not keep.isdisjoint(n.outputs)]
    # What is not written is computed inside the kernel, and again by readers elsewhere.
    cut.claim(draft, written, [n for n in needed if n not in written])
    draft.held = frozenset().union(*map(costs.taking, needed))
    costs.claimed(written)
    cut.stored |= keep


class _StoreSlot:
    """Every node that can be computed as the anchor's result is written, in graph order."""

    def __init__(self, cut: Cut, costs: Costs, anchor: Node):
        self._cut, self._costs, self._anchor = cut, costs, anchor
        self._inside: set[Value] = set()
        self._held = costs.taking(anchor)
        self._offered: set[Node] = set()
        self._waiting: list[int] = []

    def fill(self) -> list[Node]:
        """Ask for one reader after the other; what joins offers its own readers."""
        joined: list[Node] = []
        shut = legality.has_no_slot(self._cut, self._anchor)
        self._offer(self._anchor)
        while self._waiting:
            node = self._cut.flow.graph.nodes[heapq.heappop(self._waiting)]
            why = self._refusal(node, shut)
            if why:
                self.note(node, why)
                continue
            joined.append(node)
            self._held |= self._costs.taking(node)
            if is_pointwise(node):
                self._offer(node)
        return joined

    def _offer(self, node: Node) -> None:
        """Count a node's results to those inside, and its readers to those that may join."""
        self._inside.update(node.outputs)
        flow = self._cut.flow
        for reader in (r for v in node.outputs for r in flow.readers(v)):
            kind_fits = is_pointwise(reader) or is_partial_reduction(reader)
            if kind_fits and reader not in self._offered:
                self._offered.add(reader)
                heapq.heappush(self._waiting, flow.order[reader])

    def _refusal(self, node: Node, shut: str | None) -> str | None:
        return (
            legality.may_store(self._cut, self._anchor, node)
            or shut
            or legality.may_wait(self._cut, node, self._inside, self._later)
            or self._costs.joining(self._held, node)
        )

    def _later(self) -> Downstream:
        return self._downstream

    @functools.cached_property
    def _downstream(self) -> Downstream:
        return self._cut.after(self._anchor)

    def note(self, node: Node, why: str) -> None:
        """Note that the slot does not hold a node, for all that it reads of what is inside."""
        for v in node.operands:
            if v in self._inside and not is_small(v):
                self._cut.refuse("store", self._cut.flow.producer[v], node, why)


# --- what a kernel writes -----------------------------------------------------------------------


def _kept(cut: Cut, anchor: Node, inside: list[Node]) -> set[Value]:
    """The results of a kernel that go to memory: what others read and cannot compute again."""
    flow, group = cut.flow, set(inside)
    written = [
        v
        for n in inside
        for v in n.outputs
        if v in flow.results or is_whole(n) or not group.issuperset(flow.readers(v))
    ]
    keep = set(written)
    for v in reversed(written):
        node = flow.producer[v]
        if node is not anchor and is_pointwise(node):
            keep.discard(v)
            refused = _refused_again(cut, v, keep, group)
            if refused:
                keep.add(v)
                _note_loads(cut, node, _kernels_reading(cut, v), refused)
    return keep or {anchor.out}


def is_whole(node: Node) -> bool:
    """Whether an op's results are written together, those that nobody reads, too."""
    return is_partial_reduction(node) or is_collective(node)


def _meet_again(keep: set[Value], needed: list[Node]) -> bool:
    """Whether a kernel without an anchor needs a nest that has no place in another one's tile.

    Its first stored value is what the loops go over. Another that is not made of it has a nest of
    its own, so that nothing can be made of both; unless what they have in common is stored first::

        g = p * d + x;  m = g * a;  v = g * g;  q = m / v
    """
    first: set[Value] = set()
    apart: set[Value] = set()
    for node in needed:
        if not first:
            first.update(keep.intersection(node.outputs))
        elif not first.isdisjoint(node.operands):
            if not apart.isdisjoint(node.operands):
                return True
            first.update(node.outputs)
        elif not apart.isdisjoint(node.operands) or not keep.isdisjoint(node.outputs):
            apart.update(node.outputs)
    return False


def _refused_again(cut: Cut, v: Value, keep: set[Value], group: set[Node]) -> dict[Node, str]:
    """Readers that cannot compute ``v`` from the other stored results of the kernel, and why."""
    node = cut.flow.producer[v]
    readers = [r for r in cut.flow.readers(v) if r not in group]
    stored = legality.is_stored(cut, node, free=False)
    if stored:
        return dict.fromkeys((node, *cut.flow.readers(v)), stored)
    refused = {r: why for r in readers if (why := legality.may_load(cut, node, r))}
    if refused:
        return refused
    maps = _maps_behind(cut, v, keep, group)
    if maps is not None and maps <= MOST_MAPS:
        return {}
    return dict.fromkeys(readers, UNSTORED if maps is None else MAPS)


def _maps_behind(cut: Cut, v: Value, keep: set[Value], group: set[Node]) -> int | None:
    """How many stored feature maps ``v`` can be computed from; None if it needs another value."""
    found: set[Value] = set()
    seen, work = {v}, [v]
    while work:
        u = work.pop()
        node = cut.flow.producer.get(u)
        if u in keep or node not in group:
            found |= set() if is_small(u) else {u}
        elif not is_pointwise(node):
            return None
        else:
            work += [w for w in node.operands if w not in seen]
            seen.update(node.operands)
    return len(found)


def _leading_to(cut: Cut, values: Iterable[Value], group: set[Node]) -> list[Node]:
    """The nodes of ``group`` that ``values`` depend on, in graph order."""
    flow, needed = cut.flow, set()
    work = [flow.producer[v] for v in values]
    while work:
        node = work.pop()
        if node in group and node not in needed:
            needed.add(node)
            work += [flow.producer[v] for v in node.operands if v in flow.producer]
    return sorted(needed, key=flow.order.__getitem__)
