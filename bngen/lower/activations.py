"""What each activation computes for one element, as a TIR expression; see `pointwise`.

The meaning is that of `bngen.ir.ops.activations`. What users write is done as written; inside an
activation the formula is bngen's own, and products may join sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import tirx

from bngen.ir.ops.activations import GELU_CUBIC
from bngen.lower import transcendental
from bngen.lower.element import Element
from bngen.lower.error_function import erf
from bngen.lower.logarithms import expm1, log1p
from bngen.lower.opaque import Expr, add, bind, dtype_of, greater, less, mul, scaled
from bngen.lower.opaque import sub as minus


def _relu(e: Element, x: Expr) -> Expr:
    if e.dtype == "uint8":
        return x
    # Not max: NaN and -0 pass through, as in PyTorch. To vector units this is one instruction.
    return bind(x, lambda v: tirx.Select(less(v, e.const(0)), e.const(0), v))


def _leaky_relu(e: Element, x: Expr) -> Expr:
    slope = e.const(e.node.attrs["slope"])
    return bind(x, lambda v: tirx.Select(greater(v, e.const(0)), v, mul(v, slope)))


def _hardtanh(e: Element, x: Expr) -> Expr:
    lo, hi = e.const(e.node.attrs["lo"]), e.const(e.node.attrs["hi"])
    return bind(x, lambda v: tirx.Select(less(v, lo), lo, tirx.Select(greater(v, hi), hi, v)))


def _silu(e: Element, x: Expr) -> Expr:
    return bind(x, lambda v: mul(v, transcendental.sigmoid(v)))


def _clamped(x: Expr, lo: Expr, hi: Expr) -> Expr:
    """``hi`` where the bounds cross; NaN stays."""
    below = bind(x, lambda v: tirx.Select(less(v, lo), lo, v))
    return bind(below, lambda v: tirx.Select(greater(v, hi), hi, v))


def _clamp(e: Element, x: Expr) -> Expr:
    return _clamped(x, e.const(e.node.attrs["lo"]), e.const(e.node.attrs["hi"]))


def _prelu(e: Element, x: Expr, weight: Expr) -> Expr:
    return bind(x, lambda v: tirx.Select(greater(v, e.const(0)), v, mul(v, weight)))


def _hardsigmoid(e: Element, x: Expr) -> Expr:
    # Six sixths are one, in both types.
    return scaled(_clamped(add(x, e.const(3)), e.const(0), e.const(6)), e.const(1 / 6))


def _hardswish(e: Element, x: Expr) -> Expr:
    return bind(x, lambda v: scaled(v, _hardsigmoid(e, v)))


def _gelu(e: Element, x: Expr) -> Expr:
    def share(v: Expr) -> Expr:
        if not e.node.attrs["approximate"]:
            return erf(scaled(v, e.const(math.sqrt(0.5))))
        cube = scaled(scaled(scaled(v, v), v), e.const(GELU_CUBIC))
        return transcendental.tanh(scaled(add(v, cube), e.const(math.sqrt(2 / math.pi))))

    return bind(x, lambda v: scaled(scaled(v, e.const(0.5)), add(e.const(1), share(v))))


def _elu(e: Element, x: Expr) -> Expr:
    alpha, scale, inner = (e.node.attrs[k] for k in ("alpha", "output_scale", "input_scale"))

    def both(v: Expr) -> Expr:
        below = expm1(scaled(v, e.const(inner)))
        return tirx.Select(
            greater(v, e.const(0)), scaled(v, e.const(scale)), scaled(below, e.const(alpha * scale))
        )

    return bind(x, both)


def softplus(x: Expr) -> Expr:
    """``log(1 + exp(x))`` without overflow."""
    zero = tirx.const(0, dtype_of(x))
    return bind(x, lambda v: add(
        tirx.Select(less(v, zero), zero, v), log1p(transcendental.exp(zero - tirx.abs(v)))
    ))  # fmt: skip


def _softplus(e: Element, x: Expr) -> Expr:
    beta, threshold = e.node.attrs["beta"], e.node.attrs["threshold"]

    def both(v: Expr, z: Expr) -> Expr:
        value = softplus(z) if beta == 1 else softplus(z) / e.const(beta)
        return tirx.Select(greater(z, e.const(threshold)), v, value)

    return bind(x, lambda v: bind(scaled(v, e.const(beta)), lambda z: both(v, z)))


def _mish(e: Element, x: Expr) -> Expr:
    """``tanh(softplus(x))`` is ``((1 + e^x)^2 - 1) / ((1 + e^x)^2 + 1)``, here by ``e^-|x|``."""
    one, two = e.const(1), e.const(2)

    def share(v: Expr, tail: Expr) -> Expr:
        above = tirx.Select(v >= e.const(0), one + two * tail, tail * (tail + two))
        rest = tirx.Select(v >= e.const(0), two * tail * tail, two)
        return bind(above, lambda a: a / (a + rest))

    def product(v: Expr) -> Expr:
        tail = transcendental.exp(e.const(0) - tirx.abs(v))
        return scaled(v, bind(tail, lambda t: share(v, t)))

    return bind(x, product)


def _bce_with_logits(e: Element, x: Expr, target: Expr, pos_weight: Expr | None) -> Expr:
    def loss(v: Expr, t: Expr) -> Expr:
        cost = softplus(e.const(0) - v)
        if pos_weight is not None:
            cost = scaled(add(e.const(1), scaled(minus(pos_weight, e.const(1)), t)), cost)
        return add(scaled(minus(e.const(1), t), v), cost)

    return bind(x, lambda v: bind(target, lambda t: loss(v, t)))


ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "sigmoid": lambda e, x: transcendental.sigmoid(x),
    "silu": _silu,
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "prelu": _prelu,
    "hardtanh": _hardtanh,
    "clamp": _clamp,
    "hardsigmoid": _hardsigmoid,
    "hardswish": _hardswish,
    "gelu": _gelu,
    "elu": _elu,
    "softplus": _softplus,
    "mish": _mish,
    "bce_with_logits": _bce_with_logits,
}
"""Op -> its expression, as `pointwise.EXPRESSIONS` holds it."""
