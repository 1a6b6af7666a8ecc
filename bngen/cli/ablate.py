"""``bngen ablate``: the paper's experiment, what each fusion level buys, on this machine.

In: an `AblateRequest`. Out: tables on standard output, and JSON where asked for, as soon as a
program has been measured; plots at the end. An interrupt ends the measurements: what was measured
is written and shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bngen.cli import console, outputs
from bngen.cli.request import Request
from bngen.errors import INTERRUPTED

Json = Mapping[str, Any]


@dataclass(frozen=True)
class AblateRequest(Request):
    """What ``bngen ablate`` is asked for."""

    program: tuple[str, ...]
    threads: int | None
    seed: int
    rounds: int
    json_file: str | None
    plot: str | None
    scarce: bool
    traffic: bool


def run(request: AblateRequest) -> int:
    """Measure, write, show; the exit status.

    Raises:
        BngenError: for what cannot be measured or written.
        KeyboardInterrupt: when there is nothing to show for it.
    """
    outputs.check_file("--json", request.json_file)
    outputs.check_plots(request.plot)
    target = request.parsed_target()
    target.check_runs_here()
    from bngen.bench.ablation import Asked, ablate

    asked = Asked(
        request.program, target, request.batch, request.image, request.threads,
        request.schedules, request.seed, request.rounds, request.scarce, request.traffic,
        request.dtype,
    )  # fmt: skip
    measured: list[Json] = []
    with console.progress(request.quiet) as progress:

        def keep(report: Json) -> None:
            measured.append(report)
            with progress.paused():
                _publish(request, report)

        try:
            ablate(asked, progress.stage, keep)
            status = 0
        except KeyboardInterrupt:
            if not measured:
                raise
            status = INTERRUPTED
        finally:  # whatever has ended it, what was measured is drawn
            if measured and request.plot:
                with progress.paused():
                    _draw(measured[-1], Path(request.plot))
    if status == INTERRUPTED:
        console.log("interrupted; this is what was measured until then")
    return status


def _publish(request: AblateRequest, report: Json) -> None:
    """Write the file, show the last program: in this order, since whoever reads may have left."""
    try:
        outputs.write_json(request.json_file, report)
    finally:  # a full disk takes the file, not the tables
        console.result("\n".join(lines(report, report["programs"][-1])))


def _draw(report: Json, folder: Path) -> None:
    from bngen.bench.ablation_plots import draw

    for path in draw(report, folder):
        console.log(f"wrote {path}")


def lines(report: Json, part: Json) -> Iterator[str]:
    """The tables of one program."""
    from bngen.bench import ablation_tables as tables

    yield tables.titled(report, part)
    yield f"  {tables.machine(report)}"
    yield console.columns(tables.levels(report, part))
    yield "  ms of each kind of work, each kernel timed by itself"
    yield console.columns(tables.works(report, part))
    yield f"  {tables.verdict(report, part['levels'])}"
    if part["scarce"]:
        rate = part["scarce"]["gbytes"]
        yield f"  while another process streams {rate:.1f} GB/s through memory:"
        yield f"  {tables.verdict(report, part['scarce']['levels'])}"
    how, rows = tables.measured(report, part["measured"])
    yield f"  {how}"
    if rows:
        yield console.columns(rows)
    yield ""
