"""Products of pairs of bfloat16: every direction, what is fused around them, and instructions.

A machine's traits say whether pairs pay; here they do, wherever the tests run. Where there is no
instruction for them, shifts and multiply-adds do the same.
"""

import re
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

import bngen as bg
from bngen.codegen.compile import compile_plan
from bngen.codegen.nests import choose
from bngen.compiler import build
from bngen.ir.build import GraphBuilder
from bngen.ir.interp import run
from bngen.ir.types import TensorType
from bngen.passes.prepare import Joint, join_gradient, prepare
from bngen.runtime import host
from bngen.target import cpus
from bngen.target.cpus import Pairs
from bngen.target.parse import Target
from tests.profiles import some

BF16 = np.dtype(ml_dtypes.bfloat16)
DIRECTIONS = {"conv2d", "conv2d_grad_input", "conv2d_grad_weight"}


@pytest.fixture(autouse=True)
def pairs_pay(monkeypatch):
    def traits_of(*cpu):
        traits = cpus.traits_of(*cpu)
        row = traits.pairs or Pairs(frozenset(), 1, 6)
        row = replace(row, units=traits.multiply_add_units)
        return replace(traits, pairs=row, tiles=None)

    monkeypatch.setattr("bngen.target.parse.traits_of", traits_of)
    monkeypatch.setattr("bngen.target.parse.corrected", lambda traits, target: traits)
    monkeypatch.setenv("BNGEN_NO_CACHE", "1")


def all_directions(x, w, **attrs):
    """A convolution and both gradients of bfloat16 operands; the results are float32."""
    b = GraphBuilder()
    values = [b.input(n, TensorType(s, "bfloat16")) for n, s in (("x", x), ("w", w))]
    y = b.emit("conv2d", *values, **attrs)
    dy = b.input("dy", TensorType(y.shape, "bfloat16"))
    dx = b.emit("conv2d_grad_input", dy, values[1], shape=x, **attrs)
    dw = b.emit("conv2d_grad_weight", values[0], dy, shape=w, **attrs)
    return b.finish([y, dx, dw])


def drawn(graph, seed=0):
    rng = np.random.default_rng(seed)
    return {i.name: rng.standard_normal(i.value.shape).astype(BF16) for i in graph.inputs}


def chosen(joint, target):
    """Operation -> strategy and facts of each convolution."""
    plan = prepare(joint, target.channel_block, pairs=target.pairs).planned.plan
    anchored = [k for k in plan.kernels if k.anchor and k.anchor.op in DIRECTIONS]
    found = {k.anchor.op: choose(k, plan.layouts, target.machine) for k in anchored}
    assert found.keys() == DIRECTIONS
    return {op: (choice.strategy.kind, choice.facts) for op, choice in found.items()}


SAME = {"padding": (1, 1, 1, 1)}


@pytest.mark.parametrize(
    ("x", "w", "attrs"),
    [
        ((2, 32, 6, 6), (32, 32, 1, 1), {}),
        ((3, 20, 3, 7), (24, 20, 3, 3), SAME),
        ((2, 16, 8, 6), (40, 16, 3, 3), {**SAME, "stride": (2, 2)}),
        ((1, 16, 9, 9), (16, 16, 3, 2), {"dilation": (2, 1)}),
        ((5, 3, 12, 13), (20, 3, 5, 5), {"padding": (2, 2, 2, 2), "stride": (2, 2)}),
        ((2, 34, 5, 5), (50, 17, 3, 3), {**SAME, "groups": 2}),
    ],
    ids=str,
)
def test_every_direction(x, w, attrs):
    graph = all_directions(x, w, **attrs)
    kinds = chosen(Joint(graph, graph), Target.parse())
    assert {kind for kind, _ in kinds.values()} <= {"conv", "phased", "wgrad"}
    assert all(facts.pairs for _, facts in kinds.values())
    args = drawn(graph)
    ours = build(graph)(*args.values())
    exact = run(graph, args, "float64").outputs
    for got, want in zip(ours, exact, strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())


def test_at_the_points_of_winograds_tiles():
    """Points and taps are rounded once more; NaN stays in its windows."""
    graph = all_directions((3, 20, 10, 9), (24, 20, 3, 3), **SAME)
    kinds = chosen(Joint(graph, graph), Target.parse())
    assert {kind for kind, _ in kinds.values()} == {"winograd", "winograd_wgrad"}
    assert all(facts.pairs for _, facts in kinds.values())
    args, module = drawn(graph), build(graph)
    for got, want in zip(module(*args.values()), run(graph, args, "float64").outputs, strict=True):
        assert distance(got, want) < 5e-3
    args["x"][2, 3, 1, 4] = np.nan
    y, exact = module(*args.values())[0], run(graph, args, "float64").outputs[0]
    np.testing.assert_array_equal(np.isnan(y), np.isnan(exact))


@pytest.mark.skipif(host.architecture() != "x86_64", reason="compiles for another x86-64")
def test_without_the_instruction():
    graph = all_directions((3, 12, 6, 5), (20, 12, 3, 2), **SAME)
    target = Target.parse("llvm -mcpu=x86-64-v2")
    assert all(facts.pairs for _, facts in chosen(Joint(graph, graph), target).values())
    args = drawn(graph)
    module = build(graph, target=target)
    for got, want in zip(module(*args.values()), run(graph, args, "float64").outputs, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())


@pytest.mark.parametrize(
    ("m", "k", "n", "trans_a", "trans_b"),
    [
        (8, 64, 40, False, True),  # rows of both are words
        (17, 33, 20, True, False),
        (5, 770, 24, False, False),  # parts of the sums, the last one shorter
        (19, 1, 113, True, True),
    ],
)
def test_matrix_products(m, k, n, trans_a, trans_b):
    b = GraphBuilder()
    shapes = ((k, m) if trans_a else (m, k), (n, k) if trans_b else (k, n))
    x, w = (b.input(i, TensorType(s, "bfloat16")) for i, s in zip("xw", shapes, strict=True))
    graph = b.finish([b.emit("matmul", x, w, trans_a=trans_a, trans_b=trans_b)])
    target = Target.parse()
    plan = prepare(Joint(graph, graph), target.channel_block, pairs=target.pairs).planned.plan
    (choice,) = (choose(kernel, plan.layouts, target.machine) for kernel in plan.kernels)
    assert (choice.strategy.kind, choice.facts.pairs) == ("product", 1)
    args = drawn(graph)
    want = run(graph, args, "float64").outputs[0]
    got = build(graph)(*args.values())
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())


def layer(shape, w, **attrs):
    """BN and an activation on both sides: slots around every direction."""

    def net(x, w):
        x = bg.silu(bg.batch_norm(x, None, None, training=True))
        return bg.relu(bg.batch_norm(bg.conv2d(x, w, **attrs), None, None, training=True))

    return bg.trace(net, bg.Tensor[*shape, bg.bfloat16], bg.Tensor[*w, bg.bfloat16]).graph


@pytest.mark.parametrize(
    ("x", "w", "attrs"),
    [
        ((3, 20, 10, 7), (24, 20, 3, 3), {"padding": (2, 0), "dilation": (2, 1)}),
        ((2, 32, 8, 8), (32, 32, 1, 1), {"stride": 2}),
    ],
)
def test_what_is_fused_around_them(x, w, attrs):
    graph = layer(x, w, **attrs)
    joint = join_gradient(graph)
    assert all(facts.pairs for _, facts in chosen(joint, Target.parse()).values())
    args = drawn(graph)
    module = build(graph, grad=True)
    y = module(*args.values())
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(y.dtype)
    gradients = module.backward(dy)
    (cotangent,) = joint.cotangents
    given = args | {cotangent.name: dy}
    exact = run(joint.graph, given, "float64").outputs
    rounded = run(joint.graph, given).outputs
    for got, as_meant, want in zip((y, *gradients.values()), rounded, exact, strict=True):
        assert distance(got, want) <= 1.1 * distance(as_meant, want) + 1e-5


def distance(a, b):
    a, b = (np.asarray(v, np.float64) for v in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def test_what_is_not_finite_or_tiny():
    """A pair's other half is not touched by it; what is subnormal may count as zero."""
    graph = all_directions((3, 16, 6, 6), (16, 16, 3, 2), **SAME)
    args = drawn(graph)
    args["x"][2, 3, 1, 4] = np.nan
    args["dy"][1, 5, 2, 2] = np.inf
    args["x"][0, 8:] = np.array(1, np.uint16).view(BF16)
    exact = run(graph, args, "float64").outputs
    for got, want in zip(build(graph)(*args.values()), exact, strict=True):
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
        np.testing.assert_array_equal(np.isinf(got), np.isinf(want))
        known = np.isfinite(want)
        np.testing.assert_allclose(got[known], want[known], rtol=0, atol=1e-4)


# --- instructions -------------------------------------------------------------------------------


def loops(assembly, instruction):
    """The innermost loops in which an instruction is repeated: their text."""
    found = []
    for label, text in re.findall(r"^(\.LBB\w+):(.*?)(?=^\.LBB|\Z)", assembly, re.M | re.S):
        back = re.search(rf"\bj\w+\s+{re.escape(label)}$", text, re.M)
        if back and text[: back.start()].count(instruction) > 1:
            found.append(text[: back.start()])
    return found


@pytest.mark.parametrize(
    ("cpu", "window", "folds"),
    some([("znver4", (3, 2), True), ("znver5", (3, 2), False), ("znver5", (3, 3), False)], 2),
)
def test_sums_stay_in_registers(cpu, window, folds):
    """Compiled for CPUs with the instruction, wherever this runs."""
    target = Target.parse(f"llvm -mtriple=x86_64-linux-gnu -mcpu={cpu}")
    graph = layer((4, 32, 14, 14), (32, 32, *window), padding=1)
    plan = prepare(join_gradient(graph), target.channel_block, pairs=target.pairs).planned.plan
    kept = tuple(k for k in plan.kernels if k.anchor and k.anchor.op in DIRECTIONS)
    for compiled in compile_plan(replace(plan, kernels=kept), target):
        text = compiled.code.text("asm")
        assert "call" not in "".join(inner := loops(text, "vdpbf16ps"))
        assert inner, compiled.kernel.anchor.op
        for loop in inner:
            assert not re.search(r"\(%rsp\).*%zmm|%zmm.*\(%rsp\)", loop)
            products = re.findall(r"vdpbf16ps\s.*", loop)
            if folds:
                assert all("{1to16}" in p for p in products)
            else:
                loads = len(re.findall(r"v?p?broadcast\w+\s.*\(", loop))
                assert 2 * loads <= len(products)
        assert "vcvtne" in text  # vcvtneps2bf16 or, of pairs of images, vcvtne2ps2bf16


def test_where_they_do_not_pay(monkeypatch):
    """Without pairs nothing lies in words, and the float32 nests multiply."""
    monkeypatch.setattr("bngen.target.parse.traits_of", cpus.traits_of)
    graph = all_directions((2, 16, 8, 8), (16, 16, 5, 5), padding=(2, 2, 2, 2))
    target = Target.parse("llvm -mtriple=x86_64-linux-gnu -mcpu=sapphirerapids -mattr=-amx-bf16")
    assert not any(f.pairs for _, f in chosen(Joint(graph, graph), target).values())
