"""THE driver: a program in, a module out, each stage's input and output named.

======================= ==================================== ===================================
stage                   in                                   out
======================= ==================================== ===================================
lang                    Python function                      `Graph` of coarse ops
passes.autodiff         `Graph`                              joint `Graph` (with ``grad=True``)
passes.pipeline         `Graph`, fusion level, lanes         `KernelPlan`, `MemoryPlan`
lower, scheduling       `Kernel`, target, knobs              scheduled TIR
backend                 scheduled TIR                        machine code
binding                 kernels, places                      `Built`: what a module runs, as data
runtime                 `Built`, machine code                `Module`
======================= ==================================== ===================================

What one process has built is kept for the next (`cache`), which then needs `lang` and `runtime`
alone: all stages between are passed over, and TVM's compiler, which takes seconds, is not loaded.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bngen import cache as caches
from bngen.binding import bind
from bngen.codegen.compile import (
    Code,
    KnobLookup,
    Progress,
    compile_plan,
    load_library,
    objects,
)
from bngen.errors import BngenError
from bngen.lang.init import Filler
from bngen.lang.program import graph_of
from bngen.options import environment
from bngen.passes.fusion.cut import LEVELS
from bngen.passes.pipeline import Dump
from bngen.passes.prepare import Joint, join_gradient, prepare
from bngen.plan.formats import declared_formats
from bngen.runtime import threads as thread_pool
from bngen.runtime.module import Module
from bngen.runtime.signature import Built
from bngen.target.parse import Target
from bngen.tuning import records

FUSION_LEVELS = tuple(LEVELS)
"""Names for ``fusion=``; cumulative in this order."""


def build(
    program: Any,
    *,
    target: Any = "llvm -mcpu=native",
    fusion: str = "icf",
    threads: int | None = None,
    grad: bool = False,
    wrt: Sequence[str] | None = None,
    schedules: Any = None,
    cache: bool | None = None,
    progress: Progress | None = None,
    dump: Dump | None = None,
    memory_format: Any = None,
) -> Module:
    """Compile a program, or take what an earlier call has compiled.

    Args:
        program: a `bngen.program`, or its graph.
        target: what to compile for: ``"llvm -mcpu=native"``, a dict, JSON or a `Target`.
        fusion: one of `FUSION_LEVELS`.
        threads: threads of a call; all CPUs of the process by default.
        grad: also compile the gradient; the module then has ``backward``.
        wrt: names of the inputs to differentiate with respect to; by default every floating-point
            argument and parameter.
        schedules: folder with schedule records to look in first; BNGEN_SCHEDULES by default.
        cache: whether to use and fill the cache on disk; yes by default, unless BNGEN_NO_CACHE.
        progress: called after each kernel with (done, total, name).
        dump: called after each pass with its name and the graph; the passes are run, then.
        memory_format: how arrays lie; C order by default. ``"channels_last"`` for all arguments,
            parameters, buffers and results of rank 4, or a dict to ``"channels_last"`` or
            ``"contiguous_format"`` from their names; ``"return"`` stands for all results,
            ``"return.0"`` for the first and ``"return.loss"`` for the one labelled so. Gradients
            are as their input, and what ``backward`` takes is as the result. Arrays that lie so are
            passed as they are, any others are converted.

    Returns:
        The module.

    Raises:
        BngenError: for a program, target or option that cannot be compiled.
    """
    _check_options(fusion, threads, grad, wrt, schedules, progress, dump)
    if cache is None:
        cache = not environment("no_cache")
    graph = graph_of(program, "build")
    formats = declared_formats(graph, memory_format)
    machine = caches.target(target) if cache else Target.parse(target)
    machine.check_loads_here()
    tuned = records.find(machine, schedules or environment("schedules"))
    joint = join_gradient(graph, wrt, formats) if grad else Joint(graph, graph, formats=formats)
    work = _Work(joint, machine, fusion, tuned.lookup)
    key = caches.key(graph, machine, fusion, grad, wrt, tuned, formats) if cache else ""
    # Before any code is loaded: what is loaded keeps the pool that it finds.
    thread_pool.install()
    initialize = Filler.of(graph)
    kept = caches.find(key) if cache and dump is None else None
    if kept:
        if progress and (steps := kept.built.steps):
            progress(len(steps), len(steps), steps[-1].name)
        return Module(kept.built, kept.entries, initialize, _Kept(kept, work), threads)
    built, codes = work.done(progress, dump)
    entries, library = load_library(codes)
    if cache and library is not None:
        caches.keep(key, built, library, objects(codes))
    return Module(built, entries, initialize, _Fresh(codes), threads)


def _check_options(
    fusion: Any, threads: Any, grad: bool, wrt: Any, schedules: Any, progress: Any, dump: Any
) -> None:
    if not isinstance(fusion, str) or fusion not in LEVELS:
        raise BngenError(f"unknown fusion level {fusion!r}", hint=f"one of {', '.join(LEVELS)}")
    if threads is not None:
        thread_pool.checked_count(threads)
    if wrt is not None and not grad:
        raise BngenError("wrt chooses gradients, and none are built", hint="add grad=True")
    if schedules is not None and not isinstance(schedules, str | os.PathLike):
        raise BngenError(f"schedules={schedules!r} is no folder", hint="give its path")
    for name, function in (("progress", progress), ("dump", dump)):
        if function is not None and not callable(function):
            raise BngenError(f"{name}={function!r} cannot be called", hint="give a function")


@dataclass(frozen=True)
class _Work:
    """What there is to compile."""

    joint: Joint
    target: Target
    fusion: str
    knobs: KnobLookup

    def done(
        self, progress: Progress | None = None, dump: Dump | None = None
    ) -> tuple[Built, list[Code]]:
        """Compile it: what a module runs, and the distinct kernels."""
        prepared = prepare(self.joint, self.target.lanes, self.fusion, dump)
        compiled = compile_plan(
            prepared.planned.plan,
            self.target,
            unaligned=prepared.unaligned,
            places=prepared.planned.memory.places,
            knobs=self.knobs,
            progress=progress,
        )
        codes = {c.code.symbol: c.code for c in compiled}
        return bind(prepared, compiled, self.target, self.fusion), list(codes.values())


class _Fresh:
    """The inside of a module whose kernels this process has compiled."""

    def __init__(self, codes: Sequence[Code]):
        self._codes = codes

    def texts(self, kind: str) -> dict[str, str]:
        return {code.symbol: code.text(kind) for code in self._codes}

    def objects(self) -> dict[str, bytes]:
        return objects(self._codes)


class _Kept:
    """The inside of a module out of the cache: texts are not kept, but made when asked for."""

    def __init__(self, kept: caches.Kept, work: _Work):
        self._kept, self._work = kept, work

    @functools.cached_property
    def _fresh(self) -> _Fresh:
        _, codes = self._work.done()
        return _Fresh(codes)

    def texts(self, kind: str) -> dict[str, str]:
        return self._fresh.texts(kind)

    def objects(self) -> dict[str, bytes]:
        found = self._kept.objects()
        return self._fresh.objects() if found is None else found
