"""``bngen explain``: a program, or a folder of a build -> what became of it, and why.

In: an `ExplainRequest`. Out: text or JSON on standard output, a page where one is asked for. The
program is planned as ``bngen build`` plans it; it is compiled only where the texts of kernels are
asked for (``--emit tir,ll,asm``) that no folder holds: the cache keeps code, and no texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bngen import options
from bngen.cli import console, outputs
from bngen.cli.request import Request
from bngen.errors import UsageError
from bngen.programs import load_program
from bngen.runtime.artifact import MANIFEST

Texts = Mapping[str, Mapping[str, str]]
"""Kind -> what it is of -> text."""


@dataclass(frozen=True)
class ExplainRequest(Request):
    """What ``bngen explain`` is asked for."""

    program: str
    fusion: str
    memory_format: str
    grad: bool
    show: tuple[str, ...]
    html: str | None
    json: bool


_OF_A_PROGRAM = (
    "target", "mcpu", "mattr", "fusion", "memory_format", "dtype", "batch", "image", "schedules",
    "grad",
)  # fmt: skip
"""Options that a folder of a build has decided."""


def run(request: ExplainRequest, flags: Mapping[str, str] = MappingProxyType({})) -> int:
    """Explain, show; the exit status.

    Args:
        request: what is asked for.
        flags: those that are on the command line, by the names of their options.
    """
    outputs.check_file("--html", request.html)
    with console.progress(request.quiet) as progress:
        found, texts = explained(request, flags, progress)
        if request.html:
            from bngen.explain.page import page

            progress.stage(f"writing {request.html}")
            outputs.write("--html", request.html, page(found, texts))
    _show(request, found, texts)
    return 0


def explained(
    request: ExplainRequest, flags: Mapping[str, str], progress: console.Progress
) -> tuple[Any, Texts]:
    """The explanation, and the texts that are asked for."""
    if (Path(request.program) / MANIFEST).is_file():
        if decided := [flags[name] for name in _OF_A_PROGRAM if name in flags]:
            what = f"{request.program} holds what was built: {decided[0]} cannot change it"
            raise UsageError(what, hint=f"drop {decided[0]}, or name the program")
        return _of_folder(request)
    progress.stage(f"tracing {request.program}")
    program = load_program(request.program, request.batch, request.image, request.dtype)
    target = request.parsed_target(cached=True)
    from bngen.explain.gather import explained as explain

    progress.stage(f"planning {request.program}")
    asked = {
        "fusion": request.fusion, "grad": request.grad, "memory_format": request.memory_format,
        "schedules": request.schedules,
    }  # fmt: skip
    found = explain(program, target, **asked)
    kinds = [kind for kind in request.show if kind in options.EMIT_CHOICES]
    texts: dict[str, Mapping[str, str]] = {}
    if kinds:
        from bngen.compiler import bundle

        progress.stage("loading the compiler")
        compiled = bundle(program, target=target, emit=kinds, progress=progress.kernel, **asked)
        found = found.with_symbols({k["name"]: k["symbol"] for k in compiled.manifest()["kernels"]})
        texts = {kind: compiled.emit(kind) for kind in kinds}
    return found, _with_plan(request, found, texts)


def _of_folder(request: ExplainRequest) -> tuple[Any, Texts]:
    from bngen.explain.from_manifest import report_of_manifest
    from bngen.explain.gather import Explained
    from bngen.runtime.bundle import Bundle

    compiled = Bundle.read(request.program)
    found = Explained(report_of_manifest(compiled.manifest()))
    if "graph" in request.show:
        hint = "name the program, or set BNGEN_DUMP when it is built"
        raise UsageError(f"{request.program} holds the kernels, not the program", hint=hint)
    kinds = [kind for kind in request.show if kind in options.EMIT_CHOICES]
    return found, _with_plan(request, found, {kind: compiled.emit(kind) for kind in kinds})


def _with_plan(request: ExplainRequest, found: Any, texts: Texts) -> Texts:
    from bngen.explain.text import plan_text

    made = {"graph": lambda: found.graphs, "plan": lambda: {"plan": plan_text(found.report)}}
    return {kind: texts[kind] if kind in texts else made[kind]() for kind in request.show}


def _show(request: ExplainRequest, found: Any, texts: Texts) -> None:
    if request.json:
        shown = found.report.data()
        console.json_result({**shown, "texts": texts} if texts else shown)
        return
    from bngen.explain.text import text

    console.result(text(found.report))
    for kind, parts in texts.items():
        for name, content in parts.items():
            console.result(f"\n--- {kind}: {name}\n{content.rstrip()}")
