"""Everything that one run of the bench measures: a race for each program, then its kernels.

In: `Wanted`. Out: the report, a dictionary as the JSON file holds it, which grows by each part once
that is complete: what was measured is not lost when the next part fails or is interrupted.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from bngen.bench import machine
from bngen.bench.contenders import OURS, Entry
from bngen.bench.forms import obstacle
from bngen.bench.process import Process
from bngen.bench.race import race
from bngen.bench.startup import empty_caches, start_again
from bngen.errors import BngenError, ToolchainError, UsageError
from bngen.models import MODELS
from bngen.target.parse import Target

SCHEMA = 3
"""Version of the JSON; it grows when a field changes its meaning or goes away."""

Json = dict[str, Any]
Told = Callable[[str], None]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Wanted:
    """What is to be measured.

    Attributes:
        programs: built-in networks, or ``file.py:function``.
        target: what bngen compiles for.
        fusion: the level that bngen runs at.
        dtype: the precision that bngen computes in, see `options.PRECISIONS`.
        batch: images in a batch; the program's own number when None.
        image: height and width; the program's own when None.
        threads: of either side.
        schedules: folder of records that takes precedence.
        seed: of weights and inputs.
        against: the rivals: forms of PyTorch and fusion levels.
        rounds: turns of each contender.
        kernels: whether to time each convolution kernel, too.
        startup: whether to start from empty caches, and once more.
    """

    programs: tuple[str, ...]
    target: Target
    fusion: str
    dtype: str
    batch: int | None
    image: int | None
    threads: int | None
    schedules: str | None
    seed: int
    against: tuple[str, ...]
    rounds: int
    kernels: bool
    startup: bool

    @property
    def rivals(self) -> tuple[str, ...]:
        """Who races against bngen; the level that it runs at is no rival of itself."""
        return tuple(name for name in self.against if name != self.fusion)

    def entry(self, program: str, contender: str) -> Entry:
        """A contender of a program's race."""
        # Built-in networks have sizes of their own when none are given: say which.
        batch, image = (8, MODELS[program].image) if program in MODELS else (None, None)
        return Entry(
            program, contender, self.batch or batch, self.image or image, self.fusion,
            str(self.target), self.threads, self.schedules, self.seed, self.dtype,
        )  # fmt: skip


def check(wanted: Wanted) -> None:
    """Refuse what can be refused before minutes have been spent.

    Raises:
        ToolchainError: when what kernels are compared with is not installed.
        UsageError: unless at least one rival of one program may be able to run, if there are any.
    """
    if wanted.kernels and importlib.util.find_spec("torch") is None:
        hint = "pip install 'bngen[torch,bench]'"
        raise ToolchainError("this needs torch, which is not installed", hint=hint)
    if wanted.against and not wanted.rivals:
        what = f"nobody to race against: {wanted.fusion} is what bngen itself runs at"
        raise UsageError(what, hint="choose another --against or --fusion")
    found = [obstacle(name, program) for name in wanted.rivals for program in wanted.programs]
    if found and all(found):
        reasons = "; ".join(dict.fromkeys(found))
        hint = "race bngen's own levels: --against none"
        raise UsageError(f"none of the rivals can run: {reasons}", hint=hint)


def new_report(target: Target) -> Json:
    """What is known before anything is measured."""
    return {
        "schema": SCHEMA, "machine": machine.describe(target), "interrupted": False,
        "failures": [], "races": [], "kernels": [],
    }  # fmt: skip


def measure(wanted: Wanted, report: Json, tell: Told, progress: Progress) -> None:
    """Measure everything, and add each part to the report.

    A program that cannot be measured is noted in the report, and the others go on.

    Args:
        wanted: what.
        report: see `new_report`.
        tell: called with what is going on.
        progress: called with how many kernels of how many are timed, and the latest.

    Raises:
        BngenError: when it was the only program.
        KeyboardInterrupt: with the report holding what was measured until then.
    """
    for program in wanted.programs:
        with _failures_noted(wanted, program, report, tell):
            _race(wanted, program, report["races"], tell)
    if wanted.kernels:
        _kernels(wanted, report, tell, progress)


def _kernels(wanted: Wanted, report: Json, tell: Told, progress: Progress) -> None:
    """The kernels of every program that has raced."""
    from bngen.bench.kernels import measure_kernels  # PyTorch comes with it
    from bngen.bench.limits import measure_limits

    tell("measuring the limits of the machine")
    limits = report["limits"] = measure_limits(wanted.target, wanted.threads)
    for program in (r["program"] for r in report["races"]):
        with _failures_noted(wanted, program, report, tell):
            entry = wanted.entry(program, OURS)
            part = measure_kernels(entry, wanted.target, limits, wanted.rounds, progress)
            report["kernels"].append(part)
            if part["interrupted"]:
                raise KeyboardInterrupt


@contextmanager
def _failures_noted(wanted: Wanted, program: str, report: Json, tell: Told) -> Iterator[None]:
    """Note in the report what stops a program; with nothing to lose, it is raised as it is."""
    try:
        yield
    except BngenError as error:
        if not report["races"] and len(wanted.programs) == 1:
            raise
        tell(f"{program} could not be measured: {error}")
        report["failures"].append({"program": program, "reason": str(error)})


def _race(wanted: Wanted, program: str, races: list[Json], tell: Told) -> None:
    """Race a program, and add the result to the others.

    Raises:
        BngenError: when bngen itself cannot run.
        KeyboardInterrupt: after adding what was measured until then.
    """
    entries = [wanted.entry(program, name) for name in (OURS, *wanted.rivals)]
    with empty_caches() if wanted.startup else nullcontext({}) as variables:

        def run(entry: Entry, variables: Mapping[str, str] = variables) -> Process:
            return Process(entry, variables)

        result = race(entries, wanted.rounds, tell=tell, run=run)
        races.append(result)
        if result["interrupted"]:
            raise KeyboardInterrupt
        if wanted.startup:
            try:
                start_again(result, entries, run, tell)
            except KeyboardInterrupt:
                result["interrupted"] = True
                raise
