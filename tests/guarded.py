"""A module whose every kernel runs alone, each operand between inaccessible pages.

In: a program, a fusion level, a target. Out: a `Module` that is called as always, and what its
kernels did wrong. For each kernel of a run, `GuardedExecutor` copies the operands, and exactly
those bytes, into `Block`s of their own; calls the kernel; and copies the results back. So do the
kernels' own scratch buffers lie in blocks. Nothing else is theirs:

- an access beyond an operand or a scratch buffer is a fault; a write to the slack around it shows;
- what no kernel has written yet, padding lanes, scratch buffers, and results before they are
  computed hold poison;
- operands that are only read must be as they were; padding of packed weights must be zero.

A run of a module is one of `RUNS`, or an ordinary one. `RUNS` differ in the poison, and no bit of a
kernel's results may. Operands keep the alignment that is promised: a vector's, and none at all for
users' arrays. An input that a kernel writes over stays one buffer with the output.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from bngen.binding import bind
from bngen.codegen.compile import CompiledKernel, KnobLookup, compile_plan, load
from bngen.codegen.signature import overwritten
from bngen.ir.node import Graph
from bngen.ir.types import TensorType, Value
from bngen.passes.prepare import Joint, Prepared, join_gradient, prepare
from bngen.plan.formats import C_ORDER, Formats
from bngen.plan.kernel import KernelPlan
from bngen.plan.layout import Blocked, Layout, PackedWeight
from bngen.runtime import native, threads
from bngen.runtime.buffers import buffer
from bngen.runtime.bundle import Bundle
from bngen.runtime.dispatch import CallTable
from bngen.runtime.executor import Executor, Memory
from bngen.runtime.module import Module
from bngen.runtime.native import Entry
from bngen.runtime.signature import Built
from bngen.runtime.steps import CopyStep, KernelStep, Operand
from bngen.target.parse import Target
from bngen.tuning import records
from tests.guard_pages import NANS, NOISE, Block, Poison, watching
from tests.passes.memory_simulation import addresses


@dataclass(frozen=True)
class Run:
    """How memory is laid out in a run.

    Attributes:
        at_end: whether operands lie before an inaccessible page, or after one.
        poison: what memory holds that nobody has written.
    """

    at_end: bool
    poison: Poison


RUNS = (Run(True, NANS), Run(False, NOISE))


def guarded(
    graph: Graph,
    level: str,
    target: str,
    *,
    grad: bool = True,
    knobs: Callable[[KernelPlan, Target], KnobLookup] | None = None,
    formats: Formats = C_ORDER,
) -> tuple[Module, GuardedExecutor]:
    """A program, compiled for a target that runs here.

    Args:
        graph: the program.
        level: of fusion.
        target: what to compile for.
        grad: whether to compile its gradient, too.
        knobs: what to take for records; those that bngen is shipped with by default.
        formats: the program's arrays that are channels-last.
    """
    machine = Target.parse(target)
    if grad:
        joint = join_gradient(graph, formats=formats)
    else:
        joint = Joint(graph, graph, formats=formats)
    prepared = prepare(joint, machine.channel_block, level, pairs=machine.pairs)
    plan = prepared.planned.plan
    threads.install()
    compiled = compile_plan(
        plan,
        machine,
        unaligned=prepared.unaligned,
        places=prepared.planned.memory.places,
        knobs=knobs(plan, machine) if knobs else records.find(machine, None).lookup,
    )
    built = bind(prepared, compiled, machine, level)
    entries = load([c.code for c in compiled])
    module = Module(Bundle(built, {}, {}), entries)
    block = machine.channel_block
    executor = GuardedExecutor(module, built, entries, compiled, prepared, block)
    module._calls.executor = executor
    return module, executor


@dataclass(frozen=True)
class Part:
    """An operand of a kernel.

    Attributes:
        operand: where it lies.
        value: what it is.
        layout: of the value.
        reads: whether the kernel is given its contents.
        writes: whether the kernel writes to it.
        users: whether it lies in a user's memory, which starts anywhere.
    """

    operand: Operand
    value: Value
    layout: Layout
    reads: bool
    writes: bool
    users: bool

    @property
    def place(self) -> tuple[str | None, int]:
        """The same for an input and the output that is written over it."""
        return self.operand.slot, self.operand.offset

    @property
    def nbytes(self) -> int:
        """Its size."""
        return int(np.prod(self.operand.shape)) * np.dtype(self.operand.dtype).itemsize

    def __str__(self) -> str:
        role = {(1, 0): "input", (0, 1): "output"}.get((self.reads, self.writes), "in place")
        return f"{role} {self.value.name} {self.value.type} {self.layout}"


class GuardedExecutor(Executor):
    """Runs the steps of a module one by one in guarded memory.

    Attributes:
        layout: the layout of memory in the runs that come; None for ordinary memory.
        findings: what kernels did wrong so far, in words, each once.
        announce: called with what is about to run.
    """

    def __init__(
        self,
        module: Module,
        built: Built,
        entries: Mapping[str, Entry],
        compiled: list[CompiledKernel],
        prepared: Prepared,
        lanes: int,
    ):
        fixed = {f"in:{name}": array for name, array in module._state.arrays.items()}
        super().__init__(built.steps, entries, fixed)
        self.layout: Run | None = RUNS[0]
        self.findings: list[str] = []
        self.announce: Callable[[str], None] = lambda _: None
        self._entries, self._alignment = entries, 4 * lanes
        kernels = [i for i, step in enumerate(built.steps) if isinstance(step, KernelStep)]
        self._parts = {
            i: _parts(built.steps[i].operands, c, prepared)
            for i, c in zip(kernels, compiled, strict=True)
        }
        self._expected: dict[tuple[int, Value], np.ndarray] = {}
        self._scratch = _Scratch(entries, self._alignment)

    def run(self, memory: Memory, start: int = 0, stop: int | None = None) -> None:
        self._scratch.serve(self.layout)
        if self.layout is None:
            super().run(memory, start, stop)
            return
        if start == 0:
            arena = memory.arena.view(0, (memory.arena.nbytes,), "uint8")
            arena[:] = self.layout.poison.bytes(arena.size)
        memory = Memory(memory.arena, {**memory.slots, **self._fixed})
        for i in range(start, len(self._steps) if stop is None else stop):
            step = self._steps[i]
            if isinstance(step, CopyStep):
                np.copyto(memory.array(step.target), memory.array(step.source))
            else:
                self._run_kernel(i, step, memory)

    def _run_kernel(self, i: int, step: KernelStep, memory: Memory) -> None:
        parts = self._parts[i]
        self.announce(f"{step.name}: {'; '.join(map(str, parts))}")
        blocks = self._placed(step.name, parts, memory)
        before = {place: block.data.copy() for place, block in blocks.items()}
        # Each place is a buffer of its own.
        named = {place: f"{place[0]} {place[1]}" for place in blocks}
        operands = [Operand(named[o.slot, o.offset], 0, o.shape, o.dtype) for o in step.operands]
        buffers = {named[place]: buffer(block.data) for place, block in blocks.items()}
        table = CallTable([(self._entries[step.symbol], operands, step.numbers)], buffers)
        self._scratch.owner = step.name
        with watching() as faults:
            failed = table.run(0, 1)
        assert failed < 0, f"{step.name} failed: {native.raised()}"
        self._report(*_furthest(faults))
        self._report(*self._scratch.closed())
        for part in parts:
            block = blocks[part.place]
            self._report(*block.overflowed())
            if part.writes:
                self._take(i, part, block, memory)
            elif not np.array_equal(block.data, before[part.place]):
                self._report(f"writes to {block.label}, which it only reads")
        for block in blocks.values():
            block.close()

    def _placed(self, kernel: str, parts: list[Part], memory: Memory) -> dict:
        """A block for each place, with the contents of what is read; overlap is a plan's fault."""
        blocks: dict[tuple[str | None, int], Block] = {}
        for part in parts:
            if part.place in blocks:
                assert blocks[part.place].nbytes == part.nbytes, f"{kernel}: {part} overlaps"
                continue
            block = blocks[part.place] = Block(
                f"{part} of {kernel}",
                part.nbytes,
                self.layout.poison,
                at_end=self.layout.at_end,
                alignment=1 if part.users else self._alignment,
                shift=1 if part.users else 0,
            )
            if part.reads:
                real = np.repeat(_held(part), np.dtype(part.operand.dtype).itemsize)
                block.data[real] = self._bytes(part, memory)[real]
        return blocks

    def _bytes(self, part: Part, memory: Memory) -> np.ndarray:
        return memory.array(Operand(*part.place, (part.nbytes,), "uint8"))

    def _take(self, i: int, part: Part, block: Block, memory: Memory) -> None:
        """Copy a result back, after a look at it."""
        self._bytes(part, memory)[:] = block.data
        elements = block.data.view(f"u{np.dtype(part.operand.dtype).itemsize}")
        held = _held(part)
        if isinstance(part.layout, PackedWeight) and elements[~held].any():
            self._report(f"leaves padding of {block.label} that is not zero")
        bits = elements[held]
        first = self._expected.setdefault((i, part.value), bits)
        wrong = np.flatnonzero(first != bits)
        if wrong.size:
            self._report(
                f"{block.label}: {wrong.size} of {bits.size} elements depend on memory that "
                f"is not the kernel's, the first at {wrong[0]}"
            )

    def _report(self, *findings: str) -> None:
        self.findings += [f for f in findings if f not in self.findings]


def _parts(operands: tuple[Operand, ...], c: CompiledKernel, prepared: Prepared) -> list[Part]:
    plan, places = prepared.planned.plan, prepared.planned.memory.places
    values = (*c.kernel.inputs, *c.kernel.outputs)
    shared = {values[i] for pair in overwritten(c.kernel, places) for i in pair}
    outputs = set(c.kernel.outputs)
    return [
        Part(
            operand,
            a.value,
            plan.layouts[a.value],
            reads=a.value in shared or a.value not in outputs,
            writes=a.value in shared or a.value in outputs,
            users=a.value in prepared.unaligned,
        )
        for operand, a in zip(operands, c.arguments, strict=True)
    ]


def _furthest(faults) -> list[str]:
    """In words: of all accesses to one block beyond one end, the nearest and the furthest."""
    ends: dict[tuple[str, bool, bool], list] = {}
    for f in faults:
        ends.setdefault((f.label, f.writes, f.offset < 0), []).append(f)
    words = []
    for found in ends.values():
        found.sort(key=lambda f: abs(f.offset))
        more = f", up to {found[-1].offset - found[0].offset:+} more" if len(found) > 1 else ""
        words.append(f"{found[0]}{more}")
    return words


@cache
def _held_elements(type_: TensorType, layout: Layout, size: int) -> np.ndarray:
    held = np.ones(size, bool)
    if isinstance(layout, Blocked | PackedWeight):
        held[:] = False
        held[addresses(type_, layout).ravel()] = True
    return held


def _held(part: Part) -> np.ndarray:
    """Which elements in memory are the value's, and not padding whose contents nobody promises."""
    size = int(np.prod(part.operand.shape))
    if part.reads and isinstance(part.layout, PackedWeight) and not part.writes:
        return np.ones(size, bool)  # Zeros are promised there.
    return _held_elements(part.value.type, part.layout, size)


class _Scratch:
    """Serves kernels' scratch buffers from guarded memory, or leaves that to TVM."""

    def __init__(self, entries: Mapping[str, Entry], alignment: int):
        self.owner = ""
        self._layout, self._alignment = RUNS[0], alignment
        self._blocks: dict[int, Block] = {}
        self._found: list[str] = []
        self._functions = _ALLOCATE(self._allocate), _FREE(self._free)
        self._pointers = self._imports(entries)

    def _imports(self, entries: Mapping[str, Entry]) -> list[tuple[ctypes.c_void_p, int, int]]:
        """Where libraries of kernels keep the functions that they call; TVM's address, and ours."""
        found = []
        libraries = {id(e.owner): e.owner._code for e in entries.values()}
        for code in libraries.values():
            for name, function in zip(("Alloc", "Free"), self._functions, strict=True):
                with contextlib.suppress(ValueError):  # No kernel in it has any scratch.
                    pointer = ctypes.c_void_p.in_dll(code, f"__TVMBackend{name}Workspace")
                    found.append((pointer, pointer.value, native.address(function)))
        return found

    def serve(self, layout: Run | None) -> None:
        """From now on, in this layout; None for TVM's memory."""
        for pointer, theirs, ours in self._pointers:
            pointer.value = theirs if layout is None else ours
        self._layout = layout or self._layout

    def _allocate(self, kind: int, device: int, nbytes: int, code: int, bits: int) -> int:
        block = Block(
            f"{nbytes} bytes of scratch of {self.owner}",
            nbytes,
            self._layout.poison,
            at_end=self._layout.at_end,
            alignment=self._alignment,
        )
        self._blocks[block.address] = block
        return block.address

    def _free(self, kind: int, device: int, address: int) -> int:
        block = self._blocks.pop(address)
        self._found += block.overflowed()
        block.close()
        return 0

    def closed(self) -> list[str]:
        """What was found since the last call."""
        found, self._found = self._found, []
        return found


_ALLOCATE = ctypes.CFUNCTYPE(
    ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_uint64, ctypes.c_int, ctypes.c_int
)
_FREE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
