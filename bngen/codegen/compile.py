"""Kernels of a plan to machine code: lowered, scheduled and compiled, each distinct one once.

In: a `KernelPlan`, a target, knobs. Out: a `CompiledKernel` for every kernel of the plan; equal
kernels share one function.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass

from bngen.codegen.code import Code, Task
from bngen.codegen.nests import choose
from bngen.codegen.signature import overwritten, signature
from bngen.codegen.workers import codes as codes_of
from bngen.errors import ProgramError, SourceLoc, ToolchainError
from bngen.ir.node import Node
from bngen.ir.types import Value
from bngen.lower.lowered import Argument
from bngen.plan.kernel import Kernel, KernelPlan
from bngen.plan.layout import physical_bytes
from bngen.runtime import native, tiles, toolchain
from bngen.runtime.native import Entry
from bngen.target.parse import Target

_LOG = logging.getLogger(__name__)
Progress = Callable[[int, int, str], None]
MOST_ELEMENTS = 2**31 - 2**20
"""Elements of a tensor, padding included: TVM's loops and indices are of 32 bits.

A loop that is shared out to threads and cut into vectors counts a little further than its end.
"""
LARGEST = 32
"""Kernels that are compiled together: more processes than one shall have something to do."""
_NUMBER = re.compile(r"\d+")
KnobLookup = Callable[[str, str, Mapping[str, int]], dict[str, int] | None]
"""(kind, signature, extents) -> knobs of a record, or None for the analytic ones."""


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
    here: bool = False,
) -> list[CompiledKernel]:
    """Compile every kernel of a plan.

    Args:
        plan: kernels and layouts.
        target: the CPU.
        unaligned: values in users' memory, which starts anywhere.
        places: where values lie; an input in an output's place becomes the same parameter.
        knobs: tuned knobs, looked up by rule and signature.
        progress: called after each kernel with (done, total, name).
        jobs: processes, or threads, that compile; the target's threads by default.
        here: whether this process compiles all of it, since texts of kernels will be asked for.

    Returns:
        A compiled kernel for each of the plan's, in its order; collectives are none.
    """
    groups: dict[str, list[Kernel]] = {}
    keys: list[str] = []
    tasks: dict[str, Task] = {}
    for kernel in plan.computed:
        _check_countable(kernel, plan)
        users = tuple(i for i, v in enumerate((*kernel.inputs, *kernel.outputs)) if v in unaligned)
        shared = tuple(overwritten(kernel, places or {}))
        key = signature(kernel, plan) + _suffix(kernel, users, shared)
        keys.append(key)
        groups.setdefault(key, []).append(kernel)
        if key not in tasks:
            tasks[key] = _task(kernel, plan, target, users, shared, knobs, key)
    done = 0
    codes: dict[str, Code] = {}
    units = {unit: [tasks[key] for key in unit] for unit in _units(tasks)}
    with contextlib.closing(codes_of(units, jobs or target.machine.threads, here=here)) as made:
        for unit, of_unit in made:
            for key, code in zip(unit, of_unit, strict=True):
                codes[key] = code
                done += len(groups[key])
                if progress:
                    progress(done, len(plan.computed), groups[key][0].name)
    return [
        CompiledKernel(kernel, codes[key], _arguments(kernel, codes[key]))
        for kernel, key in zip(plan.computed, keys, strict=True)
    ]


def _units(keys: Iterable[str]) -> list[tuple[str, ...]]:
    """What is to be compiled together, the largest first: kernels that numbers tell apart."""
    alike: dict[str, list[str]] = {}
    for key in keys:
        alike.setdefault(_NUMBER.sub("#", key), []).append(key)
    units = [tuple(some[i : i + LARGEST]) for some in alike.values()
             for i in range(0, len(some), LARGEST)]  # fmt: skip
    return sorted(units, key=len, reverse=True)


def _task(
    kernel: Kernel,
    plan: KernelPlan,
    target: Target,
    unaligned: tuple[int, ...],
    shared: tuple[tuple[int, int], ...],
    knobs: KnobLookup | None,
    key: str,
) -> Task:
    values = {*kernel.inputs, *kernel.outputs}
    values.update(v for n in kernel.nodes for v in (*n.operands, *n.outputs))
    layouts = {v: plan.layouts[v] for v in values if v in plan.layouts}
    record = None
    if knobs:
        choice = choose(kernel, layouts, target.machine)
        record = knobs(choice.strategy.kind, key, choice.facts.extents())
    return Task(kernel, layouts, target, unaligned, shared, record)


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
    return {code.symbol: native.entry_of(code.forms.library[code.symbol]) for code in codes}


def objects(codes: Iterable[Code]) -> dict[str, bytes]:
    """Object files of the distinct kernels, by symbol."""
    return {code.symbol: code.machine_code for code in codes}


def _suffix(kernel: Kernel, unaligned: tuple[int, ...], shared: tuple[tuple[int, int], ...]) -> str:
    """What else tells kernels of one signature apart."""
    count = len(kernel.inputs) + len(kernel.outputs)
    flags = "".join("u" if i in unaligned else "." for i in range(count))
    return (f"|{flags}" if unaligned else "") + "".join(f"|{i}={o}" for i, o in shared)


def _arguments(kernel: Kernel, code: Code) -> tuple[Argument, ...]:
    values = (*kernel.inputs, *kernel.outputs)
    kept = [v for i, v in enumerate(values) if i not in code.dropped]
    return tuple(Argument(v, s) for v, s in zip(kept, code.arguments, strict=True))
