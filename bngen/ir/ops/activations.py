"""Activations, and losses of one element: the functions that networks put between their layers.

They could be spelled in `pointwise` ops. They are rows of their own where their gradient is not
that of the spelling (at a kink, in a tail whose digits cancel), where it should read nothing but
the operand, or where one formula takes the place of many ops.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bngen.ir.ops.pointwise import erf
from bngen.ir.ops.row import (
    OpDef,
    ShapeError,
    Types,
    along_channel,
    infer_first,
    infer_float,
    pointwise,
    promoted,
    unary,
)
from bngen.ir.types import Attrs, TensorType

GELU_CUBIC = 0.044715
"""Of Hendrycks and Gimpel (2016): gelu is about x/2 * (1 + tanh(sqrt(2/pi) * (x + c * x^3)))."""

# --- shape rules ----------------------------------------------------------------------------------


def _infer_hardtanh(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    if attrs["lo"] > attrs["hi"]:
        raise ShapeError(f"lo {attrs['lo']} exceeds hi {attrs['hi']}")
    return infer_float(types, attrs)


# --- meanings -------------------------------------------------------------------------------------


def sigmoid(x):
    """``1 / (1 + exp(-x))``: exp of a negative number never overflows; tails keep their digits."""
    tail = np.exp(-np.abs(x))
    return (np.where(x >= 0, x.dtype.type(1), tail) / (1 + tail)).astype(x.dtype)


def _clamped(x, lo, hi):
    # Not np.maximum, which may make a zero of a negative one; NaN stays.
    lo, hi = x.dtype.type(lo), x.dtype.type(hi)
    x = np.where(x < lo, lo, x)
    return np.where(x > hi, hi, x)


def _gelu(arrays, attrs):
    (x,) = arrays
    number = x.dtype.type
    if attrs["approximate"]:
        inner = number(math.sqrt(2 / math.pi)) * (x + number(GELU_CUBIC) * x * x * x)
        share = np.tanh(inner)
    else:
        share = erf(x * number(math.sqrt(0.5)))
    return (x * number(0.5) * (1 + share),)


def _hardsigmoid(x):
    return _clamped(x + 3, 0, 6) / x.dtype.type(6)


def _elu(arrays, attrs):
    (x,), number = arrays, arrays[0].dtype.type
    below = np.expm1(x * number(attrs["input_scale"])) * number(
        attrs["alpha"] * attrs["output_scale"]
    )
    return (np.where(x > 0, x * number(attrs["output_scale"]), below),)


def softplus(x):
    """``log(1 + exp(x))`` without overflow."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _softplus(arrays, attrs):
    (x,), beta = arrays, arrays[0].dtype.type(attrs["beta"])
    z = x * beta
    return (np.where(z > attrs["threshold"], x, softplus(z) / beta),)


def _prelu(arrays, attrs):
    x, weight = arrays
    return (np.where(x > 0, x, x * along_channel(weight, x.ndim)),)


def _bce_with_logits(arrays, attrs):
    given = promoted([a for a in arrays if a is not None])
    x, target = given[:2]
    share = 1 + (given[2] - 1) * target if len(given) > 2 else 1
    return ((1 - target) * x + share * softplus(-x),)


def _activation(*args: Any, **facets: Any) -> OpDef:
    return pointwise(*args, autocast="follows", **facets)


# --- the rows -------------------------------------------------------------------------------------

ACTIVATIONS = (
    _activation("sigmoid", ("x",), unary(sigmoid), infer_float),
    _activation("silu", ("x",), unary(lambda x: x * sigmoid(x)), infer_float),
    _activation(
        "relu", ("x",), unary(lambda x: np.where(x < 0, x.dtype.type(0), x)), takes="number",
        rounds=False,
    ),
    _activation(
        "leaky_relu", ("x",),
        lambda a, at: (np.where(a[0] > 0, a[0], a[0] * a[0].dtype.type(at["slope"])),),
        infer_float, defaults={"slope": 0.01},
    ),
    _activation(
        "prelu", ("x", "weight"), _prelu, infer_first, channel=("weight",), takes="float",
    ),
    # The gradient at a bound is zero,
    _activation(
        "hardtanh", ("x",), lambda a, at: (_clamped(a[0], at["lo"], at["hi"]),), _infer_hardtanh,
        defaults={"lo": -1.0, "hi": 1.0}, rounds=False,
    ),
    # and here it is the whole; and where the bounds cross, all is ``hi``.
    _activation(
        "clamp", ("x",), lambda a, at: (_clamped(a[0], at["lo"], at["hi"]),), infer_float,
        defaults={"lo": -math.inf, "hi": math.inf}, rounds=False,
    ),
    _activation("hardsigmoid", ("x",), unary(_hardsigmoid), infer_float),
    _activation("hardswish", ("x",), unary(lambda x: x * _hardsigmoid(x)), infer_float),
    _activation("gelu", ("x",), _gelu, infer_float, defaults={"approximate": False}),
    # elu, celu, selu: output_scale * (x, or alpha * (exp(input_scale * x) - 1) below zero)
    _activation(
        "elu", ("x",), _elu, infer_float,
        defaults={"alpha": 1.0, "output_scale": 1.0, "input_scale": 1.0},
    ),
    # log(1 + exp(beta * x)) / beta, and x where beta * x exceeds the threshold
    _activation(
        "softplus", ("x",), _softplus, infer_float, defaults={"beta": 1.0, "threshold": 20.0}
    ),
    _activation("mish", ("x",), unary(lambda x: x * np.tanh(softplus(x))), infer_float),
    # The binary cross-entropy of sigmoid(x), by whose gradient no digits of a tail are lost.
    pointwise(
        "bce_with_logits", ("x", "target", "pos_weight?"), _bce_with_logits, infer_float,
    ),
)  # fmt: skip
