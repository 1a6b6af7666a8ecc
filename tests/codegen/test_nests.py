"""The table of strategies: who is asked, in which order, what they answer, what is kept of it."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

import bngen as bg
from bngen.codegen.nests import BY_KIND, FALLBACK, STRATEGIES, choose
from bngen.ir.build import GraphBuilder
from bngen.ir.types import TensorType
from bngen.lower.facts import AnyFacts, ConvFacts, Declined, Facts
from bngen.passes.prepare import join_gradient, prepare
from bngen.runtime.host import Caches
from bngen.target.cpus import traits_of
from bngen.target.machine import machine_of

MACHINE = machine_of(
    traits_of("x86_64", "", frozenset({"avx"})), Caches(32 << 10, 512 << 10, 4 << 20), 2
)


def choices(graph, level="icf"):
    """Anchor of each kernel of a training step -> what was chosen for it."""
    plan = prepare(join_gradient(graph), MACHINE.lanes("float32"), level).planned.plan
    return {
        k.anchor.op: choose(k, plan.layouts, MACHINE) for k in plan.kernels if k.anchor is not None
    }


def convolution(shape=(2, 16, 12, 12), filters=16, window=(3, 3), **attrs):
    """A convolution between activations."""
    b = GraphBuilder(name="layer")
    x = b.input("x", TensorType(shape))
    channels = shape[1] // attrs.get("groups", 1)
    w = b.input("w", TensorType((filters, channels, *window)), "parameter")
    y = b.emit("conv2d", b.emit("relu", x), w, **{"padding": (1, 1, 1, 1), **attrs})
    return b.finish([b.emit("relu", y)])


@pytest.mark.parametrize(
    ("layer", "forward", "data", "weight"),
    [
        (convolution(), "winograd", "winograd", "winograd_wgrad"),
        (convolution(window=(1, 1), padding=(0, 0, 0, 0)), "conv", "conv", "wgrad"),
        (convolution(dilation=(2, 2)), "conv", "conv", "wgrad"),
        (convolution(stride=(2, 2)), "conv", "phased", "wgrad"),
        (convolution(stride=(5, 5)), "conv", "conv", "wgrad"),
        (convolution(groups=16), "depthwise", "depthwise", "depthwise_wgrad"),
        (convolution(groups=16, stride=(2, 2)), "depthwise", "phased", "depthwise_wgrad"),
        (convolution(groups=2), "conv", "conv", "wgrad"),
        (convolution(groups=8), "shuffled", "shuffled", "shuffled_wgrad"),
        (convolution(groups=8, stride=(2, 2)), "shuffled", "phased", "shuffled_wgrad"),
        (convolution((2, 12, 12, 12), 24, groups=2), "conv", "conv", "wgrad"),
        (convolution((2, 12, 12, 12), 20, groups=4), "shuffled", "shuffled", "shuffled_wgrad"),
    ],
    ids=["3x3", "1x1", "dilated", "strided", "odd stride", "depthwise", "strided depthwise",
         "grouped", "small groups", "strided small groups", "padded groups", "odd groups"],
)  # fmt: skip
def test_the_first_that_applies_is_taken(layer, forward, data, weight):
    found = choices(layer)
    assert found["conv2d"].strategy.kind == forward
    assert found["conv2d_grad_input"].strategy.kind == data
    assert found["conv2d_grad_weight"].strategy.kind == weight


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (convolution(window=(5, 3)), "its window is 5x3, not 3x3"),
        (convolution(dilation=(2, 2)), "it is strided or dilated"),
        (convolution(groups=2), "it is grouped"),
        (convolution((1, 16, 7, 6)), "12 tiles do not pay for the transform of the weight"),
        (convolution((32, 16, 3, 3)), "tiles reach far over a map of 3x3"),
        (convolution((2, 3, 12, 12)), "its input is plain, without channel blocks"),
    ],
    ids=str,
)
def test_why_not_winograd(layer, reason):
    assert choices(layer)["conv2d"].declined["winograd"] == reason


def test_only_those_before_it_have_declined():
    for choice in choices(convolution(stride=(2, 2))).values():
        order = [row.kind for row in (*STRATEGIES, FALLBACK)]
        asked = [order.index(kind) for kind in choice.declined]
        assert asked == sorted(asked)
        assert all(i < order.index(choice.strategy.kind) for i in asked)


def test_sums_in_float64_follow_no_tile():
    """The statistics of a separate batch normalization are rounded sums, and what that leaves."""

    def net(x):
        return bg.batch_norm(x, None, None, training=True)

    choice = choices(bg.trace(net, bg.Tensor[2, 16, 24, 24]).graph, "none")["bn_partial_mean"]
    assert choice.strategy is FALLBACK
    assert choice.declined == {"partial": "bn_partial_mean sums in float64, which no tile holds"}


def test_the_fallback_knows_how_wide_vectors_are():
    wide = replace(MACHINE, traits=replace(MACHINE.traits, vector_bytes=64))
    layer = bg.trace(lambda x: x.amax((2,)), bg.Tensor[2, 16, 24, 24]).graph
    plan = prepare(join_gradient(layer, ["x"]), 8).planned.plan
    kernel = next(k for k in plan.kernels if k.anchor and k.anchor.op == "amax")
    vectors = [choose(kernel, plan.layouts, m).facts for m in (MACHINE, wide)]
    assert vectors == [AnyFacts(lanes=8), AnyFacts(lanes=16)]


@pytest.mark.parametrize("row", (*STRATEGIES, FALLBACK), ids=lambda row: row.kind)
def test_a_row_says_what_it_is_for(row):
    assert row.what and len(row.what) < 100
    assert BY_KIND[row.kind] is row
    assert issubclass(row.facts, Facts)


def test_elements_of_eight_bytes_fill_a_cache_with_half_the_rows():
    facts = ConvFacts(
        n=64, h=64, w=64, groups=1, out_blocks=4, lanes=8, in_blocks=8, in_lanes=8, r=1, s=1,
        padded_w=64, stride_h=1, stride_w=1, dilation_h=1, dilation_w=1,
    )  # fmt: skip
    rows = [
        BY_KIND["conv"].knobs(replace(facts, element_bytes=size), MACHINE)["rows"]
        for size in (4, 8)
    ]
    assert rows[0] == 2 * rows[1] > 1


def test_a_choice_takes_legal_knobs_alone():
    choice = choices(convolution())["conv2d"]
    own = choice.knobs(MACHINE)
    other = next(k for k in choice.strategy.candidates(choice.facts) if k != own)
    assert choice.knobs(MACHINE, other) == other
    assert choice.knobs(MACHINE, {**other, "rows": 0}) == own
    assert isinstance(choice.strategy.misfit(choice.facts, {**other, "rows": 0}), Declined)


def test_choosing_needs_no_tvm():
    code = (
        "import bngen.codegen.nests, bngen.tuning.records, sys, json;"
        "print(json.dumps([m for m in ('tvm', 'tvm_ffi', 'torch') if m in sys.modules]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == []


def test_the_manifest_says_why():
    def net(x, w):
        return bg.conv2d(x, w)

    graph = bg.trace(net, bg.Tensor[2, 16, 8, 8], bg.Tensor[16, 16, 1, 1]).graph
    found = {k["rule"]: k["declined"] for k in bg.build(graph).manifest()["kernels"]}
    assert found["conv"] == {
        "winograd": "its window is 1x1, not 3x3", "depthwise": "it is not depthwise",
        "shuffled": "no group cuts a channel block",
    }  # fmt: skip
