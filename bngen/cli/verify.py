"""``bngen verify``: build a program, run it on awkward inputs, compare with PyTorch and float64.

In: a `VerifyRequest`. Out: a line that says it agrees, or a table of what does not, on standard
output; exit status 0 or 1. The judging is `verification`'s, PyTorch's side `torch_bridge`'s.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bngen import options
from bngen.cli import console, ladder
from bngen.cli.build import CompileRequest, compiler_options
from bngen.errors import ToolchainError
from bngen.ir.interp import Results
from bngen.ir.node import Graph
from bngen.programs import load_program
from bngen.torch_bridge import verification
from bngen.torch_bridge.verification import Finding

_ROWS_SHOWN = 40


@dataclass(frozen=True)
class VerifyRequest(CompileRequest):
    """What ``bngen verify`` is asked for."""

    seed: int


def run(request: VerifyRequest) -> int:
    """Build, run, compare, report; 1 when anything differs."""
    _require_torch()
    with console.progress(request.quiet) as progress:
        progress.stage(f"tracing {request.program}")
        program = load_program(request.program, request.batch, request.image)
        graph, tensors = verification.instrument(program.graph)
        module = _built(type(program).from_graph(graph), request, progress)
        findings = verify(module, graph, tensors, request.seed, progress)
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


def verify(
    module: Any,
    graph: Graph,
    tensors: Sequence[verification.Tensor],
    seed: int,
    progress: console.Progress,
) -> list[Finding]:
    """Run a module on every case and judge what it computes.

    Args:
        module: built from the instrumented ``graph``.
        graph: see `verification.instrument`.
        tensors: what to compare.
        seed: seed of weights and inputs.
        progress: told about each case.
    """
    from bngen.torch_bridge import reference

    module.init(seed)
    state = {name: np.array(a) for name, a in module.state_dict().items()}
    findings = []
    for case in verification.cases_for(graph):
        progress.stage(f"checking: {case.name}")
        inputs = verification.make_inputs(graph, case, state, seed)
        runs = (
            _run_module(module, graph, inputs),
            reference.run(graph, inputs, "float64"),
            reference.run(graph, inputs),
            reference.run(graph, inputs, channels_last=True),
            reference.run(graph, verification.nudged(inputs, seed)),
        )
        ours, exact, *torch = (verification.collect(graph, tensors, run) for run in runs)
        findings += verification.judge(case.name, tensors, ours, torch, exact)
    return findings


def _run_module(module: Any, graph: Graph, inputs: Mapping[str, np.ndarray]) -> Results:
    """One call of the module; what it updates in place is read back afterwards."""
    arguments = {i.name: inputs[i.name].copy() for i in graph.inputs if i.kind == "input"}
    module.load_state_dict({i.name: inputs[i.name] for i in graph.inputs if i.kind != "input"})
    outputs = module(*arguments.values())
    held = {**module.state_dict(), **arguments}
    updates = {target.name: np.array(held[target.name]) for target, _ in graph.updates}
    return Results(tuple(np.array(o) for o in outputs), updates)


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
        return f"{name} agrees with PyTorch and float64: {len(findings)} tensors in {cases} cases"
    head = ("case", "tensor", "kind", "error", "PyTorch's", "allowed", "")
    rows = [head, *(_row(f) for f in wrong[:_ROWS_SHOWN])]
    more = len(wrong) - _ROWS_SHOWN
    tail = f"\n  and {more} more; see them all with --json" if more > 0 else ""
    title = f"{name} differs from PyTorch and float64 in {len(wrong)} of {len(findings)} tensors"
    return f"{title}\n{console.columns(rows)}{tail}"


def _row(f: Finding) -> tuple[str, ...]:
    errors = (f"{e:.2e}" for e in (f.error, f.torch_error, f.allowed))
    return (f.case, f.tensor.name, f.tensor.kind, *errors, f.note)
