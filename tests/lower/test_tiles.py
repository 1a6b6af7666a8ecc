"""Sums of bfloat16 products in the tiles of a matrix unit: what is chosen, code, numbers."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bngen as bg
from bngen.codegen import tiles
from bngen.codegen.compile import compile_plan
from bngen.codegen.nests import BY_KIND, choose
from bngen.compiler import build
from bngen.ir.build import GraphBuilder
from bngen.ir.interp import run
from bngen.ir.types import TensorType
from bngen.passes.prepare import Joint, join_gradient, prepare
from bngen.runtime import host
from bngen.target.parse import Target
from tests import guard_pages
from tests.guarded import RUNS, guarded
from tests.lower.test_pairs import DIRECTIONS, all_directions, chosen, distance, drawn, layer

XEON = "llvm -mtriple=x86_64-linux-gnu -mcpu=sapphirerapids"
SAME = {"padding": (1, 1, 1, 1)}
has_tiles = pytest.mark.skipif(
    not {"amx-bf16", "avx512bf16"} <= (host.features() or set()), reason="this CPU has no tiles"
)


@pytest.fixture(autouse=True, scope="module")
def uncached():
    """Everything is compiled, and what is meant for tiles is in them."""

    def checked(module):
        made = tiles.in_tiles.made(module)
        assert tiles.tiles.CONFIGURE in made.script()
        return made

    checked.made = tiles.in_tiles
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("BNGEN_NO_CACHE", "1")
        patched.setattr(tiles, "in_tiles", checked)
        yield


# --- decisions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "w", "attrs", "forward", "data"),
    [
        ((2, 32, 14, 14), (32, 32, 3, 3), SAME, "tiles", "tiles"),  # not Winograd's
        ((2, 32, 7, 7), (64, 32, 1, 1), {}, "tiles", "tiles"),
        ((2, 32, 14, 14), (64, 32, 3, 3), {**SAME, "stride": (2, 2)}, "tiles", "phased_tiles"),
        ((2, 3, 32, 32), (64, 3, 7, 7), {"padding": (3, 3, 3, 3), "stride": (2, 2)}, "tiles",
         "phased_tiles"),
        ((2, 32, 14, 14), (32, 1, 3, 3), {**SAME, "groups": 32}, "depthwise", "depthwise"),
        ((2, 24, 14, 14), (24, 12, 3, 3), {**SAME, "groups": 2}, "conv", "conv"),
    ],
    ids=["3x3", "1x1", "strided", "7x7", "depthwise", "padded groups"],
)  # fmt: skip
def test_what_is_chosen(x, w, attrs, forward, data):
    graph = all_directions(x, w, **attrs)
    found = chosen(Joint(graph, graph), Target.parse(XEON))
    kinds = {op: kind for op, (kind, _) in found.items()}
    assert (kinds["conv2d"], kinds["conv2d_grad_input"]) == (forward, data)
    # Outside tiles, multiply-adds of floats are faster than those of pairs.
    in_tiles = {op: BY_KIND[kind].in_tiles for op, (kind, _) in found.items()}
    assert in_tiles == {op: bool(facts.pairs) for op, (_, facts) in found.items()}
    without = chosen(Joint(graph, graph), Target.parse(XEON, mattr="-amx-bf16"))
    assert not any(BY_KIND[kind].in_tiles for kind, _ in without.values())


def test_winograds_tiles_where_they_take_fewer_cycles():
    """By the traits: a matrix unit a tenth as fast loses to them."""
    target, graph = Target.parse(XEON), layer((2, 32, 14, 14), (32, 32, 3, 3), padding=1)
    traits = target.machine.traits
    slow = replace(traits, tiles=replace(traits.tiles, row_cycles=10, least_cycles=90))
    plan = prepare(join_gradient(graph), 16, pairs="all").planned.plan
    (kernel,) = (k for k in plan.kernels if k.anchor and k.anchor.op == "conv2d")
    choice = choose(kernel, plan.layouts, replace(target.machine, traits=slow))
    assert choice.strategy.kind == "winograd"
    assert choice.declined["tiles"] == "Winograd's tiles take fewer cycles"


# --- instructions -------------------------------------------------------------------------------


@pytest.mark.parametrize(("window", "stride"), [((3, 3), 1), ((3, 3), 2)])
def test_sums_stay_in_tiles(window, stride):
    """Compiled for CPUs with the instructions, wherever this runs."""
    target = Target.parse(XEON)
    attrs = {"padding": window[0] // 2, "stride": stride}
    graph = layer((2, 32, 28, 28), (32, 32, *window), **attrs)
    plan = prepare(join_gradient(graph), target.channel_block, pairs=target.pairs).planned.plan
    data = tuple(k for k in plan.kernels if k.anchor and k.anchor.op in DIRECTIONS)
    for compiled in compile_plan(replace(plan, kernels=data), target):
        text = compiled.code.text("asm")
        assert compiled.code.in_tiles == ("tdpbf16ps" in text)
        assert compiled.code.in_tiles == (compiled.kernel.anchor.op != "conv2d_grad_weight")
        if compiled.code.in_tiles:
            assert "ldtilecfg" in text and "tilerelease" in text and "vdpbf16ps" not in text
            sums = summing(text)
            assert sums and all("%zmm" not in part and "call" not in part for part in sums)


def summing(assembly):
    """What lies between the registers' being cleared and stored, for each nest."""
    parts = re.findall(r"tilezero(.*?)tilestored", assembly, re.S)
    return [part for part in parts if "tdpbf16ps" in part]


def test_what_needs_no_tiles_asks_for_none():
    """A bundle names features of the matrix unit if its code has them."""
    for dtype, needed in ((bg.float32, False), (bg.bfloat16, True)):

        def net(x, w):
            return bg.conv2d(x, w)

        graph = bg.trace(net, bg.Tensor[1, 16, 4, 4, dtype], bg.Tensor[16, 16, 1, 1, dtype]).graph
        made = bg.bundle(graph, target=XEON)
        assert ("amx-bf16" in made.target.features) == needed


# --- numbers ------------------------------------------------------------------------------------


@st.composite
def convolutions(draw):
    """Shapes of a convolution, with columns that fill registers, do not, or overlap."""
    side, channels = st.integers(1, 40), st.sampled_from([1, 3, 16, 20, 48, 64])
    r, s = draw(st.sampled_from([(1, 1), (3, 3), (1, 7), (5, 2), (7, 7)]))
    stride, dilation = draw(st.sampled_from([((1, 1), (1, 1)), ((2, 2), (1, 1)), ((1, 1), (2, 2))]))
    groups = draw(st.sampled_from([1, 1, 1, 2]))
    c, k = (groups * draw(channels) for _ in "ck")
    h, w = draw(st.integers(1, 6)), draw(side)
    padding = dilation[0] * (r - 1), 0, dilation[1] * (s - 1), 0
    return (draw(st.integers(1, 3)), c, h, w), (k, c // groups, r, s), {
        "stride": stride, "dilation": dilation, "padding": padding, "groups": groups
    }  # fmt: skip


@has_tiles
@settings(max_examples=max(1, settings.default.max_examples // 6))
@given(convolutions())
def test_every_direction(drawn_convolution):
    x, w, attrs = drawn_convolution
    graph = all_directions(x, w, **attrs)
    args = drawn(graph)
    exact = run(graph, args, "float64").outputs
    for got, want in zip(build(graph)(*args.values()), exact, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=3e-6 * max(1, np.abs(want).max()))


@has_tiles
@pytest.mark.parametrize(
    ("x", "w", "attrs"),
    [
        ((3, 20, 4, 14), (24, 20, 3, 3), {"padding": 1}),
        ((2, 32, 8, 8), (48, 32, 3, 3), {"stride": 2, "padding": 1}),
    ],
)
def test_what_is_fused_around_them(x, w, attrs):
    graph = layer(x, w, **attrs)
    joint, args, found = join_gradient(graph), drawn(graph), []
    for attr in "-amx-bf16", "":
        target = Target.parse(None, mattr=attr)
        kinds = {kind for kind, _ in chosen(joint, target).values()}
        assert bool(kinds & {"tiles", "phased_tiles"}) == (not attr)
        module = build(graph, grad=True, target=target)
        y = module(*args.values())
        dy = np.random.default_rng(1).standard_normal(y.shape).astype(y.dtype)
        found.append((y, *module.backward(dy).values()))
    exact = run(joint.graph, args | {joint.cotangents[0].name: dy}, "float64").outputs
    for without, got, want in zip(*found, exact, strict=True):
        assert distance(got, want) <= 1.02 * distance(without, want) + 1e-5


@has_tiles
@pytest.mark.skipif(not guard_pages.SUPPORTED, reason="faults are read as Linux reports them")
@pytest.mark.parametrize(
    ("x", "w", "attrs"),
    [
        ((1, 32, 3, 21), (48, 32, 3, 3), SAME),
        ((2, 32, 4, 14), (32, 32, 1, 1), {}),  # reads memory itself
        ((2, 16, 4, 14), (32, 16, 3, 3), {**SAME, "stride": (2, 2)}),
    ],
)
def test_nothing_but_their_operands_is_touched(x, w, attrs):
    graph = all_directions(x, w, **attrs)
    module, executor = guarded(graph, "icf", "llvm -mcpu=native", grad=False)
    args = drawn(graph)
    exact = run(graph, args, "float64").outputs
    for executor.layout in RUNS:
        for got, want in zip(module(*args.values()), exact, strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=3e-6 * np.abs(want).max())
    assert not executor.findings


@has_tiles
def test_every_legal_knob_gives_the_same():
    b = GraphBuilder()
    x, w = (b.input(*i) for i in (("x", TensorType((1, 32, 4, 28), "bfloat16")),
                                  ("w", TensorType((64, 32, 3, 3), "bfloat16"))))  # fmt: skip
    graph = b.finish([b.emit("conv2d", x, w, **SAME)])
    target, args = Target.parse(), drawn(graph)
    plan = prepare(Joint(graph, graph), target.channel_block, pairs=target.pairs).planned.plan
    (kernel,) = (k for k in plan.kernels if k.anchor and k.anchor.op == "conv2d")
    choice = choose(kernel, plan.layouts, target.machine)
    legal = [*choice.strategy.candidates(choice.facts)]
    own = build(graph)(*args.values())[0]
    for knobs in legal[:: len(legal) // 5]:
        module, _ = guarded(
            graph, "icf", "llvm -mcpu=native", grad=False,
            knobs=lambda plan, target, knobs=knobs: (
                lambda kind, key: knobs if kind == "tiles" else None
            ),
        )  # fmt: skip
        np.testing.assert_allclose(module(*args.values())[0], own, rtol=0, atol=1e-4)
