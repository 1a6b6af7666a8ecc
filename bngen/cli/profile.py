"""``bngen profile``: a training step, each kernel's time beside the plan.

In: a `ProfileRequest`. Out: tables or JSON on standard output; a trace and a page where asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bngen.cli import console, outputs
from bngen.cli.request import Request
from bngen.options import PRECISIONS

_LAYERS, _KERNELS = 12, 12
"""How many are shown, the slowest first; all are in the JSON."""
_TELLING = 0.01
"""Share of a step that is worth a line."""


@dataclass(frozen=True)
class ProfileRequest(Request):
    """What ``bngen profile`` is asked for."""

    program: str
    fusion: str
    threads: int | None
    seed: int
    rounds: int
    trace: str | None
    html: str | None
    json: bool


def run(request: ProfileRequest) -> int:
    """Measure, write, show; the exit status."""
    outputs.check_file("--trace", request.trace)
    outputs.check_file("--html", request.html)
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
    try:
        if request.trace:
            outputs.write("--trace", request.trace, json.dumps(found.trace()))
        if request.html:
            outputs.write("--html", request.html, _page(found))
    finally:  # a full disk takes the files, not the tables
        if request.json:
            from bngen.bench.machine import describe

            console.json_result({"machine": describe(target), **found.data()})
        else:
            console.result("\n".join(lines(found.data())))
    return 0


def _page(found: Any) -> str:
    from bngen.explain.page import page

    by_name = {row.name: row.seconds for row in found.rows}
    seconds = [by_name[k.name] for k in found.explained.report.kernels]
    return page(found.explained, {}, seconds, found.limits["gflops"] / found.limits["gbytes"])


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The tables."""
    from bngen.bench.profile import OVERHEAD

    step = found["step"]
    yield (
        f"{found['program']} at {found['fusion']} in {found['dtype']}, {found['threads']} threads: "
        f"{_ms(step['step'])} ms a step, forward {_ms(step['forward'])}, "
        f"backward {_ms(step['backward'])}"
    )
    yield _machine(found)
    work, layers = found["work"], found["layers"]
    yield ""
    yield _parts("kind of work", work, step)
    extra = sum(max(0.0, -seconds) for seconds in work[OVERHEAD].values())
    if extra > _TELLING * step["step"]:
        yield f"  watched one by one, kernels take {_ms(extra)} ms more than in a whole step"
    yield ""
    yield _parts("layer", {**dict(list(layers.items())[:_LAYERS]), OVERHEAD: work[OVERHEAD]}, step)
    if rest := list(layers.values())[_LAYERS:]:
        seconds = sum(sum(part.values()) for part in rest)
        yield f"  and {len(rest)} more layers, {_ms(seconds)} ms; all with --json"
    yield ""
    slowest = sorted(found["kernels"], key=lambda k: -k["seconds"])[:_KERNELS]
    yield console.columns([
        ("slowest kernels", "call", "layer", "ms", "MiB", "GB/s", "GFLOP/s", "of the roofline"),
        *map(_kernel, slowest),
    ])  # fmt: skip
    more = len(found["kernels"]) - len(slowest)
    if more > 0:
        yield f"  and {more} more; all with --json, in the plan with --html, in time with --trace"


def _machine(found: Mapping[str, Any]) -> str:
    limits = found["limits"]
    better = "a kernel that does better reads from a cache"
    if found["dtype"] != PRECISIONS[0]:
        better += f", or multiplies pairs of {found['dtype']}"
    return (
        f"this machine: {limits['gflops']:.0f} GFLOP/s in {PRECISIONS[0]}, "
        f"{limits['gbytes']:.1f} GB/s from memory; {better}"
    )


def _parts(title: str, parts: Mapping[str, Any], step: Mapping[str, float]) -> str:
    """Milliseconds of the parts of a step, and shares of its two halves.

    The step's own median is not quite the sum of theirs, and parts are to come to the whole.
    """
    whole = step["forward"] + step["backward"]
    return console.columns([(title, "forward ms", "backward ms", "of the step"), *(
        (name, _ms(part["forward"]), _ms(part["backward"]),
         f"{100 * sum(part.values()) / whole:.1f} %")
        for name, part in parts.items()
    )])  # fmt: skip


def _kernel(row: Mapping[str, Any]) -> tuple[str, ...]:
    seconds = max(row["seconds"], 1e-9)
    share = f"{100 * row['share']:.0f} % ({row['bound']})" if row["bound"] else ""
    return (
        f"{row['name'].partition('_')[0]} {row['work']}", row["call"], row["layer"],
        _ms(seconds), f"{row['nbytes'] / 2**20:.1f}",
        f"{row['nbytes'] / seconds / 1e9:.1f}", f"{row['operations'] / seconds / 1e9:.0f}", share,
    )  # fmt: skip


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}"
