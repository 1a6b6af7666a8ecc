"""Memory: where every stored value lies, so that nothing is copied and little is held.

In: a `KernelPlan`. Out: a `MemoryPlan`: each stored value is a *place*, a byte offset in a buffer;
buffers with overlapping lives get disjoint parts of one arena.

- A view (slice, reshape) is a place inside its operand's buffer.
- The parts of a concatenation are places inside its buffer: producers write where it will be read.
- A store slot that adds to a gradient writes over the gradient that it read (in place).
- An updated input (running statistics, a parameter) is written where the input lies, if nobody
  reads the old value later.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass, field

from bngen.ir.node import Node
from bngen.ir.ops import OPS
from bngen.ir.types import Value
from bngen.plan.kernel import Kernel, KernelPlan
from bngen.plan.layout import Blocked, physical_bytes, same_bytes
from bngen.plan.memory import MemoryPlan, Place, align


def plan_memory(plan: KernelPlan, keep_until_end: Iterable[Value] = ()) -> MemoryPlan:
    """Place every stored value.

    Args:
        plan: kernels in execution order.
        keep_until_end: values that must survive the last kernel.
    """
    return _Memory(plan, set(keep_until_end)).run()


@dataclass
class _Region:
    """Bytes [start, stop) of a buffer, and the kernels that read or write them."""

    value: Value
    start: int
    stop: int
    reads: list[int] = field(default_factory=list)


class _Memory:
    def __init__(self, plan: KernelPlan, keep: set[Value]):
        self.plan, self.keep = plan, keep
        self.graph, self.layouts = plan.graph, plan.layouts
        self.producer = self.graph.producers()
        self.inputs = set(self.graph.input_values())
        self.views = set(plan.views)
        self.inside: dict[Value, tuple[Value, int]] = {}
        self.writer = {v: i for i, k in enumerate(plan.kernels) for v in k.outputs}
        self.readers: dict[Value, list[int]] = {}
        for i, kernel in enumerate(plan.kernels):
            for v in kernel.inputs:
                self.readers.setdefault(v, []).append(i)
        self.in_place: list[tuple[str, Value, Value]] = []

    def run(self) -> MemoryPlan:
        for node in self.plan.views:
            self.place_view(node)
        copies = self.place_updates()
        self.accumulate_in_place()
        places = {v: self.place(v) for v in self.touched()}
        lives = self.lives(places)
        arena, nbytes = self.pack(lives)
        return MemoryPlan(places, arena, nbytes, lives, tuple(copies), tuple(self.in_place))

    def size(self, v: Value) -> int:
        return physical_bytes(v.type, self.layouts[v])

    def touched(self) -> list[Value]:
        """Every value some kernel, view or result names."""
        found = dict.fromkeys(self.graph.input_values())
        for kernel in self.plan.kernels:
            found.update(dict.fromkeys((*kernel.inputs, *kernel.outputs)))
        found.update(dict.fromkeys(v for n in self.plan.views for v in (*n.operands, *n.outputs)))
        found.update(dict.fromkeys(self.graph.results()))
        return list(found)

    # --- views --------------------------------------------------------------------------------

    def place_view(self, node: Node) -> None:
        if node.row.moves == "joins":
            start = 0
            axis = node.attrs["axis"]
            for v in node.inputs:
                stop = start + v.shape[axis]
                self.inside[v] = (node.out, self.channel_offset(node.out, start, stop))
                start = stop
        elif node.row.moves == "cuts":
            x = node.inputs[0]
            at = self.channel_offset(x, node.attrs["start"], node.attrs["stop"])
            self.inside[node.out] = (x, at)
        else:
            self.inside[node.out] = (node.inputs[0], 0)

    def channel_offset(self, x: Value, start: int, stop: int) -> int:
        layout = self.layouts[x]
        assert isinstance(layout, Blocked)
        _, block = layout.slice(start, stop)
        return block * (self.size(x) // layout.blocks)

    def place(self, v: Value) -> Place:
        offset = 0
        while v in self.inside:
            v, more = self.inside[v]
            offset += more
        return Place(v, offset)

    # --- in place -----------------------------------------------------------------------------

    def place_updates(self) -> list[tuple[Value, Value]]:
        """Write new values where the inputs lie; the rest is copied after the run."""
        copies = []
        taken: set[Value] = set()
        for target, new in self.graph.updates:
            writer = self.writer.get(new)
            same = same_bytes(new.type, self.layouts[new], self.layouts[target])
            late = [i for i in self.readers.get(target, ()) if writer is not None and i > writer]
            kernel = self.plan.kernels[writer] if writer is not None else None
            free = (
                kernel is not None and same and not late and new not in self.inside
                and new not in taken and new not in self.graph.outputs
                and self.only_elementwise(kernel, target, new)
            )  # fmt: skip
            if free:
                self.inside[new] = (target, 0)
                taken.add(new)
            elif new != target:
                copies.append((target, new))
        return copies

    def only_elementwise(self, kernel: Kernel, read: Value, written: Value) -> bool:
        """Whether the kernel reads ``read`` only where, and before, it writes ``written``."""
        if read not in kernel.inputs:
            return True
        users = [n for n in kernel.nodes if read in n.operands]
        store = set(kernel.store)
        same = self.layouts[read] == self.layouts[written] or same_bytes(
            read.type, self.layouts[read], self.layouts[written]
        )
        elementwise = all(
            n in store and OPS[n.op].kind == "pointwise" and n.out.shape == read.shape
            for n in users
        )
        if not (same and elementwise and len(users) == 1 and read.shape == written.shape):
            return False
        return self.leads_only_to(kernel, users[0], written)

    def leads_only_to(self, kernel: Kernel, node: Node, written: Value) -> bool:
        """Whether ``node`` is evaluated before ``written`` is stored, and not again.

        Around an anchor, what several nodes use is held in the tile and computed once. A purely
        pointwise kernel may spell it out again in a nest of its own for another result, and would
        then read what has been overwritten.
        """
        while written not in node.outputs:
            readers = [n for n in kernel.nodes if not set(node.outputs).isdisjoint(n.operands)]
            stored = any(v in kernel.outputs for v in node.outputs)
            if stored or len(readers) != 1:
                domain = kernel.anchor and kernel.anchor.out.shape
                held = node.out.shape == domain and node.out.dtype != "bool"
                writer = self.producer[written]
                # The anchor's own result is stored before anything in the store slot is read.
                after = writer in kernel.store and held
                return after and kernel.store.index(node) < kernel.store.index(writer)
            if OPS[readers[0].op].kind != "pointwise":
                return False
            node = readers[0]
        return True

    def accumulate_in_place(self) -> None:
        """Let a store slot write over the gradient it adds to, where that was the last reader."""
        regions: dict[Value, list[_Region]] = {}
        for v, readers in self.readers.items():
            place = self.place(v)
            region = _Region(v, place.offset, place.offset + self.size(v), readers)
            regions.setdefault(place.root, []).append(region)
        results = {self.place(v).root for v in (*self.graph.results(), *self.keep)}
        for i, kernel in enumerate(self.plan.kernels):
            for out in kernel.outputs:
                if out in self.inside or out in results or out in self.keep:
                    continue
                for v in kernel.inputs:
                    if self.may_overwrite(i, kernel, v, out, regions, results):
                        self.inside[out] = (v, 0)
                        self.in_place.append((kernel.name, v, out))
                        root = self.place(v)
                        self.move_regions(out, root, regions)
                        break

    def move_regions(self, out: Value, at: Place, regions: dict[Value, list[_Region]]) -> None:
        """Everything that lay in ``out``'s buffer now lies in the buffer it was put into."""
        moved = regions.pop(out, [])
        for region in moved:
            region.start += at.offset
            region.stop += at.offset
        regions.setdefault(at.root, []).extend(moved)

    def may_overwrite(self, i, kernel, v, out, regions, results) -> bool:
        place = self.place(v)
        if place.root in self.inputs or place.root in results or self.size(v) != self.size(out):
            return False
        if v.dtype != out.dtype or len(v.shape) != 4 or not self.only_elementwise(kernel, v, out):
            return False
        start, stop = place.offset, place.offset + self.size(v)
        for region in regions.get(place.root, ()):
            if region.start < stop and start < region.stop:
                if any(r > i for r in region.reads):
                    return False
                if region.value != v and i in region.reads:
                    return False
        writers = [
            when
            for w, when in self.writer.items()
            if w != v and w in self.inside and self.overlaps(w, place.root, start, stop)
        ]
        return all(when <= i for when in writers)

    def overlaps(self, w: Value, root: Value, start: int, stop: int) -> bool:
        place = self.place(w)
        return place.root == root and place.offset < stop and start < place.offset + self.size(w)

    # --- lives and packing --------------------------------------------------------------------

    def lives(self, places: dict[Value, Place]) -> dict[Value, tuple[int, int]]:
        first: dict[Value, int] = {}
        last: dict[Value, int] = {}
        for i, kernel in enumerate(self.plan.kernels):
            for v in (*kernel.inputs, *kernel.outputs):
                root = places[v].root
                first.setdefault(root, i)
                last[root] = i
        end = len(self.plan.kernels)
        for v in (*self.graph.results(), *self.keep):
            root = places[v].root
            if root in first:
                last[root] = end
        return {root: (first[root], last[root]) for root in first if root not in self.inputs}

    def pack(self, lives: dict[Value, tuple[int, int]]) -> tuple[dict[Value, int], int]:
        """Offsets, largest buffers first, each at the lowest place free during its life."""
        placed: list[tuple[int, int, int, int]] = []
        offsets: dict[Value, int] = {}
        for root in sorted(lives, key=lambda r: (-self.size(r), lives[r])):
            begin, end = lives[root]
            nbytes = align(max(self.size(root), 1))
            at = 0
            for lo, hi, b, e in placed:
                if b <= end and begin <= e and lo < at + nbytes and at < hi:
                    at = hi
            offsets[root] = at
            bisect.insort(placed, (at, at + nbytes, begin, end))
        return offsets, max((hi for _, hi, _, _ in placed), default=0)
