"""One kernel to machine code: lowered, scheduled and compiled, in this process.

In: a `Task`, which is data alone, so that another process can be given it. Out: its `Code`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

from bngen.codegen.nests import choose
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
    """A kernel as TVM has it.

    Attributes:
        module: the scheduled TIR.
        library: LLVM's form of it.
    """

    module: Any
    library: Any


@dataclass(frozen=True)
class Code:
    """One distinct kernel: its machine code, and what can be told of it.

    Attributes:
        symbol: its name.
        machine_code: an object file.
        arguments: shapes of the signature.
        dropped: positions among the kernel's inputs that lie where an output does and left the
            signature: one buffer, read and overwritten element by element.
        rule: kind of the strategy that was chosen.
        knobs: with these knobs.
        task: what it is the code of.
        declined: kind of each strategy that was asked before -> why it declined.
        in_tiles: whether it needs a matrix unit.
        kept: its forms, in the process that compiled it.
    """

    symbol: str
    machine_code: bytes
    arguments: tuple[tuple[int, ...], ...]
    dropped: tuple[int, ...]
    rule: str
    knobs: dict[str, int]
    task: Task
    declined: dict[str, str] = field(default_factory=dict)
    in_tiles: bool = False
    kept: Forms | None = field(default=None, compare=False, repr=False)

    @functools.cached_property
    def forms(self) -> Forms:
        """As TVM has it; compiled once more where another process has done that."""
        found = self.kept or compiled(self.task).kept
        assert found is not None
        return found

    def text(self, kind: str) -> str:
        """Its scheduled TIR (``tir``), LLVM IR (``ll``) or assembly (``asm``)."""
        if kind == "tir":
            return self.forms.module.script()
        return self.forms.library.mod.inspect_source({"ll": "ll", "asm": "s"}[kind])


def compiled(task: Task) -> Code:
    """The code of a kernel.

    Raises:
        BngenError: for a kernel that cannot be compiled.
    """
    import tvm

    from bngen.codegen.alignment import merge_overwritten, relax_alignment
    from bngen.codegen.pipeline import compile_module
    from bngen.codegen.tiles import in_tiles
    from bngen.scheduling.prefetch import add_prefetches

    kernel, target = task.kernel, task.target
    choice = choose(kernel, task.layouts, target.machine)
    strategy = choice.strategy
    chosen = choice.knobs(target.machine, task.record)
    tvm_target = target.tvm()
    with tvm_target:
        low = strategy.lower(kernel, task.layouts, choice.facts)
        function = strategy.schedule(low, choice.facts, chosen).mod[low.name]
        function = relax_alignment(function, task.unaligned)
        shapes = [a.shape for a in low.arguments]
        function, dropped = merge_overwritten(function, task.overwritten, shapes)
        if strategy.prefetched:
            function = add_prefetches(function, low)
        module = tvm.IRModule({low.name: function})
        if strategy.in_tiles:
            module = in_tiles(module)
        paired = any(v.dtype == PAIRED for n in kernel.nodes for v in (*n.outputs, *n.operands))
        library = compile_module(module, tvm_target, paired=paired)
    return Code(
        symbol=low.name,
        machine_code=_machine_code(library),
        arguments=tuple(shape for i, shape in enumerate(shapes) if i not in dropped),
        dropped=dropped,
        rule=strategy.kind,
        knobs=dict(chosen),
        task=task,
        declined=dict(choice.declined),
        in_tiles=strategy.in_tiles,
        kept=Forms(module, library),
    )


def _machine_code(library: Any) -> bytes:
    # LLVM ends the process when it cannot write: a file in memory is never on a full disk.
    with memory_file.written() as (path, descriptor):
        library.mod.write_to_file(path, "o")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
