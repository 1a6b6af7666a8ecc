"""3x3 convolutions at Winograd's points: where, how exact, and what a NaN spoils."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import bngen as bg
from bngen.codegen.nests import choose
from bngen.ir.interp import run
from bngen.lower.facts import Declined
from bngen.passes.prepare import join_gradient, prepare
from bngen.target.parse import Target
from tests.compiled import check
from tests.profiles import LEVELS, some
from tests.strategies import random_args

DIRECT = {"conv", "wgrad"}
WINOGRAD = {"winograd", "winograd_wgrad"}


def layer(shape, filters=24, window=3, **attrs):
    """BN, an activation, the convolution, and BN: slots on both sides in every direction."""

    def net(x, w):
        x = bg.silu(bg.batch_norm(x, None, None, training=True))
        return bg.batch_norm(bg.conv2d(x, w, **{"padding": 1, **attrs}), None, None, training=True)

    channels = shape[1] // attrs.get("groups", 1)
    return bg.trace(net, bg.Tensor[shape], bg.Tensor[filters, channels, window, window]).graph


def kinds(graph):
    """The nests that the convolution and its two gradients become."""
    target = Target.parse()
    plan = prepare(join_gradient(graph, ["x", "w"]), target.channel_block).planned.plan
    anchored = [k for k in plan.kernels if k.anchor and "conv2d" in k.anchor.op]
    return {choose(k, plan.layouts, target.machine).strategy.kind for k in anchored}


@pytest.mark.parametrize(
    ("shape", "attrs"),
    some(
        [
            ((3, 10, 8, 14), {"padding": 0}),
            ((2, 20, 6, 10), {"padding": 2}),
            ((2, 35, 13, 11), {"padding": (0, 1)}),
            ((3, 16, 7, 7), {}),
            ((1, 40, 28, 28), {"padding": (2, 1)}),
            ((2, 16, 8, 8), {}),
            ((2, 16, 14, 13), {}),
            ((2, 8, 9, 9), {"padding": 3}),
            ((2, 8, 24, 40), {}),
        ],
        3,
    ),
    ids=str,
)
def test_every_direction(shape, attrs):
    graph = layer(shape, **attrs)
    assert kinds(graph) == WINOGRAD
    check(graph, random_args(graph, 1))


@pytest.mark.parametrize(
    ("shape", "attrs"),
    [
        ((2, 16, 8, 8), {"dilation": 2}),
        ((2, 16, 8, 8), {"window": 5, "padding": 2}),
        ((2, 64, 8, 8), {"filters": 64, "groups": 2}),
        ((1, 16, 7, 6), {}),  # few tiles
        ((32, 16, 3, 3), {}),  # tiles that reach far over the image
    ],
    ids=str,
)
def test_where_it_does_not_pay(shape, attrs):
    assert kinds(layer(shape, **attrs)) == DIRECT


def test_no_tile_lies_in_two_groups_of_rows():
    """35 rows of 35: sums are taken over groups of one row; the weight gradient has none."""
    assert kinds(layer((2, 16, 35, 35))) == {"conv", "winograd_wgrad"}


@pytest.mark.parametrize("level", LEVELS)
def test_every_level(level):
    graph = layer((2, 12, 10, 7))
    check(graph, random_args(graph, 2), level)


def errors(graph, args):
    """Root mean square errors of the result and both gradients against float64."""
    module = bg.build(graph, grad=True, fusion="none")
    y = module(args["x"], args["w"])
    dy = np.random.default_rng(0).standard_normal(y.shape, np.float32)
    ours = {"y": y, **module.backward(dy)}
    x, w = (torch.tensor(args[n], dtype=torch.float64, requires_grad=True) for n in "xw")
    exact = F.conv2d(x, w, padding=1)
    exact.backward(torch.tensor(dy, dtype=torch.float64))
    theirs = {"y": exact.detach(), "x": x.grad, "w": w.grad}
    return {n: float(np.sqrt(np.mean((ours[n] - theirs[n].numpy()) ** 2))) for n in theirs}


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_as_exact_as_a_direct_convolution(offset, monkeypatch):
    def net(x, w):
        return bg.conv2d(x, w, padding=1)

    graph = bg.trace(net, bg.Tensor[4, 64, 28, 28], bg.Tensor[32, 64, 3, 3]).graph
    rng = np.random.default_rng(0)
    args = {i.name: rng.standard_normal(i.value.shape, np.float32) for i in graph.inputs}
    args["x"] += np.float32(offset)
    ours = errors(graph, args)
    monkeypatch.setattr("bngen.scheduling.winograd.pays", lambda *_: Declined("for comparison"))
    monkeypatch.setenv("BNGEN_NO_CACHE", "1")
    direct = errors(graph, args)
    assert ours != direct
    assert all(ours[n] <= 1.5 * direct[n] for n in direct), (ours, direct)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_windows(value):
    def net(x, w):
        return bg.conv2d(x, w, padding=1)

    graph = bg.trace(net, bg.Tensor[2, 16, 12, 9], bg.Tensor[16, 16, 3, 3]).graph
    args = random_args(graph, 0)
    args["x"][1, 3, 5, 4] = value
    y = bg.build(graph)(args["x"], args["w"])
    exact = run(graph, args, "float64").outputs[0]
    np.testing.assert_array_equal(np.isfinite(y), np.isfinite(exact))
