"""The rules of `grad_rules` for activations and losses of one element.

They read the operands alone, never the result: an operand is what its other readers keep, and
whoever applies the gradient computes the rest again on the way. Derivatives at kinks and of NaN are
PyTorch's.
"""

from __future__ import annotations

import math

from bngen.ir.build import GraphBuilder
from bngen.ir.node import Node
from bngen.ir.ops.activations import GELU_CUBIC
from bngen.ir.types import Value
from bngen.passes.pointwise_rules import Gradients, Rule, channel_sum


def _silu(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    (x,) = node.inputs
    sigmoid = b.emit("sigmoid", x)
    inner = b.emit("mul", x, b.emit("sub", 1.0, sigmoid))
    slope = b.emit("mul", sigmoid, b.emit("add", inner, 1.0))
    return (b.emit("mul", dy, slope),)


def _relu(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    return (b.emit("where", b.emit("less_equal", node.inputs[0], 0.0), 0.0, dy),)


def _leaky_relu(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    inside = b.emit("greater", node.inputs[0], 0.0)
    return (b.emit("where", inside, dy, b.emit("mul", dy, node.attrs["slope"])),)


def _hardtanh(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    (x,), lo, hi = node.inputs, node.attrs["lo"], node.attrs["hi"]
    below_top = b.emit("where", b.emit("less", x, hi), dy, 0.0)
    return (b.emit("where", b.emit("greater", x, lo), below_top, 0.0),)


def _prelu(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    x, weight = node.inputs
    above = b.emit("greater", x, 0.0)
    by_weight = b.emit("where", above, 0.0, b.emit("mul", dy, x))
    below = b.emit("channel_scale", dy, weight)
    return b.emit("where", above, dy, below), channel_sum(b, by_weight)


def _clamp(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    """At a bound itself the gradient is whole, unlike `_hardtanh`'s."""
    (x,), lo, hi = node.inputs, node.attrs["lo"], node.attrs["hi"]
    if hi < math.inf:
        dy = b.emit("where", b.emit("less_equal", x, hi), dy, 0.0)
    return (b.emit("where", b.emit("greater_equal", x, lo), dy, 0.0),)


def _hardsigmoid(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    (x,) = node.inputs
    inside = b.emit("where", b.emit("less", x, 3.0), b.emit("mul", dy, 1 / 6), 0.0)
    return (b.emit("where", b.emit("greater", x, -3.0), inside, 0.0),)


def _hardswish(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    (x,) = node.inputs
    slope = b.emit("add", b.emit("mul", x, 1 / 3), 0.5)
    inside = b.emit("where", b.emit("less", x, 3.0), b.emit("mul", dy, slope), dy)
    return (b.emit("where", b.emit("less_equal", x, -3.0), 0.0, inside),)


def _gelu(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    (x,) = node.inputs
    slope = _gelu_tanh_slope(b, x) if node.attrs["approximate"] else _gelu_slope(b, x)
    return (b.emit("mul", dy, slope),)


def _gelu_slope(b: GraphBuilder, x: Value) -> Value:
    """The normal distribution up to x, and x times its density."""
    share = b.emit("erf", b.emit("mul", x, math.sqrt(0.5)))
    below = b.emit("mul", b.emit("add", share, 1.0), 0.5)
    density = b.emit("exp", b.emit("mul", b.emit("mul", x, x), -0.5))
    density = b.emit("mul", density, math.sqrt(0.5 / math.pi))
    return b.emit("add", below, b.emit("mul", x, density))


def _gelu_tanh_slope(b: GraphBuilder, x: Value) -> Value:
    """With ``t = tanh(u)``: ``(1 + t) / 2 + x / 2 * (1 - t * t) * u'``."""
    square, factor = b.emit("mul", x, x), math.sqrt(2 / math.pi)
    inner = b.emit("mul", x, b.emit("add", b.emit("mul", square, factor * GELU_CUBIC), factor))
    t = b.emit("tanh", inner)
    steep = b.emit("add", b.emit("mul", square, 3 * factor * GELU_CUBIC), factor)
    through = b.emit("mul", b.emit("sub", 1.0, b.emit("mul", t, t)), steep)
    half = b.emit("mul", x, 0.5)
    share = b.emit("mul", b.emit("add", t, 1.0), 0.5)
    return b.emit("add", share, b.emit("mul", half, through))


def _elu(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    (x,) = node.inputs
    alpha, scale, inner = (node.attrs[k] for k in ("alpha", "output_scale", "input_scale"))
    power = b.emit("exp", x if inner == 1 else b.emit("mul", x, inner))
    below = b.emit("mul", dy, b.emit("mul", power, alpha * scale * inner))
    above = dy if scale == 1 else b.emit("mul", dy, scale)
    return (b.emit("where", b.emit("less_equal", x, 0.0), below, above),)


def _softplus(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    (x,), beta, threshold = node.inputs, node.attrs["beta"], node.attrs["threshold"]
    z = x if beta == 1 else b.emit("mul", x, beta)
    slope = b.emit("mul", dy, b.emit("sigmoid", z))
    if threshold == math.inf:
        return (slope,)
    return (b.emit("where", b.emit("greater", z, threshold), dy, slope),)


def _mish(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    """With ``t = tanh(softplus(x))``: ``t + x * (1 - t * t) * sigmoid(x)``.

    By ``e = exp(-|x|)``, of which t is a quotient whose difference from 1 loses no digits.
    """
    (x,) = node.inputs
    e = b.emit("exp", b.emit("neg", b.emit("abs", x)))
    twice, positive = b.emit("mul", e, 2.0), b.emit("greater_equal", x, 0.0)
    above = b.emit("where", positive, b.emit("add", twice, 1.0),
                   b.emit("mul", e, b.emit("add", e, 2.0)))  # fmt: skip
    rest = b.emit("where", positive, b.emit("mul", twice, e), 2.0)
    below = b.emit("add", above, rest)
    t = b.emit("div", above, below)
    flat = b.emit("mul", b.emit("div", rest, below), b.emit("add", t, 1.0))
    sigmoid = b.emit("div", b.emit("where", positive, 1.0, e), b.emit("add", e, 1.0))
    slope = b.emit("add", t, b.emit("mul", x, b.emit("mul", flat, sigmoid)))
    return (b.emit("mul", dy, slope),)


def _bce_with_logits(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    """``(1 - t) * x + (1 + (p - 1) * t) * softplus(-x)``, whose slopes need no difference of both.

    By x, with ``share = 1 - t + p * t``: ``share * sigmoid(x) - p * t``.
    """
    x, target, weight = node.inputs
    sigmoid, against = b.emit("sigmoid", x), b.emit("neg", x)
    if weight is None:
        by_x = b.emit("mul", dy, b.emit("sub", sigmoid, target))
        return by_x, b.emit("mul", dy, against), None
    weighted = b.emit("mul", weight, target)
    share = b.emit("add", b.emit("sub", 1.0, target), weighted)
    by_x = b.emit("mul", dy, b.emit("sub", b.emit("mul", share, sigmoid), weighted))
    cost = b.emit("softplus", against, threshold=math.inf)
    extra = b.emit("mul", b.emit("sub", weight, 1.0), cost)
    by_target = b.emit("mul", dy, b.emit("add", against, extra))
    return by_x, by_target, b.emit("mul", dy, b.emit("mul", target, cost))


ACTIVATION_RULES: dict[str, Rule] = {
    "bce_with_logits": _bce_with_logits,
    "clamp": _clamp,
    "elu": _elu,
    "gelu": _gelu,
    "hardsigmoid": _hardsigmoid,
    "hardswish": _hardswish,
    "hardtanh": _hardtanh,
    "leaky_relu": _leaky_relu,
    "mish": _mish,
    "prelu": _prelu,
    "relu": _relu,
    "silu": _silu,
    "softplus": _softplus,
}
