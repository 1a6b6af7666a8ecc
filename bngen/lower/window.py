"""Pools; the load slot is applied into a scratch tile, as for convolutions.

Blocks: ``pad`` (scratch), ``window`` (the fold over the window, for a maximum also which tap won),
then the store slot.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import te, tirx

from bngen.ir.node import Node
from bngen.ir.ops.pool import adaptive_bounds
from bngen.ir.types import Value
from bngen.lower.averages import divisor, share, window_sum
from bngen.lower.body import Body
from bngen.lower.coords import Lane, zero
from bngen.lower.facts import Layouts
from bngen.lower.lowered import Lowered, identifier
from bngen.lower.opaque import Expr, dtype_of
from bngen.lower.pointwise import maximum_over
from bngen.lower.pool_gradients import adaptive_grad, avg_pool_grad, max_pool_grad
from bngen.lower.resize import mixture, mixture_grad, nearest_grad
from bngen.lower.stored import computed
from bngen.plan.kernel import Kernel
from bngen.plan.layout import Blocked, physical_shape


def lower_window(kernel: Kernel, layouts: Layouts) -> Lowered:
    """Any pool or pool gradient."""
    body = Body(kernel, layouts)
    POOLS[kernel.anchor.op](body, kernel.anchor)
    body.store_slot()
    return body.finish("window")


def _scratch(body: Body, x: Value, lo: tuple[int, int], extent: tuple[int, int], fill: float):
    """``x`` with its load slot applied, shifted by ``lo``, ``fill`` outside."""
    layout: Blocked = body.layouts[x]
    n, _, h, w = x.shape
    if body.is_loaded(x) and lo == (0, 0) and extent[0] <= h and extent[1] <= w:
        return body.tensors[x]

    def element(cb, image, p, q, lane):
        tests = [p >= lo[0], p < h + lo[0], q >= lo[1], q < w + lo[1]]
        value = body.at(x, (image, Lane(cb, lane, layout), p - lo[0], q - lo[1]))
        return tirx.if_then_else(tirx.all(*tests), value, tirx.const(fill, computed(x)))

    tensor = te.compute((layout.blocks, n, *extent, layout.lanes), element, name="pad")
    body.lowered.pads.append("pad")
    return tensor


def _forward(body: Body, node: Node, fill: float):
    """Scratch, window axes and tap function of a pool."""
    x, (kh, kw) = node.inputs[0], node.attrs["kernel"]
    (sh, sw), (dh, dw) = node.attrs["stride"], node.attrs.get("dilation", (1, 1))
    oh, ow = node.out.shape[2:]
    extent = ((oh - 1) * sh + dh * (kh - 1) + 1, (ow - 1) * sw + dw * (kw - 1) + 1)
    data = _scratch(body, x, node.attrs["padding"], extent, fill)
    axes = te.reduce_axis((0, kh), "r"), te.reduce_axis((0, kw), "s")

    def tap(cb, n, h, w, lane, r, s) -> Expr:
        return data(cb, n, h * sh + r * dh, w * sw + s * dw, lane)

    return axes, tap


def _larger_or_nan(best: Expr, new: Expr, a: Expr, b: Expr) -> Expr:
    """``b`` where ``new`` is larger than ``best`` or NaN, else ``a``: the last of several NaN."""
    is_number = new <= tirx.const(math.inf, dtype_of(new))
    return tirx.Select(new > best, b, tirx.Select(is_number, a, b))


def _nan_argmax(nobody: int):
    """Maximum and the tap that won; ``nobody`` where all are -inf."""
    return te.comm_reducer(
        lambda a, b: tuple(
            _larger_or_nan(a[0], b[0], old, new) for old, new in zip(a, b, strict=True)
        ),
        lambda t, i: (tirx.const(-math.inf, t), tirx.const(nobody, i)),
        name="nan_argmax",
    )


def _max_pool(body: Body, node: Node) -> None:
    """The maximum, and the tap that won where the gradient needs it, in one fold."""
    value, index = node.outputs
    shape = physical_shape(value.type, body.layouts[value])
    (r, s), tap = _forward(body, node, -math.inf)
    if index not in body.kernel.outputs:
        largest = maximum_over(value.dtype)
        best = te.compute(shape, lambda *i: largest(tap(*i, r, s), axis=[r, s]), name="window")
        body.define(value, best)
        return
    kw, padded = node.attrs["kernel"][1], any(node.attrs["padding"])
    argmax = _nan_argmax(-1 if padded else 0)

    def element(*i):
        number = tirx.Cast("int32", r.var * kw + s.var)
        return argmax((tap(*i, r, s), number), axis=[r, s])

    best, which = te.compute(shape, element, name="window")
    body.define(value, best)
    if not padded:
        body.results[index] = which
        return
    first = _first_tap(node)

    def winner(cb, n, h, w, lane):
        found = which(cb, n, h, w, lane)
        return tirx.Select(found < 0, first(h, w), found)

    # Where all are -inf nobody has won: the first tap that is no padding gets the gradient.
    name = "store_" + identifier(index.name)
    body.results[index] = te.compute(shape, winner, name=name)
    body.lowered.tiles.append(name)


def _first_tap(node: Node):
    """The number of the first tap of output (h, w) that lies within the image."""
    (_, kw), (sh, sw) = node.attrs["kernel"], node.attrs["stride"]
    (ph, pw), (dh, dw) = node.attrs["padding"], node.attrs["dilation"]

    def skipped(o: Expr, s: int, p: int, d: int) -> Expr:
        return tirx.floordiv(tirx.max(p - o * s, 0) + d - 1, d) if p else tirx.const(0, "int32")

    return lambda h, w: skipped(h, sh, ph, dh) * kw + skipped(w, sw, pw, dw)


def _avg_pool(body: Body, node: Node) -> None:
    (out,) = node.outputs
    shape = physical_shape(out.type, body.layouts[out])
    (r, s), tap = _forward(body, node, 0.0)
    total = te.compute(shape, lambda *i: window_sum(tap(*i, r, s), [r, s]), name="window")
    count = divisor(node, node.inputs[0].shape[2:])

    def mean(cb, n, h, w, lane):
        return share(total(cb, n, h, w, lane), count(h, w), out.dtype)

    body.define(out, te.compute(shape, mean, name="mid_mean"))
    body.lowered.tiles.append("mid_mean")


def _adaptive(body: Body, node: Node) -> None:
    x, out = node.inputs[0], node.out
    layout: Blocked = body.layouts[x]
    sizes, outs = x.shape[2:], out.shape[2:]
    spans = [
        max(hi - lo for lo, hi in adaptive_bounds(s, o)) for s, o in zip(sizes, outs, strict=True)
    ]
    axes = [te.reduce_axis((0, span), name) for span, name in zip(spans, "rs", strict=True)]

    def range_of(o: Expr, i: int) -> tuple[Expr, Expr]:
        return (o * sizes[i]) // outs[i], ((o + 1) * sizes[i] + outs[i] - 1) // outs[i]

    def element(cb, n, h, w, lane):
        (h0, h1), (w0, w1) = range_of(h, 0), range_of(w, 1)
        value = body.at(x, (n, Lane(cb, lane, layout), h0 + axes[0], w0 + axes[1]))
        exact = all(s % o == 0 for s, o in zip(sizes, outs, strict=True))
        if not exact:
            tests = tirx.all(h0 + axes[0] < h1, w0 + axes[1] < w1)
            value = tirx.if_then_else(tests, value, zero(x.dtype))
        return window_sum(value, axes)

    shape = physical_shape(out.type, layout)
    total = te.compute(shape, element, name="window")

    def mean(cb, n, h, w, lane):
        (h0, h1), (w0, w1) = range_of(h, 0), range_of(w, 1)
        return share(total(cb, n, h, w, lane), (h1 - h0) * (w1 - w0), out.dtype)

    body.define(out, te.compute(shape, mean, name="mid_mean"))
    body.lowered.tiles.append("mid_mean")


POOLS: dict[str, Callable[[Body, Node], None]] = {
    "max_pool2d": _max_pool,
    "avg_pool2d": _avg_pool,
    "adaptive_avg_pool2d": _adaptive,
    "max_pool2d_grad": max_pool_grad,
    "avg_pool2d_grad": avg_pool_grad,
    "adaptive_avg_pool2d_grad": adaptive_grad,
    "resize_nearest_grad": nearest_grad,
    "resize_bilinear": mixture,
    "resize_bilinear_grad": mixture_grad,
    "resize_bicubic": mixture,
    "resize_bicubic_grad": mixture_grad,
}
"""Op -> its stages, up to the one that defines its result."""
