"""``bngen bench``: training steps and kernels, bngen's beside PyTorch's, on this machine.

In: a `BenchRequest`. Out: JSON and plots where asked for, tables on standard output, and the exit
status: 0; 1 when a contender computes another loss than bngen; 2 when a program could not be
measured, or none of the rivals that were asked for. A program that fails does not take the others
with it, and an interrupt ends the measurements: what was measured is written and shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bngen.cli import console, outputs
from bngen.cli.request import Request
from bngen.errors import INTERRUPTED

UNMEASURED = 2
"""Exit status when something could not be measured, as of any command that cannot do its work."""


@dataclass(frozen=True)
class BenchRequest(Request):
    """What ``bngen bench`` is asked for."""

    program: tuple[str, ...]
    fusion: str
    threads: int | None
    seed: int
    against: tuple[str, ...]
    rounds: int
    kernels: bool
    startup: bool
    json_file: str | None
    plot: str | None


def run(request: BenchRequest) -> int:
    """Measure, report; the exit status.

    Raises:
        BngenError: when there is nothing to show for it.
        KeyboardInterrupt: likewise.
    """
    from bngen.bench.measure import check, measure, new_report

    wanted = _wanted(request)
    check(wanted)
    outputs.check_file("--json", request.json_file)
    outputs.check_plots(request.plot, "torch,bench")
    wanted.target.check_runs_here()
    report = new_report(wanted.target)
    interrupt: KeyboardInterrupt | None = None
    try:
        with console.progress(request.quiet) as progress:
            measure(wanted, report, progress.stage, progress.kernel)
    except KeyboardInterrupt as error:
        report["interrupted"], interrupt = True, error
    finally:  # whatever has ended it, what was measured is not lost
        if report["races"]:
            _publish(request, report)
    if interrupt and not report["races"]:
        raise interrupt
    return _status(request, report)


def _wanted(request: BenchRequest) -> Any:
    from bngen.bench.measure import Wanted

    return Wanted(
        programs=request.program,
        target=request.parsed_target(),
        fusion=request.fusion,
        dtype=request.dtype,
        batch=request.batch,
        image=request.image,
        threads=request.threads,
        schedules=request.schedules,
        seed=request.seed,
        against=request.against,
        rounds=request.rounds,
        kernels=request.kernels,
        startup=request.startup,
    )


def _publish(request: BenchRequest, report: dict[str, Any]) -> None:
    """Write the files, show the tables: in this order, since whoever reads may have left."""
    from bngen.bench import tables

    try:
        outputs.write_json(request.json_file, report)
    finally:  # a full disk takes the file, not the tables
        try:
            if request.plot:
                from bngen.bench import plots

                for path in plots.draw(report, Path(request.plot)):
                    console.log(f"wrote {path}")
        finally:
            console.result(tables.text(report), end="")


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
