"""Fission: batch normalization, and its gradient, become sub-layers that can be joined elsewhere.

In: a graph with ``coarse`` ops. Out: a graph without them; with ``split_reductions`` every
reduction over ``n h w`` is a partial one, which a store loop can hold, and a small merge.

========================= ====================================================================
before                    after
========================= ====================================================================
batch_norm (two sweeps)   bn_mean, bn_var, bn_normalize
batch_norm (MVF)          bn_stats, bn_normalize
batch_norm_grad           bn_grad_sums, bn_grad_input
batch_norm_grad, deferred bn_grad_sums, bn_grad_direct + bn_grad_affine
sync_batch_norm           the same, with bn_all_stats between the two
sync_batch_norm_grad      the same, with an all_reduce of what is made of each sum
bn_mean, bn_var           bn_partial_mean, bn_merge_mean; bn_partial_var, sum
bn_stats                  bn_partial_stats, bn_merge_stats
bn_grad_sums              bn_grad_partial_sums, sum
sum over n h w            partial_sum, sum
sum over h w              partial_sum, sum_groups
========================= ====================================================================

Terms follow Jung et al. (SysML 2019); the gradient formula is that of Ioffe and Szegedy (2015).
"""

from __future__ import annotations

import math

from bngen.ir.build import GraphBuilder
from bngen.ir.node import Graph, Node
from bngen.ir.types import TensorType, Value
from bngen.passes.rewrite import Rule, rewrite

ROWS_PER_GROUP_TARGET = 128
"""Pixels after which a group of rows is closed: float32 sums of so few lose no more than 1e-5."""
LONGEST_ROW = 1024
"""Pixels of a row up to which its sum is one partial sum; longer ones are summed in float64."""


def samples(x: Value) -> int:
    """Elements per channel: N*H*W, the M of the batch-normalization formulas."""
    return x.type.size // x.shape[1]


def row_groups(x: TensorType) -> int:
    """Into how many groups of whole rows (n, h) partial sums over ``x[N,C,H,W]`` are cut.

    A group lies within one image and holds the most rows that divide H and stay within
    `ROWS_PER_GROUP_TARGET` pixels; an even number or all rows, so that strided convolutions find
    all their phases in it and Winograd's tiles end with it (but never more than twice the target).
    """
    n, _, h, w = x.shape
    divisors = [r for r in range(1, h + 1) if h % r == 0]
    whole = [r for r in divisors if r % 2 == 0 or r == h]
    choices = [r for r in whole if r * w <= 2 * ROWS_PER_GROUP_TARGET] or divisors
    fitting = [r for r in choices if r * w <= ROWS_PER_GROUP_TARGET]
    return n * (h // (max(fitting) if fitting else min(choices)))


def _inverse_std(b: GraphBuilder, var: Value, eps: float) -> Value:
    return b.emit("rsqrt", b.emit("add", var, eps))


def _split_two_sweeps(b: GraphBuilder, node: Node) -> tuple[Value, ...]:
    x, weight, bias = node.inputs
    mean = b.emit("bn_mean", x, loc=node.loc)
    var = b.emit("bn_var", x, mean, loc=node.loc)
    y = b.emit("bn_normalize", x, mean, var, weight, bias, eps=node.attrs["eps"], loc=node.loc)
    return y, mean, var


def _split_one_sweep(b: GraphBuilder, node: Node) -> tuple[Value, ...]:
    x, weight, bias = node.inputs
    mean, var = b.emit("bn_stats", x, loc=node.loc)
    y = b.emit("bn_normalize", x, mean, var, weight, bias, eps=node.attrs["eps"], loc=node.loc)
    return y, mean, var


def _split_grad(b: GraphBuilder, node: Node) -> tuple[Value, ...]:
    dy, x, mean, var, weight = node.inputs
    eps = node.attrs["eps"]
    sums = b.emit("bn_grad_sums", dy, x, mean, loc=node.loc)
    dx = b.emit(
        "bn_grad_input", dy, x, mean, var, weight, *sums, eps=eps, count=samples(x), loc=node.loc
    )
    return dx, b.emit("mul", sums[1], _inverse_std(b, var, eps)), sums[0]


def _split_grad_deferred(b: GraphBuilder, node: Node) -> tuple[Value, ...]:
    """Spell dx as a*dy + slope*(x - mean) + offset, of which only a*dy needs dy.

    With a = weight*invstd: slope = -a*invstd^2*sum(dy*(x-mean))/M, offset = -a*sum(dy)/M.
    """
    dy, x, mean, var, weight = node.inputs
    eps, count = node.attrs["eps"], samples(x)
    sum_dy, sum_centred = b.emit("bn_grad_sums", dy, x, mean, loc=node.loc)
    inv = _inverse_std(b, var, eps)
    a = inv if weight is None else b.emit("mul", inv, weight)
    dweight = b.emit("mul", sum_centred, inv)
    per_sample = b.emit("mul", a, -1.0 / count)
    slope = b.emit("mul", b.emit("mul", per_sample, inv), dweight)
    offset = b.emit("mul", per_sample, sum_dy)
    direct = b.emit("bn_grad_direct", dy, var, weight, eps=eps, loc=node.loc)
    affine = b.emit("bn_grad_affine", x, mean, slope, offset, loc=node.loc)
    return b.emit("add", direct, affine, loc=node.loc), dweight, sum_dy


def _split_sync(split: Rule) -> Rule:
    """That of a synchronized one: what `split` finds are the statistics of this rank's share."""

    def rule(b: GraphBuilder, node: Node) -> tuple[Value, ...]:
        x, weight, bias = node.inputs
        eps, group = node.attrs["eps"], node.attrs["group"]
        own = split(b, node)[1:]
        mean, var, count = b.emit(
            "bn_all_stats", *own, count=samples(x), group=group, name=node.out.name, loc=node.loc
        )
        y = b.emit("bn_normalize", x, mean, var, weight, bias, eps=eps, loc=node.loc)
        return y, mean, var, count

    return rule


def _summed(b: GraphBuilder, node: Node, *values: Value) -> tuple[Value, ...]:
    """The sums over all ranks of what one has for a synchronized gradient."""
    group = node.attrs["group"]
    return b.emit("all_reduce", *values, group=group, name=node.out.name, loc=node.loc)


def _split_sync_grad(b: GraphBuilder, node: Node) -> tuple[Value, ...]:
    dy, x, mean, var, count, weight = node.inputs
    eps = node.attrs["eps"]
    sums = b.emit("bn_grad_sums", dy, x, mean, loc=node.loc)
    shares = _summed(b, node, *(b.emit("div", total, count) for total in sums))
    dx = b.emit("bn_grad_input", dy, x, mean, var, weight, *shares, eps=eps, count=1, loc=node.loc)
    return dx, b.emit("mul", sums[1], _inverse_std(b, var, eps)), sums[0]


def _split_sync_grad_deferred(b: GraphBuilder, node: Node) -> tuple[Value, ...]:
    """As `_split_grad_deferred`; slope and offset are sums over all ranks, of M elements in all."""
    dy, x, mean, var, count, weight = node.inputs
    eps = node.attrs["eps"]
    sum_dy, sum_centred = b.emit("bn_grad_sums", dy, x, mean, loc=node.loc)
    inv = _inverse_std(b, var, eps)
    a = inv if weight is None else b.emit("mul", inv, weight)
    dweight = b.emit("mul", sum_centred, inv)
    per_sample = b.emit("neg", b.emit("div", a, count))
    own = b.emit("mul", b.emit("mul", per_sample, inv), dweight), b.emit("mul", per_sample, sum_dy)
    slope, offset = _summed(b, node, *own)
    direct = b.emit("bn_grad_direct", dy, var, weight, eps=eps, loc=node.loc)
    affine = b.emit("bn_grad_affine", x, mean, slope, offset, loc=node.loc)
    return b.emit("add", direct, affine, loc=node.loc), dweight, sum_dy


_SPLIT = {False: _split_two_sweeps, True: _split_one_sweep}

FISSION: dict[tuple[bool, bool], dict[str, Rule]] = {
    (one_sweep, deferred): {
        "batch_norm": _SPLIT[one_sweep],
        "batch_norm_grad": _split_grad_deferred if deferred else _split_grad,
        "sync_batch_norm": _split_sync(_SPLIT[one_sweep]),
        "sync_batch_norm_grad": _split_sync_grad_deferred if deferred else _split_sync_grad,
    }
    for one_sweep in (False, True)
    for deferred in (False, True)
}
"""(MVF, deferred gradient) -> coarse ops and their sub-layers; see the module's table."""


def fission_batch_norm(graph: Graph, *, one_sweep: bool, deferred: bool) -> Graph:
    """Split every batch normalization and its gradient, see the module's table.

    Args:
        graph: may hold ``coarse`` ops.
        one_sweep: MVF, mean and variance in one reduction.
        deferred: the gradient as a part that needs dy and an affine function of x.
    """
    return rewrite(graph, FISSION[one_sweep, deferred])


def _has_short_rows(x: Value) -> bool:
    """Whether ``x`` is a feature map whose groups of rows may be summed in its own precision."""
    return len(x.shape) == 4 and x.shape[3] <= LONGEST_ROW


def _partial_stats(b: GraphBuilder, node: Node) -> tuple[Value, ...] | None:
    (x,) = node.inputs
    if not _has_short_rows(x):
        return None
    groups = row_groups(x.type)
    parts = b.emit("bn_partial_stats", x, row_groups=groups, loc=node.loc)
    return b.emit("bn_merge_stats", *parts, count=samples(x) // groups, loc=node.loc)


def _partial_grad_sums(b: GraphBuilder, node: Node) -> tuple[Value, ...] | None:
    dy, x, mean = node.inputs
    if not _has_short_rows(x):
        return None
    parts = b.emit("bn_grad_partial_sums", dy, x, mean, row_groups=row_groups(x.type), loc=node.loc)
    return tuple(b.emit("sum", p, axes=(0,), loc=node.loc) for p in parts)


def _in_parts(partial: str, fold: str, by_image: str, *, averages: bool = False) -> Rule:
    """The rule of a fold over the pixels of a feature map, of all images or of each.

    Channels may be folded with them, of a map that has several: they come last.
    """

    def rule(b: GraphBuilder, node: Node) -> tuple[Value, ...] | None:
        (x,) = node.inputs
        axes = tuple(sorted(a % 4 for a in node.attrs["axes"]))
        if not _has_short_rows(x) or axes not in _OVER_PIXELS:
            return None
        groups, (n, c, *_) = row_groups(x.type), x.shape
        if 1 in axes and c < LEAST_CHANNELS:
            return None
        total = b.emit(partial, x, row_groups=groups, loc=node.loc)
        if 0 in axes:
            total = b.emit(fold, total, axes=(0,), loc=node.loc)
        elif groups > n:
            total = b.emit(by_image, total, images=n, loc=node.loc)
        if 1 in axes:
            total = b.emit(fold, total, axes=(-1,), loc=node.loc)
        if averages:
            total = b.emit("div", total, float(math.prod(x.shape[a] for a in axes)))
        if node.attrs["keepdims"]:
            kept = tuple(1 if a in axes else extent for a, extent in enumerate(x.shape))
            total = b.emit("reshape", total, shape=kept)
        return (total,)

    return rule


_OVER_PIXELS = ((0, 2, 3), (2, 3), (0, 1, 2, 3), (1, 2, 3))

LEAST_CHANNELS = 8
"""Channels of a map that lies in channel blocks for its own sake."""


def _partial_mean(b: GraphBuilder, node: Node) -> tuple[Value, ...] | None:
    (x,) = node.inputs
    if not _has_short_rows(x):
        return None
    parts = b.emit("bn_partial_mean", x, row_groups=row_groups(x.type), loc=node.loc)
    return (b.emit("bn_merge_mean", *parts, count=samples(x), loc=node.loc),)


def _partial_var(b: GraphBuilder, node: Node) -> tuple[Value, ...] | None:
    x, mean = node.inputs
    if not _has_short_rows(x):
        return None
    part = b.emit("bn_partial_var", x, mean, row_groups=row_groups(x.type), loc=node.loc)
    return (b.emit("mul", b.emit("sum", part, axes=(0,)), 1.0 / samples(x)),)


IN_PARTS: dict[str, Rule] = {
    "bn_mean": _partial_mean,
    "bn_var": _partial_var,
    "bn_stats": _partial_stats,
    "bn_grad_sums": _partial_grad_sums,
    "sum": _in_parts("partial_sum", "sum", "sum_groups"),
    "mean": _in_parts("partial_sum", "sum", "sum_groups", averages=True),
    "amax": _in_parts("partial_max", "amax", "max_groups"),
}
"""Reductions over ``n h w``, or ``h w``, -> partial ones and a small merge."""


def split_reductions(graph: Graph) -> Graph:
    """Cut reductions over pixels into partial sums over groups of rows and a small merge."""
    return rewrite(graph, IN_PARTS)


def _hoist_normalize(b: GraphBuilder, node: Node) -> tuple[Value, ...]:
    x, mean, var, weight, bias = node.inputs
    scale = b.emit("bn_scale", var, weight, eps=node.attrs["eps"], loc=node.loc)
    return (b.emit("bn_apply", x, mean, scale, bias, loc=node.loc),)


def _hoist_grad_direct(b: GraphBuilder, node: Node) -> tuple[Value, ...]:
    dy, var, weight = node.inputs
    scale = b.emit("bn_scale", var, weight, eps=node.attrs["eps"], loc=node.loc)
    return (b.emit("channel_scale", dy, scale, loc=node.loc),)


def _hoist_grad_input(b: GraphBuilder, node: Node) -> tuple[Value, ...]:
    dy, x, mean, var, weight, sum_dy, sum_centred = node.inputs
    eps, share = node.attrs["eps"], 1.0 / node.attrs["count"]
    scale = b.emit("bn_scale", var, weight, eps=eps, loc=node.loc)
    mean_dy = b.emit("mul", sum_dy, share)
    slope = b.emit("div", b.emit("mul", sum_centred, share), b.emit("add", var, eps))
    return (b.emit("bn_grad_apply", dy, x, mean, scale, mean_dy, slope, loc=node.loc),)


HOISTED: dict[str, Rule] = {
    "bn_normalize": _hoist_normalize,
    "bn_grad_direct": _hoist_grad_direct,
    "bn_grad_input": _hoist_grad_input,
}
"""Sub-layers with square roots and divisions -> the same with these computed once a channel."""


def hoist_channel_factors(graph: Graph) -> Graph:
    """Compute once a channel what depends on the channel alone: square roots, divisions.

    Before: ``y = bn_normalize(x, mean, var, weight, bias)``. After: ``scale = bn_scale(var,
    weight); y = bn_apply(x, mean, scale, bias)``, and the same for BN's gradient. Forward and
    backward then share ``scale``.
    """
    return rewrite(graph, HOISTED)
