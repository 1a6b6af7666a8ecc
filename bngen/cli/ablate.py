"""``bngen ablate``: the paper's experiment, what each fusion level buys, on this machine.

In: an `AblateRequest`. Out: JSON and plots where asked for, tables on standard output.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bngen import files
from bngen.cli import console
from bngen.cli.request import Request
from bngen.errors import ToolchainError, UsageError

Json = Mapping[str, Any]


@dataclass(frozen=True)
class AblateRequest(Request):
    """What ``bngen ablate`` is asked for."""

    program: tuple[str, ...]
    seed: int
    rounds: int
    json_file: str | None
    plot: str | None
    scarce: bool
    traffic: bool


def run(request: AblateRequest) -> int:
    """Measure, write, show; the exit status."""
    for flag, path in (("--json", request.json_file), ("--plot", request.plot)):
        # A folder for plots may be there already.
        if path and not (flag == "--plot" and Path(path).is_dir()):
            if wrong := files.obstacle(path):
                raise UsageError(wrong, hint=f"choose another {flag}")
    if request.plot and importlib.util.find_spec("matplotlib") is None:
        hint = "pip install 'bngen[bench]'"
        raise ToolchainError("this needs matplotlib, which is not installed", hint=hint)
    if request.fusion != "icf":
        raise UsageError("ablate measures all fusion levels", hint="drop --fusion")
    target = request.parsed_target()
    target.check_runs_here()
    from bngen.bench.ablation import Asked, ablate

    asked = Asked(
        request.program, target, request.batch, request.image, request.threads,
        request.schedules, request.seed, request.rounds, request.scarce, request.traffic,
        request.dtype,
    )  # fmt: skip
    with console.progress(request.quiet) as progress:
        report = ablate(asked, progress.stage, partial(_keep, request.json_file))
    if request.plot:
        from bngen.bench.ablation_plots import draw

        for path in draw(report, Path(request.plot)):
            console.log(f"wrote {path}")
    console.result("\n".join(line for part in report["programs"] for line in lines(report, part)))
    return 0


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


def _keep(json_file: str | None, report: Json) -> None:
    if json_file is None:
        return
    path = Path(json_file)
    try:
        files.write_whole(path, (json.dumps(report, indent=1) + "\n").encode())
    except OSError as error:
        what = f"cannot write {path}: {error.strerror or error}"
        raise ToolchainError(what, hint="choose another --json") from error
