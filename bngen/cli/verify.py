"""``bngen verify``: build a program, run it on awkward inputs, compare with PyTorch and float64.

In: a `VerifyRequest`. Out: a line that says it agrees, or a table of what does not, on standard
output; exit status 0 or 1. What is tried and how it is judged is `verification`'s business.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bngen import options
from bngen.cli import console, ladder
from bngen.cli.build import CompileRequest, compiler_options
from bngen.errors import ToolchainError
from bngen.programs import load_program
from bngen.verification.judge import Finding, instrument
from bngen.verification.run import verify
from bngen.verification.tolerance import FEW_ULPS, TIMES_TORCH

_ROWS_SHOWN = 40


@dataclass(frozen=True)
class VerifyRequest(CompileRequest):
    """What ``bngen verify`` is asked for."""

    threads: int | None
    seed: int


def run(request: VerifyRequest) -> int:
    """Build, run, compare, report; 1 when anything differs."""
    _require_torch()
    with console.progress(request.quiet) as progress:
        progress.stage(f"tracing {request.program}")
        program = load_program(request.program, request.batch, request.image, request.dtype)
        graph, tensors = instrument(program.graph)
        module = _built(type(program).from_graph(graph), request, progress)
        findings = verify(
            module, graph, tensors, request.seed,
            lambda case: progress.stage(f"checking: {case}"),
        )  # fmt: skip
    report = _as_json(program.name, request, findings)
    if request.json:
        console.json_result(report)
    else:
        console.result(_text(program.name, findings))
    return 0 if report["agrees"] else 1


def _built(program: Any, request: VerifyRequest, progress: console.Progress) -> Any:
    asked = compiler_options(request, progress)
    from bngen.compiler import build

    module = build(program, threads=request.threads, **asked)
    ladder.show(module, options.debug_level())
    return module


def _require_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise ToolchainError(
            "verify compares with PyTorch, which is not installed",
            hint="pip install 'bngen[torch]'",
        )


# --- reporting --------------------------------------------------------------------------------


def _as_json(name: str, request: VerifyRequest, findings: Sequence[Finding]) -> dict[str, Any]:
    return {
        "program": name,
        "fusion": request.fusion,
        "cases": list(dict.fromkeys(f.case for f in findings)),
        "compared": len(findings),
        "agrees": all(f.ok for f in findings),
        "differences": [
            {
                "case": f.case,
                "tensor": f.tensor.name,
                "kind": f.tensor.kind,
                "error": f.error,
                "torch_error": f.torch_error,
                "allowed": f.allowed,
                "note": f.note,
            }
            for f in findings
            if not f.ok
        ],
    }


def _text(name: str, findings: Sequence[Finding]) -> str:
    wrong = [f for f in findings if not f.ok]
    cases = len({f.case for f in findings})
    if not wrong:
        found = f"{len(findings)} tensors in {cases} cases"
        return f"{name} agrees with PyTorch and float64: {found}{_closest(findings)}"
    head = ("case", "tensor", "kind", "error", "PyTorch's", "allowed", "")
    rows = [head, *(_row(f) for f in wrong[:_ROWS_SHOWN])]
    more = len(wrong) - _ROWS_SHOWN
    tail = f"\n  and {more} more; see them all with --json" if more > 0 else ""
    title = f"{name} differs from PyTorch and float64 in {len(wrong)} of {len(findings)} tensors"
    return f"{title}\n{console.columns(rows)}{tail}"


def _closest(findings: Sequence[Finding]) -> str:
    """What came nearest to being too far off."""
    judged = [f for f in findings if f.allowed > 0]
    if not judged:
        return ""
    worst = max(judged, key=lambda f: f.error / f.allowed)
    share = 100 * worst.error / worst.allowed
    return (
        f"\n  an error may be {TIMES_TORCH:g} times PyTorch's and {FEW_ULPS:g} units in the last "
        f"place; the nearest to that, {share:.0f} % of it, is {worst.tensor.name} ({worst.case})"
    )


def _row(f: Finding) -> tuple[str, ...]:
    errors = (f"{e:.2e}" for e in (f.error, f.torch_error, f.allowed))
    return (f.case, f.tensor.name, f.tensor.kind, *errors, f.note)
