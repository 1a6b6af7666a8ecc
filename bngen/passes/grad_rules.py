"""GRAD_RULES: for each op, how a gradient that arrives at its results goes on to its operands.

A rule takes the builder, the forward node and one cotangent a result (None where none arrives), and
gives one gradient an operand (None where there is none). It is written as if every operand were
wanted: what nobody asks for is dropped afterwards. Gradients of broadcast operands are given in the
result's shape; the walk in `autodiff` sums them back. Derivatives at kinks and ties are PyTorch's.

`NO_GRADIENT` names the ops that let nothing through. Ops in neither table (gradients themselves and
the partial reductions that fission makes) cannot be differentiated.
"""

from __future__ import annotations

from bngen.ir.build import GraphBuilder
from bngen.ir.node import Node
from bngen.ir.ops.gather import inverses
from bngen.ir.ops.reduce import normalize_axes
from bngen.ir.types import TensorType, Value
from bngen.passes.activation_rules import ACTIVATION_RULES
from bngen.passes.pointwise_rules import (
    POINTWISE_RULES,
    Gradients,
    Rule,
    channel_sum,
    converted,
    identity,
)

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


def _count(x: Value) -> float:
    """Elements of a channel over the mini-batch."""
    return float(x.type.size // x.shape[1])


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


def _sync_batch_norm(
    b: GraphBuilder, node: Node, dy: Value | None, *moments: Value | None
) -> Gradients:
    """Of the sum of what all ranks give: each rank's x is in the statistics of all of them."""
    x, weight, _ = node.inputs
    _, mean, var, count = node.outputs
    group, dx, dweight, dbias = node.attrs["group"], None, None, None
    if dy is not None:
        dx, dweight, dbias = b.emit(
            "sync_batch_norm_grad", dy, x, mean, var, count, weight, name=node.out.name,
            eps=node.attrs["eps"], group=group,
        )  # fmt: skip
    dmean, dvar, _ = moments
    if dmean is None and dvar is None:
        return dx, dweight, dbias
    own = (g or b.zeros(mean.type) for g in (dvar, dmean))
    slope, offset = (b.emit("div", g, count) for g in b.emit("all_reduce", *own, group=group))
    through = b.emit("bn_grad_affine", x, mean, b.emit("mul", slope, 2.0), offset)
    return through if dx is None else b.emit("add", dx, through), dweight, dbias


def _all_reduce(b: GraphBuilder, node: Node, *dys: Value | None) -> Gradients:
    """What each rank has is in the results of all: what arrives at them is summed, too."""
    given = [dy or b.zeros(v.type) for dy, v in zip(dys, node.outputs, strict=True)]
    sums = b.emit("all_reduce", *given, name=node.out.name, **node.attrs)
    return sums if isinstance(sums, tuple) else (sums,)


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
    return dy, channel_sum(b, dy)


# --- contractions, windows, views ---------------------------------------------------------------


def _conv2d(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    x, weight = node.inputs
    dy = converted(b, dy, x.dtype)
    return (
        b.emit("conv2d_grad_input", dy, weight, shape=x.shape, **node.attrs),
        b.emit("conv2d_grad_weight", x, dy, shape=weight.shape, **node.attrs),
    )


def _transposed(b: GraphBuilder, node: Node, dx: Value) -> Gradients:
    """Of the data gradient as an op of its own: the convolution that it belongs to, and a weight's.

    Both are as before, with what arrives in the place of the image.
    """
    dy, weight = node.inputs
    dx = converted(b, dx, dy.dtype)
    attrs = {k: v for k, v in node.attrs.items() if k != "shape"}
    return (
        b.emit("conv2d", dx, weight, **attrs),
        b.emit("conv2d_grad_weight", dx, dy, shape=weight.shape, **attrs),
    )


def _matmul(b: GraphBuilder, node: Node, dy: Value) -> Gradients:
    """With A = op(x), B = op(y): dA = dy B', dB = A' dy, each transposed back where op did."""
    (x, y), ta, tb = node.inputs, node.attrs["trans_a"], node.attrs["trans_b"]
    dy = converted(b, dy, x.dtype)
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
    **POINTWISE_RULES,
    **ACTIVATION_RULES,
    "adaptive_avg_pool2d": _window_grad("adaptive_avg_pool2d_grad"),
    "all_reduce": _all_reduce,
    "amax": _amax,
    "avg_pool2d": _window_grad("avg_pool2d_grad"),
    "batch_norm": _batch_norm,
    "bias_add": _bias_add,
    "bn_mean": _bn_mean,
    "bn_normalize": _bn_normalize,
    "bn_stats": _bn_stats,
    "bn_var": _bn_var,
    "cat": _cat,
    "conv2d": _conv2d,
    "conv2d_grad_input": _transposed,
    "copy": identity,
    "gather": _gather,
    "matmul": _matmul,
    "max_pool2d": _max_pool2d,
    "mean": _mean,
    "rearrange": _rearrange,
    "reshape": _reshape,
    "resize_bicubic": _window_grad("resize_bicubic_grad"),
    "resize_bilinear": _window_grad("resize_bilinear_grad"),
    "resize_nearest": _window_grad("resize_nearest_grad"),
    "slice": _slice,
    "sum": _sum,
    "sync_batch_norm": _sync_batch_norm,
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
    "positions": "has no operands",
    "random_uniform": "takes integers",
    "stop_gradient": "is there to stop it",
}
