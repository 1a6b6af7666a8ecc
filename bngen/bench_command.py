"""``bngen bench``: training steps and kernels, bngen's beside PyTorch's, on this machine.

In: a `BenchRequest`. Out: tables on standard output, JSON and plots where asked for, and the exit
status: 0, or 1 when a contender computes another loss than bngen. An interrupt ends the
measurements; what they have come to is shown and written.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bngen import console
from bngen.errors import INTERRUPTED, BngenError, ToolchainError, UsageError

SCHEMA = 2
"""Version of the JSON; it grows when a field changes its meaning or goes away."""


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
    """Measure, report; the exit status."""
    _check(request)
    from bngen.bench import machine, tables
    from bngen.target import Target

    target = Target.parse(request.target, mcpu=request.mcpu, mattr=request.mattr or ())
    target.check_runs_here()
    report = new_report(machine.describe(target))
    with console.progress(request.quiet) as progress:
        try:
            measure(request, target, progress, report)
        except KeyboardInterrupt:
            report["interrupted"] = True
    if not report["races"]:
        raise KeyboardInterrupt  # before there was anything to lose
    tables.show(report)
    if request.json_file:
        _write(Path(request.json_file), report)
    if request.plot:
        from bngen.bench import plots

        for path in plots.draw(report, Path(request.plot)):
            console.log(f"wrote {path}")
    if report["interrupted"]:
        console.log("interrupted; this is what was measured until then")
        return INTERRUPTED
    rows = [row for race in report["races"] for row in race["contenders"]]
    return 1 if any(row["status"] == "disagrees" for row in rows) else 0


def new_report(machine: dict[str, Any]) -> dict[str, Any]:
    """What the JSON file holds before anything is measured."""
    return {
        "schema": SCHEMA, "machine": machine, "interrupted": False, "races": [], "kernels": [],
    }  # fmt: skip


def measure(
    request: BenchRequest, target: Any, progress: console.Progress, report: dict[str, Any]
) -> None:
    """Measure everything that was asked for, and add each part to the report once it is complete.

    Raises:
        KeyboardInterrupt: with the report holding what was measured until then.
    """
    for program in request.program:
        report["races"].append(_race(request, program, str(target), progress))
        if report["races"][-1]["interrupted"]:
            raise KeyboardInterrupt
    if request.kernels:
        from bngen.bench.kernels import measure_kernels
        from bngen.bench.limits import measure_limits

        progress.stage("measuring the limits of the machine")
        report["limits"] = measure_limits(target, request.threads)
        for program in request.program:
            entry = _entry(request, program, "bngen", str(target))
            part = measure_kernels(entry, target, report["limits"], request.rounds, progress.kernel)
            report["kernels"].append(part)
            if part["interrupted"]:
                raise KeyboardInterrupt


def _race(
    request: BenchRequest, program: str, target: str, progress: console.Progress
) -> dict[str, Any]:
    from bngen.bench.race import Process, race

    names = dict.fromkeys(("bngen", *(n for n in request.against if n != request.fusion)))
    entries = [_entry(request, program, name, target) for name in names]
    with _caches(request.startup) as variables:
        result = race(
            entries, request.rounds, tell=progress.stage, run=lambda e: Process(e, variables)
        )
        if request.startup and not result["interrupted"]:
            try:
                _start_again(result, entries, variables, progress)
            except KeyboardInterrupt:
                result["interrupted"] = True  # and the race is kept
    return result


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
    with tempfile.TemporaryDirectory(prefix="bngen-bench-") as folder:
        names = ("BNGEN_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
        yield {name: str(Path(folder) / name.lower()) for name in names}


def _start_again(
    result: dict[str, Any], entries: Any, variables: Mapping[str, str], progress: console.Progress
) -> None:
    """Add to each contender's times what a second process needs, now that caches are full."""
    from bngen.bench.race import STARTUP, Process, Unavailable

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
    if request.json_file and not Path(request.json_file).resolve().parent.is_dir():
        raise UsageError(f"no folder for {request.json_file}", hint="make it first")


def _write(path: Path, report: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ToolchainError(f"cannot write {path}: {error.strerror or error}") from error
