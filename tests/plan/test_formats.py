"""Memory formats as users declare them: what the words stand for, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bngen as bg
from bngen.errors import BngenError
from bngen.models import make
from bngen.passes.fusion.levels import LEVELS
from bngen.passes.pipeline import plan_program
from bngen.passes.prepare import join_gradient
from bngen.plan.formats import C_ORDER, Formats, declared_formats
from bngen.plan.layout import CHANNELS_LAST, PLAIN, Blocked, physical_shape, plain, same_bytes
from bngen.plan.traffic import kernel_traffic, total
from tests.passes.meaning import joint_program
from tests.strategies import formats_of, memory_format_of, programs


def net(x, weight, gamma):
    y = bg.conv2d(x, weight)
    return {"map": y, "mean": (y * gamma).mean((2, 3)), "again": bg.relu(y)}


GRAPH = bg.trace(net, bg.Tensor[2, 3, 6, 6], bg.Tensor[8, 3, 3, 3], bg.Tensor[1, 8, 1, 1]).graph
ALL = Formats(frozenset({"x", "weight", "gamma"}), frozenset({0, 2}))
LAST = "channels_last"


@pytest.mark.parametrize(
    ("given_", "found"),
    [
        (None, C_ORDER),
        ("contiguous_format", C_ORDER),
        ({}, C_ORDER),
        (LAST, ALL),
        (torch.channels_last, ALL),
        ({"x": torch.channels_last}, Formats(frozenset({"x"}))),
        ({"x": LAST, "weight": "contiguous_format"}, Formats(frozenset({"x"}))),
        ({"return": LAST}, Formats(outputs=frozenset({0, 2}))),
        ({"return.0": LAST}, Formats(outputs=frozenset({0}))),
        ({"return.again": LAST}, Formats(outputs=frozenset({2}))),
        ({"return.0": "contiguous_format", "return": LAST}, Formats(outputs=frozenset({2}))),
    ],
    ids=str,
)
def test_what_is_declared(given_, found):
    assert declared_formats(GRAPH, given_) == found


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ("nhwc", "memory_format is 'nhwc' .*one of contiguous_format, channels_last"),
        (torch.preserve_format, "memory_format is torch.preserve_format .*one of"),
        ({"x": 3}, "memory_format of 'x' is 3 .*one of"),
        ({"wieght": LAST}, "'wieght', which is no input or result of net .*mean 'weight'"),
        ({"return.3": LAST}, "'return.3', which is no input or result .*mean 'return.2'"),
        ({7: LAST}, "names 7, which is no input"),
        ({"return.mean": LAST}, "'return.mean' of net cannot be channels_last, .*rank 4"),
    ],
)
def test_what_is_refused(given_, words):
    with pytest.raises(BngenError, match=words):
        declared_formats(GRAPH, given_)


def test_gradients_follow():
    """Each gradient its input, and what arrives at a result the result."""
    graph = bg.trace(lambda x, w: (bg.conv2d(x, w), x * x), bg.Tensor[2, 3, 6, 6],
                     bg.Tensor[8, 3, 3, 3]).graph  # fmt: skip
    formats = declared_formats(graph, {"w": LAST, "return.0": LAST})
    joint = join_gradient(graph, formats=formats)
    assert joint.formats.inputs == {"w", joint.cotangents[0].name}
    assert joint.formats.outputs == {0, 3}


def test_gradients_of_a_program_that_returns_them_follow():
    def loss(x, w):
        return bg.conv2d(x, w).mean()

    types = bg.Tensor[2, 3, 6, 6], bg.Tensor[8, 3, 3, 3]
    graph = bg.value_and_grad(bg.trace(loss, *types)).graph
    assert graph.output_names == ("value", "grad:x", "grad:w")
    assert declared_formats(graph, {"w": LAST}).outputs == {2}
    asked = {"w": LAST, "return.grad:w": "contiguous_format"}
    assert declared_formats(graph, asked).outputs == set()


@given(programs(), st.data())
def test_what_a_user_writes(graph, data):
    formats = data.draw(formats_of(graph))
    assert declared_formats(graph, memory_format_of(formats)) == formats


# --- layouts --------------------------------------------------------------------------------------


def test_channels_last_is_c_order_where_the_bytes_are_the_same():
    def layout(*shape):
        return plain(bg.Tensor[shape], channels_last=True)

    assert layout(2, 3, 4, 5) == layout(1, 2, 1, 2) == CHANNELS_LAST
    assert layout(2, 1, 4, 5) == layout(2, 3, 1, 1) == layout(2, 3) == PLAIN
    assert physical_shape(bg.Tensor[2, 3, 4, 5], CHANNELS_LAST) == (2, 4, 5, 3)


@pytest.mark.parametrize(("channels", "same"), [(16, True), (32, False), (10, False)])
def test_one_block_of_channels_is_channels_last(channels, same):
    type_ = bg.Tensor[2, channels, 4, 5]
    assert same_bytes(type_, CHANNELS_LAST, Blocked(16, (channels,))) == same
    assert not same_bytes(type_, PLAIN, Blocked(16, (channels,)))
    assert not same_bytes(type_, PLAIN, CHANNELS_LAST)


# --- no sweep more than in C order ----------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["tiny_densenet", "tiny_resnet", "tiny_mobilenet", "tiny_vgg"])
def test_networks_sweep_no_map_more_often(name, level):
    joint, late = joint_program(make(name, batch=2, image=32, num_classes=5, dropout=0).graph)
    plans = [
        plan_program(joint, level, 16, late, formats=declared_formats(joint, given)).plan
        for given in (None, LAST)
    ]
    kernels, traffic = zip(
        *((len(p.kernels), total(kernel_traffic(p))) for p in plans), strict=True
    )
    assert kernels[0] == kernels[1] and traffic[0] == traffic[1]


@pytest.mark.parametrize("level", LEVELS)
@given(graph=programs())
def test_programs_sweep_no_map_more_often(level, graph):
    """One block of channels is channels-last already: then it is even a copy less."""
    joint, late = joint_program(graph)
    plain_, last = (
        plan_program(joint, level, 16, late, formats=declared_formats(joint, given)).plan
        for given in (None, LAST)
    )
    assert len(last.kernels) <= len(plain_.kernels)
    sweeps = [total(kernel_traffic(p)).sweeps for p in (plain_, last)]
    assert sweeps[1] <= sweeps[0]


@pytest.mark.parametrize("level", ["none", "icf"])
def test_images_in_different_orders_meet_without_a_copy(level):
    graph = bg.trace(lambda x, y: x * y, bg.Tensor[2, 3, 6, 6], bg.Tensor[2, 3, 6, 6]).graph
    for given_ in (None, {"x": LAST}, {"y": LAST, "return": LAST}, {"return": LAST}):
        formats = declared_formats(graph, given_)
        assert len(plan_program(graph, level, 16, formats=formats).plan.kernels) == 1
