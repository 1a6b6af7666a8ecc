"""Compiled index maps, sizes and normalizations, as networks use them, against PyTorch."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import bngen as bg
from bngen.ir.interp import run
from bngen.passes.pipeline import plan_program
from bngen.passes.prepare import join_gradient, prepare
from tests.compiled import check, compiled
from tests.oracle import assert_same, torch_run
from tests.profiles import LEVELS, some
from tests.strategies import random_args

EXAMPLES = settings.default.max_examples // 2


def traced(fn, *shapes, dtype="float32"):
    return bg.trace(fn, *(bg.Tensor(s, dtype) for s in shapes)).graph


def norm(x):
    return bg.batch_norm(x, None, None, training=True)


def unet(x, w, up, v):
    """Down, and up again in three ways, beside what was there before."""
    skip = bg.relu(norm(bg.conv2d(x, w, padding=1)))
    low = bg.max_pool2d(skip, 2)
    risen = bg.conv_transpose2d(low, up, stride=2)
    near = bg.interpolate(low, scale_factor=2)
    smooth = bg.interpolate(low, (10, 14), mode="bilinear")
    sharp = bg.interpolate(low, (10, 14), mode="bicubic", align_corners=True)
    return norm(bg.conv2d(bg.cat([skip, risen + smooth - sharp, near], 1), v, padding=1))


UNET = (2, 3, 10, 14), (10, 3, 3, 3), (10, 10, 2, 2), (6, 30, 3, 3)


SIDES = st.tuples(st.integers(1, 9), st.integers(1, 9))
FACTORS = st.tuples(*(st.floats(0.4, 2.9) for _ in "hw"))


@settings(max_examples=EXAMPLES)
@given(SIDES, st.one_of(SIDES, FACTORS), st.sampled_from(["bilinear", "bicubic"]), st.booleans())
def test_mixtures_of_any_size(sides, wanted, mode, aligned):
    """Forward and gradient; larger, smaller, of single pixels, by extents and by factors."""
    name = "size" if isinstance(wanted[0], int) else "scale_factor"
    new = wanted
    if name == "scale_factor":
        new = [math.floor(s * f) for s, f in zip(sides, wanted, strict=True)]
    assume(min(new) > 0 and tuple(new) != sides)
    options = {name: wanted, "mode": mode, "align_corners": aligned}
    graph = traced(lambda x: bg.interpolate(norm(x), **options), (2, 5, *sides))
    x = random_args(graph, 0)["x"]
    theirs = F.interpolate(torch.tensor(x), **options)
    assert graph.outputs[0].shape == tuple(theirs.shape)
    check(graph, {"x": x})


def test_positions_are_pytorchs():
    """The meaning that compiled mixtures are compared with is told sizes; this one is not."""
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for mode, aligned in itertools.product(("bilinear", "bicubic"), (False, True)):
        for told in ({"size": (9, 4)}, {"scale_factor": (1.7, 0.6)}, {"scale_factor": (1.1, 2)}):
            options = {**told, "mode": mode, "align_corners": aligned}
            graph = traced(lambda x: bg.interpolate(x, **options), x.shape)  # noqa: B023
            (ours,) = run(graph, {"x": x.numpy()}, "float64").outputs
            np.testing.assert_allclose(ours, F.interpolate(x, **options), rtol=1e-6, atol=1e-6)


def test_the_same_extents_by_a_scale_have_no_gradient_in_pytorch():
    with pytest.raises(bg.ProgramError, match="bicubic to the same extents by a scale"):
        traced(lambda x: bg.interpolate(x, scale_factor=1.1, mode="bicubic"), (1, 1, 5, 5))


@pytest.mark.parametrize("level", LEVELS[-1:])
def test_decoder(level):
    graph = traced(unet, *UNET)
    check(graph, random_args(graph, 0), level)


def same_padding(x, w, v):
    """TensorFlow's padding, other borders, and every second pixel."""
    y = bg.silu(norm(bg.conv2d(bg.pad(x, (0, 1, 1, 2)), w, stride=2)))
    y = bg.pad(bg.pad(y, (2, 1, 0, 1), "reflect"), (1, 0, 1, 1), "circular")
    y = bg.conv2d(bg.pad(y, (1, 2, 0, 1), "replicate"), v)
    return norm(bg.flip(y, (3,))), bg.roll(y, 2, 3)[:, :, ::2, 1::3]


@pytest.mark.parametrize("level", some(["icf", "rcf"], 1))
def test_borders(level):
    graph = traced(same_padding, (2, 10, 9, 8), (18, 10, 3, 3), (5, 18, 3, 2))
    check(graph, random_args(graph, 0), level)


def shuffled(x, w, v):
    """ShuffleNet's unit twice: half of the channels pass, the other half is convolved."""
    for weight in (w, v):
        left, right = bg.chunk(x, 2, 1)
        right = bg.relu(norm(bg.conv2d(right, weight)))
        x = bg.channel_shuffle(bg.cat([left, right], 1), 2)
    return norm(x)


@pytest.mark.parametrize("channels", [12, 32])
@pytest.mark.parametrize("level", ["none", "icf"])
def test_channel_shuffle(level, channels):
    half = channels // 2
    graph = traced(shuffled, (3, channels, 5, 4), (half, half, 1, 1), (half, half, 1, 1))
    check(graph, random_args(graph, 0), level)


def test_a_shuffle_has_no_sweep_of_its_own_where_a_convolution_reads_it():
    def net(x, w, v):
        y = norm(bg.conv2d(x, w))
        n, c, h, s = y.shape
        y = bg.transpose(y.view(n, 2, c // 2, h, s), 1, 2).reshape(n, c, h, s)
        return bg.conv2d(bg.relu(y), v)

    graph = traced(net, (2, 16, 6, 6), (32, 16, 1, 1), (8, 32, 1, 1))
    kernels = plan_program(graph, "icf", 16).plan.kernels
    holding = [k for k in kernels if any(n.row.gathers for n in k.nodes)]
    assert [k.anchor.row.direction for k in holding] == ["forward"]


def mixed_up(x, w):
    """Pixels into channels and back, and the other order of axes that attention is written in."""
    y = bg.pixel_unshuffle(norm(x), 2)
    y = bg.pixel_shuffle(bg.conv2d(y, w, padding=1), 2)
    z = bg.permute(y, (0, 2, 3, 1))
    z = bg.layer_norm(z, z.shape[-1])
    parts = bg.unbind(bg.stack(bg.split(z, [3, 2], -1)[:1] * 2, 1), 1)
    return bg.permute(z, (0, 3, 1, 2)) * 0.5 + y, parts[0]


@pytest.mark.parametrize("level", ["mvf", "icf"])
def test_other_orders(level):
    graph = traced(mixed_up, (2, 4, 6, 8), (20, 16, 3, 3))
    check(graph, random_args(graph, 0), level)


def normalized(x, w, gamma, beta):
    y = bg.group_norm(bg.conv2d(x, w, padding=1), 4, gamma, beta)
    y = bg.instance_norm(bg.relu(y), weight=gamma, bias=beta)
    y = bg.local_response_norm(y, 3, 0.5)
    return bg.normalize(y, dim=1) + bg.adaptive_max_pool2d(y, (3, 1)).amax((2, 3), True)


@pytest.mark.parametrize("level", some(["icf", "none"], 1))
def test_normalizations(level):
    graph = traced(normalized, (2, 5, 7, 5), (20, 5, 3, 3), (20,), (20,))
    check(graph, random_args(graph, 0), level)


def standardized(w, gain):
    """Weights as they are normalized before they are used (Qiao et al. 2019)."""
    return bg.batch_norm(w.reshape(1, w.shape[0], -1), None, None, gain, training=True)


def test_standardized_weights():
    graph = traced(standardized, (20, 10, 3, 3), (20,))
    check(graph, random_args(graph, 0))


@pytest.mark.parametrize(
    ("fn", "shapes"),
    [
        (standardized, ((32, 16, 3, 3), (32,))),
        (lambda x, w: bg.layer_norm(x, 64, w), ((32, 64), (64,))),
    ],
)
def test_rows_are_normalized_where_they_lie_in_ten_sweeps(fn, shapes):
    """Forward they are read three times and written once, backward read five times, written once.

    That is what the formulas need, summed row by row: no gradient is stored between kernels.
    """
    graph = traced(fn, *shapes)
    plan = prepare(join_gradient(graph), 16).planned.plan
    size = math.prod(shapes[0])
    moved = [v for k in plan.kernels for v in (*k.inputs, *k.outputs) if v.type.size == size]
    ops = {op for k in plan.kernels for op in k.sublayers}
    assert "copy" not in ops
    weight_sum = 2 * (fn is not standardized)  # of all rows, in a kernel of its own
    assert len(moved) == 4 + 6 + weight_sum


@pytest.mark.parametrize("shape", [(6, 20), (4, 20, 9), (2, 10, 3, 4, 5)], ids=str)
def test_batch_norm_of_other_ranks(shape):
    def net(x, gamma, beta):
        return bg.silu(bg.batch_norm(bg.tanh(x), None, None, gamma, beta, training=True))

    graph = traced(net, shape, shape[1:2], shape[1:2])
    check(graph, random_args(graph, 0))


def test_double_precision():
    graph = traced(unet, *UNET, dtype="float64")
    args = {k: a.astype("float64") for k, a in random_args(graph, 0).items()}
    theirs = torch_run(graph, args, torch.float64).outputs[0]
    assert_same(compiled(graph, grad=False)(*args.values()), theirs, "decoder")


@pytest.mark.parametrize("level", LEVELS)
def test_elements_that_no_lane_holds_are_not_read(level):
    """Channels that fill no vector, read in another order: by gathers that stay inside."""

    def net(x, w):
        y = bg.flip(bg.pad(bg.relu(x), (0, 0, 0, 0, 1, 2)), (1,))
        return bg.conv2d(bg.roll(y, 5, 1), w)

    graph = traced(net, (1, 10, 3, 3), (3, 13, 1, 1))
    check(graph, random_args(graph, 0), level)
