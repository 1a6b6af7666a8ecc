"""What each pointwise op computes for one element, as a TIR expression.

`EXPRESSIONS` maps an op to ``fn(element, *operand expressions) -> expression`` (or a tuple of
expressions). A missing optional operand is None. The meaning is that of `bngen.ir.ops`.

Arithmetic and comparisons go through `bngen.lower.opaque`, so that they are done as written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx

from bngen.dtypes import DTYPES
from bngen.ir.ops.random import MIX, ROUND, STREAM, random_key
from bngen.ir.ops.row import promote
from bngen.lower import logarithms, opaque, transcendental
from bngen.lower.activations import ACTIVATIONS
from bngen.lower.coords import logical
from bngen.lower.element import FLOATS, Element
from bngen.lower.error_function import erf
from bngen.lower.gather import filled
from bngen.lower.opaque import Expr, add, bind, div, dtype_of, greater, less, mul, scaled
from bngen.lower.opaque import sub as minus
from bngen.lower.stored import rounded


def maximum_over(dtype: str) -> Callable[..., Expr]:
    """The fold of a maximum over reduction axes; one NaN makes it NaN."""
    if dtype not in FLOATS:
        return te.max
    return te.comm_reducer(
        lambda a, b: opaque.maximum(a, b),
        lambda t: tirx.const(-math.inf, t),
        name="nan_max",
    )


def _where(e: Element, cond: Expr, a: Expr, b: Expr) -> Expr:
    # Select evaluates both sides: a branch per lane would cost more than the arithmetic.
    return tirx.Select(cond, _as(a, e.dtype), _as(b, e.dtype))


def _as(x: Expr, dtype: str) -> Expr:
    if dtype_of(x) == dtype:
        return x
    if dtype == "uint8" and isinstance(x, tirx.IntImm):  # TVM has no negative number for it.
        return tirx.const(x.value % 256, dtype)
    if dtype_of(x) == "bool":  # TVM's analyzer cannot look at vectors of bool in a named value.
        return tirx.Select(opaque.scalar(x), tirx.const(1, dtype), tirx.const(0, dtype))
    if dtype == "uint8" and opaque.is_float(x):
        # To LLVM no unsigned integer comes of a negative number; modulo the range it does.
        x = tirx.Cast("int32", opaque.scalar(x))
    return tirx.Cast(dtype, opaque.scalar(x))


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


def _hashed(x: Expr, table: Sequence[tuple[int, int]]) -> Expr:
    """Shift, exclusive or, multiply."""
    dtype = dtype_of(x)
    for shift, factor in table:
        x = x ^ (x >> tirx.const(shift, dtype))
        x = x if factor == 1 else mul(x, tirx.const(factor, dtype))
    return x


def _random_uniform(e: Element, seed: Expr) -> Expr:
    """Two rounds over the element's row-major number, as in `bngen.ir.ops`."""
    number: Expr = tirx.const(0, "int32")
    for axis, extent in zip(e.coord, e.node.attrs["shape"], strict=True):
        number = number * extent + logical(axis)
    # Coordinates outside a padded image are negative; what is computed there is never used.
    number = tirx.Cast("uint32", number & 0x7FFFFFFF)

    def drawn(low: Expr, high: Expr) -> Expr:
        return bind(
            _hashed(number ^ low, ROUND),
            lambda first: bind(_hashed(first ^ high, ROUND), _uniform),
        )

    def halves(key: Expr) -> Expr:
        high = key >> tirx.const(32, "uint64")
        return drawn(tirx.Cast("uint32", key), tirx.Cast("uint32", high))

    stream = e.node.attrs["stream"]
    if isinstance(seed, tirx.IntImm):
        return drawn(*(tirx.const(half, "uint32") for half in random_key(seed.value, stream)))
    offset = tirx.const(stream * STREAM % 2**64, "uint64")
    return bind(
        _hashed(tirx.Cast("uint64", tirx.Cast("int64", seed)), MIX),
        lambda mixed: bind(_hashed(add(mixed, offset), MIX), halves),
    )


def _uniform(x: Expr) -> Expr:
    """32 random bits as a number in [0, 1)."""
    # Through int32: 24 bits convert exactly, and vector units convert signed integers.
    high, low = (tirx.Cast("int32", part) for part in (x >> tirx.const(8, "uint32"), x & 255))
    coarse, fine = (
        tirx.Cast("float32", part) * tirx.const(grid, "float32")
        for part, grid in ((high, 2.0**-24), (low, 2.0**-32))
    )
    return tirx.Select(tirx.EQ(high, tirx.const(0, "int32")), fine, coarse)


def _one_hot(e: Element, labels: Expr) -> Expr:
    hit = tirx.EQ(_as(labels, "int64"), _as(logical(e.coord[1]), "int64"))
    return tirx.Select(hit, e.const(1), e.const(0))


def _gather(e: Element, x: Expr) -> Expr:
    outside = filled(e.node, e.coord)
    if outside is None:
        return x
    return tirx.Select(opaque.chooses(outside), e.const(e.node.attrs["fill"]), x)


def _binary(
    fn: Callable[[Expr, Expr], Expr], on_bool: Callable[[Expr, Expr], Expr] | None = None
) -> Callable[..., Expr]:
    def compute(e: Element, a: Expr, b: Expr) -> Expr:
        a, b = _as(a, e.dtype), _as(b, e.dtype)
        return on_bool(a, b) if on_bool and e.dtype == "bool" else fn(a, b)

    return compute


def _compare(fn: Callable[[Expr, Expr], Expr]) -> Callable[..., Expr]:
    def compare(e: Element, a: Expr, b: Expr) -> Expr:
        dtype = DTYPES[promote([v.type for v in e.node.inputs])].computed
        if dtype == "bool":
            # LLVM's comparisons of single bits are signed, or those of floats; and TVM's analyzer
            # subtracts numbers to compare them, which it refuses where unsigned ones fall below 0.
            dtype = "int32"
        return fn(_as(a, dtype), _as(b, dtype))

    return compare


def _pow(e: Element, a: Expr, b: Expr) -> Expr:
    exponent = getattr(b, "value", None)
    if exponent == 2:
        return bind(a, lambda v: mul(v, v))
    return tirx.power(_as(a, e.dtype), _as(b, e.dtype))


def _abs(e: Element, x: Expr) -> Expr:
    if e.dtype in FLOATS or e.dtype == "uint8":
        return tirx.abs(x) if e.dtype in FLOATS else x
    return bind(x, lambda v: tirx.Select(less(v, e.const(0)), opaque.neg(v), v))


def _sign(e: Element, x: Expr) -> Expr:
    one, zero = e.const(1), e.const(0)
    below = zero if e.dtype == "uint8" else e.const(-1)
    return bind(
        x, lambda v: tirx.Select(
            greater(v, zero), one, tirx.Select(less(v, zero), below, zero)
        )
    )  # fmt: skip


EXPRESSIONS: dict[str, Callable[..., Any]] = {
    **ACTIVATIONS,
    "add": _binary(add, tirx.any),
    "sub": _binary(minus),
    "mul": _binary(mul, tirx.all),
    "div": _binary(div),
    "maximum": _binary(opaque.maximum, tirx.any),
    "minimum": _binary(opaque.minimum, tirx.all),
    # As often as the divisor goes into it, without an error: the C library's work.
    "fmod": _binary(opaque.mod),
    "pow": _pow,
    "greater": _compare(greater),
    "greater_equal": _compare(opaque.greater_equal),
    "less": _compare(less),
    "less_equal": _compare(opaque.less_equal),
    "equal": _compare(opaque.equal),
    "not_equal": _compare(opaque.not_equal),
    "exp": lambda e, x: transcendental.exp(x),
    "expm1": lambda e, x: logarithms.expm1(x),
    "log": lambda e, x: logarithms.log(x),
    "log1p": lambda e, x: logarithms.log1p(x),
    "erf": lambda e, x: erf(x),
    # Reduced by as many digits of pi as the largest arguments need, which is the C library's work.
    "sin": lambda e, x: tirx.sin(x),
    "cos": lambda e, x: tirx.cos(x),
    "floor": lambda e, x: tirx.floor(x),
    "ceil": lambda e, x: tirx.ceil(x),
    "round": lambda e, x: transcendental.rounded(x),
    "sqrt": lambda e, x: tirx.sqrt(x),
    "rsqrt": lambda e, x: div(e.const(1), tirx.sqrt(x)),
    "tanh": lambda e, x: transcendental.tanh(x),
    "neg": lambda e, x: opaque.neg(x),
    "abs": _abs,
    "sign": _sign,
    "where": _where,
    "cast": lambda e, x: rounded(_as(x, e.dtype), e.node.out.dtype),
    "stop_gradient": lambda e, x: x,
    "constant": lambda e: e.const(e.node.attrs["value"]),
    "broadcast_to": lambda e, x: x,
    "random_uniform": _random_uniform,
    "positions": lambda e: _as(logical(e.coord[e.node.attrs["axis"]]), e.dtype),
    "one_hot": _one_hot,
    "gather": _gather,
    "rearrange": lambda e, x: x,
    "resize_nearest": lambda e, x: x,
    "bias_add": lambda e, x, bias: add(x, bias),
    "bn_scale": _inverse_std,
    "bn_apply": _bn_apply,
    "bn_update": _bn_update,
    "channel_scale": lambda e, x, scale: scaled(x, scale),
    "bn_grad_affine": lambda e, x, mean, slope, offset: _bn_apply(e, x, mean, slope, offset),
    "bn_grad_apply": lambda e, dy, x, mean, scale, mean_dy, slope: scaled(
        minus(minus(dy, mean_dy), scaled(minus(x, mean), slope)), scale
    ),
}
