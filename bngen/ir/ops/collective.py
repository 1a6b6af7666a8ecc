"""Collectives: what several processes, the *ranks*, compute of what each of them has.

``across`` is what an op means: operands of each rank in, results of each rank out. ``evaluate`` is
the same for one rank alone. Ranks run one program, if perhaps with batches of different sizes:
their collectives are the same ones, in the same order. ``group`` names who takes part.

The statistics of a synchronized batch normalization are those of all ranks' batches together, and
gradients are those of the sum of all ranks' results. Its weights are the same on all ranks; each
rank has its own part of their gradient, as of every other value that is not exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bngen.ir.ops.batch_norm import bn_normalize, bn_stats
from bngen.ir.ops.batch_norm_grad import bn_grad_input, bn_grad_sums
from bngen.ir.ops.reduce import infer_stats
from bngen.ir.ops.row import Across, Arrays, Evaluate, OpDef, ShapeError, Types, alike
from bngen.ir.types import Attrs, TensorType
from bngen.moments import merged


def alone(across: Across) -> Evaluate:
    """The meaning for one rank."""
    return lambda arrays, attrs: across([arrays], attrs)[0]


# --- sums -----------------------------------------------------------------------------------------


def _infer_all_reduce(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    if len({t.dtype for t in types}) > 1:
        raise ShapeError(f"needs one element type, got {', '.join(map(str, types))}")
    if attrs["average"] and not types[0].is_float:
        raise ShapeError(f"an average needs floating-point tensors, got {types[0]}")
    return tuple(types)


def _all_reduce(ranks: Sequence[Arrays], attrs: Attrs) -> list[tuple[np.ndarray, ...]]:
    results = []
    for arrays in zip(*ranks, strict=True):
        total = np.add.reduce(arrays, dtype=arrays[0].dtype)
        if attrs["average"]:
            total = total / total.dtype.type(len(ranks))
        results.append(np.asarray(total, arrays[0].dtype))
    return [tuple(results)] * len(ranks)


# --- synchronized batch normalization -------------------------------------------------------------


def _infer_all_stats(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    if len(types[0].shape) != 1:
        raise ShapeError(f"needs vectors [C], got {types[0]}")
    alike(types)
    return types[0], types[0], TensorType((), types[0].dtype)


def _all_stats(ranks: Sequence[Arrays], attrs: Attrs) -> list[tuple[np.ndarray, ...]]:
    # Of each rank, where they are asked together.
    counts = attrs["count"]
    return _merged(ranks, counts if isinstance(counts, list) else [counts] * len(ranks))


def _merged(ranks: Sequence[Arrays], counts: Sequence[int]) -> list[tuple[np.ndarray, ...]]:
    means, variances = (np.stack(rows) for rows in zip(*ranks, strict=True))
    *moments, total = merged(np.array(counts), means, variances)
    dtype = means.dtype
    return [(*(m.astype(dtype) for m in moments), np.asarray(total, dtype))] * len(ranks)


def _infer_sync(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    mean, var = infer_stats(2)(types, attrs)
    return types[0], mean, var, TensorType((), mean.dtype)


def _sync_batch_norm(ranks: Sequence[Arrays], attrs: Attrs) -> list[tuple[np.ndarray, ...]]:
    own = [bn_stats([x], attrs) for x, *_ in ranks]
    moments = _merged(own, [x.size // x.shape[1] for x, *_ in ranks])
    return [
        (*bn_normalize([x, *found[:2], weight, bias], attrs), *found)
        for (x, weight, bias), found in zip(ranks, moments, strict=True)
    ]


def _infer_sync_grad(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    dy, x, mean, var, count, weight = types
    if count.shape:
        raise ShapeError(f"the count must be a scalar, got {count}")
    return dy, *infer_stats(2, maps=2)((dy, x, mean, var, weight), attrs)


def _sync_batch_norm_grad(ranks: Sequence[Arrays], attrs: Attrs) -> list[tuple[np.ndarray, ...]]:
    own = [bn_grad_sums([dy, x, mean], attrs) for dy, x, mean, *_ in ranks]
    totals = [np.add.reduce(sums) for sums in zip(*own, strict=True)]
    results = []
    for (dy, x, mean, var, count, weight), sums in zip(ranks, own, strict=True):
        shares = [total / count for total in totals]
        operands = [dy, x, mean, var, weight, *shares]
        dx = bn_grad_input(operands, {**attrs, "count": 1})
        inv = 1.0 / np.sqrt(var + x.dtype.type(attrs["eps"]))
        results.append((*dx, sums[1] * inv, sums[0]))
    return results


COLLECTIVE = (
    OpDef(
        "all_reduce", "collective", ("x",), _infer_all_reduce, alone(_all_reduce),
        {"average": False, "group": ""}, variadic=True, takes="number", combine="sum",
        store_slot=False, across=_all_reduce,
    ),
    OpDef(
        "bn_all_stats", "collective", ("mean", "var"), _infer_all_stats, alone(_all_stats),
        {"count": ..., "group": ""}, results=("mean", "var", "count"), takes="float",
        combine="moments", store_slot=False, across=_all_stats,
    ),
    OpDef(
        "sync_batch_norm", "coarse", ("x", "weight?", "bias?"), _infer_sync,
        alone(_sync_batch_norm), {"eps": 1e-5, "group": ""}, results=("", "mean", "var", "count"),
        channel=("weight", "bias"), takes="float", autocast="follows", across=_sync_batch_norm,
    ),
    OpDef(
        "sync_batch_norm_grad", "coarse", ("dy", "x", "mean", "var", "count", "weight?"),
        _infer_sync_grad, alone(_sync_batch_norm_grad), {"eps": 1e-5, "group": ""},
        results=("x", "weight", "bias"), channel=("mean", "var", "weight"), takes="float",
        across=_sync_batch_norm_grad,
    ),
)  # fmt: skip
