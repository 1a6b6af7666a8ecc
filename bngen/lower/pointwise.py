"""What each pointwise op computes for one element, as a TIR expression.

`EXPRESSIONS` maps an op to ``fn(element, *operand expressions) -> expression`` (or a tuple of
expressions). A missing optional operand is None. The meaning is that of `bngen.ir.ops`.

Arithmetic and comparisons go through `bngen.lower.opaque`, so that they are done as written.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from bngen.ir.node import Node
from bngen.lower import opaque
from bngen.lower.coords import Coord, Expr, logical
from bngen.lower.opaque import add, div, dtype_of, greater, less, less_equal, mul, scaled
from bngen.lower.opaque import sub as minus


@dataclass(frozen=True)
class Element:
    """The node whose element is computed, and where the element lies."""

    node: Node
    coord: Coord

    @property
    def dtype(self) -> str:
        """Element type of the result."""
        return self.node.out.dtype

    def const(self, value: float) -> Expr:
        """A constant of the result's type."""
        return tirx.const(value, self.dtype)


def bind(value: Expr, body: Callable[[Expr], Expr]) -> Expr:
    """``body(value)`` with the value computed once."""
    return body(value) if is_atom(value) else opaque.let(value, body)


def is_atom(value: Expr) -> bool:
    """Whether an expression costs nothing to repeat."""
    return isinstance(value, (tirx.Var, tirx.IntImm, tirx.FloatImm))


def _relu(e: Element, x: Expr) -> Expr:
    # Select(x <= 0, 0, x) rather than max: a NaN passes through, as in PyTorch.
    return bind(x, lambda v: tirx.Select(less_equal(v, e.const(0)), e.const(0), v))


def _leaky_relu(e: Element, x: Expr) -> Expr:
    slope = e.const(e.node.attrs["slope"])
    return bind(x, lambda v: tirx.Select(greater(v, e.const(0)), v, mul(v, slope)))


def _hardtanh(e: Element, x: Expr) -> Expr:
    lo, hi = e.const(e.node.attrs["lo"]), e.const(e.node.attrs["hi"])
    return bind(x, lambda v: tirx.Select(less(v, lo), lo, tirx.Select(greater(v, hi), hi, v)))


def _sigmoid(e: Element, x: Expr) -> Expr:
    return div(e.const(1), add(e.const(1), tirx.exp(opaque.neg(x))))


def _silu(e: Element, x: Expr) -> Expr:
    return bind(x, lambda v: div(v, add(e.const(1), tirx.exp(opaque.neg(v)))))


def _where(e: Element, cond: Expr, a: Expr, b: Expr) -> Expr:
    # Select evaluates both sides: a branch per lane would cost more than the arithmetic.
    return tirx.Select(cond, _as(a, e.dtype), _as(b, e.dtype))


def _as(x: Expr, dtype: str) -> Expr:
    return x if dtype_of(x) == dtype else tirx.Cast(dtype, opaque.scalar(x))


def _inverse_std(e: Element, var: Expr, weight: Expr | None) -> Expr:
    inv = div(e.const(1), tirx.sqrt(add(var, e.const(e.node.attrs["eps"]))))
    return inv if weight is None else scaled(inv, weight)


def _bn_apply(e: Element, x, mean, scale, bias) -> Expr:
    y = scaled(minus(x, mean), scale)
    return y if bias is None else add(y, bias)


def _bn_update(e: Element, running_mean, running_var, mean, var, momentum) -> tuple[Expr, Expr]:
    count = e.node.attrs["count"]
    unbiased = scaled(var, e.const(count / (count - 1) if count > 1 else math.nan))
    m = e.const(e.node.attrs["momentum"]) if momentum is None else _as(momentum, e.dtype)

    def mixed(keep: Expr, old: Expr, new: Expr) -> Expr:
        return add(scaled(keep, old), scaled(m, new))

    keep = minus(e.const(1), m)
    return mixed(keep, running_mean, mean), mixed(keep, running_var, unbiased)


def _random_uniform(e: Element, seed: Expr) -> Expr:
    """lowbias32 (Wellons) twice over the element's row-major number, as in `bngen.ir.ops`."""
    u32 = lambda v: tirx.const(v, "uint32")  # noqa: E731
    number: Expr = tirx.const(0, "int32")
    for axis, extent in zip(e.coord, e.node.attrs["shape"], strict=True):
        number = number * extent + logical(axis)
    # Coordinates outside a padded image are negative; what is computed there is never used.
    x = tirx.Cast("uint32", number & 0x7FFFFFFF) ^ (tirx.Cast("uint32", seed) * u32(0x9E3779B9))
    for _ in range(2):
        x = (x ^ (x >> u32(16))) * u32(0x7FEB352D)
        x = (x ^ (x >> u32(15))) * u32(0x846CA68B)
        x = (x ^ (x >> u32(16))) + u32(e.node.attrs["stream"])
    # Through int32: 24 bits convert exactly, and vector units convert signed integers.
    return tirx.Cast("float32", tirx.Cast("int32", x >> u32(8))) * tirx.const(2.0**-24, "float32")


def _one_hot(e: Element, labels: Expr) -> Expr:
    hit = tirx.EQ(labels, _as(logical(e.coord[1]), dtype_of(labels)))
    return tirx.Select(hit, e.const(1), e.const(0))


def _binary(fn: Callable[[Expr, Expr], Expr]) -> Callable[..., Expr]:
    return lambda e, a, b: fn(_as(a, e.dtype), _as(b, e.dtype))


def _compare(fn: Callable[[Expr, Expr], Expr]) -> Callable[..., Expr]:
    def compare(e: Element, a: Expr, b: Expr) -> Expr:
        scalar = not e.node.inputs[0].shape and e.node.inputs[1].shape
        return fn(_as(a, dtype_of(b)), b) if scalar else fn(a, _as(b, dtype_of(a)))

    return compare


def _pow(e: Element, a: Expr, b: Expr) -> Expr:
    exponent = getattr(b, "value", None)
    if exponent == 2:
        return bind(a, lambda v: mul(v, v))
    return tirx.power(_as(a, e.dtype), _as(b, e.dtype))


EXPRESSIONS: dict[str, Callable[..., Any]] = {
    "add": _binary(add),
    "sub": _binary(minus),
    "mul": _binary(mul),
    "div": _binary(lambda a, b: div(a, b) if opaque.is_float(a) else tirx.truncdiv(a, b)),
    "maximum": _binary(opaque.maximum),
    "minimum": _binary(opaque.minimum),
    "pow": _pow,
    "greater": _compare(greater),
    "greater_equal": _compare(opaque.greater_equal),
    "less": _compare(less),
    "less_equal": _compare(less_equal),
    "equal": _compare(opaque.equal),
    "not_equal": _compare(opaque.not_equal),
    "exp": lambda e, x: tirx.exp(x),
    "log": lambda e, x: tirx.log(x),
    "sqrt": lambda e, x: tirx.sqrt(x),
    "rsqrt": lambda e, x: div(e.const(1), tirx.sqrt(x)),
    "tanh": lambda e, x: tirx.tanh(x),
    "sigmoid": _sigmoid,
    "silu": _silu,
    "neg": lambda e, x: opaque.neg(x),
    "abs": lambda e, x: tirx.abs(x),
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "hardtanh": _hardtanh,
    "where": _where,
    "cast": lambda e, x: _as(x, e.dtype),
    "stop_gradient": lambda e, x: x,
    "constant": lambda e: e.const(e.node.attrs["value"]),
    "broadcast_to": lambda e, x: x,
    "random_uniform": _random_uniform,
    "one_hot": _one_hot,
    "bias_add": lambda e, x, bias: add(x, bias),
    "bn_normalize": lambda e, x, mean, var, weight, bias: _bn_apply(
        e, x, mean, _inverse_std(e, var, weight), bias
    ),
    "bn_scale": _inverse_std,
    "bn_apply": _bn_apply,
    "bn_update": _bn_update,
    "bn_grad_direct": lambda e, dy, var, weight: scaled(dy, _inverse_std(e, var, weight)),
    "channel_scale": lambda e, x, scale: scaled(x, scale),
    "bn_grad_affine": lambda e, x, mean, slope, offset: _bn_apply(e, x, mean, slope, offset),
    "bn_grad_apply": lambda e, dy, x, mean, scale, mean_dy, slope: scaled(
        minus(minus(dy, mean_dy), scaled(minus(x, mean), slope)), scale
    ),
}
