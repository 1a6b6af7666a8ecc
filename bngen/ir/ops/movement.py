"""Ops that compute nothing: concatenation, slice, reshape, copy.

A view moves no data where its operand and its result can share memory; a copy always does.
"""

from __future__ import annotations

import math

import numpy as np

from bngen.ir.ops.row import OpDef, ShapeError, Types
from bngen.ir.types import Attrs, TensorType


def _infer_cat(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    first, axis = types[0], attrs["axis"]
    if not 0 <= axis < len(first.shape):
        raise ShapeError(f"axis {axis} is out of range for {first}")
    for t in types[1:]:
        same = len(t.shape) == len(first.shape) and all(
            i == axis or a == b for i, (a, b) in enumerate(zip(t.shape, first.shape, strict=True))
        )
        if not same or t.dtype != first.dtype:
            raise ShapeError(f"{t} cannot be joined with {first} along axis {axis}")
    shape = list(first.shape)
    shape[axis] = sum(t.shape[axis] for t in types)
    return (TensorType(tuple(shape), first.dtype),)


def _infer_slice(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    axis, start, stop = attrs["axis"], attrs["start"], attrs["stop"]
    if not (0 <= axis < len(x.shape) and 0 <= start < stop <= x.shape[axis]):
        raise ShapeError(f"[{start}:{stop}] along axis {axis} is out of range for {x}")
    shape = list(x.shape)
    shape[axis] = stop - start
    return (TensorType(tuple(shape), x.dtype),)


def _infer_reshape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    if math.prod(attrs["shape"]) != x.size:
        raise ShapeError(f"{x} has {x.size} elements, not those of {list(attrs['shape'])}")
    return (TensorType(tuple(attrs["shape"]), x.dtype),)


def _slice(arrays, attrs):
    index = (slice(None),) * attrs["axis"] + (slice(attrs["start"], attrs["stop"]),)
    return (arrays[0][index],)


def _cat(arrays, attrs):
    return (np.concatenate(arrays, axis=attrs["axis"]),)


def _reshape(arrays, attrs):
    return (np.ascontiguousarray(arrays[0]).reshape(attrs["shape"]),)


MOVEMENT = (
    OpDef(
        "copy", "copy", ("x",), lambda t, at: (t[0],), lambda a, at: (a[0],), moves="copies",
        store_slot=False, rounds=False,
    ),
    OpDef(
        "cat", "view", ("x",), _infer_cat, _cat, {"axis": 1}, variadic=True, moves="joins",
        store_slot=False, rounds=False,
    ),
    OpDef(
        "slice", "view", ("x",), _infer_slice, _slice, {"axis": 1, "start": ..., "stop": ...},
        moves="cuts", store_slot=False, rounds=False,
    ),
    OpDef(
        "reshape", "view", ("x",), _infer_reshape, _reshape, {"shape": ...}, moves="reshapes",
        store_slot=False, rounds=False,
    ),
)  # fmt: skip
