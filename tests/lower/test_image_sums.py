"""Sums, means and largest elements over the pixels of each image: in parts, and fused."""

import numpy as np
import pytest

import bngen as bg
from bngen.passes.prepare import join_gradient, prepare
from tests.compiled import check
from tests.strategies import random_args


def gated(x, w, v):
    """Squeeze and excitation: a factor for each channel of each image, from its mean."""
    s = bg.sigmoid(bg.conv2d(x.mean((2, 3), True), w))
    return bg.conv2d(x * s, v)


def kernels(fn, *types):
    plan = prepare(join_gradient(bg.trace(fn, *types).graph), 16).planned.plan
    return [" ".join(k.sublayers) for k in plan.kernels]


TYPES = bg.Tensor[2, 20, 24, 13], bg.Tensor[20, 20, 1, 1], bg.Tensor[17, 20, 1, 1]


@pytest.mark.parametrize("level", ["icf", "none"])
def test_a_gate(level):
    graph = bg.trace(gated, *TYPES).graph
    check(graph, random_args(graph, 3), level)


def test_the_gradient_of_a_gate_needs_no_sweep_of_its_own():
    """The sum of dy * x is taken where dy is computed; the product is not stored."""
    found = kernels(gated, *TYPES)
    assert sum("conv2d_grad_input" in k and "partial_sum" in k for k in found) == 1


def test_whole_images_in_one_group_are_not_merged():
    def net(x):
        return x.sum((2, 3)), x.amax((2, 3), True)

    assert not any("groups" in k for k in kernels(net, bg.Tensor[2, 20, 7, 7]))
    assert any("sum_groups" in k for k in kernels(net, bg.Tensor[2, 20, 28, 28]))
    assert any("max_groups" in k for k in kernels(net, bg.Tensor[2, 20, 28, 28]))


def test_every_reduction_over_pixels():
    def net(x):
        y = x - x.mean((2, 3), True)
        return y.sum((2, 3)), bg.relu(x.amax((2, 3), True)), (y * y).mean((-1, -2))

    graph = bg.trace(net, bg.Tensor[3, 18, 32, 9]).graph
    args = random_args(graph, 5)
    args["x"] = (args["x"] + np.float32(100)).astype(np.float32)
    check(graph, args)
