"""Activations, named and ordered as in ``torch.nn.functional``.

In and out: symbolic tensors of a floating-point type, and numbers that are known while tracing.
What one op of the table computes is that op; the others are spelled in those of `pointwise`, where
fusion makes them as fast, with PyTorch's digits and its gradients at kinks.
"""

from __future__ import annotations

import math

from bngen.lang.arithmetic import arithmetic
from bngen.lang.emission import emit
from bngen.lang.operands import coerce, rounded_once, same_float_type
from bngen.lang.pointwise import abs, isnan, logical_or, stop_gradient, tanh, where
from bngen.lang.tensor import Tensor
from bngen.lang.trace import error
from bngen.lang.traced import check_tensor
from bngen.lang.types import Scalar, real

SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946
"""Of Klambauer, Unterthiner, Mayr and Hochreiter (2017): activations keep mean 0, variance 1."""


def _activation(op: str, x: Tensor, label: str | None = None, **attrs: float) -> Tensor:
    same_float_type(label or op, input=x)
    return emit(op, x, label=label, **attrs)


def relu(input: Tensor) -> Tensor:
    """``max(input, 0)``; NaN stays NaN."""
    return emit("relu", check_tensor("relu", "input", input))


def relu6(input: Tensor) -> Tensor:
    """``min(max(input, 0), 6)``."""
    same_float_type("relu6", input=input)
    return emit("hardtanh", input, label="relu6", lo=0.0, hi=6.0)


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """``input`` clipped to the interval from ``min_val`` to ``max_val``."""
    same_float_type("hardtanh", input=input)
    lo, hi = real("hardtanh", "min_val", min_val), real("hardtanh", "max_val", max_val)
    if lo > hi:
        raise error(f"hardtanh: min_val {min_val} exceeds max_val {max_val}")
    return emit("hardtanh", input, lo=lo, hi=hi)


def leaky_relu(input: Tensor, negative_slope: float = 0.01) -> Tensor:
    """``input`` where positive, ``negative_slope * input`` elsewhere."""
    same_float_type("leaky_relu", input=input)
    slope = real("leaky_relu", "negative_slope", negative_slope)
    return emit("leaky_relu", input, slope=slope)


def silu(input: Tensor) -> Tensor:
    """``input * sigmoid(input)``."""
    same_float_type("silu", input=input)
    return emit("silu", input)


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """``input`` where positive, ``weight * input`` elsewhere.

    Args:
        input: any shape; channels are axis 1.
        weight: a factor for each channel ``[C]``, or one for all, ``[1]`` or without axes.
    """
    same_float_type("prelu", input=input, weight=weight)
    channels = input.shape[1] if input.ndim > 1 else 1
    if weight.ndim > 1 or weight.numel() not in (1, channels):
        what = f"prelu: weight is {weight.type} for {channels} channels"
        raise error(what, "it has one element, or one for each channel")
    if weight.numel() == 1:
        weight = emit("broadcast_to", weight, label="prelu", shape=(channels,))
    if input.ndim > 1:
        return emit("prelu", input, weight)
    return emit("prelu", input.reshape(-1, 1), weight).reshape(input.shape)


def clamp(
    input: Tensor, min: Tensor | Scalar | None = None, max: Tensor | Scalar | None = None
) -> Tensor:
    """``input`` brought between ``min`` and ``max``; where they cross, ``max``.

    At a bound the whole gradient is the operand's; NaN stays.

    Args:
        input: a tensor.
        min: a number, or a tensor that broadcasts; without it nothing is too small.
        max: the same for what is too large.
    """
    check_tensor("clamp", "input", input)
    bounds = {"min": min, "max": max}
    given = {name: bound for name, bound in bounds.items() if bound is not None}
    if not given:
        raise error("clamp: needs min or max", "pass one of them")
    met = dict(zip(("input", *given), coerce("clamp", (input, *given.values())), strict=True))
    if not met["input"].type.is_float:
        x = (
            arithmetic("maximum", met["input"], min, label="clamp")
            if "min" in given
            else met["input"]
        )
        return arithmetic("minimum", x, max, label="clamp") if "max" in given else x
    if not any(isinstance(bound, Tensor) for bound in given.values()):
        lo = real("clamp", "min", min) if "min" in given else -math.inf
        hi = real("clamp", "max", max) if "max" in given else math.inf
        return emit("clamp", met["input"], lo=lo, hi=hi)
    return _clamped_by_tensors(**met)


def _clamped_by_tensors(
    input: Tensor, min: Tensor | None = None, max: Tensor | None = None
) -> Tensor:
    """A bound has a gradient where it is the result, unless ``min`` is no less than ``max``."""
    x = input
    if min is not None:
        counts = arithmetic("equal", min, min) if max is None else arithmetic("less", min, max)
        x = where(logical_or(x < min, isnan(min)), where(counts, min, stop_gradient(min)), x)
    if max is not None:
        counts = arithmetic("equal", max, max)
        x = where(logical_or(x > max, isnan(max)), where(counts, max, stop_gradient(max)), x)
    return x


def clamp_min(input: Tensor, min: Tensor | Scalar) -> Tensor:
    """``input``, and ``min`` where it is less; see `clamp`."""
    return clamp(input, min=min)


def clamp_max(input: Tensor, max: Tensor | Scalar) -> Tensor:
    """``input``, and ``max`` where it is more; see `clamp`."""
    return clamp(input, max=max)


def hardsigmoid(input: Tensor) -> Tensor:
    """``min(max(input + 3, 0), 6) / 6``."""
    return _activation("hardsigmoid", input)


def hardswish(input: Tensor) -> Tensor:
    """``input * hardsigmoid(input)``."""
    return _activation("hardswish", input)


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """``input`` times the normal distribution up to it.

    Args:
        input: floating-point tensor.
        approximate: ``"none"``, by the error function; ``"tanh"``, an approximation.
    """
    if not isinstance(approximate, str) or approximate not in ("none", "tanh"):
        raise error(f"gelu: approximate {approximate!r}", "use 'none' or 'tanh'")
    return _activation("gelu", input, approximate=approximate == "tanh")


def elu(input: Tensor, alpha: float = 1.0) -> Tensor:
    """``input`` where positive, ``alpha * (exp(input) - 1)`` elsewhere."""
    return _activation("elu", input, alpha=real("elu", "alpha", alpha))


def celu(input: Tensor, alpha: float = 1.0) -> Tensor:
    """``input`` where positive, ``alpha * (exp(input / alpha) - 1)`` elsewhere."""
    alpha = real("celu", "alpha", alpha)
    if alpha == 0:
        raise error("celu: alpha must not be 0")
    return _activation("elu", input, label="celu", alpha=alpha, input_scale=1.0 / alpha)


def selu(input: Tensor) -> Tensor:
    """`elu` scaled so that activations keep mean 0 and variance 1."""
    return _activation("elu", input, label="selu", alpha=SELU_ALPHA, output_scale=SELU_SCALE)


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """``log(1 + exp(beta * input)) / beta``; ``input`` where ``beta * input > threshold``."""
    beta = real("softplus", "beta", beta)
    if beta == 0:
        raise error("softplus: beta must not be 0")
    threshold = real("softplus", "threshold", threshold)
    return _activation("softplus", input, beta=beta, threshold=threshold)


@rounded_once
def logsigmoid(input: Tensor) -> Tensor:
    """``log(sigmoid(input))`` without overflow."""
    same_float_type("logsigmoid", input=input)
    return -emit("softplus", -input, label="logsigmoid", threshold=math.inf)


def mish(input: Tensor) -> Tensor:
    """``input * tanh(softplus(input))``."""
    return _activation("mish", input)


@rounded_once
def softsign(input: Tensor) -> Tensor:
    """``input / (1 + |input|)``."""
    same_float_type("softsign", input=input)
    return input / (abs(input) + 1.0)


@rounded_once
def tanhshrink(input: Tensor) -> Tensor:
    """``input - tanh(input)``."""
    same_float_type("tanhshrink", input=input)
    return input - tanh(input)


def hardshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """``input``, and 0 where its absolute value is at most ``lambd``."""
    same_float_type("hardshrink", input=input)
    return where(abs(input) <= real("hardshrink", "lambd", lambd), 0.0, input)


@rounded_once
def softshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """``input`` moved by ``lambd`` towards 0, and no further than that."""
    lambd = real("softshrink", "lambd", lambd, 0)
    return input - _activation("clamp", input, label="softshrink", lo=-lambd, hi=lambd)


def threshold(input: Tensor, threshold: float, value: float) -> Tensor:
    """``input`` where it exceeds ``threshold``, ``value`` elsewhere."""
    same_float_type("threshold", input=input)
    least, value = (
        real("threshold", n, v) for n, v in (("threshold", threshold), ("value", value))
    )
    return where(input <= least, value, input)
