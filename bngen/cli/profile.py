"""``bngen profile``: a training step, each kernel's time beside the plan.

In: a `ProfileRequest`. Out: tables or JSON on standard output; a trace and a page where asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bngen import files
from bngen.cli import console
from bngen.cli.request import Request
from bngen.errors import ToolchainError, UsageError

_LAYERS, _KERNELS = 12, 12
"""How many are shown, the slowest first; all are in the JSON."""


@dataclass(frozen=True)
class ProfileRequest(Request):
    """What ``bngen profile`` is asked for."""

    program: str
    seed: int
    rounds: int
    trace: str | None
    html: str | None
    json: bool


def run(request: ProfileRequest) -> int:
    """Measure, write, show; the exit status."""
    for flag, path in (("--trace", request.trace), ("--html", request.html)):
        if path and (wrong := files.obstacle(path)):
            raise UsageError(wrong, hint=f"choose another {flag}")
    target = request.parsed_target()
    target.check_runs_here()
    from bngen.bench.contenders import OURS, Entry
    from bngen.bench.profile import profile

    entry = Entry(
        request.program, OURS, request.batch, request.image, request.fusion, str(target),
        request.threads, request.schedules, request.seed, request.dtype,
    )  # fmt: skip
    with console.progress(request.quiet) as progress:
        found = profile(entry, target, request.rounds, progress.stage)
    if request.trace:
        _write(request.trace, json.dumps(found.trace()), "--trace")
    if request.html:
        from bngen.explain.page import page

        by_name = {row.name: row.seconds for row in found.rows}
        seconds = [by_name[k.name] for k in found.explained.report.kernels]
        ridge = found.limits["gflops"] / found.limits["gbytes"]
        _write(request.html, page(found.explained, {}, seconds, ridge), "--html")
    if request.json:
        console.json_result(found.data())
    else:
        console.result("\n".join(lines(found.data())))
    return 0


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The tables."""
    step, limits = found["step"], found["limits"]
    yield (
        f"{found['program']} at {found['fusion']}, {found['threads']} threads: "
        f"{_ms(step['step'])} ms a step, forward {_ms(step['forward'])}, "
        f"backward {_ms(step['backward'])}"
    )
    yield (
        f"this machine: {limits['gflops']:.0f} GFLOP/s, {limits['gbytes']:.1f} GB/s from memory; "
        "a kernel that does better reads from a cache"
    )
    for title, parts in (("kind of work", found["work"]), ("layer", found["layers"])):
        yield ""
        shown = list(parts.items())[: _LAYERS if title == "layer" else None]
        yield console.columns([(title, "forward ms", "backward ms", "of the step"), *(
            (name, _ms(part["forward"]), _ms(part["backward"]),
             f"{100 * sum(part.values()) / step['step']:.1f} %")
            for name, part in shown
        )])  # fmt: skip
    yield ""
    slowest = sorted(found["kernels"], key=lambda k: -k["seconds"])[:_KERNELS]
    yield console.columns([
        ("slowest kernels", "ms", "MiB", "GB/s", "GFLOP/s", "of the roofline"),
        *map(_kernel, slowest),
    ])  # fmt: skip


def _kernel(row: Mapping[str, Any]) -> tuple[str, ...]:
    seconds = max(row["seconds"], 1e-9)
    share = f"{100 * row['share']:.0f} % ({row['bound']})" if row["bound"] else ""
    return (
        row["name"][:48], _ms(seconds), f"{row['nbytes'] / 2**20:.1f}",
        f"{row['nbytes'] / seconds / 1e9:.1f}", f"{row['operations'] / seconds / 1e9:.0f}", share,
    )  # fmt: skip


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}"


def _write(path: str, text: str, flag: str) -> None:
    try:
        Path(path).resolve().parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(path, text.encode())
    except OSError as error:
        what = f"cannot write {path}: {error.strerror or error}"
        raise ToolchainError(what, hint=f"choose another {flag}") from error
