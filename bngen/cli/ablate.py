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
    batch = f", batch {part['batch']}" if part["batch"] else ""
    image = f", {part['image']}x{part['image']}" if part["image"] else ""
    threads = f"{report['threads']} thread{'' if report['threads'] == 1 else 's'}"
    yield f"{part['program']}{batch}{image}, {threads}"
    gflops, gbytes = report["limits"]["gflops"], report["limits"]["gbytes"]
    yield (
        f"  this machine: {gflops:.0f} GFLOP/s, {gbytes:.1f} GB/s from memory, "
        f"{gflops / gbytes:.0f} operations a byte; the more, the more fusion saves"
    )
    yield console.columns([
        ("", "forward ms", "backward ms", "step ms", "over +ICF", "traffic MiB", "sweeps",
         "activations MiB"),
        *(_level(report["levels"][level], row) for level, row in part["levels"].items()),
    ])  # fmt: skip
    works = dict.fromkeys(w for row in part["levels"].values() for w in row["work"])
    yield "  ms of each kind of work, each kernel timed by itself"
    yield console.columns([
        ("", *works),
        *((report["levels"][level], *(_ms(sum(row["work"].get(w, {}).values())) for w in works))
          for level, row in part["levels"].items()),
    ])  # fmt: skip
    yield f"  {_verdict(report, part['levels'])}"
    if part["scarce"]:
        rate = part["scarce"]["gbytes"]
        yield f"  while another process streams {rate:.1f} GB/s through memory:"
        yield f"  {_verdict(report, part['scarce']['levels'])}"
    yield from _measured(report, part["measured"])
    yield ""


def _level(name: str, row: Json) -> tuple[str, ...]:
    calls = row["calls"].values()
    return (
        name, *(_ms(row[phase]["median"]) for phase in ("forward", "backward", "step")),
        f"{row['ratio']['median']:.2f}x", f"{sum(c['map_bytes'] for c in calls) / 2**20:,.0f}",
        str(sum(c["sweeps"] for c in calls)), f"{row['memory']['arena'] / 2**20:,.0f}",
    )  # fmt: skip


def _verdict(report: Json, levels: Json) -> str:
    from bngen.bench.ablation import faster_percent

    return (
        f"all levels together: {faster_percent(levels):.1f} % faster; in the paper "
        f"{report['paper']['program']} is {report['paper']['faster_percent']} % faster, on "
        f"{report['paper']['machine']}"
    )


def _measured(report: Json, found: Json) -> Iterator[str]:
    if "why_not" in found:
        yield f"  traffic was not measured: {found['why_not']}"
        return
    cache = found.get("last_level_cache", 0) / 2**20
    size = ", ".join(
        [f"batch {found['batch']}"] * bool(found["batch"])
        + [f"{found['image']} pixels"] * bool(found["image"])
    )
    yield (
        f"  traffic measured by {found['tool']}, {found['target']} code, {size}"
        + (f", a last level of {cache:g} MiB" if cache else "")
    )
    heads = ("", "counted MiB", "brought in MiB", "measured MiB")
    agree = ("kernels beyond the cache that agree within 25 %",) if cache else ()
    yield console.columns([
        (*heads, *agree),
        *(_level_measured(report["levels"][level], row) for level, row in found["levels"].items()),
    ])  # fmt: skip


def _level_measured(name: str, row: Json) -> tuple[str, ...]:
    kinds = ("counted", "fetched", "measured")
    cells = (name, *(f"{row[kind] / 2**20:,.0f}" if kind in row else "" for kind in kinds))
    if "large_kernels" not in row:
        return cells
    return (*cells, f"{row['large_kernels_agreeing']} of {len(row['large_kernels'])}")


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f}"


def _keep(json_file: str | None, report: Json) -> None:
    if json_file is None:
        return
    path = Path(json_file)
    try:
        files.write_whole(path, (json.dumps(report, indent=1) + "\n").encode())
    except OSError as error:
        what = f"cannot write {path}: {error.strerror or error}"
        raise ToolchainError(what, hint="choose another --json") from error
