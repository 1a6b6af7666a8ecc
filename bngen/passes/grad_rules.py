"""GRAD_RULES: for each op, how a gradient that arrives at its results goes on to its operands.

A rule takes the builder, the forward node and one cotangent a result (None where none arrives), and
gives one gradient an operand (None where there is none). It is written as if every operand were
wanted: what nobody asks for is dropped afterwards. Gradients of broadcast operands are given in the
result's shape; the walk in `autodiff` sums them back. Derivatives at kinks and ties are PyTorch's.

`NO_GRADIENT` names the ops that let nothing through. Ops in neither table (gradients themselves and
the partial reductions that fission makes) cannot be differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bngen.ir.build import GraphBuilder
from bngen.ir.node import Node
from bngen.ir.ops.gather import inverses
from bngen.ir.ops.reduce import normalize_axes
from bngen.ir.types import TensorType, Value

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


def _where(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    condition = node.inputs[0]
    return None, b.emit("where", condition, dy, 0.0), b.emit("where", condition, 0.0, dy)


def _cast(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    return (b.emit("cast", dy, dtype=node.inputs[0].dtype),)


def _identity(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    """Also of broadcast_to: the walk sums over what was broadcast."""
    return (dy,)


# --- reductions ---------------------------------------------------------------------------------


def _kept(b: GraphBuilder, node: Node, value: Value) -> Value:
    """A reduction's result with the folded axes put back as extents of one."""
    x = node.inputs[0]
    axes = normalize_axes(node.attrs["axes"], len(x.shape))
    shape = tuple(1 if i in axes else s for i, s in enumerate(x.shape))
    return value if value.shape == shape else b.emit("reshape", value, shape=shape)


def _sum(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    return (b.emit("broadcast_to", _kept(b, node, dy), shape=node.inputs[0].shape),)


def _mean(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    count = node.inputs[0].type.size // node.out.type.size
    return _sum(b, node, b.emit("div", dy, float(count)))


def _amax(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    """Elements that tie for the maximum share its gradient evenly; a NaN ties with nobody."""
    (x,), axes = node.inputs, node.attrs["axes"]
    hit = b.emit("equal", x, _kept(b, node, node.out))
    ties = b.emit("sum", b.emit("cast", hit, dtype=x.dtype), axes=axes, keepdims=True)
    return (b.emit("div", b.emit("where", hit, _kept(b, node, dy), 0.0), ties),)


def _spatial_axes(x: Value) -> tuple[int, ...]:
    return (0, *range(2, len(x.shape)))


def _count(x: Value) -> float:
    """Elements of a channel over the mini-batch."""
    return float(x.type.size // x.shape[1])


def _channel_sum(b: GraphBuilder, dy: Value) -> Value:
    return b.emit("sum", dy, axes=_spatial_axes(dy))


# --- batch normalization and its sub-layers -----------------------------------------------------


def _through_stats(
    b: GraphBuilder, x: Value, mean: Value, dmean: Value | None, dvar: Value | None
) -> Value | None:
    """Gradient of x through its batch mean and (biased) variance: (x - mean) * slope + offset."""
    if dmean is None and dvar is None:
        return None
    offset = b.emit("div", dmean, _count(x)) if dmean else b.zeros(mean.type)
    if dvar is None:
        along = b.emit("reshape", offset, shape=(1, x.shape[1], *(1,) * (len(x.shape) - 2)))
        return b.emit("broadcast_to", along, shape=x.shape)
    slope = b.emit("mul", dvar, 2.0 / _count(x))
    return b.emit("bn_grad_affine", x, mean, slope, offset)


def _batch_norm(
    b: GraphBuilder, node: Node, dy: Value | None, dmean: Value | None, dvar: Value | None
) -> Gradients:
    x, weight, _ = node.inputs
    _, mean, var = node.outputs
    through_stats = _through_stats(b, x, mean, dmean, dvar)
    if dy is None:
        return through_stats, None, None
    dx, dweight, dbias = b.emit("batch_norm_grad", dy, x, mean, var, weight, eps=node.attrs["eps"])
    return dx if through_stats is None else b.emit("add", dx, through_stats), dweight, dbias


def _bn_stats(b: GraphBuilder, node: Node, dmean: Value | None, dvar: Value | None) -> Gradients:
    return (_through_stats(b, node.inputs[0], node.outputs[0], dmean, dvar),)


def _bn_mean(b: GraphBuilder, node: Node, dmean: Value) -> Gradients:
    return (_through_stats(b, node.inputs[0], node.out, dmean, None),)


def _bn_var(b: GraphBuilder, node: Node, dvar: Value) -> Gradients:
    """The mean given need not be that of x, so it has a gradient of its own."""
    x, mean = node.inputs
    offset = b.emit("sub", b.emit("bn_mean", x), mean)
    dmean = b.emit("mul", b.emit("mul", dvar, -2.0), offset)
    return _through_stats(b, x, mean, None, dvar), dmean


def _bn_normalize(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    x, mean, var, weight, _ = node.inputs
    eps = node.attrs["eps"]
    sum_dy, sum_dy_centred = b.emit("bn_grad_sums", dy, x, mean)
    inv = b.emit("rsqrt", b.emit("add", var, eps))
    scale = inv if weight is None else b.emit("mul", inv, weight)
    slope = b.emit("mul", b.emit("mul", scale, -0.5), b.emit("mul", inv, inv))
    return (
        b.emit("bn_grad_direct", dy, var, weight, eps=eps),
        b.emit("neg", b.emit("mul", sum_dy, scale)),
        b.emit("mul", sum_dy_centred, slope),
        b.emit("mul", sum_dy_centred, inv),
        sum_dy,
    )


def _bias_add(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    return dy, _channel_sum(b, dy)


# --- contractions, windows, views ---------------------------------------------------------------


def _conv2d(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    x, weight = node.inputs
    return (
        b.emit("conv2d_grad_input", dy, weight, shape=x.shape, **node.attrs),
        b.emit("conv2d_grad_weight", x, dy, shape=weight.shape, **node.attrs),
    )


def _transposed(b: GraphBuilder, node: Node, dx: Value) -> Gradients:
    """Of the data gradient as an op of its own: the convolution that it belongs to, and a weight's.

    Both are as before, with what arrives in the place of the image.
    """
    dy, weight = node.inputs
    attrs = {k: v for k, v in node.attrs.items() if k != "shape"}
    return (
        b.emit("conv2d", dx, weight, **attrs),
        b.emit("conv2d_grad_weight", dx, dy, shape=weight.shape, **attrs),
    )


def _matmul(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    """With A = op(x), B = op(y): dA = dy B', dB = A' dy, each transposed back where op did."""
    (x, y), ta, tb = node.inputs, node.attrs["trans_a"], node.attrs["trans_b"]
    return (
        b.emit("matmul", y, dy, trans_a=tb, trans_b=True)
        if ta
        else b.emit("matmul", dy, y, trans_b=not tb),
        b.emit("matmul", dy, x, trans_a=True, trans_b=ta)
        if tb
        else b.emit("matmul", x, dy, trans_a=not ta),
    )


def _max_pool2d(b: GraphBuilder, node: Node, dy: Value, _: None) -> Gradients:
    (x,), (_, index) = node.inputs, node.outputs
    return (b.emit("max_pool2d_grad", dy, index, shape=x.shape, **node.attrs),)


def _window_grad(op: str) -> Rule:
    """The gradient of an average pool needs its input's shape alone."""

    def rule(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
        return (b.emit(op, dy, shape=node.inputs[0].shape, **node.attrs),)

    return rule


def _cat(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    axis, stop, grads = node.attrs["axis"], 0, []
    for x in node.inputs:
        start, stop = stop, stop + x.shape[axis]
        grads.append(b.emit("slice", dy, axis=axis, start=start, stop=stop))
    return grads


def _slice(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    """Zeros on either side of dy; they are a broadcast constant, joined by a view."""
    (x,), axis = node.inputs, node.attrs["axis"]

    def margin(extent: int) -> list[Value]:
        shape = (*x.shape[:axis], extent, *x.shape[axis + 1 :])
        return [b.zeros(TensorType(shape, x.dtype))] if extent else []

    before, after = margin(node.attrs["start"]), margin(x.shape[axis] - node.attrs["stop"])
    return (b.emit("cat", *before, dy, *after, axis=axis) if before or after else dy,)


def _reshape(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    return (b.emit("reshape", dy, shape=node.inputs[0].shape),)


def _gather(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    """An element adds up what reached its first place in the result, its second, and so on."""
    (x,), axis = node.inputs, node.attrs["axis"]
    total = None
    for pieces in inverses(node.attrs, x.shape[axis]):
        part = b.emit("gather", dy, axis=axis, pieces=pieces)
        total = part if total is None else b.emit("add", total, part)
    return (total if total is not None else b.zeros(x.type),)


def _rearrange(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    """The same factors, back in their order."""
    split, order = node.attrs["split"], node.attrs["order"]
    moved, back = [split[i] for i in order], [order.index(i) for i in range(len(order))]
    return (b.emit("rearrange", dy, split=moved, order=back, shape=node.inputs[0].shape),)


# --- the tables ---------------------------------------------------------------------------------

GRAD_RULES: dict[str, Rule] = {
    "abs": _abs,
    "adaptive_avg_pool2d": _window_grad("adaptive_avg_pool2d_grad"),
    "add": _add,
    "amax": _amax,
    "avg_pool2d": _window_grad("avg_pool2d_grad"),
    "batch_norm": _batch_norm,
    "bias_add": _bias_add,
    "bn_mean": _bn_mean,
    "bn_normalize": _bn_normalize,
    "bn_stats": _bn_stats,
    "bn_var": _bn_var,
    "broadcast_to": _identity,
    "cast": _cast,
    "cat": _cat,
    "conv2d": _conv2d,
    "conv2d_grad_input": _transposed,
    "copy": _identity,
    "div": _div,
    "exp": _exp,
    "gather": _gather,
    "hardtanh": _hardtanh,
    "leaky_relu": _leaky_relu,
    "log": _log,
    "matmul": _matmul,
    "max_pool2d": _max_pool2d,
    "maximum": _extremum(wins="greater", loses="less"),
    "mean": _mean,
    "minimum": _extremum(wins="less", loses="greater"),
    "mul": _mul,
    "neg": _neg,
    "pow": _pow,
    "rearrange": _rearrange,
    "relu": _relu,
    "reshape": _reshape,
    "resize_bilinear": _window_grad("resize_bilinear_grad"),
    "resize_nearest": _window_grad("resize_nearest_grad"),
    "rsqrt": _rsqrt,
    "sigmoid": _sigmoid,
    "silu": _silu,
    "slice": _slice,
    "sqrt": _sqrt,
    "sub": _sub,
    "sum": _sum,
    "tanh": _tanh,
    "where": _where,
}

NO_GRADIENT: dict[str, str] = {
    "bn_update": "running statistics are state, as in PyTorch",
    "constant": "has no operands",
    "equal": "gives bool",
    "greater": "gives bool",
    "greater_equal": "gives bool",
    "less": "gives bool",
    "less_equal": "gives bool",
    "not_equal": "gives bool",
    "one_hot": "takes integers",
    "random_uniform": "takes integers",
    "stop_gradient": "is there to stop it",
}
