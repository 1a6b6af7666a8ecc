"""Kernels without a window: pointwise, copies between layouts, reductions, matrix products."""

from __future__ import annotations

import math

from tvm import te, tirx

from bngen.ir.node import Node
from bngen.ir.ops.reduce import normalize_axes
from bngen.ir.types import Value
from bngen.lower.body import Body, Lowered, identifier
from bngen.lower.coords import Lane, guard, guarded, logical, logical_coord
from bngen.lower.opaque import bind, dtype_of
from bngen.lower.pointwise import maximum_over
from bngen.plan.kernel import Kernel
from bngen.plan.layout import PLAIN, Blocked, PackedWeight, physical_shape

LONG_SUM = 2048
"""Products that a matrix product sums in the element's own type, one after the other."""


def lower_pointwise(kernel: Kernel, layouts: dict) -> Lowered:
    """A kernel whose loops only visit elements, with partial sums if the store slot holds some."""
    body = Body(kernel, layouts, "pointwise")
    body.store_slot()
    body.lowered.main = body.lowered.tiles[0]
    return body.finish(**_map_extents(kernel.outputs[0], layouts))


def _map_extents(v: Value, layouts: dict) -> dict[str, int]:
    layout = layouts[v]
    if len(v.shape) == 4 and isinstance(layout, Blocked):
        n, _, h, w = v.shape
        return {"n": n, "h": h, "w": w, "out_blocks": layout.blocks, "lanes": layout.lanes}
    return {}


def lower_partial(kernel: Kernel, layouts: dict) -> Lowered:
    """A partial reduction that no store slot took: it sweeps its operand by itself."""
    node = kernel.anchor
    body = Body(kernel, layouts, "partial")
    body.reduce_rows(node)
    low = body.lowered
    low.main = low.sums[0] if low.sums else "wide"
    return body.finish(**_map_extents(node.inputs[0], layouts))


def lower_copy(kernel: Kernel, layouts: dict) -> Lowered:
    """Another layout, or another place: copy, and views that could not stay views."""
    node = kernel.anchor
    out, layout = node.out, layouts[node.out]
    body = Body(kernel, layouts, "copy")
    shape = physical_shape(out.type, layout) or (1,)
    if isinstance(layout, PackedWeight):
        element = _packed_element(body, node.inputs[0], layout)
    else:

        def element(*index):
            return _moved(
                body, node, () if not out.shape else logical_coord(out.type, layout, index)
            )

    tensor = te.compute(shape, element, name="copy")
    body.results[out] = tensor
    body.lowered.main = "copy"
    return body.finish(**_map_extents(out, layouts))


def _moved(body: Body, node: Node, coord):
    """The element of a copy, cat, slice or reshape at a coordinate of its result."""
    if node.op == "copy":
        return body.masked(node.inputs[0], coord)
    if node.op == "slice":
        axis, start = node.attrs["axis"], node.attrs["start"]
        source = [
            c + start if i == axis and not isinstance(c, Lane) else c for i, c in enumerate(coord)
        ]
        if isinstance(coord[axis], Lane):
            source[axis] = coord[axis].logical() + start
        return _guarded(body, node.inputs[0], coord, source)
    if node.op == "reshape":
        return _guarded(body, node.inputs[0], coord, _unravel(coord, node))
    return _joined(body, node, coord)


def _guarded(body: Body, x: Value, coord, source):
    """Read ``x`` at ``source``, but only for lanes of ``coord`` that hold a channel."""
    value = body.at(x, tuple(source))
    condition = guard(body.layouts[x], coord)
    return value if condition is None else guarded(condition, value)


def _unravel(coord, node: Node):
    number = tirx.const(0, "int32")
    for axis, extent in zip(coord, node.out.shape, strict=True):
        number = number * extent + logical(axis)
    source = []
    for extent in reversed(node.inputs[0].shape):
        source.append(tirx.floormod(number, extent))
        number = tirx.floordiv(number, extent)
    return list(reversed(source))


def _joined(body: Body, node: Node, coord):
    axis = node.attrs["axis"]
    here = logical(coord[axis])
    starts, total = [], 0
    for v in node.inputs:
        starts.append(total)
        total += v.shape[axis]
    result = None
    for v, start in reversed(list(zip(node.inputs, starts, strict=True))):
        source = [here - start if i == axis else c for i, c in enumerate(coord)]
        value = _guarded(body, v, coord, source)
        result = (
            value
            if result is None
            else tirx.if_then_else(here < start + v.shape[axis], value, result)
        )
    return result


def _packed_element(body: Body, w: Value, layout: PackedWeight):
    """Gather a packed weight from ``[K,C/groups,R,S]``; zeros in padding lanes."""
    rows, cols = w.shape[2:]

    def tap(r, s):
        return (rows - 1 - r, cols - 1 - s) if layout.flipped else (r, s)

    def depthwise(kb, r, s, l):  # noqa: E741
        lane = Lane(kb, l, layout.outer)
        return _when([lane], body.at(w, (lane.logical(), 0, *tap(r, s))))

    def blocked(ob, ib, r, s, il, ol):
        outer = Lane(ob, ol, layout.outer)
        inner = ib if layout.inner is None else Lane(ib, il, layout.inner)
        o, i = outer.logical(), logical(inner)
        lanes = [outer] if layout.groups > 1 or layout.inner is None else [outer, inner]
        if not layout.flipped:
            return _when(lanes, body.at(w, (o, i, *tap(r, s))))
        per_group = w.shape[1]
        if layout.groups > 1:
            # Channel o of dx, in group g, sums over that group's outputs i:
            # w[g*K/groups + i, o mod C/groups].
            group = tirx.floordiv(o, per_group)
            i = group * (w.shape[0] // layout.groups) + i
            o = tirx.floormod(o, per_group)
        return _when(lanes, body.at(w, (i, o, *tap(r, s))))

    return depthwise if layout.depthwise else blocked


def _when(lanes: list[Lane], value):
    condition = guard(PLAIN, lanes)
    return value if condition is None else guarded(condition, value)


def lower_reduce(kernel: Kernel, layouts: dict) -> Lowered:
    """Reductions over any axes, merges of partial results, statistics that no partial sums take."""
    node = kernel.anchor
    body = Body(kernel, layouts, "reduce")
    makers = {
        "bn_merge_stats": _merge_stats,
        "bn_merge_mean": _merge_mean,
        "bn_stats": _channel_stats,
        "bn_mean": _channel_mean,
        "bn_var": _channel_var,
        "bn_grad_sums": _channel_grad_sums,
    }
    makers.get(node.op, _fold_axes)(body, node)
    body.lowered.main = "fold"
    body.store_slot()
    return body.finish()


def _fold_axes(body: Body, node: Node) -> None:
    x, out = node.inputs[0], node.out
    axes = normalize_axes(node.attrs["axes"], len(x.shape))
    fold = [te.reduce_axis((0, x.shape[a]), f"a{a}") for a in axes]
    count = 1
    for a in axes:
        count *= x.shape[a]
    how = maximum_over(x.dtype) if node.op == "amax" else te.sum
    wide = node.op != "amax" and x.type.is_float

    def element(*index):
        coord = list(logical_coord(out.type, body.layouts[out], index) if out.shape else ())
        source = []
        for i in range(len(x.shape)):
            if i in axes:
                if node.attrs["keepdims"]:
                    coord.pop(0)
                source.append(fold[axes.index(i)])
            else:
                source.append(coord.pop(0))
        value = body.at(x, tuple(source))
        return how(tirx.Cast("float64", value) if wide else value, axis=fold)

    shape = physical_shape(out.type, body.layouts[out]) or (1,)
    total = te.compute(shape, element, name="fold")
    _define_scaled(body, out, total, count if node.op == "mean" else 1)


def _define_scaled(body: Body, out: Value, total: te.Tensor, count: int) -> None:
    """The reduction's result in its own type, divided by ``count``: floats are folded in float64.

    A division, not a product with the reciprocal: the mean of a constant is that constant.
    """

    def value(*index):
        element = total(*index)
        if count != 1:
            element = element / tirx.const(count, "float64")
        return element if dtype_of(element) == out.dtype else tirx.Cast(out.dtype, element)

    name = "mid_" + identifier(out.name)
    if out.shape:
        body.define(out, te.compute(total.shape, value, name=name))
    else:
        result = te.compute((1,), value, name=name)
        body.stages[out] = lambda coord: result(0)
    body.lowered.tiles.append(name)


def _merge_stats(body: Body, node: Node) -> None:
    """Chan, Golub and LeVeque's merge of equally large groups, in float64."""
    total, m2, residual = node.inputs
    mean, var = node.outputs
    groups, count = total.shape[0], node.attrs["count"]
    shape = physical_shape(mean.type, body.layouts[mean])
    f64 = lambda v: tirx.const(v, "float64")  # noqa: E731

    def wide(v, g, index):
        channel = logical_coord(mean.type, body.layouts[mean], index)[0]
        return tirx.Cast("float64", body.at(v, (g, channel)))

    def group_mean(g, index):
        """The mean the deviations were taken from, as it was rounded there, corrected."""
        channel = logical_coord(mean.type, body.layouts[mean], index)[0]
        rounded = body.at(total, (g, channel)) / tirx.const(count, total.dtype)
        rest = wide(residual, g, index) * f64(1.0 / count)
        return _corrected(tirx.Cast("float64", rounded), rest)

    def fold(name, term):
        g = te.reduce_axis((0, groups), "g")
        return te.compute(shape, lambda *i: te.sum(term(g, i), axis=g), name=name)

    whole = fold("fold", group_mean)
    centre = te.compute(shape, lambda *i: whole(*i) * f64(1.0 / groups), name="mid_centre")
    inner = fold(
        "fold_m2",
        lambda g, i: (
            wide(m2, g, i) - bind(wide(residual, g, i), lambda r: r * r) * f64(1.0 / count)
        ),
    )
    between = fold(
        "fold_between", lambda g, i: bind(group_mean(g, i) - centre(*i), lambda d: d * d)
    )

    share = 1.0 / (groups * count)

    def variance(*i):
        spread = inner(*i) + between(*i) * f64(count)
        return tirx.Cast(var.dtype, tirx.Select(spread < f64(0), f64(0), spread) * f64(share))

    body.define(
        mean, te.compute(shape, lambda *i: tirx.Cast(mean.dtype, centre(*i)), name="mid_mean")
    )
    body.define(var, te.compute(shape, variance, name="mid_var"))


def _corrected(whole, rest):
    """``whole + rest``; an infinity stays one, though no deviation from it is a number."""
    infinity = tirx.const(math.inf, "float64")
    return bind(whole, lambda w: tirx.Select(tirx.abs(w) < infinity, w + rest, w))


def _merge_mean(body: Body, node: Node) -> None:
    total, rest = node.inputs
    shape = physical_shape(node.out.type, body.layouts[node.out])
    g = te.reduce_axis((0, total.shape[0]), "g")

    def element(*index):
        channel = logical_coord(node.out.type, body.layouts[node.out], index)[0]
        parts = [tirx.Cast("float64", body.at(v, (g, channel))) for v in (total, rest)]
        return te.sum(_corrected(*parts), axis=g)

    folded = te.compute(shape, element, name="fold")
    _define_scaled(body, node.out, folded, node.attrs["count"])


def _channel_fold(body: Body, like: Value, x: Value, term, name: str) -> te.Tensor:
    """Per channel of ``x[N,C,...]``, a float64 sum of ``term(coordinate, index)``.

    The result is laid out as ``like[C]`` is; ``index`` is where it holds the channel.
    """
    layout = body.layouts[like]
    rest = [te.reduce_axis((0, e), "e") for e in (x.shape[0], *x.shape[2:])]

    def element(*index):
        channel = logical_coord(like.type, layout, index)[0]
        value = term((rest[0], channel, *rest[1:]), index)
        return te.sum(tirx.Cast("float64", value), axis=rest)

    return te.compute(physical_shape(like.type, layout), element, name=name)


def _share(body: Body, v: Value, total: te.Tensor, count: int, name: str) -> None:
    scale = tirx.const(1.0 / count, "float64")
    body.define(
        v, te.compute(total.shape, lambda *i: tirx.Cast(v.dtype, total(*i) * scale), name=name)
    )


def _channel_stats(body: Body, node: Node) -> None:
    (x,), (mean, var) = node.inputs, node.outputs
    count = x.type.size // x.shape[1]
    total = _channel_fold(body, mean, x, lambda c, i: body.at(x, c), "fold")
    inverse = tirx.const(1.0 / count, "float64")

    def square(c, i):
        return bind(tirx.Cast("float64", body.at(x, c)) - total(*i) * inverse, lambda d: d * d)

    spread = _channel_fold(body, var, x, square, "fold_m2")
    _share(body, mean, total, count, "mid_mean")
    _share(body, var, spread, count, "mid_var")


def _channel_mean(body: Body, node: Node) -> None:
    (x,), mean = node.inputs, node.out
    total = _channel_fold(body, mean, x, lambda c, i: body.at(x, c), "fold")
    _share(body, mean, total, x.type.size // x.shape[1], "mid_mean")


def _channel_var(body: Body, node: Node) -> None:
    (x, mean), var = node.inputs, node.out

    def square(c, i):
        return bind(body.at(x, c) - body.at(mean, (c[1],)), lambda d: d * d)

    total = _channel_fold(body, var, x, square, "fold")
    _share(body, var, total, x.type.size // x.shape[1], "mid_var")


def _channel_grad_sums(body: Body, node: Node) -> None:
    dy, x, mean = node.inputs
    terms = (
        lambda c, i: body.at(dy, c),
        lambda c, i: body.at(dy, c) * (body.at(x, c) - body.at(mean, (c[1],))),
    )
    for v, term, name in zip(node.outputs, terms, ("fold", "fold_centred"), strict=True):
        _share(body, v, _channel_fold(body, v, x, term, name), 1, f"mid_{name}")


def _long_sum(value, axis):
    """A sum over one axis, in float64 where it is so long that digits would go."""
    long = int(axis.dom.extent) > LONG_SUM
    return te.sum(tirx.Cast("float64", value) if long else value, axis=axis)


def lower_matmul(kernel: Kernel, layouts: dict) -> Lowered:
    """``op(a) @ op(b)``; one partial sum a lane where both lie along the inner extent."""
    node = kernel.anchor
    body = Body(kernel, layouts, "matmul")
    a, b = node.inputs
    ta, tb = node.attrs["trans_a"], node.attrs["trans_b"]
    (m, n), k = node.out.shape, a.shape[0] if ta else a.shape[1]

    def product(i, j, e):
        return body.at(a, (e, i) if ta else (i, e)) * body.at(b, (j, e) if tb else (e, j))

    lanes = next((v for v in (16, 8, 4) if k % v == 0), 1)
    if tb and not ta and lanes > 1:
        eo, lane = te.reduce_axis((0, k // lanes), "eo"), te.reduce_axis((0, lanes), "lane")
        wide = te.compute(
            (m, n, lanes),
            lambda i, j, el: _long_sum(product(i, j, eo * lanes + el), eo),
            name="fold",
        )
        total = te.compute((m, n), lambda i, j: te.sum(wide(i, j, lane), axis=lane), name="merge")
    else:
        e = te.reduce_axis((0, k), "e")
        total = te.compute((m, n), lambda i, j: _long_sum(product(i, j, e), e), name="fold")
    if str(total.dtype) != node.out.dtype:
        long = total
        total = te.compute(
            (m, n), lambda i, j: tirx.Cast(node.out.dtype, long(i, j)), name="mid_product"
        )
        body.lowered.tiles.append("mid_product")
    body.define(node.out, total)
    body.lowered.main = "fold"
    body.store_slot()
    return body.finish(m=m, cols=n, k=k, lanes=lanes if tb and not ta else 0)
