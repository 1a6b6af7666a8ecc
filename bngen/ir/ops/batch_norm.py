"""Batch normalization: the coarse op, its statistics, whole or in parts, and what follows them.

Statistics are summed in the element type's ``exact`` one. Of partial results, the mean's are a
rounded sum and the rest of it; the variance's follow the corrected two-pass algorithm.
"""

from __future__ import annotations

import numpy as np

from bngen.dtypes import DTYPES
from bngen.ir.ops.reduce import ROW_GROUPS, cut_rows, infer_partial, infer_stats
from bngen.ir.ops.row import (
    OpDef,
    ShapeError,
    Types,
    alike,
    along_channel,
    infer_first,
    pixel_axes,
    pointwise,
)
from bngen.ir.types import Attrs, TensorType

# --- shape rules ----------------------------------------------------------------------------------


def _infer_vectors(count: int):
    """Per-channel vectors in, ``count`` of their type out; a last scalar may be missing."""

    def infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        if len(types[0].shape) != 1:
            raise ShapeError(f"needs vectors [C], got {types[0]}")
        alike(types)
        return (types[0],) * count

    return infer


def _infer_update(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    *vectors, momentum = types
    if momentum is not None and momentum.shape:
        raise ShapeError(f"the momentum must be a scalar, got {momentum}")
    return _infer_vectors(2)(vectors, attrs)


def _infer_merge(count: int):
    """Partial results ``[row_groups, C]`` to ``count`` vectors ``[C]``."""

    def infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        if len(types[0].shape) != 2:
            raise ShapeError(f"needs partial results [row_groups, C], got {types[0]}")
        alike(types)
        return (TensorType(types[0].shape[1:], types[0].dtype),) * count

    return infer


def _infer_batch_norm(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    return (types[0], *infer_stats(2)(types, attrs))


# --- meanings -------------------------------------------------------------------------------------


def _exact(x: np.ndarray) -> str:
    """The type that statistics of ``x`` are summed in."""
    return DTYPES[x.dtype.name].exact


def bn_stats(arrays, attrs):
    """Mean and biased variance of each channel."""
    (x,) = arrays
    # Summed as PyTorch does: the mean of a constant channel is that constant.
    moments = (fn(x, axis=pixel_axes(x), dtype=_exact(x)) for fn in (np.mean, np.var))
    return tuple(m.astype(x.dtype) for m in moments)


def _bn_mean(arrays, attrs):
    return bn_stats(arrays, attrs)[:1]


def _bn_var(arrays, attrs):
    x, mean = arrays
    centred = x - along_channel(mean, x.ndim)
    return ((centred * centred).mean(axis=pixel_axes(x)),)


def _bn_partial_stats(arrays, attrs):
    """Sum of each group, then deviations from its rounded mean: their squares' sum, and their sum.

    In exact arithmetic the last is zero; in floating point it corrects the first two (the corrected
    two-pass algorithm; Chan, Golub and LeVeque 1983).
    """
    rows = cut_rows(arrays[0], attrs["row_groups"])
    total = rows.sum(axis=1)
    deviations = rows - total[:, None] / rows.dtype.type(rows.shape[1])
    return total, np.square(deviations).sum(axis=1), deviations.sum(axis=1)


def _bn_merge_stats(arrays, attrs):
    """Chan, Golub and LeVeque's merge of equally large groups, all groups at once."""
    total, m2, residual = (a.astype(_exact(arrays[0])) for a in arrays)
    dtype, count = arrays[0].dtype, attrs["count"]
    # What the deviations were taken from, rounded as it was there.
    centres = (arrays[0] / dtype.type(count)).astype(_exact(arrays[0]))
    # An infinity is its own mean, though no deviation from it is a number.
    means = np.where(np.isinf(centres), centres, centres + residual / count)
    mean = means.mean(axis=0)
    within = (m2 - np.square(residual) / count).sum(axis=0)
    spread = within + count * np.square(means - mean).sum(axis=0)
    return mean.astype(dtype), (spread / (count * len(total))).astype(dtype)


def _bn_partial_mean(arrays, attrs):
    """Sum of each group in the exact type, as a rounded sum and the rest."""
    dtype = arrays[0].dtype
    total = cut_rows(arrays[0], attrs["row_groups"]).astype(_exact(arrays[0])).sum(axis=1)
    rounded = total.astype(dtype)
    return rounded, (total - rounded).astype(dtype)


def _bn_merge_mean(arrays, attrs):
    total, rest = (a.astype(_exact(arrays[0])) for a in arrays)
    total = np.where(np.isinf(total), total, total + rest)
    return ((total.sum(axis=0) / attrs["count"]).astype(arrays[0].dtype),)


def _bn_partial_var(arrays, attrs):
    x, mean = arrays
    rows = cut_rows(x - along_channel(mean, x.ndim), attrs["row_groups"])
    return (np.square(rows).sum(axis=1),)


def bn_normalize(arrays, attrs):
    """``(x - mean) / sqrt(var + eps) * weight + bias`` by channel."""
    x, mean, var, weight, bias = arrays
    scale = 1.0 / np.sqrt(var + x.dtype.type(attrs["eps"]))
    scale = scale if weight is None else scale * weight
    y = (x - along_channel(mean, x.ndim)) * along_channel(scale, x.ndim)
    return (y if bias is None else y + along_channel(bias, x.ndim),)


def _bn_scale(arrays, attrs):
    var, weight = arrays
    scale = 1.0 / np.sqrt(var + var.dtype.type(attrs["eps"]))
    return (scale if weight is None else scale * weight,)


def _bn_apply(arrays, attrs):
    x, *vectors = arrays
    mean, scale, bias = (v if v is None else along_channel(v, x.ndim) for v in vectors)
    y = (x - mean) * scale
    return (y if bias is None else y + bias,)


def _batch_norm(arrays, attrs):
    x, weight, bias = arrays
    mean, var = bn_stats([x], attrs)
    return (*bn_normalize([x, mean, var, weight, bias], attrs), mean, var)


def _bn_update(arrays, attrs):
    running_mean, running_var, mean, var, momentum = arrays
    m = attrs["momentum"] if momentum is None else momentum
    n = attrs["count"]
    unbiased = var * (n / (n - 1)) if n > 1 else var * np.nan
    return (
        ((1 - m) * running_mean + m * mean).astype(running_mean.dtype),
        ((1 - m) * running_var + m * unbiased).astype(running_var.dtype),
    )


BATCH_NORM = (
    OpDef(
        "batch_norm", "coarse", ("x", "weight?", "bias?"), _infer_batch_norm, _batch_norm,
        {"eps": 1e-5}, results=("", "mean", "var"), channel=("weight", "bias"), takes="float",
        statistics="batch", autocast="follows",
    ),
    # whole statistics
    OpDef(
        "bn_stats", "reduce", ("x",), infer_stats(2), bn_stats, results=("mean", "var"),
        combine="moments", takes="float", statistics="batch",
    ),
    OpDef(
        "bn_mean", "reduce", ("x",), infer_stats(1), _bn_mean, combine="sum", averages=True,
        takes="float",
    ),
    OpDef(
        "bn_var", "reduce", ("x", "mean"), infer_stats(1), _bn_var, channel=("mean",),
        combine="sum", averages=True, takes="float",
    ),
    # in groups of rows, and merged
    OpDef(
        "bn_partial_stats", "reduce", ("x",), infer_partial(3), _bn_partial_stats, ROW_GROUPS,
        results=("sum", "m2", "residual"), combine="moments", takes="float",
    ),
    OpDef(
        "bn_merge_stats", "reduce", ("sum", "m2", "residual"), _infer_merge(2), _bn_merge_stats,
        {"count": ...}, results=("mean", "var"), combine="moments", merges=True, takes="float",
        statistics="batch",
    ),
    OpDef(
        "bn_partial_mean", "reduce", ("x",), infer_partial(2), _bn_partial_mean, ROW_GROUPS,
        results=("sum", "rest"), combine="sum", exact=True, takes="float",
    ),
    OpDef(
        "bn_merge_mean", "reduce", ("sum", "rest"), _infer_merge(1), _bn_merge_mean, {"count": ...},
        combine="sum", averages=True, merges=True, takes="float",
    ),
    OpDef(
        "bn_partial_var", "reduce", ("x", "mean"), infer_partial(1), _bn_partial_var, ROW_GROUPS,
        channel=("mean",), combine="sum", takes="float",
    ),
    # what is done with them
    pointwise(
        "bn_normalize", ("x", "mean", "var", "weight?", "bias?"), bn_normalize, infer_first,
        defaults={"eps": 1e-5}, channel=("mean", "var", "weight", "bias"), takes="float",
        autocast="follows",
    ),
    pointwise(
        "bn_scale", ("var", "weight?"), _bn_scale, _infer_vectors(1), defaults={"eps": 1e-5},
        takes="float",
    ),
    pointwise(
        "bn_apply", ("x", "mean", "scale", "bias?"), _bn_apply, infer_first,
        channel=("mean", "scale", "bias"), takes="float",
    ),
    pointwise(
        "bn_update", ("running_mean", "running_var", "mean", "var", "momentum?"), _bn_update,
        _infer_update, defaults={"momentum": 0.1, "count": ...}, results=("mean", "var"),
        takes="float", statistics="running",
    ),
)  # fmt: skip
