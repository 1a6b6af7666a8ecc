"""Pointwise ops: arithmetic, comparisons, functions of one number, and numbers out of nothing.

Each element of a result depends on one element of each operand, broadcast as in NumPy. Activations
and losses are in `activations`, the per-channel sub-layers of batch normalization in `batch_norm`
and `batch_norm_grad`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from bngen.dtypes import BOOL, FLOAT, INDEX
from bngen.ir.attributes import MOST, value_misfit
from bngen.ir.ops.row import (
    OpDef,
    ShapeError,
    Types,
    along_channel,
    broadcast_shapes,
    infer_first,
    infer_float,
    pointwise,
    promote,
    promoted,
    unary,
)
from bngen.ir.types import Attrs, TensorType

# --- shape rules ----------------------------------------------------------------------------------


def _infer_compare(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    return (TensorType(broadcast_shapes([t.shape for t in types]), BOOL),)


def _infer_where(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    if types[0].dtype != BOOL:
        raise ShapeError(f"the condition must be bool, got {types[0]}")
    return (TensorType(broadcast_shapes([t.shape for t in types]), promote(types[1:])),)


def _infer_broadcast_to(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    if broadcast_shapes([x.shape, attrs["shape"]]) != tuple(attrs["shape"]):
        raise ShapeError(f"{x} does not broadcast to {list(attrs['shape'])}")
    return (TensorType(tuple(attrs["shape"]), x.dtype),)


def _infer_constant(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    if wrong := value_misfit(attrs["value"], attrs["dtype"]):
        raise ShapeError(wrong)
    return (TensorType((), attrs["dtype"]),)


def _infer_one_hot(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (labels,) = types
    if labels.element.kind != "int" or not labels.shape:
        raise ShapeError(f"labels must be integers with a batch axis, got {labels}")
    return (TensorType((labels.shape[0], attrs["classes"], *labels.shape[1:])),)


def _infer_positions(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    shape = tuple(attrs["shape"])
    if attrs["axis"] >= len(shape):
        raise ShapeError(f"axis {attrs['axis']} is out of range for {list(shape)}")
    if shape[attrs["axis"]] > MOST:
        raise ShapeError(f"an axis of {list(shape)} is longer than {MOST}")
    return (TensorType(shape, INDEX),)


# --- meanings -------------------------------------------------------------------------------------


def _binary(fn):
    def evaluate(arrays, attrs):
        return (np.asarray(fn(*promoted(arrays))),)

    return evaluate


def _where(arrays, attrs):
    return (np.where(arrays[0], *promoted(arrays[1:])),)


def _sign(x):
    return (x > 0).astype(x.dtype) - (x < 0).astype(x.dtype)  # 0 for NaN, as in PyTorch


def erf(x):
    """The error function, of doubles whatever the type of ``x``: NumPy has none."""
    return np.asarray(_erf(x), x.dtype)


_erf = np.vectorize(math.erf, otypes=[float])


def _cast(arrays, attrs):
    return (arrays[0].astype(attrs["dtype"]),)


def _constant(arrays, attrs):
    return (np.asarray(attrs["value"], attrs["dtype"]),)


def _positions(arrays, attrs):
    shape, axis = attrs["shape"], attrs["axis"]
    along = np.arange(shape[axis], dtype=INDEX).reshape(-1, *(1,) * (len(shape) - axis - 1))
    return (np.broadcast_to(along, shape).copy(),)


def _one_hot(arrays, attrs):
    (labels,) = arrays
    classes = np.arange(attrs["classes"]).reshape(-1, *(1,) * (labels.ndim - 1))
    return ((np.expand_dims(labels, 1) == classes).astype(FLOAT),)


# --- the rows -------------------------------------------------------------------------------------


def _compare(name: str, relation: str, fn: Callable) -> OpDef:
    return pointwise(name, ("a", "b"), _binary(fn), _infer_compare, relation=relation, rounds=False)


def _function(name: str, fn: Callable, **facets: str) -> OpDef:
    """A function of one floating-point number."""
    return pointwise(name, ("x",), unary(fn), infer_float, **facets)


POINTWISE = (
    pointwise("add", ("a", "b"), _binary(np.add), wraps=True, autocast="follows"),
    pointwise(
        "sub", ("a", "b"), _binary(np.subtract), takes="number", wraps=True, autocast="follows",
    ),
    pointwise("mul", ("a", "b"), _binary(np.multiply), wraps=True, autocast="follows"),
    pointwise("div", ("a", "b"), _binary(np.divide), infer_float, autocast="follows"),
    pointwise("pow", ("a", "b"), _binary(np.power), infer_float),
    pointwise("fmod", ("a", "b"), _binary(np.fmod), infer_float),
    pointwise("maximum", ("a", "b"), _binary(np.maximum), rounds=False),
    pointwise("minimum", ("a", "b"), _binary(np.minimum), rounds=False),
    _compare("greater", ">", np.greater),
    _compare("greater_equal", ">=", np.greater_equal),
    _compare("less", "<", np.less),
    _compare("less_equal", "<=", np.less_equal),
    _compare("equal", "==", np.equal),
    _compare("not_equal", "!=", np.not_equal),
    _function("exp", np.exp),
    _function("log", np.log),
    _function("sqrt", np.sqrt),
    _function("rsqrt", lambda x: (1 / np.sqrt(x)).astype(x.dtype)),
    _function("tanh", np.tanh, autocast="follows"),
    _function("expm1", np.expm1),
    _function("log1p", np.log1p),
    _function("erf", erf),
    _function("sin", np.sin),
    _function("cos", np.cos),
    _function("floor", np.floor),
    _function("ceil", np.ceil),
    _function("round", np.round),
    pointwise("neg", ("x",), unary(np.negative), takes="number", rounds=False),
    pointwise("abs", ("x",), unary(np.abs), takes="number", rounds=False),
    pointwise("sign", ("x",), unary(_sign), takes="number"),
    pointwise("where", ("cond", "a", "b"), _where, _infer_where, rounds=False),
    pointwise(
        "cast", ("x",), _cast, lambda t, at: (TensorType(t[0].shape, at["dtype"]),),
        defaults={"dtype": ...}, converts=True, rounds=False,
    ),
    pointwise("stop_gradient", ("x",), unary(lambda x: x), identity=True, rounds=False),
    pointwise(
        "constant", (), _constant, _infer_constant,
        defaults={"value": ..., "dtype": FLOAT}, literal=True, sublayer=False,
    ),
    pointwise(
        "broadcast_to", ("x",), lambda a, at: (np.broadcast_to(a[0], at["shape"]).copy(),),
        _infer_broadcast_to, defaults={"shape": ...}, identity=True, sublayer=False, rounds=False,
    ),
    # where each element lies along an axis
    pointwise(
        "positions", (), _positions, _infer_positions, defaults={"shape": ..., "axis": 0},
    ),
    pointwise(
        "one_hot", ("labels",), _one_hot, _infer_one_hot, defaults={"classes": ...}, new_axis=1,
        class_numbers=True,
    ),
    pointwise(
        "bias_add", ("x", "bias"), lambda a, at: (a[0] + along_channel(a[1], a[0].ndim),),
        infer_first, channel=("bias",), takes="float", autocast="follows", finishes=True,
    ),
    pointwise(
        "channel_scale", ("x", "scale"),
        lambda a, at: (a[0] * along_channel(a[1], a[0].ndim),), infer_first, channel=("scale",),
        takes="float", autocast="follows",
    ),
)  # fmt: skip
