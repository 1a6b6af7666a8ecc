"""Prefetches: asked for within the maps, in every direction, and without a trace in the results."""

import re

import numpy as np
import pytest
import tvm_ffi
from tvm import tirx
from tvm.ir import Call
from tvm.sym import Analyzer

import bngen as bg
from bngen.codegen.compile import compile_plan
from bngen.codegen.nests import STRATEGIES, choose
from bngen.passes.prepare import join_gradient, prepare
from bngen.scheduling.prefetch import add_prefetches
from bngen.scheduling.reading import replaced
from bngen.target.parse import Target
from bngen.tuning.lone import LoneKernel
from tests.profiles import some

TARGET = Target.parse()
TRAITS = TARGET.machine.traits


def plan_of(width, channels, window, stride=1, groups=1):
    """A training step with slots on both sides of its middle convolution."""

    def step(x, w1, w2, w3, mean, var, gamma, beta, mean2, var2, gamma2, beta2):
        y = bg.conv2d(x, w1)
        y = bg.relu(bg.batch_norm(y, mean, var, gamma, beta, training=True))
        y = bg.conv2d(y, w2, padding=window // 2, stride=stride, groups=groups)
        y = bg.relu(bg.batch_norm(y, mean2, var2, gamma2, beta2, training=True))
        return bg.conv2d(y, w3)

    f32 = bg.Tensor
    c = f32[channels]
    kinds = [
        f32[2, 32, width, width],
        f32[channels, 32, 1, 1],
        f32[channels, channels // groups, window, window],
        f32[32, channels, 1, 1],
        *[c] * 8,
    ]
    return traced(step, kinds, ["x", "w1", "w2", "w3", "gamma", "beta", "gamma2", "beta2"])


def traced(step, kinds, wrt):
    """The plan of a function's joint program, its parameters being of these kinds."""
    step.__annotations__ = dict(zip(step.__code__.co_varnames[: len(kinds)], kinds, strict=True))
    graph = bg.program(step).graph
    return prepare(join_gradient(graph, wrt), TARGET.channel_block).planned.plan


def scheduled(kernel, plan):
    choice = choose(kernel, plan.layouts, TARGET.machine)
    with TARGET.tvm():
        low = choice.strategy.lower(kernel, plan.layouts, choice.facts)
        knobs = choice.knobs(TARGET.machine)
        return low, choice.strategy.schedule(low, choice.facts, knobs).mod[low.name]


def prefetched(func):
    """The elements that a function's prefetches name, and the ranges of its loops."""
    elements, loops = [], {}

    def note(call):
        if call.op.name == "tirx.prefetch":
            elements.append(call.args[0].args[0])

    tvm_ffi.structural_walk(func.body, (Call, note))
    tvm_ffi.structural_walk(
        func.body, (tirx.For, lambda f: loops.update({f.loop_var: int(f.extent)}))
    )
    return elements, loops


def kind_of(kernel, plan):
    """The strategy of a kernel."""
    return choose(kernel, plan.layouts, TARGET.machine).strategy.kind


def test_what_is_prefetched_is_what_the_table_says():
    """The compiler's own code: no other kernel has a prefetch in it."""
    seen, plans = set(), (plan_of(14, 64, 3), plan_of(14, 32, 3, groups=32 // 2))
    for compiled in (c for plan in plans for c in compile_plan(plan, TARGET)):
        func = compiled.code.forms.module[compiled.code.symbol]
        elements, _ = prefetched(func)
        assert compiled.code.rule in PREFETCHED or not elements
        seen |= {compiled.code.rule} if elements else set()
    of_floats = {row.kind for row in STRATEGIES if row.prefetched and not row.in_tiles}
    assert seen == PREFETCHED == of_floats


SHAPES = [(14, 64, 3, 1), (13, 96, 1, 1), (9, 64, 3, 2), (9, 32, 3, 1, 16)]


PREFETCHED = {"conv", "shuffled", "wgrad", "winograd"}
DIRECT = {"conv", "wgrad"}


@pytest.mark.parametrize(
    ("shape", "expected"),
    [*zip(SHAPES, [{*DIRECT, "winograd"}, DIRECT, DIRECT, {*DIRECT, "shuffled"}], strict=True)],
    ids=[str(shape) for shape in SHAPES],
)
def test_what_is_prefetched_lies_within_the_maps(shape, expected):
    plan, rng, kinds = plan_of(*shape), np.random.default_rng(0), set()
    for kernel in plan.kernels:
        kind = kind_of(kernel, plan)
        if kind not in PREFETCHED:
            continue
        low, func = scheduled(kernel, plan)
        elements, loops = prefetched(add_prefetches(func, low))
        kinds |= {kind} if elements else set()
        for element in elements:
            shape = [int(e) for e in element.source.ty.shape]
            for at in range(20):
                # The last iteration of all loops, the first, and any others.
                draw = {0: lambda n: n - 1, 1: lambda n: 0}.get(at, rng.integers)
                values = {v: tirx.const(int(draw(n)), "int32") for v, n in loops.items()}
                index = [int(Analyzer().simplify(replaced(i, values))) for i in element.indices]
                assert all(i >= 0 for i in index)
                # Counting columns on leads into the next row, so it is the whole that must fit.
                flat = 0
                for i, extent in zip(index, shape, strict=True):
                    flat = flat * extent + i
                assert flat < np.prod(shape), (low.name, index, shape)
    assert kinds == expected


@pytest.mark.parametrize("shape", some(SHAPES, 1), ids=str)
def test_results_are_the_same_bits_without_prefetches(shape, monkeypatch):
    plan = plan_of(*shape)
    with_them = [LoneKernel(c).results() for c in compile_plan(plan, TARGET)]
    monkeypatch.setattr("bngen.scheduling.prefetch.add_prefetches", lambda func, low: func)
    without = [LoneKernel(c).results() for c in compile_plan(plan, TARGET)]
    for ours, theirs in zip(with_them, without, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(
    TRAITS.vector_registers * TRAITS.vector_bytes <= 1024, reason="all registers hold 1 KiB or less"
)
def test_no_burst_is_most_of_a_kernel():
    """Rows of a thousand pixels and three channels: few multiply-adds, hundreds of lines a row."""

    def step(x, w, mean, var, gamma, beta):
        y = bg.batch_norm(bg.conv2d(x, w), mean, var, gamma, beta, training=True)
        return bg.relu(y)

    kinds = [bg.Tensor[8, 3, 1, 1024], bg.Tensor[64, 3, 1, 1], *[bg.Tensor[64]] * 4]
    plan = traced(step, kinds, ["w", "gamma", "beta"])
    kernels = [k for k in plan.kernels if kind_of(k, plan) in PREFETCHED]
    assert any("weight" in k.name for k in kernels)
    for kernel in kernels:
        low, func = scheduled(kernel, plan)
        elements, _ = prefetched(add_prefetches(func, low))
        assert len(elements) <= 64 * len(kernel.inputs)


def test_register_tiles_are_in_registers():
    """A tile above 1 KiB, for which TVM would ask the runtime for a workspace."""
    tile, seen = {"columns": 14, "blocks": 2, "rows": 1}, 0
    plan = plan_of(14, 64, 3)
    for compiled in compile_plan(
        plan, TARGET, knobs=lambda kind, *_: tile if kind == "conv" else None
    ):
        if compiled.code.rule != "conv":
            continue
        assert dict(compiled.code.knobs) == tile
        seen += 1
        text = compiled.code.forms.library.mod.inspect_source("ll")
        carried = re.findall(rf"%conv_local\S+ = phi <{TARGET.channel_block} x float>", text)
        assert len(carried) >= tile["columns"] * tile["blocks"]
    assert seen


def test_nothing_is_asked_for_twice():
    plan = plan_of(14, 64, 1)
    for kernel in plan.kernels:
        if kind_of(kernel, plan) not in PREFETCHED:
            continue
        low, func = scheduled(kernel, plan)
        elements, _ = prefetched(add_prefetches(func, low))
        texts = [str(e) for e in elements]
        assert len(texts) == len(set(texts))
