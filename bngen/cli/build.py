"""``bngen build``: program -> bundle -> output folder -> a short summary.

In: a `BuildRequest`, one field a row of the option table. Out: the folder, the summary on standard
output and the exit status. The folder is tried before anything is compiled, and replaced only once
everything has been.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bngen import options
from bngen.cli import console, ladder
from bngen.cli.request import Request
from bngen.errors import TargetError
from bngen.explain.text import size
from bngen.programs import load_program
from bngen.runtime import artifact

if TYPE_CHECKING:
    from bngen.runtime.bundle import Bundle  # NumPy comes with it


@dataclass(frozen=True)
class CompileRequest(Request):
    """What every command that compiles is asked for."""

    program: str
    fusion: str
    memory_format: str
    json: bool
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
        program = load_program(request.program, request.batch, request.image, request.dtype)
        out = Path(request.out) if request.out else Path("bngen-out") / program.name
        with artifact.output_folder(out) as folder:
            found = _compiled(program, request, progress)
            progress.stage(f"writing {out}")
            contents = found.files()
            artifact.write_files(folder, contents, out)
    summary = _summary(request, found.manifest(), sorted(contents), out)
    if request.json:
        console.json_result(summary)
    else:
        console.result(_text(summary, str(watch), _loaded(found, out)))
    return 0


def _compiled(program: Any, request: BuildRequest, progress: console.Progress) -> Bundle:
    asked = compiler_options(request, progress)
    from bngen.compiler import bundle

    level = options.debug_level()
    shown = dict.fromkeys((*request.emit, *ladder.texts(level)))
    found = bundle(program, grad=request.grad, emit=tuple(shown), **asked)
    ladder.show(found, level)
    return replace(found, texts={kind: found.texts[kind] for kind in request.emit})


def compiler_options(request: CompileRequest, progress: console.Progress) -> dict[str, Any]:
    """What the request asks of `bngen.compiler`; its target is looked up."""
    progress.stage("loading the compiler")
    return {
        "target": request.parsed_target(cached=not request.no_cache),
        "fusion": request.fusion,
        "memory_format": request.memory_format,
        "schedules": request.schedules,
        "cache": not request.no_cache,
        "progress": progress.kernel,
        "dump": ladder.pass_reporter(options.debug_level()),
    }


def _summary(
    request: BuildRequest, manifest: dict[str, Any], files: Sequence[str], out: Path
) -> dict[str, Any]:
    return {
        "program": manifest["program"],
        "target": {"asked": _asked_target(request), **manifest["target"]},
        "fusion": request.fusion,
        "kernels": manifest["counts"],
        "moved": _moved(manifest),
        "out": str(out),
        "files": files,
    }


def _moved(manifest: dict[str, Any]) -> dict[str, int]:
    """Bytes of feature maps that the kernels of each call read and write."""
    found: dict[str, int] = {}
    for kernel in manifest["kernels"]:
        swept = [m["bytes"] for m in (*kernel["inputs"], *kernel["outputs"]) if m["map"]]
        found[kernel["call"]] = found.get(kernel["call"], 0) + sum(swept)
    return found


def _asked_target(request: BuildRequest) -> str:
    flags = (("-mcpu", request.mcpu), ("-mattr", request.mattr))
    return " ".join((request.target, *(f"{flag}={value}" for flag, value in flags if value)))


def _text(summary: dict[str, Any], seconds: str, load: str) -> str:
    counts, out = summary["kernels"], summary["out"]
    kernels = (
        f"{counts['before']} ops before fusion, {counts['after']} kernels after "
        f"(fusion {summary['fusion']}; {counts['distinct']} distinct)"
    )
    moved = ", ".join(f"{call} {size(nbytes)}" for call, nbytes in summary["moved"].items())
    native = "native" in summary["target"]["asked"]
    rows = [
        ("for", f"{'native, which is ' if native else ''}{summary['target']['cpu']}"),
        ("kernels", kernels),
        ("moves", f"{moved} of feature maps, read and written in a call"),
        ("output", f"{out}: {_listed(summary['files'])}"),
        ("time", seconds),
        ("next", f"bngen explain {shlex.quote(out)}   (what is in it, and why)"),
        ("", load),
    ]
    return f"{summary['program']}\n{console.columns(rows)}"


def _loaded(found: Bundle, out: Path) -> str:
    """How a module is made of it: here, or where its code can run."""
    load = f"bngen.load({str(out)!r})"
    try:
        found.target.check_runs_here(found.program)
    except TargetError:
        return f"{load}   (in Python, on a machine that can run it)"
    return f"mod = {load}   (in Python)"


def _listed(files: Sequence[str]) -> str:
    """Files by name, those in folders counted."""
    folders = Counter(str(Path(f).parent) for f in files if "/" in f)
    own = [f for f in files if "/" not in f]
    return ", ".join((*own, *(f"{count} in {name}" for name, count in folders.items())))
