"""``bngen bench``: training steps and kernels, bngen's beside PyTorch's, on this machine.

In: a `BenchRequest`. Out: JSON and plots where asked for, tables on standard output, and the exit
status: 0; 1 when a contender computes another loss than bngen; 2 when a program could not be
measured, or none of the rivals that were asked for. A program that fails does not take the others
with it, and an interrupt ends the measurements: what was measured is written and shown.
"""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bngen import files
from bngen.cli import console
from bngen.errors import INTERRUPTED, BngenError, ToolchainError, UsageError

SCHEMA = 3
"""Version of the JSON; it grows when a field changes its meaning or goes away."""

UNMEASURED = 2
"""Exit status when something could not be measured, as of any command that cannot do its work."""


@dataclass(frozen=True)
class BenchRequest:
    """What ``bngen bench`` is asked for; names and meanings as in `options`."""

    program: tuple[str, ...]
    target: str
    mcpu: str | None
    mattr: str | None
    fusion: str
    batch: int | None
    image: int | None
    threads: int | None
    schedules: str | None
    seed: int
    against: tuple[str, ...]
    rounds: int
    kernels: bool
    startup: bool
    json_file: str | None
    plot: str | None
    quiet: bool


def run(request: BenchRequest) -> int:
    """Measure, report; the exit status.

    Raises:
        BngenError: when there is nothing to show for it.
        KeyboardInterrupt: likewise.
    """
    _check(request)
    from bngen.bench import machine
    from bngen.target.parse import Target

    target = Target.parse(request.target, mcpu=request.mcpu, mattr=request.mattr or ())
    target.check_runs_here()
    report = new_report(machine.describe(target))
    interrupt: KeyboardInterrupt | None = None
    try:
        with console.progress(request.quiet) as progress:
            measure(request, target, progress, report)
    except KeyboardInterrupt as error:
        report["interrupted"], interrupt = True, error
    finally:  # whatever has ended it, what was measured is not lost
        if report["races"]:
            _publish(request, report)
    if interrupt and not report["races"]:
        raise interrupt
    return _status(request, report)


def _publish(request: BenchRequest, report: dict[str, Any]) -> None:
    """Write the files, show the tables: in this order, since whoever reads may have left."""
    from bngen.bench import tables

    try:
        if request.json_file:
            _write(Path(request.json_file), report)
    finally:  # a full disk takes the file, not the tables
        try:
            if request.plot:
                from bngen.bench import plots

                for path in plots.draw(report, Path(request.plot)):
                    console.log(f"wrote {path}")
        finally:
            tables.show(report)


def _status(request: BenchRequest, report: dict[str, Any]) -> int:
    """What the exit status is, and on standard error why it is not 0."""
    for failure in report["failures"]:
        what = f"{failure['program']} could not be measured: {failure['reason']}"
        console.log(f"bngen: error: {what}")
    if report["interrupted"]:
        console.log("interrupted; this is what was measured until then")
        return INTERRUPTED
    status = UNMEASURED if report["failures"] else 0
    for race in report["races"]:
        rivals = race["contenders"][1:]
        if request.against and all(row["status"] == "unavailable" for row in rivals):
            console.log(f"bngen: error: {race['program']}: none of the rivals could run")
            status = UNMEASURED
    rows = [row for race in report["races"] for row in race["contenders"]]
    return status or (1 if any(row["status"] == "disagrees" for row in rows) else 0)


def new_report(machine: dict[str, Any]) -> dict[str, Any]:
    """What the JSON file holds before anything is measured."""
    return {
        "schema": SCHEMA, "machine": machine, "interrupted": False, "failures": [], "races": [],
        "kernels": [],
    }  # fmt: skip


def measure(
    request: BenchRequest, target: Any, progress: console.Progress, report: dict[str, Any]
) -> None:
    """Measure everything that was asked for, and add each part to the report once it is complete.

    A program that cannot be measured is noted in the report, and the others go on.

    Raises:
        BngenError: when it was the only one.
        KeyboardInterrupt: with the report holding what was measured until then.
    """
    for program in request.program:
        with _failures_noted(request, program, report, progress):
            _race(request, program, str(target), progress, report["races"])
    if not request.kernels:
        return
    from bngen.bench.kernels import measure_kernels
    from bngen.bench.limits import measure_limits

    progress.stage("measuring the limits of the machine")
    report["limits"] = measure_limits(target, request.threads)
    for program in (race["program"] for race in report["races"]):
        with _failures_noted(request, program, report, progress):
            entry = _entry(request, program, "bngen", str(target))
            part = measure_kernels(entry, target, report["limits"], request.rounds, progress.kernel)
            report["kernels"].append(part)
            if part["interrupted"]:
                raise KeyboardInterrupt


@contextmanager
def _failures_noted(
    request: BenchRequest, program: str, report: dict[str, Any], progress: console.Progress
) -> Iterator[None]:
    """Note in the report what stops a program; with nothing to lose, it is raised as it is."""
    try:
        yield
    except BngenError as error:
        if not report["races"] and len(request.program) == 1:
            raise
        progress.stage(f"{program} could not be measured: {error}")
        report["failures"].append({"program": program, "reason": str(error)})


def _race(
    request: BenchRequest,
    program: str,
    target: str,
    progress: console.Progress,
    races: list[dict[str, Any]],
) -> None:
    """Race a program, and add the result to the others.

    Raises:
        BngenError: when bngen itself cannot run.
        KeyboardInterrupt: after adding what was measured until then.
    """
    from bngen.bench.process import Process
    from bngen.bench.race import race

    entries = [_entry(request, program, name, target) for name in ("bngen", *_rivals(request))]
    with _caches(request.startup) as variables:
        result = race(
            entries, request.rounds, tell=progress.stage, run=lambda e: Process(e, variables)
        )
        races.append(result)
        if result["interrupted"]:
            raise KeyboardInterrupt
        if request.startup:
            try:
                _start_again(result, entries, variables, progress)
            except KeyboardInterrupt:
                result["interrupted"] = True
                raise


def _rivals(request: BenchRequest) -> tuple[str, ...]:
    """Who races against bngen; the level that it runs at is no rival of itself."""
    return tuple(name for name in request.against if name != request.fusion)


def _entry(request: BenchRequest, program: str, name: str, target: str) -> Any:
    from bngen.bench.contenders import Entry
    from bngen.models import MODELS

    # Built-in networks have sizes of their own when none are given: say which.
    batch, image = (8, 224) if program in MODELS else (None, None)
    return Entry(
        program, name, request.batch or batch, request.image or image, request.fusion,
        target, request.threads, request.schedules, request.seed,
    )  # fmt: skip


@contextmanager
def _caches(fresh: bool) -> Iterator[Mapping[str, str]]:
    """Variables that point every cache of either side to a new folder, if asked for."""
    if not fresh:
        yield {}
        return
    place = Path(tempfile.gettempdir())
    with files.opened(place) as parent, files.working_folder(parent, "bngen-bench-") as (folder, _):
        names = ("BNGEN_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
        yield {name: str(place / folder / name.lower()) for name in names}


def _start_again(
    result: dict[str, Any], entries: Any, variables: Mapping[str, str], progress: console.Progress
) -> None:
    """Add to each contender's times what a second process needs, now that caches are full."""
    from bngen.bench.process import Process, Unavailable
    from bngen.bench.race import STARTUP

    rows = {row["name"]: row for row in result["contenders"] if row["status"] != "unavailable"}
    for entry in entries:
        if entry.contender not in rows:
            continue
        progress.stage(f"{entry.program}: starting {entry.contender} with full caches")
        process = Process(entry, variables)
        try:
            start = process.start()
        except Unavailable as error:
            what = f"{entry.program}: {entry.contender} started once, but not again: {error}"
            raise BngenError(what) from error
        finally:
            process.stop()
        rows[entry.contender]["startup"]["warm"] = {k: start[k] for k in STARTUP}


def _check(request: BenchRequest) -> None:
    """What can be refused before minutes have been spent."""
    needed = {"torch": request.kernels, "matplotlib": bool(request.plot)}
    for package, wanted in needed.items():
        if wanted and importlib.util.find_spec(package) is None:
            hint = "pip install 'bngen[torch,bench]'"
            raise ToolchainError(f"this needs {package}, which is not installed", hint=hint)
    if request.json_file:
        _check_file(Path(request.json_file))
    if request.against:
        _check_rivals(request)


def _check_rivals(request: BenchRequest) -> None:
    """At least one rival of one program may be able to run."""
    from bngen.bench.forms import obstacle

    rivals = _rivals(request)
    if not rivals:
        what = f"nobody to race against: {request.fusion} is what bngen itself runs at"
        raise UsageError(what, hint="choose another --against or --fusion")
    found = [obstacle(name, program) for name in rivals for program in request.program]
    if all(found):
        reasons = "; ".join(dict.fromkeys(found))
        hint = "race bngen's own levels: --against none"
        raise UsageError(f"none of the rivals can run: {reasons}", hint=hint)


def _check_file(path: Path) -> None:
    folder = path.resolve().parent
    if not folder.is_dir():
        raise UsageError(f"no folder for {path}", hint="make it first")
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise UsageError(f"cannot write {path}", hint="choose another --json")


def _write(path: Path, report: dict[str, Any]) -> None:
    try:
        files.write_whole(path, (json.dumps(report, indent=1) + "\n").encode())
    except OSError as error:
        raise ToolchainError(f"cannot write {path}: {error.strerror or error}") from error
