"""Reductions over any axes, merges of partial results, statistics that no partial sums take.

Floats are summed exactly. Blocks: ``fold*`` (the sums), ``mid_*`` (them in the value's own
type), then the store slot.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import te, tirx

from bngen.ir.node import Node
from bngen.ir.ops.reduce import normalize_axes
from bngen.ir.types import Value
from bngen.lower.body import Body
from bngen.lower.coords import logical_coord
from bngen.lower.facts import Layouts
from bngen.lower.lowered import Lowered, identifier
from bngen.lower.opaque import bind, dtype_of, exactly
from bngen.lower.pointwise import maximum_over
from bngen.plan.kernel import Kernel
from bngen.plan.layout import physical_shape


def lower_reduce(kernel: Kernel, layouts: Layouts) -> Lowered:
    """Reductions over any axes, merges of partial results, statistics that no partial sums take."""
    node = kernel.anchor
    body = Body(kernel, layouts)
    REDUCTIONS.get(node.op, _fold_axes)(body, node)
    body.store_slot()
    return body.finish("fold")


def _fold_axes(body: Body, node: Node) -> None:
    x, out = node.inputs[0], node.out
    axes = normalize_axes(node.attrs["axes"], len(x.shape))
    fold = [te.reduce_axis((0, x.shape[a]), f"a{a}") for a in axes]
    count = 1
    for a in axes:
        count *= x.shape[a]
    largest = node.row.combine == "max"
    how = maximum_over(x.dtype) if largest else te.sum
    wide = not largest and x.type.is_float

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
        return how(exactly(value) if wide else value, axis=fold)

    shape = physical_shape(out.type, body.layouts[out]) or (1,)
    total = te.compute(shape, element, name="fold")
    define_scaled(body, out, total, count if node.row.averages else 1)


def define_scaled(body: Body, out: Value, total: te.Tensor, count: int) -> None:
    """The reduction's result in its own type, divided by ``count``.

    A division, not a product with the reciprocal: the mean of a constant is that constant.
    """

    def value(*index):
        element = total(*index)
        if count != 1:
            element = element / tirx.const(count, dtype_of(element))
        return element if dtype_of(element) == out.dtype else tirx.Cast(out.dtype, element)

    name = "mid_" + identifier(out.name)
    if out.shape:
        body.define(out, te.compute(total.shape, value, name=name))
    else:
        result = te.compute((1,), value, name=name)
        body.stages[out] = lambda coord: result(0)
    body.lowered.tiles.append(name)


def _merge_stats(body: Body, node: Node) -> None:
    """Chan, Golub and LeVeque's merge of equally large groups, in the exact type."""
    total, m2, residual = node.inputs
    mean, var = node.outputs
    groups, count = total.shape[0], node.attrs["count"]
    shape = physical_shape(mean.type, body.layouts[mean])
    exact = total.type.element.exact
    number = lambda v: tirx.const(v, exact)  # noqa: E731

    def wide(v, g, index):
        channel = logical_coord(mean.type, body.layouts[mean], index)[0]
        return exactly(body.at(v, (g, channel)))

    def group_mean(g, index):
        """The mean the deviations were taken from, as it was rounded there, corrected."""
        channel = logical_coord(mean.type, body.layouts[mean], index)[0]
        rounded = body.at(total, (g, channel)) / tirx.const(count, total.dtype)
        rest = wide(residual, g, index) * number(1.0 / count)
        return _corrected(exactly(rounded), rest)

    def fold(name, term):
        g = te.reduce_axis((0, groups), "g")
        return te.compute(shape, lambda *i: te.sum(term(g, i), axis=g), name=name)

    whole = fold("fold", group_mean)
    centre = te.compute(shape, lambda *i: whole(*i) * number(1.0 / groups), name="mid_centre")
    inner = fold(
        "fold_m2",
        lambda g, i: (
            wide(m2, g, i) - bind(wide(residual, g, i), lambda r: r * r) * number(1.0 / count)
        ),
    )
    between = fold(
        "fold_between", lambda g, i: bind(group_mean(g, i) - centre(*i), lambda d: d * d)
    )

    share = 1.0 / (groups * count)

    def variance(*i):
        spread = inner(*i) + between(*i) * number(count)
        return tirx.Cast(
            var.dtype, tirx.Select(spread < number(0), number(0), spread) * number(share)
        )

    body.define(
        mean, te.compute(shape, lambda *i: tirx.Cast(mean.dtype, centre(*i)), name="mid_mean")
    )
    body.define(var, te.compute(shape, variance, name="mid_var"))


def _corrected(whole, rest):
    """``whole + rest``; an infinity stays one, though no deviation from it is a number."""
    infinity = tirx.const(math.inf, dtype_of(whole))
    return bind(whole, lambda w: tirx.Select(tirx.abs(w) < infinity, w + rest, w))


def _merge_mean(body: Body, node: Node) -> None:
    total, rest = node.inputs
    shape = physical_shape(node.out.type, body.layouts[node.out])
    g = te.reduce_axis((0, total.shape[0]), "g")

    def element(*index):
        channel = logical_coord(node.out.type, body.layouts[node.out], index)[0]
        parts = [exactly(body.at(v, (g, channel))) for v in (total, rest)]
        return te.sum(_corrected(*parts), axis=g)

    folded = te.compute(shape, element, name="fold")
    define_scaled(body, node.out, folded, node.attrs["count"])


def _merge_groups(body: Body, node: Node) -> None:
    """Each image's groups put together; sums in the exact type."""
    (x,), out = node.inputs, node.out
    layout, per_image = body.layouts[out], x.shape[0] // out.shape[0]
    largest = node.row.combine == "max"
    g = te.reduce_axis((0, per_image), "g")

    def element(*index):
        image, channel = logical_coord(out.type, layout, index)
        value = body.at(x, (image * per_image + g, channel))
        if largest:
            return maximum_over(x.dtype)(value, axis=g)
        return te.sum(exactly(value) if x.type.is_float else value, axis=g)

    total = te.compute(physical_shape(out.type, layout), element, name="fold")
    define_scaled(body, out, total, 1)


def _channel_fold(body: Body, like: Value, x: Value, term, name: str) -> te.Tensor:
    """Per channel of ``x[N,C,...]``, an exact sum of ``term(coordinate, index)``.

    The result is laid out as ``like[C]`` is; ``index`` is where it holds the channel.
    """
    layout = body.layouts[like]
    rest = [te.reduce_axis((0, e), "e") for e in (x.shape[0], *x.shape[2:])]

    def element(*index):
        channel = logical_coord(like.type, layout, index)[0]
        value = term((rest[0], channel, *rest[1:]), index)
        return te.sum(exactly(value), axis=rest)

    return te.compute(physical_shape(like.type, layout), element, name=name)


def _share(body: Body, v: Value, total: te.Tensor, count: int, name: str) -> None:
    scale = tirx.const(1.0 / count, str(total.dtype))
    body.define(
        v, te.compute(total.shape, lambda *i: tirx.Cast(v.dtype, total(*i) * scale), name=name)
    )


def _channel_stats(body: Body, node: Node) -> None:
    (x,), (mean, var) = node.inputs, node.outputs
    count = x.type.size // x.shape[1]
    total = _channel_fold(body, mean, x, lambda c, i: body.at(x, c), "fold")
    inverse = tirx.const(1.0 / count, str(total.dtype))

    def square(c, i):
        return bind(exactly(body.at(x, c)) - total(*i) * inverse, lambda d: d * d)

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


REDUCTIONS: dict[str, Callable[[Body, Node], None]] = {
    "bn_merge_stats": _merge_stats,
    "bn_merge_mean": _merge_mean,
    "sum_groups": _merge_groups,
    "max_groups": _merge_groups,
    "bn_stats": _channel_stats,
    "bn_mean": _channel_mean,
    "bn_var": _channel_var,
    "bn_grad_sums": _channel_grad_sums,
}
"""Op -> the stages that define its results; any other is a fold over some axes."""
