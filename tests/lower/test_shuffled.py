"""Groups that cut channel blocks: every way their lanes are found, and what a NaN spoils."""

import numpy as np
import pytest

import bngen as bg
from bngen.codegen.nests import choose
from bngen.passes.prepare import join_gradient, prepare
from bngen.target.parse import Target
from tests.compiled import check
from tests.strategies import random_args

# Vectors of 4 lanes, so that small maps have many blocks; the other widths are drawn elsewhere.
NARROW = "llvm -mcpu=x86-64-v2"
RUNS_NARROW = Target.parse(NARROW).runs_here


def layer(channels, filters, groups, window=3, side=5, **attrs):
    """BN, an activation, the convolution, and BN: slots on both sides in every direction."""

    def net(x, w):
        x = bg.silu(bg.batch_norm(x, None, None, training=True))
        y = bg.conv2d(x, w, **{"padding": window // 2, "groups": groups, **attrs})
        return bg.batch_norm(y, None, None, training=True)

    kinds = (2, channels, side, side), (filters, channels // groups, window, window)
    return bg.trace(net, *(bg.Tensor[shape] for shape in kinds)).graph


def ways(graph, target):
    """Kind of the kernels for output, input and weight, and the period of their lanes."""
    target = Target.parse(target)
    plan = prepare(join_gradient(graph, ["x", "w"]), target.channel_block).planned.plan
    chosen = {
        k.anchor.row.direction: choose(k, plan.layouts, target.machine)
        for k in plan.kernels
        if k.anchor and k.anchor.row.direction
    }
    found = (chosen[way] for way in ("forward", "input", "weight"))
    return [(c.strategy.kind, getattr(c.facts, "period", None)) for c in found]


def lane_by_lane(*periods):
    return list(zip(("shuffled", "shuffled", "shuffled_wgrad"), periods, strict=True))


CASES = {
    "alike": (layer(16, 16, 8), lane_by_lane(1, 1, 1)),
    "a multiplier": (layer(8, 16, 8), lane_by_lane(2, 1, 2)),
    "of three blocks": (layer(24, 8, 4), lane_by_lane(1, 3, 1)),
    "never alike": (layer(6, 30, 6, window=1, side=3), lane_by_lane(0, 0, 0)),
    "strided": (layer(16, 16, 8, side=6, stride=2),
                [("shuffled", 1), ("phased", None), ("shuffled_wgrad", 1)]),
    "padded": (layer(21, 21, 3, stride=2, dilation=2),
               [("conv", None), ("conv", None), ("wgrad", None)]),
    "padded, in phases": (layer(10, 6, 2, side=6, stride=2),
                          [("conv", None), ("phased", None), ("wgrad", None)]),
}  # fmt: skip


@pytest.mark.skipif(not RUNS_NARROW, reason="another architecture")
@pytest.mark.parametrize("name", CASES)
def test_every_way(name):
    graph, expected = CASES[name]
    assert ways(graph, NARROW) == expected
    check(graph, random_args(graph, 0), target=NARROW)


def test_a_nan_spoils_its_own_group_alone():
    def net(x, w):
        return bg.conv2d(x, w, padding=1, groups=8)

    kinds = bg.Tensor[1, 32, 4, 4], bg.Tensor[32, 4, 3, 3]
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(k.shape).astype(np.float32) for k in kinds)
    x[0, 9, 1, 1] = np.nan
    out = bg.build(bg.trace(net, *kinds))(x, w)
    spoilt = np.isnan(out).any(axis=(0, 2, 3))
    np.testing.assert_array_equal(spoilt, np.arange(32) // 4 == 9 // 4)


@pytest.mark.skipif(not RUNS_NARROW, reason="another architecture")
def test_a_map_that_is_wanted_in_several_layouts():
    """Padded groups, groups that cut blocks, each channel by itself, and a dense convolution."""

    def net(x, w, v, u, t):
        x = bg.relu(x)
        y = bg.conv2d(x, w, groups=2) + bg.conv2d(x, v, groups=5) + bg.conv2d(x, u, groups=10)
        return bg.conv2d(y, t)

    kinds = (2, 10, 4, 3), (10, 5, 1, 1), (10, 2, 1, 1), (10, 1, 1, 1), (3, 10, 1, 1)
    graph = bg.trace(net, *(bg.Tensor[shape] for shape in kinds)).graph
    check(graph, random_args(graph, 0), target=NARROW)
