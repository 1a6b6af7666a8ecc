"""A module against PyTorch and float64, on every case.

In: a module built from an instrumented graph (`judge.instrument`). Out: a `judge.Finding` for each
compared tensor of each case. Needs PyTorch, which `torch_bridge` imports when it is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from bngen.ir.interp import Results
from bngen.ir.node import Graph
from bngen.verification.inputs import cases_for, make_inputs
from bngen.verification.judge import Finding, Tensor, collect, judge
from bngen.verification.tolerance import nudged


def verify(
    module: Any,
    graph: Graph,
    tensors: Iterable[Tensor],
    seed: int = 0,
    tell: Callable[[str], None] = lambda case: None,
) -> list[Finding]:
    """Run a module on every case and judge what it computes.

    Args:
        module: built from ``graph``; its state is initialized anew.
        graph: see `judge.instrument`.
        tensors: what to compare.
        seed: seed of weights and inputs.
        tell: called with the name of each case.
    """
    from bngen.torch_bridge import reference

    module.connect_alone().init(seed)
    state = {name: np.array(a) for name, a in module.state_dict().items()}
    findings = []
    for case in cases_for(graph):
        tell(case.name)
        inputs = make_inputs(graph, case, state, seed)
        near = nudged(inputs, np.random.default_rng(seed))
        runs = (
            _run_module(module, graph, inputs),
            reference.run(graph, inputs, "float64"),
            reference.run(graph, inputs),
            reference.run(graph, inputs, channels_last=True),
            reference.run(graph, near),
        )
        ours, exact, *torch = (collect(graph, tensors, run) for run in runs)
        findings += judge(case.name, tensors, ours, torch, exact)
    return findings


def _run_module(module: Any, graph: Graph, inputs: Mapping[str, np.ndarray]) -> Results:
    """One call of the module; what it updates in place is read back afterwards."""
    arguments = {i.name: inputs[i.name].copy() for i in graph.inputs if i.kind == "input"}
    state = [i.name for i in graph.inputs if i.kind != "input" and not i.is_constant]
    module.load_state_dict({name: inputs[name] for name in state})
    outputs = module(*arguments.values())
    held = {**module.state_dict(), **arguments}
    updates = {target.name: np.array(held[target.name]) for target, _ in graph.updates}
    return Results(tuple(np.array(o) for o in outputs), updates)
