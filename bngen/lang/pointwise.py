"""Elementwise functions, named and ordered as in ``torch`` and ``torch.nn.functional``.

In and out: symbolic tensors; two-operand functions also take Python numbers, and broadcast.
"""

from __future__ import annotations

import numbers

from bngen.dtypes import INDEX
from bngen.lang.tensor import (
    Tensor,
    arithmetic,
    check_tensor,
    coerce,
    constant,
    emit,
    floating,
    power,
    quotient,
    same_float_type,
)
from bngen.lang.trace import current_trace, error
from bngen.lang.types import Scalar, flag, real, wrapped

Operand = Tensor | Scalar


def add(input: Operand, other: Operand) -> Tensor:
    """``input + other``."""
    return arithmetic("add", input, other)


def sub(input: Operand, other: Operand) -> Tensor:
    """``input - other``."""
    return arithmetic("sub", input, other)


def mul(input: Operand, other: Operand) -> Tensor:
    """``input * other``."""
    return arithmetic("mul", input, other)


def div(input: Operand, other: Operand) -> Tensor:
    """``input / other``; integers divide as float32."""
    return quotient(input, other)


def pow(input: Operand, exponent: Operand) -> Tensor:
    """``input ** exponent``."""
    return power(input, exponent)


def maximum(input: Operand, other: Operand) -> Tensor:
    """The larger of two elements; NaN if either is."""
    return arithmetic("maximum", input, other)


def minimum(input: Operand, other: Operand) -> Tensor:
    """The smaller of two elements; NaN if either is."""
    return arithmetic("minimum", input, other)


def greater(input: Operand, other: Operand) -> Tensor:
    """``input > other``, a bool tensor."""
    return arithmetic("greater", input, other)


def greater_equal(input: Operand, other: Operand) -> Tensor:
    """``input >= other``, a bool tensor."""
    return arithmetic("greater_equal", input, other)


def less(input: Operand, other: Operand) -> Tensor:
    """``input < other``, a bool tensor."""
    return arithmetic("less", input, other)


def less_equal(input: Operand, other: Operand) -> Tensor:
    """``input <= other``, a bool tensor."""
    return arithmetic("less_equal", input, other)


def equal(input: Operand, other: Operand) -> Tensor:
    """``input == other`` element by element, a bool tensor (``torch.eq``)."""
    return arithmetic("equal", input, other)


def not_equal(input: Operand, other: Operand) -> Tensor:
    """``input != other`` element by element, a bool tensor."""
    return arithmetic("not_equal", input, other)


def where(condition: Tensor, input: Operand, other: Operand) -> Tensor:
    """``input`` where the bool tensor ``condition`` holds, ``other`` elsewhere."""
    check_tensor("where", "condition", condition)
    hint = "the condition is a comparison; all three broadcast"
    return emit("where", condition, *coerce("where", (input, other)), hint=hint)


def neg(input: Tensor) -> Tensor:
    """``-input``."""
    return arithmetic("neg", check_tensor("neg", "input", input))


def abs(input: Tensor) -> Tensor:
    """Absolute value."""
    return arithmetic("abs", check_tensor("abs", "input", input))


def exp(input: Tensor) -> Tensor:
    """Power of e to each element."""
    return floating("exp", input)


def log(input: Tensor) -> Tensor:
    """Natural logarithm."""
    return floating("log", input)


def sqrt(input: Tensor) -> Tensor:
    """Square root."""
    return floating("sqrt", input)


def rsqrt(input: Tensor) -> Tensor:
    """One over the square root."""
    return floating("rsqrt", input)


def tanh(input: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    return floating("tanh", input)


def sigmoid(input: Tensor) -> Tensor:
    """``1 / (1 + exp(-input))``."""
    return floating("sigmoid", input)


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


def stop_gradient(input: Tensor) -> Tensor:
    """``input``, through which no gradient flows."""
    return emit("stop_gradient", check_tensor("stop_gradient", "input", input))


def detach(input: Tensor) -> Tensor:
    """The same as `stop_gradient`, by PyTorch's name."""
    return stop_gradient(input)


def dropout(
    input: Tensor, p: float = 0.5, training: bool = True, *, seed: int | Tensor | None = None
) -> Tensor:
    """Zero each element with probability ``p`` and scale the others by ``1 / (1 - p)``.

    Args:
        input: floating-point tensor.
        p: probability of zeroing.
        training: without it, the result is ``input``.
        seed: what the mask is drawn from, all 64 bits of it. A Python int gives the same mask in
            every step; an integer tensor with one element (an argument or a buffer, say a step
            count) gives each of its values another mask. Calls in one program draw independent
            masks.
    """
    same_float_type("dropout", input=input)
    p = real("dropout", "p", p, 0, 1)
    if not flag("dropout", "training", training) or p == 0:
        return input
    if p == 1:
        return arithmetic("mul", input, 0.0, label="dropout")
    stream = current_trace("dropout").next_stream()
    draw = emit("random_uniform", _seed(seed), label="dropout", shape=input.shape, stream=stream)
    # Numbers are finest near zero: the rarer of the two events is the one that is drawn there.
    kept = draw >= p if p <= 0.5 else draw < 1.0 - p
    keep = emit(
        "where", kept, constant(1.0 / (1.0 - p), input.dtype),
        constant(0.0, input.dtype), label="dropout",
    )  # fmt: skip
    return arithmetic("mul", input, keep, label="dropout")


def _seed(seed: int | Tensor | None) -> Tensor:
    hint = "pass seed=0, or an integer tensor with one element"
    if isinstance(seed, Tensor):
        if seed.type.element.kind != "int" or seed.numel() != 1:
            raise error(f"dropout: the seed is {seed.type}", hint)
        return seed.reshape(())
    known = isinstance(seed, numbers.Integral) and not isinstance(seed, bool)
    if not known or not -(2**63) <= seed < 2**64:
        raise error(f"dropout: the seed is {seed!r}", hint)
    return constant(wrapped(int(seed), INDEX), INDEX)
