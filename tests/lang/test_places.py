"""Index maps of the language against PyTorch: orders of axes, parts, borders, other sizes."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import bngen as bg
from bngen.ir.ops.resize import nearest_indices
from tests.lang.meaning import agree, normal, traced


def same(fn, *shape):
    """The same function of our tensors and of PyTorch's."""
    agree(lambda *t: fn(bg, *t), lambda *t: fn(torch, *t), normal(*shape))


@pytest.mark.parametrize(
    "fn",
    [
        lambda m, x: m.permute(x, (0, 2, 3, 1)),
        lambda m, x: m.permute(x, (-1, 0, -2, 1)),
        lambda m, x: m.transpose(x, 1, -1),
        lambda m, x: m.movedim(x, (0, -1), (2, 0)),
        lambda m, x: m.movedim(x, 1, -1),
        lambda m, x: m.t(x[0, 0]),
        lambda m, x: m.channel_shuffle(x, 3),
        lambda m, x: m.pixel_shuffle(m.cat([x, x], 1), 2),
        lambda m, x: m.pixel_unshuffle(x[:, :, :, :4], 2),
        lambda m, x: m.flip(x, (1, -1)),
        lambda m, x: m.roll(x, (2, -9), (1, 3)),
        lambda m, x: m.roll(x, 5),
        lambda m, x: m.stack([x, 2 * x], -1),
        lambda m, x: m.stack([x, 2 * x]),
        lambda m, x: m.squeeze(m.unsqueeze(x, 2)),
        lambda m, x: m.squeeze(m.unsqueeze(x, -5), (0, 1)),
        lambda m, x: m.unflatten(x, 1, (-1, 3)),
        lambda m, x: m.narrow(x, -1, -3, 2),
        lambda m, x: x[:, ::2, 1:4:2, ::3],
        lambda m, x: x[None, ..., 0, None, ::4],
    ],
)
def test_orders_and_parts(fn):
    same(fn, 2, 6, 4, 5)


@pytest.mark.parametrize(
    "fn",
    [
        lambda m, x: m.split(x, 4, 1),
        lambda m, x: m.split(x, [1, 5, 3], 1),
        lambda m, x: m.chunk(x, 4, 1),
        lambda m, x: m.chunk(x, 20, 1),
        lambda m, x: m.unbind(x, 1),
    ],
)
def test_parts_of_an_axis(fn):
    same(fn, 2, 9, 3)


def test_repetitions():
    x = normal(3, 1, 2)
    agree(lambda t: bg.repeat(t, 2, 1, 3, 2), lambda t: t.repeat(2, 1, 3, 2), x)
    agree(lambda t: bg.expand(t, (4, -1, 5, 2)), lambda t: t.expand(4, -1, 5, 2), x)


PADS = {
    "constant": [(1, 2), (0, 1, 2, 0, -1, -1), (-2, 3, 1, 1, 0, 0, 1, 0)],
    "reflect": [(3, 1, 0, 2)],
    "replicate": [(3, 1, 5, 2)],
    "circular": [(4, 1, 3, 2)],
}


@pytest.mark.parametrize(("mode", "pad"), [(m, p) for m, pads in PADS.items() for p in pads])
def test_pad(mode, pad):
    kwargs = {"value": 1.5} if mode == "constant" else {}
    agree(lambda t: bg.pad(t, pad, mode, **kwargs), lambda t: F.pad(t, pad, mode, **kwargs),
          normal(2, 3, 5, 4))  # fmt: skip


def test_pad_of_other_types():
    for array in (np.arange(6), np.arange(6) % 2 > 0, np.arange(6, dtype=np.uint8)):
        agree(lambda t: bg.pad(t, (1, 2)), lambda t: F.pad(t, (1, 2)), array)
        agree(lambda t: bg.flip(t, 0), lambda t: torch.flip(t, (0,)), array)
    with pytest.raises(bg.ProgramError, match=r"pad: value 0.5 is no int64"):
        traced(lambda t: bg.pad(t, (1, 1), value=0.5), np.arange(3)).graph  # noqa: B018


SIZES = [
    {"size": (10, 8)}, {"size": 7}, {"size": (2, 9)}, {"size": (5, 4)}, {"scale_factor": 2},
    {"scale_factor": (1.7, 0.6)}, {"scale_factor": 2.5, "recompute_scale_factor": True},
]  # fmt: skip


@pytest.mark.parametrize("kwargs", SIZES, ids=str)
def test_interpolate(kwargs):
    x = normal(2, 3, 5, 4)

    def both(more):
        options = {**kwargs, **more}
        agree(lambda t: bg.interpolate(t, **options), lambda t: F.interpolate(t, **options), x)

    for mode in ("nearest", "nearest-exact", "area"):
        both({"mode": mode})
    for mode, aligned in itertools.product(("bilinear", "bicubic"), (False, True)):
        # PyTorch's positions are those of float32's scales, even in double precision.
        options = {**kwargs, "mode": mode, "align_corners": aligned}
        ours = bg.trace(lambda t: bg.interpolate(t, **options), bg.Tensor[2, 3, 5, 4]).graph  # noqa: B023
        assert ours.outputs[0].shape == tuple(F.interpolate(torch.tensor(x), **options).shape)
        agree(
            lambda t: bg.interpolate(t, **options),  # noqa: B023
            lambda t: F.interpolate(t, **options),  # noqa: B023
            x,
            sums=True,
        )


@pytest.mark.parametrize("factor", [1.1, (1.0, 2.2), (2.3, 1.6)], ids=str)
def test_a_scale_that_gives_the_extents_of_another(factor):
    """PyTorch's nearest goes by the scale or by the extents, as the map is large or small."""
    for mode in ("nearest-exact", "bilinear"):
        options = {"scale_factor": factor, "mode": mode}
        agree(lambda t: bg.interpolate(t, **options), lambda t: F.interpolate(t, **options),  # noqa: B023
              normal(2, 3, 3, 4), sums=True)  # fmt: skip
    with pytest.raises(bg.ProgramError, match="nearest to 1 or 2 times the extents by another"):
        _ = traced(lambda t: bg.interpolate(t, scale_factor=factor), normal(2, 3, 3, 4)).graph


def test_interpolate_of_one_axis_and_of_one_pixel():
    for mode, dtype in (("nearest", "float32"), ("linear", "float64")):
        agree(
            lambda t: bg.interpolate(t, 9, mode=mode),  # noqa: B023
            lambda t: F.interpolate(t, 9, mode=mode),  # noqa: B023
            normal(2, 3, 4).astype(dtype), sums=True,
        )  # fmt: skip
    agree(lambda t: bg.interpolate(t, (3, 4), mode="bilinear"),
          lambda t: F.interpolate(t, (3, 4), mode="bilinear"), normal(2, 3, 1, 1))  # fmt: skip


def test_the_nearest_element_is_pytorchs_for_every_size():
    for centred, mode in ((False, "nearest"), (True, "nearest-exact")):
        for size in range(1, 34):
            x = torch.arange(size, dtype=torch.float64)[None, None, None]
            for out in range(1, 70):
                ours = nearest_indices(size, out, size / out, centred)
                theirs = F.interpolate(x, (1, out), mode=mode)[0, 0, 0]
                np.testing.assert_array_equal(ours, theirs)


TRANSPOSED = [
    {}, {"stride": 2}, {"stride": (2, 3), "padding": 1, "output_padding": (1, 2)},
    {"padding": 2}, {"dilation": 2}, {"stride": 1, "dilation": (1, 3), "output_padding": (0, 2)},
    {"stride": 2, "groups": 2, "padding": (0, 1)},
]  # fmt: skip


@pytest.mark.parametrize("kwargs", TRANSPOSED, ids=str)
def test_conv_transpose2d(kwargs):
    weight = (4, 3, 3, 3) if "groups" in kwargs else (4, 6, 3, 3)
    agree(
        lambda *t: bg.conv_transpose2d(*t, **kwargs),
        lambda *t: F.conv_transpose2d(*t, **kwargs),
        normal(2, 4, 5, 4), normal(*weight), normal(6), sums=True,
    )  # fmt: skip


@pytest.mark.parametrize("size", [1, 3, (2, 5), (None, 2), (12, 7)])
def test_adaptive_max_pool2d(size):
    x = normal(2, 3, 10, 7)
    x[0, 0] = -np.inf
    agree(lambda t: bg.adaptive_max_pool2d(t, size),
          lambda t: F.adaptive_max_pool2d(t, size), x)  # fmt: skip


def test_another_divisor():
    agree(lambda t: bg.avg_pool2d(t, 3, 2, 1, divisor_override=4),
          lambda t: F.avg_pool2d(t, 3, 2, 1, divisor_override=4), normal(2, 3, 7, 6))  # fmt: skip


def test_padding_before_a_convolution_is_the_convolutions_own():
    from bngen.passes.index_maps import join_index_maps

    def same_padding(x, w):
        return bg.conv2d(bg.pad(x, (0, 1, 1, 2)), w, stride=2)

    x, w = normal(2, 3, 7, 6), normal(4, 3, 3, 3)
    joint = bg.value_and_grad(bg.trace(lambda x, w: same_padding(x, w).sum(),
                                       bg.Tensor[x.shape], bg.Tensor[w.shape]))  # fmt: skip
    nodes = join_index_maps(joint.graph).nodes
    padded = {n.op: n.attrs["padding"] for n in nodes if "padding" in n.attrs}
    assert padded == dict.fromkeys(padded, (1, 2, 0, 1)) and len(padded) == 3
    assert not any(n.row.gathers for n in nodes)
