"""Where the time of a training step goes: each kernel, beside what the plan says of it.

In: an `Entry`. Out: a `Profile`: for each step of the module the median over a few training steps,
and what that comes to by kind of work and by layer. What a fused kernel takes counts for what it is
built around. While steps are watched they run one by one; what that costs is measured with kernels
that return at once, and taken off. The time of a whole step is measured before, unwatched.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bngen.bench.contenders import BngenStep, Entry
from bngen.bench.limits import measure_limits
from bngen.bench.samples import roofline
from bngen.bench.turns import take_steps
from bngen.bench.worker import timed_step
from bngen.explain.gather import Explained, explained
from bngen.explain.report import KernelRow
from bngen.plan.layers import COPY, WORKS
from bngen.programs import step_program, trained
from bngen.runtime.steps import KernelStep
from bngen.target.parse import Target

OVERHEAD = "overhead"
"""What a step takes besides its kernels and copies: checks, results, handing over to threads.

Negative where kernels that are watched take longer, one by one, than the whole step unwatched.
"""

Told = Callable[[str], None]


@dataclass(frozen=True)
class Timed:
    """One step of the module: a kernel, or a copy that is none.

    Attributes:
        name: the kernel's, or what is copied.
        call: ``forward`` or ``backward``.
        layer: of the program.
        work: kind of work.
        seconds: the median.
        began: of the last training step that was watched, seconds from its begin.
        lasted: of that step.
        nbytes: what it moves by the plan; 0 of copies.
        operations: what it does by the plan.
        share: the least time that the machine's limits allow, over the time that it took.
        bound: the limit that is nearest, ``arithmetic`` or ``memory``.
    """

    name: str
    call: str
    layer: str
    work: str
    seconds: float
    began: float
    lasted: float
    nbytes: int = 0
    operations: int = 0
    share: float = 0.0
    bound: str = ""


@dataclass(frozen=True)
class Profile:
    """Where a training step's time goes.

    Attributes:
        program: its name.
        fusion: the level.
        dtype: the precision, see `options.PRECISIONS`.
        threads: how many it ran on.
        limits: see `bngen.bench.limits`.
        step: median seconds of ``forward``, ``backward`` and ``step``, unwatched.
        rows: in the order in which they run.
        explained: the plan.
    """

    program: str
    fusion: str
    dtype: str
    threads: int
    limits: Mapping[str, Any]
    step: Mapping[str, float]
    rows: tuple[Timed, ...]
    explained: Explained

    def seconds_by(self, key: Callable[[Timed], str]) -> dict[str, dict[str, float]]:
        """Seconds of each group and call, the longest first."""
        found: dict[str, dict[str, float]] = {}
        for row in self.rows:
            part = found.setdefault(key(row), {"forward": 0.0, "backward": 0.0})
            part[row.call] += row.seconds
        return dict(sorted(found.items(), key=lambda item: -sum(item[1].values())))

    def by_work(self) -> dict[str, dict[str, float]]:
        """Seconds by kind of work, in the order of `WORKS`, and the overhead: all of the step."""
        found = self.seconds_by(lambda row: row.work)
        parts = {work: found[work] for work in WORKS if work in found}
        rest = {
            call: self.step[call] - sum(p[call] for p in parts.values())
            for call in ("forward", "backward")
        }
        return {**parts, OVERHEAD: rest}

    def data(self) -> dict[str, Any]:
        """As JSON takes it."""
        rows = [{k: v for k, v in vars(row).items() if k not in ("began", "lasted")}
                for row in self.rows]  # fmt: skip
        return {
            "program": self.program, "fusion": self.fusion, "dtype": self.dtype,
            "threads": self.threads, "limits": dict(self.limits), "step": dict(self.step),
            "work": self.by_work(),
            "layers": self.seconds_by(lambda row: row.layer), "kernels": rows,
        }  # fmt: skip

    def trace(self) -> dict[str, Any]:
        """One training step in the format of Chrome's tracing, which Perfetto opens, too."""

        def shown(row: Timed) -> dict[str, Any]:
            given = {"layer": row.layer, "bytes": row.nbytes, "operations": row.operations,
                     "roofline share": round(row.share, 3), "bound": row.bound}  # fmt: skip
            return {
                "name": row.name, "cat": row.work, "ph": "X", "pid": 1, "tid": 1,
                "ts": 1e6 * row.began, "dur": 1e6 * row.lasted, "args": given,
            }  # fmt: skip

        names = [{"name": "process_name", "ph": "M", "pid": 1, "args": {"name": self.program}}]
        for number, name in ((1, "kernels"), (2, "layers"), (3, "calls")):
            names.append({"name": "thread_name", "ph": "M", "pid": 1, "tid": number,
                          "args": {"name": name}})  # fmt: skip
        spans = [*_spans(self.rows, lambda r: r.layer, 2), *_spans(self.rows, lambda r: r.call, 3)]
        return {"traceEvents": [*names, *map(shown, self.rows), *spans], "displayTimeUnit": "ms"}


def _spans(rows: Sequence[Timed], key: Callable[[Timed], str], tid: int) -> Iterable[dict]:
    """Runs of rows of one group as one event each."""
    first = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or key(rows[i]) != key(rows[first]):
            began, ended = rows[first].began, rows[i - 1].began + rows[i - 1].lasted
            yield {"name": key(rows[first]), "cat": "span", "ph": "X", "pid": 1, "tid": tid,
                   "ts": 1e6 * began, "dur": 1e6 * (ended - began)}  # fmt: skip
            first = i


# --- measuring --------------------------------------------------------------------------------


def profile(
    entry: Entry,
    target: Target,
    rounds: int,
    tell: Told,
    limits: Mapping[str, Any] | None = None,
) -> Profile:
    """Measure a program's training step.

    Args:
        entry: program, level, threads, records.
        target: what it is compiled for; this machine can run it.
        rounds: training steps that are watched.
        tell: called with what is going on.
        limits: what the machine can do; measured when missing.
    """
    tell(f"planning {entry.program}")
    program = step_program(entry.program, entry.batch, entry.image, entry.dtype)
    plan = explained(
        program, target, fusion=entry.fusion, grad=True, wrt=trained(program.graph),
        schedules=entry.schedules,
    )  # fmt: skip
    tell(f"compiling {entry.program}")
    running = BngenStep(entry)
    if limits is None:
        tell("measuring the limits of the machine")
        limits = measure_limits(target, entry.threads)
    tell("measuring whole steps")
    step = take_steps(lambda: timed_step(running))
    tell(f"watching {rounds} steps")
    rows = _watched(running, plan.report.kernels, rounds)
    return Profile(
        entry.program, entry.fusion, entry.dtype, limits["threads"], limits,
        {phase: step[phase] for phase in ("forward", "backward", "step")},
        tuple(with_limits(row, limits) for row in rows), plan,
    )  # fmt: skip


def _watched(running: BngenStep, kernels: Sequence[KernelRow], rounds: int) -> list[Timed]:
    module = running.module
    steps = module.bundle.built.steps
    calls = {i: c.name for c in module.signature.calls for i in range(c.start, c.stop)}
    taken = _watch(running, rounds)
    idle = copy.copy(running)
    idle.module = copy.deepcopy(module).without_work()
    costs = _watch(idle, rounds)
    start = min(spans[-1][0] for spans in taken.values())
    known = {row.name: row for row in kernels}
    rows = []
    for i, call in sorted(calls.items()):
        step, began = steps[i], taken[i][-1][0]
        # A copy is no kernel: it is made all the same.
        cost = _median(costs[i]) if isinstance(step, KernelStep) else 0.0
        timed = Timed(
            step.name, call, step.name, COPY, max(0.0, _median(taken[i]) - cost), began - start,
            taken[i][-1][1] - began,
        )  # fmt: skip
        if isinstance(step, KernelStep):
            row = known[step.name]
            timed = replace(timed, layer=row.layer, work=row.work, operations=row.operations,
                            nbytes=row.traffic.nbytes)  # fmt: skip
        rows.append(timed)
    return rows


def _watch(running: BngenStep, rounds: int) -> dict[int, list[tuple[float, float]]]:
    """When each step of the module began and ended, in so many training steps."""
    spans: dict[int, list[tuple[float, float]]] = {}

    def note(position: int, began: float, ended: float) -> None:
        spans.setdefault(position, []).append((began, ended))

    running.module.watch(note)
    try:
        for _ in range(rounds):
            timed_step(running)
    finally:
        running.module.watch(None)
    return spans


def _median(spans: Sequence[tuple[float, float]]) -> float:
    return statistics.median(ended - began for began, ended in spans)


def with_limits(row: Timed, limits: Mapping[str, Any]) -> Timed:
    """A row with its share of the roofline."""
    if not row.nbytes:
        return row
    least = roofline(row.operations, row.nbytes, limits["gflops"], limits["gbytes"])
    by_memory = row.nbytes / limits["gbytes"] > row.operations / limits["gflops"]
    bound = "memory" if by_memory else "arithmetic"
    return replace(row, share=least / max(row.seconds, 1e-9), bound=bound)
