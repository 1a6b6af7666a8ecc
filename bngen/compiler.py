"""THE driver: a program in, a bundle or a module out, each stage's input and output named.

======================= ==================================== ===================================
stage                   in                                   out
======================= ==================================== ===================================
lang                    Python function                      `Graph` of coarse ops
passes.autodiff         `Graph`                              joint `Graph` (with ``grad=True``)
passes.pipeline         `Graph`, fusion level, lanes         `KernelPlan`, `MemoryPlan`
lower, scheduling       `Kernel`, target, knobs              scheduled TIR
codegen                 scheduled TIR                        machine code
binding                 kernels, places                      `Built`: what a module runs, as data
here                    `Built`, machine code                `Bundle`, for whatever target
runtime.loading         `Bundle`                             `Module`
======================= ==================================== ===================================

The bundles that one process has made are kept for the next (`cache`), which then needs `lang` and
`runtime` alone: all stages between are passed over, differentiation too, and TVM's compiler, which
takes seconds, is not loaded.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bngen import cache as caches
from bngen.binding import bind
from bngen.codegen.code import Code
from bngen.codegen.compile import KnobLookup, Progress, compile_plan, jit, objects
from bngen.codegen.workers import LEAST, processes
from bngen.errors import BngenError, ToolchainError
from bngen.ir.node import Graph
from bngen.lang.init import initializer
from bngen.lang.program import graph_of
from bngen.options import environment
from bngen.passes.autodiff import warn_of_independent
from bngen.passes.fusion.levels import LEVELS
from bngen.passes.pipeline import Dump
from bngen.passes.prepare import Joint, join_gradient, prepare
from bngen.plan.formats import Formats, declared_formats
from bngen.runtime import host, toolchain
from bngen.runtime import threads as thread_pool
from bngen.runtime.bundle import Bundle, check_text
from bngen.runtime.entries import entries
from bngen.runtime.makers import one_maker
from bngen.runtime.module import Module
from bngen.stages import Stages
from bngen.target.parse import Target
from bngen.tuning import records

_LOG = logging.getLogger(__name__)
FUSION_LEVELS = tuple(LEVELS)
"""Names for ``fusion=``; cumulative in this order."""


def bundle(
    program: Any,
    *,
    target: Any = "llvm -mcpu=native",
    fusion: str = "icf",
    grad: bool = False,
    wrt: Sequence[str] | None = None,
    memory_format: Any = None,
    schedules: Any = None,
    cache: bool | None = None,
    progress: Progress | None = None,
    dump: Dump | None = None,
    emit: Sequence[str] = (),
) -> Bundle:
    """Compile a program, for this machine or another, or take what an earlier call has compiled.

    Nothing is run. ``bngen.load`` makes a module of the bundle on a machine that can run it;
    ``Bundle.save`` writes it to a folder that can be shipped there.

    Args:
        program: a `bngen.program`, or its graph.
        target: what to compile for: ``"llvm -mcpu=native"``, a dict, JSON or a `Target`; with
            ``-mtriple=aarch64-linux-gnu`` another architecture.
        fusion: one of `FUSION_LEVELS`.
        grad: also compile the gradient; the module then has ``backward``.
        wrt: names of the inputs to differentiate with respect to; by default every floating-point
            argument and parameter.
        memory_format: how arrays lie; C order by default. ``"channels_last"`` for all arguments,
            parameters, buffers and results of rank 4, or a dict to ``"channels_last"`` or
            ``"contiguous_format"`` from their names; ``"return"`` stands for all results,
            ``"return.0"`` for the first and ``"return.loss"`` for the one labelled so. Gradients
            lie as their input, and what ``backward`` takes as the result. Arrays that lie so are
            passed as they are, any others are converted.
        schedules: folder with schedule records to look in first; BNGEN_SCHEDULES by default.
        cache: whether to use and fill the cache on disk; yes by default, unless BNGEN_NO_CACHE.
        progress: called after each kernel with (done, total, name).
        dump: called after each pass with its name and the graph; the passes are run, then.
        emit: kinds of text to put into the bundle: ``tir``, ``ll``, ``asm``.

    Returns:
        The bundle.

    Raises:
        BngenError: for a program, target or option that cannot be compiled.
    """
    work = _asked(
        "bundle", program, target, fusion, grad, wrt, memory_format, schedules, cache, progress,
        dump, emit,
    )  # fmt: skip
    found = work.bundle()
    return replace(found, texts={kind: work.texts(kind) for kind in emit}) if emit else found


def build(
    program: Any,
    *,
    target: Any = "llvm -mcpu=native",
    fusion: str = "icf",
    threads: int | None = None,
    grad: bool = False,
    wrt: Sequence[str] | None = None,
    memory_format: Any = None,
    schedules: Any = None,
    cache: bool | None = None,
    progress: Progress | None = None,
    dump: Dump | None = None,
) -> Module:
    """Compile a program and load it here: ``bngen.load(bngen.bundle(...))``.

    Without a C compiler TVM's JIT loads the kernels.

    Args:
        program: see `bundle`.
        target: see `bundle`; one that this machine can run.
        fusion: see `bundle`.
        threads: threads of a call; all CPUs of the process by default.
        grad: see `bundle`.
        wrt: see `bundle`.
        memory_format: see `bundle`.
        schedules: see `bundle`.
        cache: see `bundle`.
        progress: see `bundle`.
        dump: see `bundle`.

    Returns:
        The module.

    Raises:
        TargetError: for a target that this machine cannot run, before anything is compiled.
        BngenError: for a program, target or option that cannot be compiled.
    """
    if threads is not None:
        thread_pool.checked_count(threads)
    work = _asked(
        "build", program, target, fusion, grad, wrt, memory_format, schedules, cache, progress, dump
    )
    work.target.compiled_for().check_runs_here(work.graph.name)
    found = work.bundle()
    try:
        loaded = entries(found)
    except ToolchainError as error:  # The thread pool may have said so, and all works as before.
        _LOG.info("kernels are loaded by TVM's JIT: %s", error)
        loaded = jit(work.compiled[1])
    return Module(found, loaded, work.texts, threads)


def _asked(
    label: str,
    program: Any,
    target: Any,
    fusion: Any,
    grad: bool,
    wrt: Any,
    memory_format: Any,
    schedules: Any,
    cache: bool | None,
    progress: Any,
    dump: Any,
    emit: Any = (),
) -> _Work:
    """What is to be done, once all options have been checked."""
    _check_options(fusion, grad, wrt, schedules, progress, dump, emit)
    if cache is None:
        cache = not environment("no_cache")
    graph = graph_of(program, label)
    formats = declared_formats(graph, memory_format)
    machine = caches.target(target) if cache else Target.parse(target)
    tuned = records.find(machine, schedules or environment("schedules"))
    names = tuple(wrt) if isinstance(wrt, Iterable) and not isinstance(wrt, str) else wrt
    # What are no names differentiating refuses; nothing is kept of it.
    keepable = cache and (names is None or _are_names(names))
    key = caches.key(graph, machine, fusion, grad, names, tuned, formats) if keepable else None
    wrt = names if _are_names(names) else wrt
    wanted = (graph, machine, fusion, grad, names, formats)
    return _Work(
        graph, machine, fusion, grad, wrt, formats, tuned.lookup, key, progress, dump,
        Stages.asked(graph.name, wanted), bool(emit),
    )  # fmt: skip


def _check_options(
    fusion: Any, grad: bool, wrt: Any, schedules: Any, progress: Any, dump: Any, emit: Any
) -> None:
    if not isinstance(fusion, str) or fusion not in LEVELS:
        raise BngenError(f"unknown fusion level {fusion!r}", hint=f"one of {', '.join(LEVELS)}")
    if wrt is not None and not grad:
        raise BngenError("wrt chooses gradients, and none are built", hint="add grad=True")
    if schedules is not None and not isinstance(schedules, str | os.PathLike):
        raise BngenError(f"schedules={schedules!r} is no folder", hint="give its path")
    for name, function in (("progress", progress), ("dump", dump)):
        if function is not None and not callable(function):
            raise BngenError(f"{name}={function!r} cannot be called", hint="give a function")
    if not _are_names(emit):
        raise BngenError(f"emit={emit!r} is no list of kinds", hint='write emit=["asm"]')
    for kind in emit:
        check_text(kind)


def _are_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


@dataclass(frozen=True)
class _Work:
    """What there is to compile, where its bundle is kept, and who is told."""

    graph: Graph
    target: Target
    fusion: str
    grad: bool
    wrt: Any
    formats: Formats
    knobs: KnobLookup
    key: str | None
    progress: Progress | None
    dump: Dump | None
    stages: Stages | None
    shown: bool

    def bundle(self) -> Bundle:
        """The bundle that is kept, or else what is compiled."""
        if self.key is None or self.dump or self.stages:
            found = self._made()
        elif (kept := self._kept()) is not None:
            found = kept
        else:
            with one_maker(self.key):
                # Another process may have kept it meanwhile.
                found = self._kept() or self._made()
        warn_of_independent(found.independent)
        return found

    def _kept(self) -> Bundle | None:
        """What an earlier process has compiled."""
        found = caches.find(self.key) if self.key else None
        if found and self.progress and (kernels := found.built.kernels):
            self.progress(len(kernels), len(kernels), kernels[-1].name)
        return found

    def _made(self) -> Bundle:
        """What is compiled here, and kept for the next."""
        made, _ = self.compiled
        # One without a library was made where there is no C compiler: here it is of no use.
        if self.key and (made.library is not None or not self.target.loads_here()):
            caches.keep(self.key, made)
        return made

    @functools.cached_property
    def compiled(self) -> tuple[Bundle, list[Code]]:
        """The bundle, and the distinct kernels as the compiler has them."""
        # Ranks wait for the one that compiles; where nothing is kept, all of them do at once.
        share = None if self.key else host.share_of_cpus()
        jobs = environment("jobs") or share or self.target.machine.threads
        here = self.shown or self.stages is not None or not toolchain.is_there()
        if not here and len(self.graph.nodes) >= LEAST:
            processes(jobs)  # which begin while the program is planned
        if self.grad:
            joint = join_gradient(self.graph, self.wrt, self.formats)
        else:
            joint = Joint(self.graph, self.graph, formats=self.formats)
        initializers = {i.name: initializer(i) for i in self.graph.inputs if i.kind != "input"}
        prepared = prepare(
            joint, self.target.channel_block, self.fusion, self._seen(joint.graph),
            pairs=self.target.pairs,
        )  # fmt: skip
        compiled = compile_plan(
            prepared.planned.plan,
            self.target,
            unaligned=prepared.unaligned,
            places=prepared.planned.memory.places,
            knobs=self.knobs,
            progress=self.progress,
            jobs=jobs,
            here=here,
        )
        codes = list({c.code.symbol: c.code for c in compiled}.values())
        built = bind(prepared, compiled, self.target, self.fusion)
        code = objects(codes)
        library = _linked(code, self.target)
        if self.stages:
            self.stages.compiled(built.manifest, lambda kind: _texts(codes, kind))
        return Bundle(built, initializers, code, library, independent=joint.independent), codes

    def _seen(self, joint: Graph) -> Dump | None:
        """Who is told of each pass, once what comes before all of them is written."""
        if self.stages is None:
            return self.dump
        stages = self.stages
        stages.graph("traced", self.graph)
        if self.grad:
            stages.graph("differentiated", joint)

        def seen(name: str, graph: Graph) -> None:
            stages.graph(name, graph)
            if self.dump:
                self.dump(name, graph)

        return seen

    def texts(self, kind: str) -> dict[str, str]:
        """``tir``, ``ll`` or ``asm`` by symbol; for a kept bundle they are made, not read."""
        return _texts(self.compiled[1], kind)


def _texts(codes: Iterable[Code], kind: str) -> dict[str, str]:
    return {code.symbol: code.text(kind) for code in codes}


def _linked(code: Mapping[str, bytes], target: Target) -> bytes | None:
    """The library of object files, where this machine has a linker for them."""
    if not code or not target.loads_here():
        return None
    try:
        return toolchain.link(code.values())
    except ToolchainError as error:
        _LOG.info("the kernels are not linked: %s", error)
        return None
