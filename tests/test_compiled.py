"""What the compiler makes of programs, against PyTorch and float64, at each level of fusion.

Random programs first: outputs, updates and the gradient of every floating-point input, on awkward
arguments too. Then what random programs seldom hit: see the headings.
"""

from __future__ import annotations

import functools
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st

import bngen as bg
from bngen.compiler import FUSION_LEVELS
from bngen.ir.interp import run
from tests.compiled import (
    check,
    check_forward,
    check_gradients,
    compiled,
    cotangents_for,
    forward,
)
from tests.oracle import assert_close, kink_margin, torch_runs
from tests.profiles import LEVELS, THOROUGH, some, takes_long
from tests.strategies import formats_of, memory_format_of, programs, random_args

NATIVE, AVX2 = "llvm -mcpu=native", "llvm -mcpu=x86-64-v3"
QUICK = settings.default.derandomize
EXAMPLES = max(1, settings.default.max_examples // 6)
KINK_MARGIN = 1e-5


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def arguments(graph, seed=0, **given):
    """Random arguments, some of them given."""
    args = random_args(graph, seed)
    return args | {k: np.asarray(v, args[k].dtype) for k, v in given.items()}


# --- random programs --------------------------------------------------------------------------


@pytest.mark.parametrize("target", [NATIVE, AVX2], ids=["native", "avx2"])
@pytest.mark.parametrize("level", FUSION_LEVELS)
def test_random_programs(level, target):
    def body(graph, number, data):
        formats = data.draw(formats_of(graph))
        module = compiled(graph, level, target, memory_format=memory_format_of(formats))
        for kind in ("normal", "awkward"):
            check_forward(module, graph, random_args(graph, number, kind))
        args = random_args(graph, number)
        if kink_margin(graph, args) > KINK_MARGIN:
            check_gradients(module, graph, args, cotangents_for(graph, number))

    # Compiling a program takes a second: shrinking one is for the thorough profile.
    phases = [Phase.explicit, Phase.generate] if QUICK else list(Phase)
    test = settings(max_examples=EXAMPLES, phases=phases)(
        given(programs(), st.integers(0, 2**32 - 1), st.data())(body)
    )
    if QUICK:  # the same programs each time, but not the same at each level
        test = seed(zlib.crc32(f"{level} {target}".encode()))(test)
    test()


# --- statistics -------------------------------------------------------------------------------


def composite(channels, shape=(4, 6, 5, 7)):
    """conv - BN - ReLU - conv."""

    def net(x, w, gamma, beta, v):
        y = bg.batch_norm(bg.conv2d(x, w), None, None, gamma, beta, training=True)
        return bg.conv2d(bg.relu(y), v)

    per_channel = bg.Tensor[channels]
    w, v = bg.Tensor[channels, shape[1], 1, 1], bg.Tensor[5, channels, 1, 1]
    return bg.trace(net, bg.Tensor[shape], w, per_channel, per_channel, v).graph


@pytest.mark.parametrize("level", LEVELS)
def test_channels_of_very_different_variance(level, channels=40):
    """Channels 16 and up, and every odd one, live on other scales than the first vector."""
    graph = composite(channels)
    args = arguments(graph, beta=np.full(channels, 0.5))
    scale = 10.0 ** (np.arange(channels) // 16 * 3 - 3 * (np.arange(channels) % 2))
    args["w"] *= scale.astype(np.float32).reshape(-1, 1, 1, 1)
    check(graph, args, level)


@pytest.mark.parametrize("level", some(["icf", "bnff", "none"], 2))
@pytest.mark.parametrize("gamma", some([0.0, "mixed", -1.0], 2))
def test_gamma_zero_and_negative(gamma, level):
    gammas = np.resize([0.0, -2.0, 1.0], 20) if gamma == "mixed" else np.full(20, gamma)
    graph = composite(20)
    # No channel lies on the ReLU's kink when gamma is zero.
    check(graph, arguments(graph, gamma=gammas, beta=np.resize([0.5, -0.4], 20)), level)


@pytest.mark.parametrize("level", ["none", "bnff", "icf"])
def test_constant_channels(level):
    graph = composite(20)
    args = arguments(graph, beta=np.resize([0.5, -0.4], 20))
    args["w"][::3] = 0
    module = compiled(graph, level)
    check_forward(module, graph, args)
    gradients = _backward(module, graph, args)
    assert all(np.isfinite(g).all() for g in gradients.values())
    # The gradient of what does not vary is beta's alone: xhat is zero.
    np.testing.assert_array_equal(gradients["gamma"][::3], 0)


def _backward(module, graph, args):
    forward(module, args)
    return module.backward(*cotangents_for(graph))


@pytest.mark.parametrize("level", LEVELS)
def test_variance_far_from_zero(level):
    """Mean / deviation of 1e4 over 376,320 samples: E[x^2] - E[x]^2 has no digit left there."""

    def net(x, w):
        return bg.bn_stats(bg.conv2d(x, w))

    shape = (30, 16, 112, 112)
    graph = bg.trace(net, bg.Tensor[shape], bg.Tensor[16, 16, 1, 1]).graph
    x = normal(*shape)
    x += np.float32(1e4)
    mean, var = bg.build(graph, fusion=level)(x, np.eye(16, dtype=np.float32)[:, :, None, None])
    exact = x.astype(np.float64)
    exact_mean, exact_var = exact.mean((0, 2, 3)), exact.var((0, 2, 3))
    assert (var >= 0).all()
    np.testing.assert_allclose(var, exact_var, rtol=1e-4)
    np.testing.assert_allclose(mean, exact_mean, rtol=1e-7)


@pytest.mark.parametrize("level", LEVELS)
def test_nan_passes_through_as_in_pytorch(level):
    """One NaN spoils its image in a convolution, and its channels in training-mode BN."""

    def net(x, w):
        y = bg.conv2d(x, w, padding=1)
        z = bg.relu(bg.batch_norm(y, None, None, training=True))
        return y, z, bg.max_pool2d(y, 2), bg.relu(y), bg.hardtanh(y, 0.0, 6.0)

    graph = bg.trace(net, bg.Tensor[2, 3, 6, 6], bg.Tensor[20, 3, 3, 3]).graph
    args = arguments(graph)
    args["x"][1, 2, 3, 3] = np.nan
    module = compiled(graph, level, grad=False)
    outputs, _ = forward(module, args)
    theirs, exact = torch_runs(graph, args, runs=1), run(graph, args, "float64")
    assert np.isnan(outputs[0]).any() and not np.isnan(outputs[0]).all()
    assert np.isnan(outputs[1]).all()
    for ours, reference, wide in zip(outputs, theirs[0].outputs, exact.outputs, strict=True):
        np.testing.assert_array_equal(np.isnan(ours), np.isnan(reference))
        assert_close(ours, reference, wide, "besides NaN")


# --- shapes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 6, 5, 7), (1, 6, 1, 9), (9, 6, 1, 1), (2, 6, 1, 2)], ids=str)
@pytest.mark.parametrize("level", ["none", "icf"])
def test_batch_one_and_single_pixels(shape, level):
    graph = composite(10, shape)
    check(graph, arguments(graph, beta=np.resize([0.7, -0.6], 10)), level)


@pytest.mark.parametrize(
    ("channels", "width"),
    some([(3, 13), (50, 53), (24, 15), (10, 15), (24, 29), (50, 13), (3, 53)], 3),
)
def test_odd_channels_and_widths(channels, width):
    def net(x, w, gamma, beta, v):
        y = bg.conv2d(x, w, padding=1)
        y = bg.silu(bg.batch_norm(y, None, None, gamma, beta, training=True))
        return bg.conv2d(y, v, padding=1)

    c = bg.Tensor[channels]
    types = bg.Tensor[2, 7, 5, width], bg.Tensor[channels, 7, 3, 3], c, c
    graph = bg.trace(net, *types, bg.Tensor[9, channels, 3, 3]).graph
    check(graph, arguments(graph))


CONVOLUTIONS = {
    "strided": {"stride": 2, "padding": 1},
    "strided, with rows left over": {"stride": 3},
    "strided 1x1": {"stride": 2, "r": 1},
    "unequal strides": {"stride": (1, 2), "padding": (0, 2)},
    "dilated": {"dilation": 2, "padding": 2},
    "dilated and strided": {"dilation": (2, 1), "stride": 2, "padding": 1},
    "more padding than window": {"padding": 4},
    "window as large as the map": {"r": 9},
    "7x7, stride 2": {"r": 7, "stride": 2, "padding": 3},
    "same, even window": {"r": 4, "padding": "same"},
}


@pytest.mark.parametrize("name", CONVOLUTIONS if THOROUGH else list(CONVOLUTIONS)[::2])
def test_convolutions(name):
    """Between BN with an activation and BN, so that load and store slots are filled."""
    attrs = dict(CONVOLUTIONS[name])
    r = attrs.pop("r", 3)

    def net(x, w):
        x = bg.silu(bg.batch_norm(x, None, None, training=True))
        return bg.batch_norm(bg.conv2d(x, w, **attrs), None, None, training=True)

    graph = bg.trace(net, bg.Tensor[3, 10, 9, 9], bg.Tensor[24, 10, r, r]).graph
    check(graph, arguments(graph))


@pytest.mark.parametrize(
    ("channels", "filters", "groups", "stride"),
    some([(50, 50, 50, 2), (24, 48, 24, 1), (48, 32, 4, 2), (12, 18, 6, 1), (64, 64, 2, 1),
          (16, 16, 16, 1), (32, 32, 32, 2), (48, 48, 2, 1)], 5),
)  # fmt: skip
def test_grouped_convolutions(channels, filters, groups, stride):
    """Depthwise, with several filters a channel, and groups that cut blocks of channels."""

    def net(x, w):
        x = bg.silu(bg.batch_norm(x, None, None, training=True))
        y = bg.conv2d(x, w, stride=stride, padding=1, groups=groups)
        return bg.batch_norm(y, None, None, training=True)

    types = bg.Tensor[2, channels, 7, 7], bg.Tensor[filters, channels // groups, 3, 3]
    graph = bg.trace(net, *types).graph
    check(graph, arguments(graph))


@pytest.mark.parametrize("memory_format", [None, "channels_last"])
def test_weights_that_are_computed_for_groups_that_cut_blocks(memory_format):
    def net(x, w):
        return bg.conv2d(x, w * 0.5, padding=1, groups=2)

    graph = bg.trace(net, bg.Tensor[2, 24, 5, 5], bg.Tensor[20, 12, 3, 3]).graph
    check(graph, arguments(graph), "none", memory_format=memory_format)


# --- sharing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_a_map_with_eight_consumers(level):
    def net(x, w, v):
        y = bg.conv2d(x, w, padding=1)
        normal_ = bg.batch_norm(y, None, None, training=True)
        branches = [
            bg.conv2d(bg.relu(normal_), v),
            bg.conv2d(y, v, stride=2),
            bg.silu(y),
            bg.avg_pool2d(y, 3, stride=1, padding=1),
            bg.max_pool2d(y, 2),
            y * y,
            bg.conv2d(bg.sigmoid(y), v),
            y.mean((2, 3)),
        ]
        return (*branches, y)

    types = bg.Tensor[2, 6, 6, 6], bg.Tensor[20, 6, 3, 3], bg.Tensor[9, 20, 1, 1]
    graph = bg.trace(net, *types).graph
    check(graph, arguments(graph, 3), level)


@pytest.mark.parametrize("level", ["none", "icf"])
def test_what_is_made_of_joined_and_cut_vectors(level):
    """Vectors that do not lie in what they are part of: their copies have nests of their own."""

    def net(v, w):
        joined = bg.cat([v[:16], w])
        return joined * 2.0, bg.cat([bg.exp(v), bg.exp(w)]), joined[3:9].reshape(2, 3) + 1.0

    graph = bg.trace(net, bg.Tensor[24], bg.Tensor[8]).graph
    check(graph, arguments(graph), level)


@pytest.mark.parametrize("level", ["none", "icf"])
def test_comparisons_that_become_numbers(level):
    def net(x, w):
        y = bg.conv2d(x * (x < 1.0).to("float32"), w, padding=1)
        return y * (y > 0.0).to("float32"), (y > x[:, :1]).to("int32")

    graph = bg.trace(net, bg.Tensor[2, 12, 6, 6], bg.Tensor[20, 12, 3, 3]).graph
    check(graph, arguments(graph), level)


@pytest.mark.parametrize("level", ["none", "icf"])
def test_inputs_used_twice(level):
    """As both operands, under two convolutions, and as map and residual."""

    def net(x, w):
        y = bg.conv2d(bg.relu(bg.conv2d(x, w, padding=1)), w, padding=1)
        return bg.cat([y + x, x * x, x + x], dim=1)

    graph = bg.trace(net, bg.Tensor[2, 12, 6, 6], bg.Tensor[12, 12, 3, 3]).graph
    check(graph, arguments(graph), level)


def dense_and_residual():
    """Two dense layers, a transition and a residual block, all over BN, ending in a loss."""
    layers = bg.layers

    def bn_relu(x, name):
        return bg.relu(layers.batch_norm(x, name))

    def net(x, labels):
        x = layers.conv2d(x, "stem", 16, 3, padding=1, bias=False)
        for i in range(2):
            with bg.scope(f"dense{i}"):
                y = layers.conv2d(bn_relu(x, "norm1"), "conv1", 32, 1, bias=False)
                y = layers.conv2d(bn_relu(y, "norm2"), "conv2", 8, 3, padding=1, bias=False)
                x = bg.cat([x, y], dim=1)
        x = bg.avg_pool2d(layers.conv2d(bn_relu(x, "norm"), "transition", 24, 1, bias=False), 2)
        y = layers.conv2d(bn_relu(x, "norm3"), "residual", 24, 3, padding=1, bias=False)
        x = bg.relu(x + layers.batch_norm(y, "norm4"))
        return bg.cross_entropy(layers.linear(x.mean((2, 3)), "fc", 10), labels)

    return bg.trace(net, bg.Tensor[4, 3, 16, 16], bg.Tensor[4, bg.int64])


@pytest.mark.parametrize("level", some(LEVELS[::-1], 1))
def test_a_small_network(level):
    graph = dense_and_residual().graph
    module = check(graph, random_args(graph, 1), level, target=AVX2)
    assert len(module.signature.gradients) == 24


# --- runs -------------------------------------------------------------------------------------


@functools.cache
def whole_step(threads=None, which=0):
    """The module of so many threads; another of the same for each ``which``."""
    return bg.build(dense_and_residual(), grad=True, threads=threads).init(0)


def bits(module, x, labels):
    """Everything a step computes, as bytes."""
    module.init(0)
    loss = module(x, labels)
    gradients = module.backward()
    return {"loss": loss.tobytes(), **{n: g.tobytes() for n, g in gradients.items()}} | {
        f"state {n}": a.tobytes() for n, a in module.state_dict().items()
    }


def test_the_same_bits_every_time():
    x, labels = normal(4, 3, 16, 16), np.arange(4)
    module = whole_step()
    first = bits(module, x, labels)
    bits(module, -x, labels)  # leaves another arena behind
    assert bits(module, x, labels) == first


@takes_long("compiles a network twice; tests/codegen/test_workers.py compares kernels")
def test_the_same_bits_of_every_build():
    x, labels = normal(4, 3, 16, 16), np.arange(4)
    assert bits(whole_step(which=1), x, labels) == bits(whole_step(), x, labels)


@takes_long("compiles a network twice; ranks of one thread are in tests/torch_bridge")
def test_one_thread_and_all():
    graph, args = dense_and_residual().graph, None
    for threads in (1, None):  # None is all of the machine's
        module = whole_step(threads)
        args = args or random_args(graph, 2)
        check_forward(module, graph, args)
        check_gradients(module, graph, args)


def test_taking_turns_with_pytorch():
    """Two libraries, one pool of threads; nothing of one's work is lost to the other."""
    module = whole_step()
    x, labels = normal(4, 3, 16, 16), np.arange(4)
    expected = bits(module, x, labels)
    image, filters = torch.tensor(normal(4, 16, 16, 16)), torch.tensor(normal(16, 16, 3, 3))
    convolved = F.conv2d(image, filters)
    for _ in range(10):
        assert bits(module, x, labels) == expected
        torch.testing.assert_close(F.conv2d(image, filters), convolved, rtol=0, atol=0)
