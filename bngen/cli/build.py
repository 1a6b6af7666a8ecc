"""``bngen build``: program -> module -> output folder -> a short summary.

In: a `BuildRequest`, one field a row of the option table. Out: the folder, the summary on standard
output and the exit status. The folder is tried before anything is compiled, and replaced only once
everything has been.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bngen import options
from bngen.cli import console, ladder
from bngen.programs import load_program
from bngen.runtime import artifact


@dataclass(frozen=True)
class CompileRequest:
    """What every command that compiles is asked for; names and meanings as in `options`."""

    program: str
    target: str
    mcpu: str | None
    mattr: str | None
    fusion: str
    memory_format: str
    batch: int | None
    image: int | None
    threads: int | None
    schedules: str | None
    json: bool
    quiet: bool
    no_cache: bool


@dataclass(frozen=True)
class BuildRequest(CompileRequest):
    """What ``bngen build`` is asked for."""

    grad: bool
    out: str | None
    emit: tuple[str, ...]


def run(request: BuildRequest) -> int:
    """Build, write, report; the exit status."""
    watch = console.Stopwatch()
    with console.progress(request.quiet) as progress:
        progress.stage(f"tracing {request.program}")
        program = load_program(request.program, request.batch, request.image)
        out = Path(request.out) if request.out else Path("bngen-out") / program.name
        with artifact.output_folder(out) as folder:
            module = compile_program(program, request, progress, grad=request.grad)
            progress.stage(f"writing {out}")
            manifest = artifact.write_module(module, folder, request.emit, out)
    summary = _summary(request, manifest, out)
    if request.json:
        console.json_result(summary)
    else:
        console.result(_text(summary, str(watch)))
    return 0


def compile_program(
    program: Any, request: CompileRequest, progress: console.Progress, grad: bool = False
) -> Any:
    """The module of a traced program, for the target the request names."""
    level = options.debug_level()
    progress.stage("loading the compiler")
    from bngen import cache  # NumPy comes with it: as late as can be
    from bngen.compiler import build
    from bngen.target.parse import Target

    parse = Target.parse if request.no_cache else cache.target
    target = parse(request.target, mcpu=request.mcpu, mattr=request.mattr or ())
    module = build(
        program,
        target=target,
        fusion=request.fusion,
        memory_format=request.memory_format,
        threads=request.threads,
        schedules=request.schedules,
        grad=grad,
        cache=not request.no_cache,
        progress=progress.kernel,
        dump=ladder.pass_reporter(level),
    )
    ladder.show_module(module, level)
    return module


def _summary(request: BuildRequest, manifest: dict[str, Any], out: Path) -> dict[str, Any]:
    return {
        "program": manifest["program"],
        "target": {"asked": _asked_target(request), **manifest["target"]},
        "fusion": request.fusion,
        "kernels": manifest["counts"],
        "out": str(out),
        "files": manifest["files"],
    }


def _asked_target(request: BuildRequest) -> str:
    flags = (("-mcpu", request.mcpu), ("-mattr", request.mattr))
    return " ".join((request.target, *(f"{flag}={value}" for flag, value in flags if value)))


def _text(summary: dict[str, Any], seconds: str) -> str:
    counts = summary["kernels"]
    kernels = (
        f"{counts['before']} before fusion, {counts['after']} after "
        f"(fusion {summary['fusion']}; {counts['distinct']} distinct)"
    )
    native = "native" in summary["target"]["asked"]
    rows = [
        ("CPU", f"{'native is ' if native else ''}{summary['target']['cpu']}"),
        ("kernels", kernels),
        ("output", summary["out"]),
        ("time", seconds),
    ]
    return f"{summary['program']}\n{console.columns(rows)}"
