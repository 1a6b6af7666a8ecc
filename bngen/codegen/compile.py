"""Kernels of a plan to machine code: lowered, scheduled and compiled, each distinct one once.

In: a `KernelPlan`, a target, knobs. Out: a `CompiledKernel` for every kernel of the plan; equal
kernels share one function.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

from bngen.codegen.nests import choose
from bngen.codegen.signature import overwritten, signature
from bngen.dtypes import PAIRED
from bngen.errors import ProgramError, SourceLoc, ToolchainError
from bngen.ir.node import Node
from bngen.ir.types import Value
from bngen.lower.lowered import Argument
from bngen.plan.kernel import Kernel, KernelPlan
from bngen.plan.layout import physical_bytes
from bngen.runtime import memory_file, native, tiles, toolchain
from bngen.runtime.native import Entry
from bngen.target.parse import Target

_LOG = logging.getLogger(__name__)
_COMPILER_STACK = 64 << 20
"""Bytes of address space; what is not touched is no memory."""
_starting = threading.Lock()
Progress = Callable[[int, int, str], None]
MOST_ELEMENTS = 2**31 - 2**20
"""Elements of a tensor, padding included: TVM's loops and indices are of 32 bits.

A loop that is shared out to threads and cut into vectors counts a little further than its end.
"""
KnobLookup = Callable[[str, str], dict[str, int] | None]
"""(kind, signature) -> knobs of a record, or None for the analytic ones."""


@dataclass(frozen=True)
class Code:
    """One distinct kernel: its machine code, and what can be shown of it.

    Attributes:
        symbol: its name.
        module: the scheduled TIR.
        library: LLVM's form of it.
        machine_code: an object file.
        arguments: shapes of the signature.
        dropped: positions among the kernel's inputs that lie where an output does and left the
            signature: one buffer, read and overwritten element by element.
        rule: kind of the strategy that was chosen.
        knobs: with these knobs.
        declined: kind of each strategy that was asked before -> why it declined.
        in_tiles: whether it needs a matrix unit.
    """

    symbol: str
    module: Any
    library: Any
    machine_code: bytes
    arguments: tuple[tuple[int, ...], ...]
    dropped: tuple[int, ...]
    rule: str
    knobs: dict[str, int]
    declined: dict[str, str] = field(default_factory=dict)
    in_tiles: bool = False

    def text(self, kind: str) -> str:
        """Its scheduled TIR (``tir``), LLVM IR (``ll``) or assembly (``asm``)."""
        if kind == "tir":
            return self.module.script()
        return self.library.mod.inspect_source({"ll": "ll", "asm": "s"}[kind])


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel of the plan and the code it runs."""

    kernel: Kernel
    code: Code
    arguments: tuple[Argument, ...]


def compile_plan(
    plan: KernelPlan,
    target: Target,
    *,
    unaligned: frozenset[Value] = frozenset(),
    places: Mapping[Value, Hashable] | None = None,
    knobs: KnobLookup | None = None,
    progress: Progress | None = None,
    jobs: int | None = None,
) -> list[CompiledKernel]:
    """Compile every kernel of a plan.

    Args:
        plan: kernels and layouts.
        target: the CPU.
        unaligned: values in users' memory, which starts anywhere.
        places: where values lie; an input in an output's place becomes the same parameter.
        knobs: tuned knobs, looked up by rule and signature.
        progress: called after each kernel with (done, total, name).
        jobs: compiler threads; the target's threads by default.

    Returns:
        A compiled kernel for each of the plan's, in its order; collectives are none.
    """
    groups: dict[str, list[Kernel]] = {}
    keys: list[str] = []
    for kernel in plan.computed:
        _check_countable(kernel, plan)
        key = signature(kernel, plan) + _alignment_key(kernel, unaligned)
        key += "".join(f"|{i}={o}" for i, o in overwritten(kernel, places or {}))
        keys.append(key)
        groups.setdefault(key, []).append(kernel)
    done = 0
    codes: dict[str, Code] = {}
    with _without_collections(), ThreadPoolExecutor(jobs or target.machine.threads) as pool:
        futures = {
            _submitted(
                pool, _compile, kernels[0], plan, target, unaligned, places or {}, knobs, key
            ): key
            for key, kernels in groups.items()
        }
        try:
            for future in as_completed(futures):
                key = futures[future]
                codes[key] = future.result()
                done += len(groups[key])
                if progress:
                    progress(done, len(plan.computed), groups[key][0].name)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [
        CompiledKernel(kernel, codes[key], _arguments(kernel, codes[key]))
        for kernel, key in zip(plan.computed, keys, strict=True)
    ]


def _check_countable(kernel: Kernel, plan: KernelPlan) -> None:
    """Raise where a kernel would go over more elements than its loops can count."""
    stored = {*kernel.inputs, *kernel.outputs}
    for node in kernel.nodes:
        for v in (*node.outputs, *node.operands):
            count = v.type.size
            if v in stored:
                count = physical_bytes(v.type, plan.layouts[v]) * count // max(v.type.nbytes, 1)
            if count > MOST_ELEMENTS:
                what = f"{v.type} is {count} elements, and kernels count to {MOST_ELEMENTS}"
                raise ProgramError(
                    f"{node.op}: {what}",
                    loc=node.loc or _line_near(node, plan),
                    hint="use a smaller batch, or compute it in parts",
                )


def _line_near(node: Node, plan: KernelPlan) -> SourceLoc | None:
    """The user's line of a neighbour, where a pass has put a node that has none."""
    near = {*node.operands, *node.outputs}
    around = (n for n in plan.graph.nodes if not near.isdisjoint((*n.operands, *n.outputs)))
    return next((n.loc for n in around if n.loc), None)


def _submitted(pool: ThreadPoolExecutor, task: Callable[..., Code], *args: Any) -> Future[Code]:
    """A task in the pool; where the system starts no thread for it, done by this one at once.

    A thread that is started for it has the stack that LLVM's recursions need, whatever ulimit says.
    """
    with _starting:
        before = threading.stack_size(_COMPILER_STACK)
        try:
            return pool.submit(task, *args)
        except RuntimeError:
            done: Future[Code] = Future()
        finally:
            threading.stack_size(before)
    done.set_result(task(*args))
    return done


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Pause the garbage collector: it walks all graphs again for each few kernels, 7 % of the time.

    Nothing that compiling makes waits for it: what refers to itself is small.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def load(codes: Iterable[Code]) -> dict[str, Entry]:
    """Kernels to be called in this process, by symbol.

    Without a C compiler, or where no library can be loaded, TVM's JIT generates their machine code
    once more.
    """
    distinct = {code.symbol: code for code in codes}
    if any(code.in_tiles for code in distinct.values()):
        tiles.ask("a kernel")
    try:
        return native.load(toolchain.link(objects(distinct.values()).values()), distinct)
    except ToolchainError as error:  # The thread pool may have said so, and all works as before.
        _LOG.info("kernels are loaded by TVM's JIT: %s", error)
        return jit(distinct.values())


def jit(codes: Iterable[Code]) -> dict[str, Entry]:
    """Kernels by symbol, their machine code generated in memory by TVM's JIT."""
    return {code.symbol: native.entry_of(code.library[code.symbol]) for code in codes}


def objects(codes: Iterable[Code]) -> dict[str, bytes]:
    """Object files of the distinct kernels, by symbol."""
    return {code.symbol: code.machine_code for code in codes}


def _alignment_key(kernel: Kernel, unaligned: frozenset[Value]) -> str:
    flags = [v in unaligned for v in (*kernel.inputs, *kernel.outputs)]
    return f"|{''.join('u' if f else '.' for f in flags)}" if any(flags) else ""


def _arguments(kernel: Kernel, code: Code) -> tuple[Argument, ...]:
    values = (*kernel.inputs, *kernel.outputs)
    kept = [v for i, v in enumerate(values) if i not in code.dropped]
    return tuple(Argument(v, s) for v, s in zip(kept, code.arguments, strict=True))


def _compile(
    kernel: Kernel,
    plan: KernelPlan,
    target: Target,
    unaligned: frozenset[Value],
    places: Mapping[Value, Hashable],
    knobs: KnobLookup | None,
    key: str,
) -> Code:
    import tvm

    from bngen.codegen.alignment import merge_overwritten, relax_alignment
    from bngen.codegen.pipeline import compile_module
    from bngen.codegen.tiles import in_tiles
    from bngen.scheduling.prefetch import add_prefetches

    choice = choose(kernel, plan.layouts, target.machine)
    strategy = choice.strategy
    chosen = choice.knobs(target.machine, knobs(strategy.kind, key) if knobs else None)
    tvm_target = target.tvm()
    with tvm_target:
        low = strategy.lower(kernel, plan.layouts, choice.facts)
        function = strategy.schedule(low, choice.facts, chosen).mod[low.name]
        values = (*kernel.inputs, *kernel.outputs)
        function = relax_alignment(function, [i for i, v in enumerate(values) if v in unaligned])
        shapes = [a.shape for a in low.arguments]
        function, dropped = merge_overwritten(function, overwritten(kernel, places), shapes)
        if strategy.prefetched:
            function = add_prefetches(function, low)
        module = tvm.IRModule({low.name: function})
        if strategy.in_tiles:
            module = in_tiles(module)
        paired = any(v.dtype == PAIRED for n in kernel.nodes for v in (*n.outputs, *n.operands))
        library = compile_module(module, tvm_target, paired=paired)
    return Code(
        symbol=low.name,
        module=module,
        library=library,
        machine_code=_machine_code(library),
        arguments=tuple(shape for i, shape in enumerate(shapes) if i not in dropped),
        dropped=dropped,
        rule=strategy.kind,
        knobs=dict(chosen),
        declined=dict(choice.declined),
        in_tiles=strategy.in_tiles,
    )


def _machine_code(library: Any) -> bytes:
    # LLVM ends the process when it cannot write: a file in memory is never on a full disk.
    with memory_file.written() as (path, descriptor):
        library.mod.write_to_file(path, "o")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
