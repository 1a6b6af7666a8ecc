"""The gradient of batch normalization: the coarse op, its sums, and its halves.

The formula is that of Ioffe and Szegedy (2015): with M elements a channel and s = var + eps, ::

    dx = weight / sqrt(s) * (dy - sum(dy) / M - (x - mean) * sum(dy * (x - mean)) / (M * s))

Only the first term needs dy; the rest is affine in x and can be applied later (`deferrable`).
"""

from __future__ import annotations

import numpy as np

from bngen.ir.ops.reduce import ROW_GROUPS, cut_rows, infer_partial, infer_stats
from bngen.ir.ops.row import (
    OpDef,
    Types,
    along_channel,
    infer_first,
    infer_first_of_two,
    pixel_axes,
    pointwise,
)
from bngen.ir.types import Attrs, TensorType


def _infer_batch_norm_grad(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    return (types[0], *infer_stats(2, maps=2)(types, attrs))


def _batch_norm_grad(arrays, attrs):
    dy, x, mean, var, weight = arrays
    axes, count = pixel_axes(x), x.size // x.shape[1]
    centred = x - along_channel(mean, x.ndim)
    inv = 1.0 / np.sqrt(var + x.dtype.type(attrs["eps"]))
    dbias = dy.sum(axis=axes)
    dweight = (dy * centred).sum(axis=axes) * inv
    scale = inv if weight is None else inv * weight
    xhat = centred * along_channel(inv, x.ndim)
    inner = dy - along_channel(dbias / count, x.ndim)
    inner = inner - xhat * along_channel(dweight / count, x.ndim)
    return inner * along_channel(scale, x.ndim), dweight, dbias


def bn_grad_sums(arrays, attrs):
    """Sums of ``dy`` and of ``dy * (x - mean)`` over each channel."""
    dy, x, mean = arrays
    axes = pixel_axes(x)
    return dy.sum(axis=axes), (dy * (x - along_channel(mean, x.ndim))).sum(axis=axes)


def _bn_grad_partial_sums(arrays, attrs):
    dy, x, mean = arrays
    centred = x - along_channel(mean, x.ndim)
    return tuple(cut_rows(v, attrs["row_groups"]).sum(axis=1) for v in (dy, dy * centred))


def bn_grad_input(arrays, attrs):
    """The gradient of x, of those two sums over all of the batch."""
    dy, x, mean, var, weight, sum_dy, sum_dy_centred = arrays
    spread, count = var + x.dtype.type(attrs["eps"]), attrs["count"]
    scale = 1.0 / np.sqrt(spread)
    scale = scale if weight is None else scale * weight
    centred = x - along_channel(mean, x.ndim)
    inner = dy - along_channel(sum_dy / count, x.ndim)
    inner = inner - centred * along_channel(sum_dy_centred / (count * spread), x.ndim)
    return (inner * along_channel(scale, x.ndim),)


def _bn_grad_direct(arrays, attrs):
    dy, var, weight = arrays
    scale = 1.0 / np.sqrt(var + dy.dtype.type(attrs["eps"]))
    return (dy * along_channel(scale if weight is None else scale * weight, dy.ndim),)


def _bn_grad_affine(arrays, attrs):
    x, mean, slope, offset = (
        a if i == 0 else along_channel(a, arrays[0].ndim) for i, a in enumerate(arrays)
    )
    return ((x - mean) * slope + offset,)


def _bn_grad_apply(arrays, attrs):
    dy, x, *vectors = arrays
    mean, scale, mean_dy, slope = (along_channel(v, x.ndim) for v in vectors)
    return ((dy - mean_dy - (x - mean) * slope) * scale,)


BATCH_NORM_GRAD = (
    OpDef(
        "batch_norm_grad", "coarse", ("dy", "x", "mean", "var", "weight?"), _infer_batch_norm_grad,
        _batch_norm_grad, {"eps": 1e-5}, results=("x", "weight", "bias"),
        channel=("mean", "var", "weight"), takes="float",
    ),
    OpDef(
        "bn_grad_sums", "reduce", ("dy", "x", "mean"), infer_stats(2, maps=2), bn_grad_sums,
        results=("dy", "dy_centred"), channel=("mean",), combine="sum", takes="float",
    ),
    OpDef(
        "bn_grad_partial_sums", "reduce", ("dy", "x", "mean"), infer_partial(2, maps=2),
        _bn_grad_partial_sums, ROW_GROUPS, results=("dy", "dy_centred"), channel=("mean",),
        combine="sum", takes="float",
    ),
    pointwise(
        "bn_grad_input", ("dy", "x", "mean", "var", "weight?", "sum_dy", "sum_dy_centred"),
        bn_grad_input, infer_first_of_two, defaults={"eps": 1e-5, "count": ...},
        channel=("mean", "var", "weight", "sum_dy", "sum_dy_centred"), takes="float",
    ),
    # what needs dy, and the rest
    pointwise(
        "bn_grad_direct", ("dy", "var", "weight?"), _bn_grad_direct, infer_first,
        defaults={"eps": 1e-5}, channel=("var", "weight"), takes="float",
    ),
    pointwise(
        "bn_grad_affine", ("x", "mean", "slope", "offset"), _bn_grad_affine, infer_first,
        channel=("mean", "slope", "offset"), takes="float", deferrable=True,
    ),
    # with what depends on the channel alone computed beforehand
    pointwise(
        "bn_grad_apply", ("dy", "x", "mean", "scale", "mean_dy", "slope"), _bn_grad_apply,
        infer_first_of_two, channel=("mean", "scale", "mean_dy", "slope"), takes="float",
    ),
)  # fmt: skip
