"""Rows joined around convolutions of one tap: where they are, where not, and the same results."""

import pytest

import bngen as bg
from bngen.codegen.nests import choose
from bngen.passes.prepare import join_gradient, prepare
from bngen.target.parse import Target
from tests.compiled import check
from tests.strategies import random_args

SIDE = 7
JOINED, APART = (1, SIDE * SIDE), (SIDE, SIDE)


def normalized(x, w):
    y = bg.conv2d(bg.relu(bg.batch_norm(x, None, None, training=True)), w)
    return bg.relu(bg.batch_norm(y, None, None, training=True))


def gated(x, w):
    """A pixel for each image and channel is the same for all of theirs."""
    return bg.conv2d(x * bg.sigmoid(bg.mean(x, dim=(2, 3), keepdim=True)), w)


def alone(x, w):
    return bg.conv2d(x, w)


def grouped(x, w):
    return bg.conv2d(bg.silu(x), w[:, :8], groups=2)


def placed(x, w):
    """Each pixel with a number of its own, the same for all images and channels."""
    return bg.conv2d(x * bg.sigmoid(bg.mean(x, dim=(0, 1), keepdim=True)), w)


def by_column(x, w):
    return bg.conv2d(x * bg.sigmoid(bg.mean(x, dim=(0, 1, 2), keepdim=True)), w)


def enlarged(x, w):
    x = bg.interpolate(x[:, :, :4], size=(SIDE, SIDE), mode="nearest")
    return bg.conv2d(x, w)


def padded(x, w):
    return bg.conv2d(x, w, padding=1)


def strided(x, w):
    return bg.conv2d(x, w, stride=2)


CASES = {
    "normalized": (normalized, JOINED),
    "gated": (gated, JOINED),
    "alone": (alone, JOINED),
    "grouped": (grouped, JOINED),
    "placed": (placed, JOINED),
    "by column": (by_column, APART),
    "enlarged": (enlarged, APART),
    "padded": (padded, (SIDE + 2, SIDE + 2)),
    "strided": (strided, (4, 4)),
}


def extents(graph):
    """Rows and columns that the nest of the forward convolution goes over."""
    target = Target.parse("llvm -mcpu=native")
    plan = prepare(join_gradient(graph, ["x", "w"]), target.channel_block).planned.plan
    (kernel,) = (k for k in plan.kernels if k.anchor and k.anchor.row.direction == "forward")
    facts = choose(kernel, plan.layouts, target.machine).facts
    return facts.h, facts.w


@pytest.mark.parametrize("name", CASES)
def test_rows(name):
    net, expected = CASES[name]
    graph = bg.trace(net, bg.Tensor[2, 16, SIDE, SIDE], bg.Tensor[16, 16, 1, 1]).graph
    assert extents(graph) == expected
    check(graph, random_args(graph, 0))


@pytest.mark.parametrize(("side", "expected"), [(56, (28, 112)), (28, (7, 112)), (14, (7, 28))])
def test_sums_say_how_many_belong_together(side, expected):
    graph = bg.trace(normalized, bg.Tensor[1, 16, side, side], bg.Tensor[16, 16, 1, 1]).graph
    assert extents(graph) == expected


def test_without_sums_rows_are_not_too_long():
    graph = bg.trace(alone, bg.Tensor[1, 16, 30, 48], bg.Tensor[16, 16, 1, 1]).graph
    assert extents(graph) == (15, 96)
