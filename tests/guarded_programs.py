"""Draws programs and runs them between guard pages: a process of its own, for it may well crash.

``python -m tests.guarded_programs icf --examples 6`` builds each program with its gradient for
every kind of vector that this machine has, and runs it forward and backward in every layout of
memory (`guarded.RUNS`); outputs, updates and gradients are held against PyTorch and float64. A
whole training step comes before them. Standard output says what is about to run: the last line is
what a crash was in.
"""

from __future__ import annotations

import argparse
import random
import sys
import traceback
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import bngen as bg
from bngen.codegen import nests
from bngen.codegen.compile import KnobLookup
from bngen.codegen.signature import signature
from bngen.compiler import FUSION_LEVELS
from bngen.ir.interp import run
from bngen.ir.node import Graph
from bngen.plan.formats import C_ORDER, Formats, declared_formats
from bngen.plan.kernel import KernelPlan
from bngen.runtime.module import Module
from bngen.target.parse import Target
from tests.compiled import Arrays, as_results, cotangents_for, forward
from tests.guarded import RUNS, guarded
from tests.odd_programs import odd_programs
from tests.oracle import TorchResults, assert_close, kink_margin, torch_run, torch_runs
from tests.strategies import formats_of, random_args

TARGETS = ("llvm -mcpu=native", "llvm -mcpu=x86-64-v3", "llvm -mcpu=x86-64")
KINK_MARGIN, COARSE = 1e-5, 100


def targets() -> list[str]:
    """One of each width of vectors that this machine has."""
    parsed = {t: Target.parse(t) for t in TARGETS}
    widths = {p.channel_block: t for t, p in reversed(parsed.items()) if p.runs_here}
    return list(widths.values())


def drawn_knobs(number: int) -> Callable[[KernelPlan, Target], KnobLookup]:
    """Any legal knobs for every kernel, from a seed."""

    def choose(plan: KernelPlan, target: Target) -> KnobLookup:
        rng, table = random.Random(number), {}
        for kernel in plan.kernels:
            choice = nests.choose(kernel, plan.layouts, target.machine)
            chosen = table[choice.strategy.kind, signature(kernel, plan)] = {}
            for name, choices in choice.strategy.space(choice.facts).items():
                chosen[name] = rng.choice(choices(chosen))
        return lambda kind, key, _: table[kind, key.partition("|")[0]] or None

    return choose


def examine(
    graph: Graph,
    level: str,
    target: str,
    number: int,
    *,
    grad: bool = True,
    drawn: bool = False,
    formats: Formats = C_ORDER,
) -> list[str]:
    """Build a program and run it in ordinary memory, and then in every layout.

    Args:
        graph: the program.
        level: of fusion.
        target: what to compile for.
        number: the seed of its arguments.
        grad: whether to build and call its gradient.
        drawn: whether to draw the knobs of its kernels, too.
        formats: its arrays that are channels-last.

    Returns:
        What its kernels did with memory that is not theirs.

    Raises:
        AssertionError: for wrong results.
    """
    knobs = drawn_knobs(number) if drawn else None
    module, executor = guarded(graph, level, target, grad=grad, knobs=knobs, formats=formats)
    args, cotangents = random_args(graph, number), cotangents_for(graph, number) if grad else None
    executor.layout = None
    ordinary = results(module, args, cotangents)
    assert_right(ordinary, graph, args, cotangents)
    for executor.layout in RUNS:
        place = "before" if executor.layout.at_end else "after"
        executor.announce = lambda what, place=place: print(
            f"{level}, {target}, operands {place} guard pages: {what}", flush=True
        )
        found = results(module, args, cotangents)
        differ = [n for n, a in found.items() if a.tobytes() != ordinary[n].tobytes()]
        if differ and not executor.findings:
            executor.findings.append(f"{differ} differ from what ordinary memory gives")
    return executor.findings


def results(module: Module, args: Arrays, cotangents: Sequence[np.ndarray] | None) -> dict:
    """All that a forward and a backward call give and change; None is no backward call."""
    outputs, held = forward(module, args)
    gradients = {}
    if cotangents is not None:
        gradients = module.backward(*as_results(module, cotangents))
    return (
        {("output", i): a for i, a in enumerate(outputs)}
        | {("input", name): a for name, a in held.items()}
        | {("gradient", name): a for name, a in gradients.items()}
    )


def assert_right(found: Mapping, graph: Graph, args: Arrays, cotangents) -> None:
    """Roughly: how exact results are is tested where programs are less odd.

    Here a sum may cancel to nothing: batch normalization of one image, averaged, has no gradient.
    """
    names = [name for kind, name in found if kind == "gradient"]
    if any(v.type.element.stored_only for v in graph.values()):
        meant = run(graph, args)
        theirs = [TorchResults(meant.outputs, meant.updates, {})]
    else:
        theirs = torch_runs(graph, args, names, cotangents)
    exact = run(graph, args, "float64")
    exact_gradients = torch_run(graph, args, torch.float64, names, cotangents).grads
    smooth = kink_margin(graph, args) > KINK_MARGIN
    for (kind, name), ours in found.items():
        if kind == "output":
            several, reference = [t.outputs[name] for t in theirs], exact.outputs[name]
        elif kind == "input" and name not in exact.updates:
            several, reference = [args[name]], args[name]
        elif kind == "input":
            several, reference = [t.updates[name] for t in theirs], exact.updates[name]
        elif smooth:
            several, reference = [t.grads[name] for t in theirs], exact_gradients[name]
        else:
            continue
        assert_close(ours, several, reference, f"{kind} {name}", COARSE)


def training_step(dtype: str | None = None) -> Graph:
    """A whole one: parameters, momentum and running statistics are written where they lie.

    Args:
        dtype: of maps and products in mixed precision.
    """

    def net(x: bg.Tensor[3, 5, 7, 5], labels: bg.Tensor[3, bg.int64]):
        y = bg.layers.conv2d(x, "conv", 17, 3, padding=1, bias=False)
        y = bg.cat([bg.relu(bg.layers.batch_norm(y, "bn")), x], dim=1)
        y = bg.layers.conv2d(bg.max_pool2d(y, 2), "last", 6, 1)
        return bg.cross_entropy(bg.layers.linear(bg.flatten(y, 1), "fc", 3), labels)

    optimizer = bg.SGD(lr=0.1, momentum=0.9, weight_decay=1e-4)
    program = bg.program(net)
    return bg.training_step(bg.autocast(program, dtype) if dtype else program, optimizer).graph


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("level", choices=FUSION_LEVELS)
    parser.add_argument("--examples", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shrink", action="store_true")
    options = parser.parse_args()
    widths = targets()

    def check(graph: Graph, number: int, **how: Any) -> None:
        print(graph, flush=True)
        for target in widths:
            try:
                findings = examine(graph, options.level, target, number, **how)
                assert not findings, "\n".join(findings)
            except Exception as error:
                error.add_note(f"in {options.level}, {target}, seed {number}, {how}, {graph}")
                raise

    def body(graph, number, drawn, data):
        check(graph, number, drawn=drawn, formats=data.draw(formats_of(graph)))

    phases = [Phase.generate, *([Phase.shrink] if options.shrink else [])]
    test = settings(
        max_examples=options.examples, phases=phases, deadline=None, database=None,
        report_multiple_bugs=False, suppress_health_check=list(HealthCheck),
    )(given(odd_programs(), st.integers(0, 2**32 - 1), st.booleans(), st.data())(body))  # fmt: skip
    try:
        step = training_step()
        check(step, 0, grad=False)
        check(step, 0, grad=False, formats=declared_formats(step, "channels_last"))
        if options.level == "icf":
            check(training_step("bfloat16"), 0, grad=False)
        seed(zlib.crc32(f"{options.level} {options.seed}".encode()))(test)()
    except Exception as error:
        # What Hypothesis adds is the graph's many fields.
        error.__notes__ = getattr(error, "__notes__", [])[:1]
        found = isinstance(error, AssertionError)
        spell = traceback.format_exception_only if found else traceback.format_exception
        sys.exit("".join(spell(error)))


if __name__ == "__main__":
    main()
