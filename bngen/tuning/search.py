"""The tuner: which legal knobs make each distinct kernel of a program fastest on this CPU.

In: a program, a target, the records so far. Out: a `Record` for each kernel, as soon as it is
known. The search is optuna's (every candidate where there are few of them); here is what a
candidate is, how it is checked against the kernel with its strategy's own knobs, and how it is
timed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from bngen.arrays import letter_of
from bngen.codegen.compile import compile_plan
from bngen.codegen.nests import choose
from bngen.codegen.signature import signature
from bngen.codegen.strategy import Strategy
from bngen.dtypes import DTYPES
from bngen.lang.program import graph_of
from bngen.lower.facts import Facts
from bngen.plan.kernel import Kernel, KernelPlan
from bngen.runtime import threads as thread_pool
from bngen.scheduling.knobs import Knobs
from bngen.target.parse import Target
from bngen.tuning.lone import LoneKernel
from bngen.tuning.records import Record, digest

WORTHWHILE = 0.98
"""A candidate replaces the strategy's own knobs when it takes at most this share of their time."""

_ROUNDS = 5


@dataclass(frozen=True)
class Job:
    """A distinct kernel that has knobs.

    Attributes:
        id: its digest.
        strategy: how it is computed.
        facts: what its knobs must fit.
        kernel: one of the kernels that are equal.
        plan: what it belongs to.
        own: the strategy's own knobs.
        calls: how many kernels of the plan are equal to it.
    """

    id: str
    strategy: Strategy
    facts: Facts
    kernel: Kernel
    plan: KernelPlan
    own: Knobs
    calls: int

    @property
    def what(self) -> str:
        """The sub-layers, for people."""
        return " ".join(self.kernel.sublayers)

    def space(self, registers: int) -> list[Knobs]:
        """Legal knobs that deserve a trial: not those whose accumulators spill."""
        legal_ones = self.strategy.candidates(self.facts)
        return [k for k in legal_ones if self.strategy.registers(self.facts, k) <= registers]


def jobs(plan: KernelPlan, target: Target) -> list[Job]:
    """The distinct kernels of a plan that have knobs, those of many calls first."""
    found: dict[str, Job] = {}
    for kernel in plan.computed:
        choice = choose(kernel, plan.layouts, target.machine)
        strategy, facts = choice.strategy, choice.facts
        if not strategy.space(facts):
            continue
        key = digest(strategy.kind, signature(kernel, plan))
        if key in found:
            found[key] = replace(found[key], calls=found[key].calls + 1)
            continue
        own = strategy.own_knobs(facts, target.machine)
        found[key] = Job(key, strategy, facts, kernel, plan, own, 1)
    return sorted(found.values(), key=lambda j: -j.calls)


# --- one kernel, runnable by itself -----------------------------------------------------------


class Candidate(Protocol):
    """A kernel compiled with some knobs, on buffers of its own."""

    def results(self) -> list[np.ndarray]:
        """Run it once; copies of what it writes."""

    def seconds(self) -> float:
        """Time of one call, measured over several."""


def compile_candidate(job: Job, target: Target, knobs: Knobs, threads: int = 0) -> LoneKernel:
    """The job's kernel with given knobs."""
    plan = replace(job.plan, kernels=(job.kernel,))
    (compiled,) = compile_plan(plan, target, knobs=lambda *_: knobs, jobs=1)
    return LoneKernel(compiled, threads)


def agree(ours: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> bool:
    """Whether results differ by no more than another order of summation explains."""
    for a, b in zip(ours, reference, strict=True):
        if letter_of(a.dtype) != "f":
            same = np.array_equal(a, b)
        else:
            # What is only stored may be rounded the other way.
            least = 2 * DTYPES[a.dtype.name].ulp if DTYPES[a.dtype.name].stored_only else 0.0
            a, b = (v.astype(DTYPES[v.dtype.name].computed, copy=False) for v in (a, b))
            scale = float(np.max(np.abs(b), initial=0.0, where=np.isfinite(b)))
            same = np.allclose(
                a, b, rtol=max(1e-4, least), atol=max(1e-5, least) * scale, equal_nan=True
            )
        if not same:
            return False
    return True


# --- the search -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """The outcome of a search.

    Attributes:
        knobs: the fastest.
        seconds: their time.
        baseline: the time of the strategy's own knobs.
        trials: how many candidates were tried.
    """

    knobs: Knobs
    seconds: float
    baseline: float
    trials: int


Seconds = Callable[[Knobs], float | None]
"""Knobs to seconds; None for a candidate that cannot be compiled or computes something else."""

Told = Callable[[int, int, Found], None]


def search(
    space: Sequence[Knobs],
    first: Sequence[Knobs],
    trials: int,
    seconds: Seconds,
    tell: Told = lambda done, total, best: None,
) -> Found:
    """The fastest knobs of a space.

    Args:
        space: what may be tried; perhaps not the strategy's own knobs.
        first: tried before all others; the first of them is the strategy's own.
        trials: how many to try; where there are no more choices than that, all are tried.
        seconds: time of a candidate.
        tell: called after each trial with (done, total, best so far).

    Raises:
        RuntimeError: when the strategy's own knobs have no time: there is nothing to compare with.
    """
    baseline = seconds(first[0])
    if baseline is None:
        raise RuntimeError(f"the strategy's own knobs {first[0]} do not run")
    best = Found(first[0], baseline, baseline, 1)
    tried = {_key(first[0])}
    total = min(trials, len({*map(_key, space)} | tried))

    def attempt(knobs: Knobs) -> float | None:
        nonlocal best
        taken = seconds(knobs)
        tried.add(_key(knobs))
        best = replace(best, trials=len(tried))
        if taken is not None and taken < best.seconds:
            best = replace(best, knobs=knobs, seconds=taken)
        tell(len(tried), total, best)
        return taken

    tell(1, total, best)
    for knobs in first[1:]:
        if _key(knobs) not in tried:
            attempt(knobs)
    if len(space) <= trials:
        for knobs in space:
            if _key(knobs) not in tried:
                attempt(knobs)
    else:
        _optimise(space, tried, total, attempt)
    return best


def _key(knobs: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(knobs.items()))


def _optimise(
    space: Sequence[Knobs], tried: set, total: int, attempt: Callable[[Knobs], float | None]
) -> None:
    """Let optuna choose: one integer a knob, its place among the values that the knob can take."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    values = {name: sorted({k[name] for k in space}) for name in space[0]}
    legal_ones = set(map(_key, space))
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    # Knobs depend on each other, so that not every proposal is legal; those cost next to nothing.
    for _ in range(100 * total):
        if len(tried) >= total:
            return
        trial = study.ask()
        knobs = {n: v[trial.suggest_int(n, 0, len(v) - 1)] for n, v in values.items()}
        taken = None
        if _key(knobs) in legal_ones and _key(knobs) not in tried:
            taken = attempt(knobs)
        if taken is None:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, math.log(taken))


# --- a whole program --------------------------------------------------------------------------

Compile = Callable[[Job, Knobs], Candidate]
Report = Callable[[Job, int, int, Found], None]


def tune(
    work: Iterable[Job],
    known: Mapping[str, Record],
    trials: int,
    threads: int,
    registers: int,
    compile: Compile,
    report: Report = lambda job, done, total, best: None,
) -> Iterator[Record]:
    """Search for each job; a record comes as soon as its kernel is done.

    Args:
        work: see `jobs`.
        known: records so far, by digest: at least as many trials are not made again, fewer are
            where the search starts.
        trials: candidates for each kernel.
        threads: threads that candidates run on.
        registers: vector registers of the target.
        compile: job and knobs to a candidate.
        report: called after each trial.
    """
    for job in work:
        space = job.space(registers)
        old = known.get(job.id)
        if old and (
            old.extents != job.facts.extents()
            or job.strategy.misfit(job.facts, old.knobs)
            or old.threads != threads
        ):
            old = None
        if old and old.trials >= min(trials, len(space)):
            continue
        yield _tune_one(job, space, old, trials, threads, compile, report)


def _tune_one(
    job: Job,
    space: list[Knobs],
    old: Record | None,
    trials: int,
    threads: int,
    compile: Compile,
    report: Report,
) -> Record:
    own = compile(job, job.own)
    reference = own.results()

    def seconds(knobs: Knobs) -> float | None:
        if knobs == job.own:
            return statistics.median(own.seconds() for _ in range(_ROUNDS))
        try:
            candidate = compile(job, knobs)
        except Exception:  # TVM raises many kinds; knobs it cannot apply are no candidate
            return None
        # A wrong candidate has no time, however fast it is.
        if not agree(candidate.results(), reference):
            return None
        return statistics.median(candidate.seconds() for _ in range(_ROUNDS))

    first = [job.own, *([old.knobs] if old else [])]
    best = search(space, first, trials, seconds, lambda *state: report(job, *state))
    knobs, taken, baseline = _confirmed(job, best, own, compile)
    return Record(
        id=job.id, kind=job.strategy.kind, what=job.what, extents=job.facts.extents(),
        knobs=knobs, seconds=taken, baseline=baseline, threads=threads, trials=best.trials,
    )  # fmt: skip


def _confirmed(
    job: Job, best: Found, own: Candidate, compile: Compile
) -> tuple[Knobs, float, float]:
    """The winner and the own knobs once more, in turn: the best of many is partly luck."""
    if best.knobs == job.own:
        return job.own, best.baseline, best.baseline
    winner = compile(job, best.knobs)
    pairs = [(own.seconds(), winner.seconds()) for _ in range(_ROUNDS)]
    baseline, taken = (statistics.median(side) for side in zip(*pairs, strict=True))
    if taken > WORTHWHILE * baseline:
        return job.own, baseline, baseline
    return best.knobs, taken, baseline


def work_of(program: Any, target: Target, fusion: str, wrt: Sequence[str]) -> list[Job]:
    """The jobs of a training step of a program."""
    from bngen.passes.prepare import join_gradient, prepare

    graph = graph_of(program, "tune")
    thread_pool.install()
    return jobs(
        prepare(
            join_gradient(graph, wrt), target.channel_block, fusion, pairs=target.pairs
        ).planned.plan,
        target,
    )
