"""Runs a plan kernel by kernel in simulated memory, so that a wrong alias shows as a wrong result.

In: a `Planned` and arguments. Out: the program's results, read from where the plan put them. Every
stored value lies in bytes, at its place, in its physical layout; a kernel reads its inputs there,
evaluates its own nodes and nothing else, and writes its outputs there. What a buffer held before
its life, what it holds after its life, and padding lanes are NaN.

Arithmetic is float64, so the memory is twice as large as planned: a byte of the plan is two here.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from bngen.ir.interp import Results, evaluate
from bngen.ir.types import TensorType, Value
from bngen.passes.pipeline import Planned
from bngen.plan.kernel import Kernel
from bngen.plan.layout import (
    CHANNELS_LAST,
    Blocked,
    Layout,
    PackedWeight,
    physical_shape,
)

SCALE = 2
CELL = {1: np.int16, 4: np.float64, 8: np.longdouble}
"""What holds an element of so many planned bytes; exact for every integer of that width."""


class MisplacedError(AssertionError):
    """A kernel reads something that it, or another one, has written over."""


def run_in_memory(planned: Planned, args: dict[str, np.ndarray]) -> Results:
    """Results of a plan on float64 arguments."""
    return _Machine(planned, args).run()


class _Machine:
    def __init__(self, planned: Planned, args: dict[str, np.ndarray]):
        self.plan, self.memory = planned.plan, planned.memory
        self.graph, self.layouts = planned.plan.graph, planned.plan.layouts
        self.arena = poisoned(self.memory.nbytes)
        self.buffers: dict[Value, np.ndarray] = {}
        for item in self.graph.inputs:
            self.buffers[item.value] = poisoned(max(self.plan.nbytes(item.value), 1))
            self.write(item.value, np.asarray(args[item.name]))
        for root, at in self.memory.arena.items():
            self.buffers[root] = self.arena[SCALE * at : SCALE * (at + self.plan.nbytes(root))]

    def run(self) -> Results:
        for i, kernel in enumerate(self.plan.kernels):
            for root, (first, _) in self.memory.lives.items():
                if first == i:
                    poison(self.buffers[root])
            self.run_kernel(kernel)
            for root, (_, last) in self.memory.lives.items():
                if last == i:
                    poison(self.buffers[root])
        outputs = tuple(self.read(v) for v in self.graph.outputs)
        updates = {target.name: self.read(new) for target, new in self.graph.updates}
        for target, new in self.memory.copies:
            self.write(target, self.read(new))
        for target, _ in self.graph.updates:
            np.testing.assert_array_equal(self.read(target), updates[target.name])
        return Results(outputs, updates)

    # --- memory -------------------------------------------------------------------------------

    def cells(self, v: Value) -> np.ndarray:
        """The memory of a value, as a flat array of elements."""
        place = self.memory.places[v]
        start = SCALE * place.offset
        width = self.plan.nbytes(v) // max(np.prod(physical_shape(v.type, self.layouts[v])), 1)
        raw = self.buffers[place.root][start : start + SCALE * self.plan.nbytes(v)]
        return raw.view(CELL[int(width)])

    def read(self, v: Value) -> np.ndarray:
        array = self.cells(v)[addresses(v.type, self.layouts[v])]
        return array.astype("float64" if v.type.is_float else v.dtype)

    def write(self, v: Value, array: np.ndarray) -> None:
        cells = self.cells(v)
        poison(cells)
        cells[addresses(v.type, self.layouts[v])] = array

    def span(self, v: Value) -> tuple[Value | None, int, int]:
        """Which bytes a value takes: buffer (None for the arena), first, last + 1."""
        place = self.memory.places[v]
        at = self.memory.arena.get(place.root)
        base = place.offset + (at or 0)
        return (place.root if at is None else None, base, base + self.plan.nbytes(v))

    # --- kernels ------------------------------------------------------------------------------

    def run_kernel(self, kernel: Kernel) -> None:
        loaded = {v: self.read(v) for v in kernel.inputs}
        # What a load slot or the anchor reads, other elements of the result may need again.
        kept = {v: a if self.survives(v, kernel) else spoiled(a) for v, a in loaded.items()}
        env = dict(kept)
        for node in kernel.nodes:
            if node in kernel.store:
                arrays = [v and loaded.get(v, env.get(v)) for v in node.inputs]
            else:
                arrays = [v and env.get(v) for v in node.inputs]
            missing = [v.name for v, a in zip(node.inputs, arrays, strict=True) if v and a is None]
            if missing:
                raise MisplacedError(f"{kernel.name} computes {node.out.name} without {missing}")
            with np.errstate(all="ignore"):
                env.update(zip(node.outputs, evaluate(node, arrays, "float64"), strict=True))
        for v in kernel.outputs:
            self.write(v, env[v])

    def survives(self, v: Value, kernel: Kernel) -> bool:
        """Whether no result of the kernel is written over its operand ``v``."""
        buffer, start, stop = self.span(v)
        for out in kernel.outputs:
            other, lo, hi = self.span(out)
            if other != buffer or stop <= lo or hi <= start:
                continue
            if (lo, hi) != (start, stop):
                raise MisplacedError(f"{kernel.name} writes {out.name} over a part of {v.name}")
            return False
        return True


def poisoned(nbytes: int) -> np.ndarray:
    """Memory that gives NaN, or a ridiculous integer, when read before it is written."""
    memory = np.zeros(SCALE * nbytes + 16, np.uint8)
    memory = memory[-memory.ctypes.data % 16 :][: SCALE * nbytes]
    memory[:] = 0xFF
    return memory


def poison(memory: np.ndarray) -> None:
    """Make memory as `poisoned` memory is."""
    memory.view(np.uint8)[:] = 0xFF


def spoiled(array: np.ndarray) -> np.ndarray:
    """An operand after it was written over."""
    return np.full_like(array, np.nan if array.dtype.kind == "f" else -1)


# --- layouts, written down a second time ---------------------------------------------------------


@cache
def addresses(type_: TensorType, layout: Layout) -> np.ndarray:
    """For each element of a logical tensor its position in the array in memory."""
    index = np.indices(type_.shape, sparse=True) if type_.shape else ()
    physical = physical_shape(type_, layout)
    if isinstance(layout, Blocked):
        axis = type_.channel_axis
        block, lane = lanes_of(layout)
        rest = [i for a, i in enumerate(index) if a != axis]
        place = (block[index[axis]], *rest, lane[index[axis]])
    elif isinstance(layout, PackedWeight):
        place = packed_place(layout, index, type_.shape)
        if layout.paired:
            outer, block, r, s, lane, own = place
            if layout.inner is None:
                place = outer, block // 2, r, s, lane, own, block % 2
            else:
                place = outer, block, r, s, lane // 2, own, lane % 2
    elif layout == CHANNELS_LAST:
        n, c, h, w = index
        place = n, h, w, c
    else:
        place = index
    if not physical:
        return np.zeros((), int)
    flat = np.ravel_multi_index(np.broadcast_arrays(*place), physical)
    assert np.unique(flat).size == flat.size, f"{layout} puts two elements of {type_} in one place"
    return flat


def lanes_of(layout: Blocked) -> tuple[np.ndarray, np.ndarray]:
    """Block and lane of each channel."""
    pairs = [
        (first + c // layout.lanes, c % layout.lanes)
        for _, first, size in layout.block_starts()
        for c in range(size)
    ]
    return tuple(np.array(column) for column in zip(*pairs, strict=True))


def packed_place(layout: PackedWeight, index, shape) -> tuple[np.ndarray, ...]:
    """Place of ``w[k, c, r, s]``."""
    k, c, r, s = index
    rows, columns = shape[2:]
    if layout.flipped:
        r, s = rows - 1 - r, columns - 1 - s
    if layout.depthwise:
        block, lane = lanes_of(layout.outer)
        return block[k], r, s, lane[k]
    # The group's own channels are counted from its first.
    group = k // (shape[0] // layout.groups)
    out, inside = (c + group * shape[1], k) if layout.flipped else (k, c + group * shape[1])
    block, lane = lanes_of(layout.outer)
    own = inside % (shape[0] // layout.groups if layout.flipped else shape[1])
    if layout.shuffled:
        return block[out], own, r, s, lane[out]
    if layout.by_channel:
        return block[out], np.zeros_like(own), r, s, own, lane[out]
    if layout.inner is None:
        return block[out], inside, r, s, np.zeros_like(inside), lane[out]
    inner_block, inner_lane = lanes_of(layout.inner)
    per_group = layout.inner.blocks // layout.groups
    return block[out], inner_block[inside] % per_group, r, s, inner_lane[inside], lane[out]
