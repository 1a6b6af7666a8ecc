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

from collections import defaultdict
from collections.abc import Iterable

from bngen.ir.node import Node
from bngen.ir.types import Value
from bngen.passes.arena import Arena
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


class _Spans:
    """When the parts of one buffer are read and written last, by first byte and end.

    Values that are the same bytes share a part, so that the work does not grow with their number.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[int, int], tuple[int, int]] = {}

    def touch(self, start: int, stop: int, read: int, written: int) -> None:
        """Note the numbers of kernels that read and write a part; -1 for none."""
        known = self._last.get((start, stop), (-1, -1))
        self._last[start, stop] = (max(known[0], read), max(known[1], written))

    def take(self, other: _Spans, offset: int) -> None:
        """All that lay in ``other`` now lies here, so many bytes further."""
        for (start, stop), (read, written) in other._last.items():
            self.touch(start + offset, stop + offset, read, written)

    def is_done(self, start: int, stop: int, kernel: int) -> bool:
        """Whether no kernel after this one reads or writes any of these bytes."""
        return all(
            last <= kernel
            for (lo, hi), times in self._last.items()
            if lo < stop and start < hi
            for last in times
        )


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
        """Where a value lies; each step to the buffer's root is gone once."""
        chain: list[Value] = []
        while v in self.inside:
            chain.append(v)
            v = self.inside[v][0]
        offset = 0
        for u in reversed(chain):
            offset += self.inside[u][1]
            self.inside[u] = (v, offset)
        return Place(v, offset)

    # --- in place -----------------------------------------------------------------------------

    def place_updates(self) -> list[tuple[Value, Value]]:
        """Write new values where the inputs lie; the rest is copied after the run."""
        copies = []
        taken: set[Value] = set()
        for target, new in self.graph.updates:
            writer = self.writer.get(new)
            same = same_bytes(new.type, self.layouts[new], self.layouts[target])
            read_on = writer is not None and self.readers.get(target, [-1])[-1] > writer
            kernel = self.plan.kernels[writer] if writer is not None else None
            free = (
                kernel is not None and same and not read_on and new not in self.inside
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
        if any(n.row.gathers for n in kernel.nodes):
            return False
        users = [n for n in kernel.nodes if read in n.operands]
        store = set(kernel.store)
        same = self.layouts[read] == self.layouts[written] or same_bytes(
            read.type, self.layouts[read], self.layouts[written]
        )
        elementwise = all(
            n in store and n.row.kind == "pointwise" and n.out.shape == read.shape for n in users
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
            if readers[0].row.kind != "pointwise":
                return False
            node = readers[0]
        return True

    def accumulate_in_place(self) -> None:
        """Let a store slot write over the gradient it adds to, where that was the last reader."""
        spans = self.spans()
        results = {self.place(v).root for v in (*self.graph.results(), *self.keep)}
        for i, kernel in enumerate(self.plan.kernels):
            for out in kernel.outputs:
                if out in self.inside or out in results or out in self.keep:
                    continue
                for v in kernel.inputs:
                    root = self.place(v).root
                    if root in self.inputs or root in results:
                        continue
                    if self.may_overwrite(i, kernel, v, out, spans[root]):
                        self.inside[out] = (v, 0)
                        self.in_place.append((kernel.name, v, out))
                        self.move(out, spans)
                        break

    def spans(self) -> dict[Value, _Spans]:
        """For each buffer what is read and written in it; its own first write does not count."""
        found: dict[Value, _Spans] = defaultdict(_Spans)
        for v in {**self.readers, **self.writer}:
            place = self.place(v)
            written = self.writer.get(v, -1) if v in self.inside else -1
            read = self.readers[v][-1] if v in self.readers else -1
            found[place.root].touch(place.offset, place.offset + self.size(v), read, written)
        return found

    def move(self, out: Value, spans: dict[Value, _Spans]) -> None:
        """Everything that lay in ``out``'s buffer now lies in the buffer it was put into."""
        place, size = self.place(out), self.size(out)
        own = spans.pop(out, _Spans())
        own.touch(0, size, -1, self.writer[out])
        spans[place.root].take(own, place.offset)

    def may_overwrite(self, i: int, kernel: Kernel, v: Value, out: Value, spans: _Spans) -> bool:
        """Whether the i-th kernel may write ``out`` where it reads ``v``, in a buffer of these."""
        size, place = self.size(v), self.place(v)
        if size != self.size(out) or v.dtype != out.dtype or len(v.shape) != 4:
            return False
        if not self.only_elementwise(kernel, v, out):
            return False
        if any(u != v and self.overlaps(u, place, size) for u in kernel.inputs):
            return False
        return spans.is_done(place.offset, place.offset + size, i)

    def overlaps(self, u: Value, place: Place, size: int) -> bool:
        """Whether a value lies in any of ``size`` bytes from a place on."""
        other = self.place(u)
        same = other.root == place.root
        return (
            same
            and other.offset < place.offset + size
            and place.offset < other.offset + self.size(u)
        )

    # --- lives and packing --------------------------------------------------------------------

    def lives(self, places: dict[Value, Place]) -> dict[Value, tuple[int, int]]:
        first: dict[Value, int] = {}
        last: dict[Value, int] = {}
        for i, kernel in enumerate(self.plan.kernels):
            for v in (*kernel.inputs, *kernel.outputs):
                root = places[v].root
                first.setdefault(root, i)
                last[root] = i
        for wait in self.plan.waits:  # until it is over, nobody else may write there
            for v in self.plan.kernels[wait.kernel].outputs:
                last[places[v].root] = max(last[places[v].root], wait.before - 1)
        end = len(self.plan.kernels)
        for v in (*self.graph.results(), *self.keep):
            root = places[v].root
            if root in first:
                last[root] = end
        return {root: (first[root], last[root]) for root in first if root not in self.inputs}

    def pack(self, lives: dict[Value, tuple[int, int]]) -> tuple[dict[Value, int], int]:
        """Offsets, largest buffers first, each at the lowest place free during its life."""
        placed = Arena()
        offsets: dict[Value, int] = {}
        for root in sorted(lives, key=lambda r: (-self.size(r), lives[r])):
            offsets[root] = placed.add(align(max(self.size(root), 1)), *lives[root])
        return offsets, placed.nbytes
