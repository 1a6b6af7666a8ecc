"""Reductions over any axes, and partial ones: over the pixels of each group of rows.

A partial reduction cuts the rows (n, h) of a feature map, in order, into ``row_groups`` equal
groups, none of which reaches into another image; its results have shape ``[row_groups, C]``.
``*_groups`` put those of each image together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bngen.ir.attributes import shown
from bngen.ir.ops.row import Infer, OpDef, ShapeError, Types, check_channels
from bngen.ir.types import Attrs, TensorType

ROW_GROUPS = {"row_groups": ...}
"""Attributes of every partial reduction."""


def normalize_axes(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Non-negative, sorted, distinct axes; raises `ShapeError` when one is out of range."""
    if any(not -rank <= a < rank for a in axes):
        raise ShapeError(f"axes {shown([*axes])} are out of range for rank {rank}")
    return tuple(sorted({a % rank for a in axes}))


def _infer_reduce(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    axes = normalize_axes(attrs["axes"], len(x.shape))
    if attrs["keepdims"]:
        shape = tuple(1 if i in axes else s for i, s in enumerate(x.shape))
    else:
        shape = tuple(s for i, s in enumerate(x.shape) if i not in axes)
    return (TensorType(shape, x.dtype),)


def _infer_mean(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    if not types[0].is_float:
        raise ShapeError(f"needs a floating-point tensor, got {types[0]}")
    return _infer_reduce(types, attrs)


def infer_stats(count: int, maps: int = 1) -> Infer:
    """``count`` vectors ``[C]``, of ``maps`` feature maps and vectors along their axis 1."""

    def infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        check_channels(types, maps)
        x = types[0]
        return (TensorType((x.shape[1],), x.dtype),) * count

    return infer


def infer_fold(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """A partial reduction of any element type; each group of rows lies within one image."""
    (x,) = types
    if len(x.shape) != 4:
        raise ShapeError(f"needs x[N,C,H,W], got {x}")
    per_image, rest = divmod(attrs["row_groups"], x.shape[0])
    if rest or not per_image or x.shape[2] % per_image:
        raise ShapeError(
            f"{attrs['row_groups']} groups do not divide the rows of each image of {x}"
        )
    return (TensorType((attrs["row_groups"], x.shape[1]), x.dtype),)


def infer_partial(count: int, maps: int = 1) -> Infer:
    """``count`` partial results ``[row_groups, C]``, of operands as for `infer_stats`."""

    def infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        check_channels(types, maps)
        return infer_fold(types[:1], attrs) * count

    return infer


def _reduce(fn):
    def evaluate(arrays, attrs):
        (x,) = arrays
        axes = normalize_axes(attrs["axes"], x.ndim)
        return (np.asarray(fn(x, axis=axes, keepdims=attrs["keepdims"])).astype(x.dtype),)

    return evaluate


def cut_rows(x, count):
    """``[G, rows*W per group, C]``: the rows (n, h) in order, cut into equal groups."""
    return np.moveaxis(x, 1, -1).reshape(count, -1, x.shape[1])


def _infer_groups(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    if len(x.shape) != 2:
        raise ShapeError(f"needs partial results [row_groups, C], got {x}")
    images = attrs["images"]
    if images < 1 or x.shape[0] % images:
        raise ShapeError(f"{x.shape[0]} groups are not those of {images} images")
    return (TensorType((images, x.shape[1]), x.dtype),)


def _by_image(x, attrs):
    return x.reshape(attrs["images"], -1, x.shape[1])


def _sum_groups(arrays, attrs):
    (x,) = arrays
    return (_by_image(x, attrs).sum(axis=1, dtype=x.dtype),)


def _max_groups(arrays, attrs):
    return (_by_image(arrays[0], attrs).max(axis=1),)


def _partial_sum(arrays, attrs):
    (x,) = arrays
    return (cut_rows(x, attrs["row_groups"]).sum(axis=1, dtype=x.dtype),)


def _partial_max(arrays, attrs):
    return (cut_rows(arrays[0], attrs["row_groups"]).max(axis=1),)


_AXES = {"axes": ..., "keepdims": False}

REDUCE = (
    OpDef(
        "sum", "reduce", ("x",), _infer_reduce, _reduce(np.sum), _AXES, combine="sum",
        takes="number",
    ),
    OpDef(
        "mean", "reduce", ("x",), _infer_mean, _reduce(np.mean), _AXES, combine="sum",
        averages=True,
    ),
    OpDef(
        "amax", "reduce", ("x",), _infer_reduce, _reduce(np.max), _AXES, combine="max",
        takes="number",
    ),
    OpDef(
        "partial_sum", "reduce", ("x",), infer_fold, _partial_sum, ROW_GROUPS, combine="sum",
        takes="number",
    ),
    OpDef(
        "partial_max", "reduce", ("x",), infer_fold, _partial_max, ROW_GROUPS, combine="max",
        takes="number",
    ),
    OpDef(
        "sum_groups", "reduce", ("x",), _infer_groups, _sum_groups, {"images": ...},
        combine="sum", merges=True, takes="number",
    ),
    OpDef(
        "max_groups", "reduce", ("x",), _infer_groups, _max_groups, {"images": ...},
        combine="max", merges=True, takes="number",
    ),
)  # fmt: skip
