"""``bngen tune``: search the fastest knobs of each distinct kernel, keep them as records.

In: a `TuneRequest`. Out: a record file for this CPU, rewritten after each kernel, so that Ctrl-C
loses one kernel at most and the next call goes on from there; a summary on standard output.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bngen import files
from bngen.cli import console
from bngen.cli.request import Request
from bngen.errors import INTERRUPTED, ToolchainError, UsageError


@dataclass(frozen=True)
class TuneRequest(Request):
    """What ``bngen tune`` is asked for."""

    program: str
    fusion: str
    threads: int | None
    trials: int
    records: str | None
    ship: bool
    json: bool


def run(request: TuneRequest) -> int:
    """Tune, write, report; the exit status."""
    if request.ship and request.records:
        raise UsageError("--ship and --out name two folders", hint="give one of them")
    if importlib.util.find_spec("optuna") is None:
        hint = "pip install 'bngen[bench]'"
        raise ToolchainError("tune needs optuna, which is not installed", hint=hint)
    from bngen.tuning import records

    target = request.parsed_target()
    if not target.runs_here():
        what = f"{target.cpu} needs what this machine lacks: {', '.join(target.missing_here())}"
        raise UsageError(what, hint="tune on such a CPU, or for -mcpu=native")
    path = _folder(request) / f"{target.cpu}.toml"
    if reason := files.obstacle(path):
        raise ToolchainError(f"nowhere to keep records: {reason}", hint="choose another --out")
    found = {r.id: r for r in records.read(path)} if path.exists() else {}
    if request.schedules:
        found = {**records.find(target, request.schedules).of, **found}
    with console.progress(request.quiet) as progress:
        status, touched = _tune(request, target, path, found, progress)
    summary = _summary(path, [found[i] for i in touched], status == INTERRUPTED)
    if request.json:
        console.json_result(summary)
    else:
        console.result(_text(summary))
    return status


def _folder(request: TuneRequest) -> Path:
    from bngen.tuning import records

    if request.records:
        return Path(request.records)
    return records.shipped_folder() if request.ship else records.user_folder()


def _tune(
    request: TuneRequest, target: Any, path: Path, found: dict[str, Any], progress: Any
) -> tuple[int, list[str]]:
    """Add to ``found`` and the file; the exit status and what is new."""
    from bngen.programs import step_program, trained
    from bngen.tuning.session import tune_into

    progress.stage(f"planning {request.program}")
    program = step_program(request.program, request.batch, request.image, request.dtype)
    touched: list[str] = []
    try:
        for record in tune_into(
            path, program, trained(program.graph), target, request.fusion, found,
            request.trials, request.threads, progress.kernel,
        ):  # fmt: skip
            touched.append(record.id)
    except KeyboardInterrupt:
        console.log(_stopped(path, touched))
        return INTERRUPTED, touched
    return 0, touched


def _stopped(path: Path, touched: list[str]) -> str:
    """What an interrupt has left."""
    if touched:
        return f"stopped; {path} holds what was found, and the same command goes on"
    as_it_was = f"; {path} is as it was" if path.exists() else ", and no file was written"
    return f"stopped before the first kernel was done{as_it_was}"


def _summary(path: Path, new: list[Any], interrupted: bool) -> dict[str, Any]:
    return {
        "file": str(path) if path.exists() else None,
        "interrupted": interrupted,
        "kernels": [
            {
                "id": r.id, "kind": r.kind, "what": r.what, "knobs": r.knobs,
                "seconds": r.seconds, "baseline": r.baseline,
            }
            for r in new
        ],
    }  # fmt: skip


def _text(summary: dict[str, Any]) -> str:
    rows = summary["kernels"]
    if not rows:
        return f"{summary['file']}: nothing new" if summary["file"] else "nothing found"
    faster = [r for r in rows if r["seconds"] < r["baseline"]]
    before, after = (sum(r[k] for r in rows) for k in ("baseline", "seconds"))
    lines = sorted(faster, key=lambda r: r["seconds"] / r["baseline"])[:20]
    table = [
        (
            r["kind"], f"{r['baseline'] / r['seconds']:.2f}x", f"{1e6 * r['seconds']:.0f} us",
            " ".join(f"{k}={v}" for k, v in r["knobs"].items()), r["what"][:60],
        )
        for r in lines
    ]  # fmt: skip
    head = (
        f"{summary['file']}: {len(rows)} kernels, {len(faster)} of them faster than with the "
        f"rule's own knobs; {1e3 * before:.2f} ms became {1e3 * after:.2f} ms, each called once"
    )
    return f"{head}\n{console.columns(table)}" if table else head
