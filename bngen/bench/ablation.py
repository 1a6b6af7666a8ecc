"""The paper's experiment: what each fusion level buys, one after the other.

In: `Asked`. Out: a report, a dictionary as the JSON file holds it. For each level the time of a
training step (levels take turns, as in the bench), how it divides into kinds of work (each kernel
timed by itself), main-memory traffic counted from the plan and measured (by the machine's
counters where ``perf`` may read them, else in a simulated cache at a reduced size), and the memory
that activations take.

The paper (Jung et al., SysML 2019, arXiv 1807.01702) reports DenseNet-121's step 25.7 % faster at
``icf`` than its Caffe and MKL-DNN baseline, on a Xeon of many cores whose memory brings far fewer
bytes an operation than that of a small machine. Where `Asked.scarce` is set, the race is run once
more with memory made scarce: one CPU streams through memory all the while, at a rate that is
stated, and the step has the other CPUs, which is what it has in both races then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from bngen.bench import counters, machine, simulated
from bngen.bench.contenders import OURS, Entry
from bngen.bench.limits import measure_limits
from bngen.bench.process import Unavailable
from bngen.bench.profile import profile
from bngen.bench.race import race
from bngen.bench.streaming import Streaming
from bngen.compiler import bundle
from bngen.errors import BngenError, UsageError
from bngen.explain.gather import explained
from bngen.explain.report import KernelRow, Report
from bngen.models import MODELS
from bngen.options import FUSION_CHOICES, PRECISIONS
from bngen.programs import step_program, trained
from bngen.runtime import host
from bngen.target.parse import Target

SCHEMA = 1
NAMES = {"none": "Baseline", "rcf": "+RCF", "mvf": "+MVF", "bnff": "+BNFF", "icf": "+ICF"}
"""Levels as the paper's figures name them."""
PAPER = {
    "source": "Jung et al., SysML 2019, arXiv 1807.01702",
    "program": "densenet121",
    "faster_percent": 25.7,
    "machine": "a Skylake Xeon; Caffe and MKL-DNN as the baseline",
}
_ORDER = (FUSION_CHOICES[-1], *FUSION_CHOICES[:-1])
"""Levels as they take turns: the others are compared with the first."""
WITHIN = 0.25
"""How far measured traffic may lie from what is counted for the two to agree."""
BATCH = 8
"""Images in a batch of a built-in network, where nothing else is asked for."""
SIZES = ((2, 112), (1, 112), (1, 64), (1, 32))
"""Batches and images that are simulated, the largest first."""
MOST_OPERATIONS = 9e9
"""Of a step that is simulated, by the plan: 20 to 35 million are simulated in a second, so that a
level takes at most some eight minutes, on a CPU of its own."""

Json = dict[str, Any]
Told = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """What is to be measured.

    Attributes:
        programs: built-in networks, or ``file.py:function``.
        target: what is compiled for; this machine can run it.
        batch: images in a batch.
        image: height and width; the program's own when None.
        threads: of a step.
        schedules: folder of records that takes precedence.
        seed: of weights and inputs.
        rounds: turns of each level.
        scarce: whether to race once more beside a process that streams through memory.
        traffic: whether to measure traffic, too.
        dtype: the precision, see `options.PRECISIONS`.
    """

    programs: Sequence[str]
    target: Target
    batch: int | None
    image: int | None
    threads: int | None
    schedules: str | None
    seed: int
    rounds: int
    scarce: bool
    traffic: bool
    dtype: str = PRECISIONS[0]

    def entry(self, program: str, level: str, threads: int | None) -> Entry:
        """A level as a contender; the last one is what the others are compared with."""
        name = OURS if level == FUSION_CHOICES[-1] else level
        return Entry(
            program, name, self.batch, self.image, FUSION_CHOICES[-1], str(self.target), threads,
            self.schedules, self.seed, self.dtype,
        )  # fmt: skip


def ablate(asked: Asked, tell: Told, keep: Callable[[Json], None] = lambda report: None) -> Json:
    """Measure everything.

    Args:
        asked: what.
        tell: called with what is going on.
        keep: called with the report after each program, which is an hour's work for large ones,
            also where its traffic could not be measured any more.

    Raises:
        BngenError: for a program that cannot be measured.
        UsageError: for what can be refused before anything is measured.
    """
    cpus = host.cpu_count()
    check(asked, cpus)
    threads = min(asked.threads or cpus, cpus - 1) if asked.scarce else asked.threads
    report: Json = {
        "schema": SCHEMA, "machine": machine.describe(asked.target), "paper": PAPER,
        "threads": threads or cpus, "levels": NAMES, "programs": [],
    }  # fmt: skip
    tell("measuring the limits of the machine")
    report["limits"] = measure_limits(asked.target, threads)
    for program in asked.programs:
        entries = [asked.entry(program, level, threads) for level in _ORDER]
        part = _program(asked, program, entries, report["limits"], tell)
        part["measured"] = {"why_not": "it was interrupted" if asked.traffic else "not asked for"}
        report["programs"].append(part)
        try:
            if asked.traffic:
                part["measured"] = _traffic(asked, program, entries, part["levels"], tell)
        finally:
            keep(report)
    return report


def check(asked: Asked, cpus: int) -> None:
    """Refuse what can be refused before hours have been spent.

    Raises:
        BngenError: for a program that is none.
        UsageError: where memory cannot be made scarce, or traffic not be measured.
    """
    if asked.scarce and cpus < 2:
        what = "one CPU streams and others compute, and there is one"
        raise UsageError(what, hint="drop --scarce")
    if asked.traffic and (no_counters := counters.obstacle()):
        if no_valgrind := simulated.obstacle():
            what = f"traffic cannot be measured: {no_counters}, and {no_valgrind}"
            raise UsageError(what, hint="install valgrind, or drop --traffic")
    for program in asked.programs:
        step_program(program, asked.batch, asked.image, asked.dtype)


def size_of(asked: Asked, program: str) -> tuple[int | None, int | None]:
    """Batch and image of a program; None where one of the user's own decides."""
    network = MODELS.get(program)
    if network is None:
        return asked.batch, asked.image
    return asked.batch or BATCH, asked.image or network.image


def _program(
    asked: Asked, program: str, entries: Sequence[Entry], limits: Json, tell: Told
) -> Json:
    """Times, kinds of work and what is counted: all but measured traffic."""
    tell(f"{program}: levels take turns")
    times = _race(entries, asked.rounds, tell)
    scarce = None
    if asked.scarce:
        tell(f"{program}: the same with memory made scarce")
        with Streaming() as streaming:
            scarce = _race(entries, asked.rounds, tell)
            scarce = {"gbytes": streaming.rate(), "levels": scarce}
    levels: Json = {}
    for level in FUSION_CHOICES:
        tell(f"{program}: the kernels of {level}")
        entry = replace(entries[0], fusion=level)
        found = profile(entry, asked.target, asked.rounds, lambda text: None, limits)
        levels[level] = {
            **times[level], "work": found.by_work(), **counted(found.explained.report),
        }  # fmt: skip
    batch, image = size_of(asked, program)
    return {
        "program": program, "batch": batch, "image": image, "levels": levels, "scarce": scarce,
    }  # fmt: skip


def _race(entries: Sequence[Entry], rounds: int, tell: Told) -> Json:
    """Seconds of each level, and how many times longer than ``icf`` it takes."""
    result = race(entries, rounds, tell=tell)
    if result["interrupted"]:
        raise KeyboardInterrupt
    found = {}
    for level, row in zip(_ORDER, result["contenders"], strict=True):
        if row["status"] == "unavailable":
            raise UsageError(f"{result['program']} at {level}: {row['reason']}")
        found[level] = {p: row[p] for p in ("forward", "backward", "step")}
        found[level] |= {"ratio": row["ratio"]["step"], "peak_bytes": row["peak_bytes"]}
    return found


# --- traffic ----------------------------------------------------------------------------------


def _traffic(
    asked: Asked, program: str, entries: Sequence[Entry], levels: Json, tell: Told
) -> Json:
    """What was measured, or why not: times that are there are not lost for it."""
    try:
        if counters.obstacle() is None:
            return _by_counters(entries, levels, tell)
        return _simulated(asked, program, tell)
    except (BngenError, Unavailable, OSError) as error:
        return {"why_not": str(error)}


def counted(report: Report) -> Json:
    """Traffic by the plan: bytes of feature maps and all bytes by call, all by kind of work."""
    calls: Json = {}
    for call, total in report.totals.items():
        t = total.traffic
        calls[call] = {"sweeps": t.sweeps_read + t.sweeps_written, "map_bytes": t.map_bytes,
                       "bytes": t.nbytes, "kernels": total.kernels}  # fmt: skip
    by_work: dict[str, int] = {}
    for row in report.kernels:
        by_work[row.work] = by_work.get(row.work, 0) + row.traffic.nbytes
    memory = dict(report.memory)
    return {"calls": calls, "bytes_by_work": by_work, "memory": memory}


def _by_counters(entries: Sequence[Entry], levels: Json, tell: Told) -> Json:
    """Traffic of each level at full size, by the machine's counters."""
    found: Json = {}
    by_level = dict(zip(_ORDER, entries, strict=True))
    for level in FUSION_CHOICES:
        tell(f"{entries[0].program} at {level}: counting misses")
        calls = levels[level]["calls"].values()
        found[level] = {
            "counted": sum(call["bytes"] for call in calls),
            "measured": counters.bytes_of_step(by_level[level]),
        }
    first = entries[0]
    return {
        "tool": f"perf, {' and '.join(counters.EVENTS)}", "target": first.target,
        "batch": first.batch, "image": first.image, "levels": found,
    }  # fmt: skip


def _simulated(asked: Asked, program: str, tell: Told) -> Json:
    """Traffic of each level at a reduced size, counted and measured; two and more at once."""
    if why_not := simulated.obstacle():
        return {"why_not": why_not}
    target = Target.parse(simulated.TARGET)
    size = reduced(asked, program, target)
    if size is None:
        return {"why_not": "even a small step of it takes too long to be simulated"}
    batch, image = size
    meant = size_of(asked, program)[1]
    caches = simulated.Caches().for_maps(image or 1, meant or 1)
    graph = step_program(program, batch, image, asked.dtype).graph
    levels: Json = {}
    waiting: deque[tuple[str, Callable[[], Json]]] = deque()
    with ExitStack() as stack:
        shown = "".join(f", {name} {n}" for name, n in (("batch", batch), ("image", image)) if n)
        for level in FUSION_CHOICES:
            tell(f"{program} at {level}: simulating a step{shown}")
            given = {"fusion": level, "grad": True, "wrt": trained(graph),
                     "schedules": asked.schedules}  # fmt: skip
            compiled = bundle(graph, target=target, **given)
            rows = explained(graph, target, **given).report.kernels
            symbols = [k["symbol"] for k in compiled.manifest()["kernels"]]
            running = stack.enter_context(simulated.Simulation(compiled, caches))
            waiting.append((level, partial(_of_simulation, running, rows, symbols, caches.last)))
            while len(waiting) >= host.cpu_count() or level == FUSION_CHOICES[-1] and waiting:
                done, result = waiting.popleft()
                levels[done] = result()
    return {
        "tool": "valgrind cachegrind", "target": target.cpu, "batch": batch,
        "image": image, "last_level_cache": caches.last, "levels": levels,
    }  # fmt: skip


def _of_simulation(
    running: simulated.Simulation, rows: Sequence[KernelRow], symbols: Sequence[str], cache: int
) -> Json:
    return compared(rows, symbols, running.missed(), cache)


def reduced(asked: Asked, program: str, target: Target) -> tuple[int | None, int | None] | None:
    """Batch and image at which a step is simulated: the largest of `SIZES` that is bearable.

    Sizes that a program of the user's own is not asked to take stay its own. None where nothing is
    bearable.
    """
    own_batch, own_image = size_of(asked, program)
    least = MODELS[program].smallest(training=True) if program in MODELS else 1
    for small_batch, small_image in SIZES:
        batch = own_batch and min(own_batch, small_batch)
        image = own_image and min(own_image, max(least, small_image))
        graph = step_program(program, batch, image, asked.dtype).graph
        found = explained(graph, target, fusion="none", grad=True, wrt=trained(graph)).report
        if sum(total.operations for total in found.totals.values()) <= MOST_OPERATIONS:
            return batch, image
    return None


def compared(
    rows: Sequence[KernelRow],
    symbols: Sequence[str],
    missed: Mapping[str, simulated.Missed],
    cache: int,
) -> Json:
    """Counted and measured bytes of one level.

    ``fetched`` is what of the counted bytes a cache brings in: a line that is written where it has
    been read is brought in once. Measured are lines brought in, so these two are compared.

    Args:
        rows: the kernels of the plan.
        symbols: of their code.
        missed: what was measured, by symbol.
        cache: bytes of the last level; kernels that read or write a feature map larger than that
            are those whose two numbers should agree.
    """
    kinds: dict[str, list[KernelRow]] = {}
    for row, symbol in zip(rows, symbols, strict=True):
        kinds.setdefault(symbol, []).append(row)
    by_work: dict[str, Json] = {}
    large = []
    for symbol, same in kinds.items():
        plan = sum(row.traffic.nbytes for row in same)
        # What is written over what has just been read is there already.
        fetched = plan - sum(row.overwritten for row in same)
        found = missed[symbol].read + missed[symbol].written
        part = by_work.setdefault(same[0].work, {"counted": 0, "fetched": 0, "measured": 0})
        part["counted"] += plan
        part["fetched"] += fetched
        part["measured"] += found
        maps = [m.nbytes for m in (*same[0].reads, *same[0].writes) if m.is_map]
        if max(maps, default=0) > cache:
            large.append({
                "kernel": same[0].name, "calls": len(same), "strategy": same[0].strategy,
                "counted": plan, "fetched": fetched, "measured": found,
                "ratio": found / max(fetched, 1),
            })  # fmt: skip
    agreeing = [k for k in large if abs(k["ratio"] - 1) <= WITHIN]
    return {
        "by_work": by_work,
        "counted": sum(p["counted"] for p in by_work.values()),
        "fetched": sum(p["fetched"] for p in by_work.values()),
        "measured": sum(p["measured"] for p in by_work.values()),
        "large_kernels": sorted(large, key=lambda k: -k["counted"]),
        "large_kernels_agreeing": len(agreeing),
    }


def faster_percent(levels: Mapping[str, Any], phase: str = "step") -> float:
    """By how many percent more steps a second the last level takes than the baseline."""
    first, last = (levels[level][phase]["median"] for level in
                   (FUSION_CHOICES[0], FUSION_CHOICES[-1]))  # fmt: skip
    return 100 * (first / last - 1)
