"""Kernels to machine code: lowered, scheduled and compiled, in this process.

In: `Task`s, which are data alone, so that another process can be given them. Out: the `Code` of
each. Kernels that may turn out to differ in numbers alone are given together.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bngen.codegen.nests import Choice, choose
from bngen.dtypes import PAIRED
from bngen.lower.facts import Layouts
from bngen.plan.kernel import Kernel
from bngen.runtime import memory_file
from bngen.scheduling.knobs import Knobs
from bngen.target.parse import Target


@dataclass(frozen=True)
class Task:
    """A kernel, and all else that its code depends on.

    Attributes:
        kernel: the kernel.
        layouts: of the values that it reads, writes and computes.
        target: the CPU.
        unaligned: positions in its signature of values in users' memory, which starts anywhere.
        overwritten: positions (input, output) in its signature of values that share one place.
        record: knobs that were tuned for it; None for its strategy's own.
    """

    kernel: Kernel
    layouts: Layouts
    target: Target
    unaligned: tuple[int, ...] = ()
    overwritten: tuple[tuple[int, int], ...] = ()
    record: Knobs | None = None


@dataclass(frozen=True)
class Forms:
    """A function as TVM has it.

    Attributes:
        module: the scheduled TIR of the first kernel that calls it.
        library: LLVM's form of it.
    """

    module: Any
    library: Any


@dataclass(frozen=True)
class Code:
    """One distinct kernel: the function that it calls, and what can be told of it.

    Attributes:
        symbol: the name of the function.
        numbers: what it takes after the arguments: kernels that differ in these share it.
        machine_code: an object file.
        arguments: shapes of the signature.
        dropped: positions among the kernel's inputs that lie where an output does and left the
            signature: one buffer, read and overwritten element by element.
        rule: kind of the strategy that was chosen.
        knobs: with these knobs.
        tasks: what was compiled together.
        declined: kind of each strategy that was asked before -> why it declined.
        in_tiles: whether it needs a matrix unit.
        kept: the function's forms, in the process that compiled it.
    """

    symbol: str
    numbers: tuple[int, ...]
    machine_code: bytes
    arguments: tuple[tuple[int, ...], ...]
    dropped: tuple[int, ...]
    rule: str
    knobs: dict[str, int]
    tasks: Sequence[Task]
    declined: dict[str, str] = field(default_factory=dict)
    in_tiles: bool = False
    kept: Forms | None = field(default=None, compare=False, repr=False)

    @functools.cached_property
    def forms(self) -> Forms:
        """As TVM has it; compiled once more where another process has done that."""
        if self.kept:
            return self.kept
        return next(c.kept for c in compiled(self.tasks) if c.symbol == self.symbol and c.kept)

    def text(self, kind: str) -> str:
        """Its scheduled TIR (``tir``), LLVM IR (``ll``) or assembly (``asm``)."""
        if kind == "tir":
            return self.forms.module.script()
        return self.forms.library.mod.inspect_source({"ll": "ll", "asm": "s"}[kind])


@dataclass(frozen=True)
class _Lowered:
    """A kernel as LLVM is about to have it, and what became of its task."""

    function: Any
    scheduled: Any
    arguments: tuple[tuple[int, ...], ...]
    dropped: tuple[int, ...]
    choice: Choice
    knobs: Knobs


def compiled(tasks: Sequence[Task], stop: threading.Event | None = None) -> list[Code]:
    """The code of kernels, each of one; functions that do for several are made once.

    Args:
        tasks: kernels for one target.
        stop: set where nobody waits for them any more.

    Raises:
        BngenError: for a kernel that cannot be compiled.
        Stopped: when ``stop`` was set.
    """
    import tvm

    from bngen.codegen.pipeline import generated
    from bngen.codegen.shared import renamed, share

    target = tasks[0].target.tvm()
    name = tasks[0].kernel.name
    lowered = []
    for task in tasks:
        _check_wanted(stop)
        lowered.append(_lowered(task, name))
    codes: dict[int, Code] = {}
    for shared in share([k.function for k in lowered], [len(k.arguments) for k in lowered]):
        _check_wanted(stop)
        first = shared.members[0]
        symbol = tasks[first].kernel.name
        function = shared.function if symbol == name else renamed(shared.function, symbol)
        with target:
            library = generated(tvm.IRModule({symbol: function}), target)
        forms = Forms(tvm.IRModule({symbol: lowered[first].scheduled}), library)
        machine_code = _machine_code(library)
        for i, numbers in zip(shared.members, shared.numbers, strict=True):
            one, strategy = lowered[i], lowered[i].choice.strategy
            codes[i] = Code(
                symbol=symbol,
                numbers=numbers,
                machine_code=machine_code,
                arguments=one.arguments,
                dropped=one.dropped,
                rule=strategy.kind,
                knobs=dict(one.knobs),
                tasks=tasks,
                declined=dict(one.choice.declined),
                in_tiles=strategy.in_tiles,
                kept=forms,
            )
    return [codes[i] for i in range(len(tasks))]


class Stopped(Exception):
    """Nobody waits for what was being compiled."""


def _check_wanted(stop: threading.Event | None) -> None:
    if stop is not None and stop.is_set():
        raise Stopped


def _lowered(task: Task, name: str) -> _Lowered:
    """A kernel, lowered under a name."""
    import tvm

    from bngen.codegen.alignment import merge_overwritten, relax_alignment
    from bngen.codegen.pipeline import lowered
    from bngen.codegen.tiles import in_tiles
    from bngen.scheduling.prefetch import add_prefetches

    kernel = task.kernel
    choice = choose(kernel, task.layouts, task.target.machine)
    strategy = choice.strategy
    chosen = choice.knobs(task.target.machine, task.record)
    target = task.target.tvm()
    with target:
        low = strategy.lower(kernel, task.layouts, choice.facts)
        function = strategy.schedule(low, choice.facts, chosen).mod[low.name]
        function = relax_alignment(function, task.unaligned)
        shapes = [a.shape for a in low.arguments]
        function, dropped = merge_overwritten(function, task.overwritten, shapes)
        if strategy.prefetched:
            function = add_prefetches(function, low)
        function = function.with_attr("global_symbol", name)
        module = tvm.IRModule({name: function})
        if strategy.in_tiles:
            module = in_tiles(module)
        paired = any(v.dtype == PAIRED for n in kernel.nodes for v in (*n.outputs, *n.operands))
        (final,) = lowered(module, target, paired=paired).functions.values()
    arguments = tuple(shape for i, shape in enumerate(shapes) if i not in dropped)
    return _Lowered(final, function, arguments, dropped, choice, chosen)


def _machine_code(library: Any) -> bytes:
    # LLVM ends the process when it cannot write: a file in memory is never on a full disk.
    with memory_file.written() as (path, descriptor):
        library.mod.write_to_file(path, "o")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
