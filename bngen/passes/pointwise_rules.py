"""The rules of `grad_rules` for arithmetic and functions of one number.

What a rule takes and gives is said there. Activations are in `activation_rules`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from bngen.ir.build import GraphBuilder
from bngen.ir.node import Node
from bngen.ir.types import Value

Gradients = Sequence[Value | None]
Rule = Callable[..., Gradients]

# --- arithmetic ---------------------------------------------------------------------------------


def _add(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    return dy, dy


def _sub(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    return dy, b.emit("neg", dy)


def _mul(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    x, y = node.inputs
    return b.emit("mul", dy, y), b.emit("mul", dy, x)


def _div(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    divisor = node.inputs[1]
    quotient = b.emit("div", node.out, divisor)
    return b.emit("div", dy, divisor), b.emit("neg", b.emit("mul", dy, quotient))


def _fmod(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    """What is left of a is ``a - trunc(a / b) * b``."""
    quotient = b.emit("div", *node.inputs)
    down, up = b.emit("floor", quotient), b.emit("ceil", quotient)
    whole = b.emit("where", b.emit("less", quotient, 0.0), up, down)
    return dy, b.emit("neg", b.emit("mul", dy, whole))


def _pow(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    base, exponent = node.inputs
    by_base = _pow_base(b, base, exponent, dy)
    by_exponent = b.emit("mul", dy, b.emit("mul", node.out, b.emit("log", base)))
    # 0 ** y is 0 for every y > 0, and log(0) must not leak out of it.
    flat = b.emit("mul", b.emit("equal", base, 0.0), b.emit("greater_equal", exponent, 0.0))
    return by_base, b.emit("where", flat, 0.0, by_exponent)


def _pow_base(b: GraphBuilder, base: Value, exponent: Value, dy: Value) -> Value:
    constant = b.number(exponent)
    if constant == 0:
        return b.zeros(dy.type)
    if constant == 1:
        return dy
    if constant == 2:
        return b.emit("mul", dy, b.emit("mul", base, 2.0))
    if constant is not None:
        lower = {0.5: "sqrt", -0.5: "rsqrt"}.get(float(constant) - 1.0)
        power = b.emit(lower, base) if lower else b.emit("pow", base, float(constant) - 1.0)
        return b.emit("mul", dy, b.emit("mul", power, float(constant)))
    power = b.emit("mul", exponent, b.emit("pow", base, b.emit("sub", exponent, 1.0)))
    zero = b.emit("equal", exponent, 0.0)
    return b.emit("where", zero, 0.0, b.emit("mul", dy, power))


def _extremum(wins: str, loses: str) -> Rule:
    """Maximum or minimum: the winner takes all, a tie is split in half, NaN passes to both."""

    def rule(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
        x, y = node.inputs
        shared = b.emit("where", b.emit("equal", x, y), b.emit("mul", dy, 0.5), dy)
        return (
            b.emit("where", b.emit(loses, x, y), 0.0, shared),
            b.emit("where", b.emit(wins, x, y), 0.0, shared),
        )

    return rule


def _neg(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    return (b.emit("neg", dy),)


def _abs(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    (x,) = node.inputs
    below = b.emit("where", b.emit("less", x, 0.0), b.emit("neg", dy), 0.0)
    return (b.emit("where", b.emit("greater", x, 0.0), dy, below),)


# --- functions of one operand -------------------------------------------------------------------


def _flat(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    """Of steps: zero, whatever arrives."""
    return (b.zeros(dy.type),)


def _expm1(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    return (b.emit("mul", dy, b.emit("exp", node.inputs[0])),)


def _log1p(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    return (b.emit("div", dy, b.emit("add", node.inputs[0], 1.0)),)


def _erf(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    (x,) = node.inputs
    bell = b.emit("exp", b.emit("neg", b.emit("mul", x, x)))
    return (b.emit("mul", dy, b.emit("mul", bell, 2 / math.sqrt(math.pi))),)


def _sin(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    return (b.emit("mul", dy, b.emit("cos", node.inputs[0])),)


def _cos(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    return (b.emit("neg", b.emit("mul", dy, b.emit("sin", node.inputs[0]))),)


def _exp(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    return (b.emit("mul", dy, node.out),)


def _log(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    return (b.emit("div", dy, node.inputs[0]),)


def _sqrt(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    return (b.emit("div", dy, b.emit("mul", node.out, 2.0)),)


def _rsqrt(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    cube = b.emit("mul", b.emit("mul", node.out, node.out), node.out)
    return (b.emit("mul", b.emit("mul", dy, -0.5), cube),)


def _tanh(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    return (b.emit("mul", dy, b.emit("sub", 1.0, b.emit("mul", node.out, node.out))),)


def _sigmoid(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    slope = b.emit("mul", node.out, b.emit("sub", 1.0, node.out))
    return (b.emit("mul", dy, slope),)


def _where(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    condition = node.inputs[0]
    return None, b.emit("where", condition, dy, 0.0), b.emit("where", condition, 0.0, dy)


def _cast(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    return (converted(b, dy, node.inputs[0].dtype),)


def converted(b: GraphBuilder, v: Value, dtype: str) -> Value:
    """A value in another type, or itself."""
    return v if v.dtype == dtype else b.emit("cast", v, dtype=dtype)


def identity(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    """Also of broadcast_to: the walk sums over what was broadcast."""
    return (dy,)


def channel_sum(b: GraphBuilder, dy: Value) -> Value:
    """The gradient of a vector that runs along axis 1."""
    return b.emit("sum", dy, axes=(0, *range(2, len(dy.shape))))


# --- the table ----------------------------------------------------------------------------------

POINTWISE_RULES: dict[str, Rule] = {
    "abs": _abs,
    "add": _add,
    "broadcast_to": identity,
    "cast": _cast,
    "ceil": _flat,
    "cos": _cos,
    "div": _div,
    "erf": _erf,
    "exp": _exp,
    "expm1": _expm1,
    "floor": _flat,
    "fmod": _fmod,
    "log": _log,
    "log1p": _log1p,
    "maximum": _extremum(wins="greater", loses="less"),
    "minimum": _extremum(wins="less", loses="greater"),
    "mul": _mul,
    "neg": _neg,
    "pow": _pow,
    "round": _flat,
    "rsqrt": _rsqrt,
    "sigmoid": _sigmoid,
    "sign": _flat,
    "sin": _sin,
    "sqrt": _sqrt,
    "sub": _sub,
    "tanh": _tanh,
    "where": _where,
}
