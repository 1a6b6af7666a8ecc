"""Elementwise functions, named and ordered as in ``torch``; activations are in `activations`.

In and out: symbolic tensors; two-operand functions also take Python numbers, and broadcast.
"""

from __future__ import annotations

import math
import numbers

from bngen.dtypes import BOOL, INDEX
from bngen.ir.attributes import shown
from bngen.lang.arithmetic import (
    SHAPE_HINT,
    arithmetic,
    bitwise,
    floating,
    logical,
    power,
    quotient,
)
from bngen.lang.emission import constant, emit
from bngen.lang.operands import coerce, rounded_once, same_float_type
from bngen.lang.tensor import Tensor
from bngen.lang.trace import current_trace, error
from bngen.lang.traced import check_tensor
from bngen.lang.types import Scalar, flag, is_scalar, real, wrapped

Operand = Tensor | Scalar


def add(input: Operand, other: Operand, *, alpha: Scalar = 1) -> Tensor:
    """``input + alpha * other``."""
    if is_scalar(alpha) and alpha == 1:
        return arithmetic("add", input, other)
    return _sum_with_share("add", input, other, alpha)


def sub(input: Operand, other: Operand, *, alpha: Scalar = 1) -> Tensor:
    """``input - alpha * other``."""
    if is_scalar(alpha) and alpha == 1:
        return arithmetic("sub", input, other)
    return _sum_with_share("sub", input, other, alpha)


def mul(input: Operand, other: Operand) -> Tensor:
    """``input * other``."""
    return arithmetic("mul", input, other)


def div(input: Operand, other: Operand) -> Tensor:
    """``input / other``; integers divide as float32."""
    return quotient(input, other)


def fmod(input: Operand, other: Operand) -> Tensor:
    """What division leaves of ``input``, which has its sign: exact. Floating-point alone."""
    a, b = coerce("fmod", (input, other))
    if not a.type.is_float:
        raise error(f"fmod: not defined for {a.dtype}", "convert it with .float()")
    return emit("fmod", a, b, hint=SHAPE_HINT)


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


def expm1(input: Tensor) -> Tensor:
    """``exp(input) - 1``, which keeps the digits of small results."""
    return floating("expm1", input)


def log1p(input: Tensor) -> Tensor:
    """``log(1 + input)``, which keeps the digits of small results."""
    return floating("log1p", input)


def erf(input: Tensor) -> Tensor:
    """The error function."""
    return floating("erf", input)


def sin(input: Tensor) -> Tensor:
    """Sine."""
    return floating("sin", input)


def cos(input: Tensor) -> Tensor:
    """Cosine."""
    return floating("cos", input)


def floor(input: Tensor) -> Tensor:
    """The next whole number below; its gradient is zero."""
    return _whole("floor", input)


def ceil(input: Tensor) -> Tensor:
    """The next whole number above; its gradient is zero."""
    return _whole("ceil", input)


def round(input: Tensor) -> Tensor:
    """The nearest whole number, the even one of two; its gradient is zero."""
    return _whole("round", input)


def _whole(op: str, x: Tensor) -> Tensor:
    check_tensor(op, "input", x)
    if x.dtype == BOOL:
        raise error(f"{op}: not defined for bool", "convert it with .to(bg.float32)")
    return emit(op, x) if x.type.is_float else x


def sign(input: Tensor) -> Tensor:
    """1, -1, or 0 for zero and NaN; its gradient is zero."""
    check_tensor("sign", "input", input)
    return input if input.dtype == BOOL else emit("sign", input)


def square(input: Tensor) -> Tensor:
    """``input * input``."""
    return power(check_tensor("square", "input", input), 2)


def reciprocal(input: Tensor) -> Tensor:
    """``1 / input``; integers divide as float32."""
    return quotient(1.0, check_tensor("reciprocal", "input", input), label="reciprocal")


@rounded_once
def addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: Scalar = 1) -> Tensor:
    """``input + value * tensor1 * tensor2``."""
    product = arithmetic("mul", tensor1, tensor2, label="addcmul")
    return _with_share("addcmul", input, product, value, "value")


@rounded_once
def addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: Scalar = 1) -> Tensor:
    """``input + value * tensor1 / tensor2``."""
    quotients = quotient(tensor1, tensor2, label="addcdiv")
    return _with_share("addcdiv", input, quotients, value, "value")


@rounded_once
def _sum_with_share(label: str, x: Operand, more: Operand, alpha: Scalar) -> Tensor:
    return _with_share(label, x, more, alpha, "alpha")


def _with_share(label: str, x: Operand, more: Operand, value: Scalar, what: str) -> Tensor:
    if not is_scalar(value):
        raise error(f"{label}: {what} is {shown(value)}", "it is a number")
    if is_scalar(more):
        share = more * value
    else:
        share = more if value == 1 else arithmetic("mul", more, value, label=label)
    return arithmetic("sub" if label == "sub" else "add", x, share, label=label)


def isnan(input: Tensor) -> Tensor:
    """Whether an element is NaN, a bool tensor."""
    return arithmetic("not_equal", check_tensor("isnan", "input", input), input, label="isnan")


def isinf(input: Tensor) -> Tensor:
    """Whether an element is infinite, a bool tensor."""
    check_tensor("isinf", "input", input)
    if not input.type.is_float:
        return isnan(input)  # nowhere
    return arithmetic("equal", abs(input), math.inf, label="isinf")


def isfinite(input: Tensor) -> Tensor:
    """Whether an element is neither infinite nor NaN, a bool tensor."""
    check_tensor("isfinite", "input", input)
    if not input.type.is_float:
        return arithmetic("equal", input, input, label="isfinite")  # everywhere
    return arithmetic("less", abs(input), math.inf, label="isfinite")


def logical_and(input: Tensor, other: Tensor) -> Tensor:
    """Whether both elements are other than zero, a bool tensor."""
    return logical("mul", input, other, label="logical_and")


def logical_or(input: Tensor, other: Tensor) -> Tensor:
    """Whether one of two elements is other than zero, a bool tensor."""
    return logical("maximum", input, other, label="logical_or")


def logical_xor(input: Tensor, other: Tensor) -> Tensor:
    """Whether just one of two elements is other than zero, a bool tensor."""
    return logical("not_equal", input, other, label="logical_xor")


def logical_not(input: Tensor) -> Tensor:
    """Whether an element is zero, a bool tensor."""
    return arithmetic("equal", check_tensor("logical_not", "input", input), 0, label="logical_not")


def bitwise_and(input: Tensor, other: Tensor | bool) -> Tensor:
    """``input & other`` of bool tensors."""
    return bitwise("mul", input, other, label="bitwise_and")


def bitwise_or(input: Tensor, other: Tensor | bool) -> Tensor:
    """``input | other`` of bool tensors."""
    return bitwise("maximum", input, other, label="bitwise_or")


def bitwise_xor(input: Tensor, other: Tensor | bool) -> Tensor:
    """``input ^ other`` of bool tensors."""
    return bitwise("not_equal", input, other, label="bitwise_xor")


def bitwise_not(input: Tensor) -> Tensor:
    """``~input`` of a bool tensor."""
    return bitwise("equal", input, False, label="bitwise_not")


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
