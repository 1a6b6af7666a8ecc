"""Pools and their gradients; the load slot is applied into a scratch tile, as for convolutions.

Blocks: ``pad`` (scratch), ``window`` (the fold over the window, for a maximum also which tap won),
then the store slot.
"""

from __future__ import annotations

import math

import numpy as np
from tvm import te, tirx

from bngen.ir.node import Node
from bngen.ir.ops.pool import adaptive_bounds
from bngen.ir.types import Value
from bngen.lower.body import Body, Lowered, identifier
from bngen.lower.coords import Lane, zero
from bngen.lower.opaque import Expr, dtype_of
from bngen.lower.pointwise import maximum_over
from bngen.plan.kernel import Kernel
from bngen.plan.layout import Blocked, physical_shape

LONG_WINDOW = 64
"""Taps that are summed in the element's own type: they lose no more than 4e-6."""


def lower_window(kernel: Kernel, layouts: dict) -> Lowered:
    """Any pool or pool gradient."""
    node = kernel.anchor
    body = Body(kernel, layouts, "window")
    makers = {
        "max_pool2d": _max_pool,
        "avg_pool2d": _avg_pool,
        "adaptive_avg_pool2d": _adaptive,
        "max_pool2d_grad": _max_pool_grad,
        "avg_pool2d_grad": _avg_pool_grad,
        "adaptive_avg_pool2d_grad": _adaptive_grad,
    }
    makers[node.op](body, node)
    body.lowered.main = "window"
    body.store_slot()
    n, _, h, w = node.out.shape
    layout = layouts[node.out]
    return body.finish(n=n, h=h, w=w, out_blocks=layout.blocks, lanes=layout.lanes)


def _scratch(body: Body, x: Value, lo: tuple[int, int], extent: tuple[int, int], fill: float):
    """``x`` with its load slot applied, shifted by ``lo``, ``fill`` outside."""
    layout: Blocked = body.layouts[x]
    n, _, h, w = x.shape
    if body.is_loaded(x) and lo == (0, 0) and extent[0] <= h and extent[1] <= w:
        return body.tensors[x]

    def element(cb, image, p, q, lane):
        tests = [p >= lo[0], p < h + lo[0], q >= lo[1], q < w + lo[1]]
        value = body.at(x, (image, Lane(cb, lane, layout), p - lo[0], q - lo[1]))
        return tirx.if_then_else(tirx.all(*tests), value, tirx.const(fill, x.dtype))

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
        return data[cb, n, h * sh + r * dh, w * sw + s * dw, lane]

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


def _window_sum(value: Expr, axes: list) -> Expr:
    """A sum over the taps of a window, in float64 where there are so many that digits would go."""
    taps = math.prod(int(a.dom.extent) for a in axes)
    return te.sum(tirx.Cast("float64", value) if taps > LONG_WINDOW else value, axis=axes)


def _share(total: Expr, count: Expr, dtype: str) -> Expr:
    """``total / count`` in a value's own type, divided in that of the total."""
    share = total / tirx.Cast(dtype_of(total), count)
    return share if dtype_of(share) == dtype else tirx.Cast(dtype, share)


def _define_narrowed(body: Body, out: Value, total: te.Tensor) -> None:
    """Later reads of ``out`` read ``total``, by way of a stage where it is wider than ``out``."""
    if str(total.dtype) == out.dtype:
        body.define(out, total)
        return
    narrow = te.compute(total.shape, lambda *i: tirx.Cast(out.dtype, total(*i)), name="mid_sum")
    body.define(out, narrow)
    body.lowered.tiles.append("mid_sum")


def _avg_pool(body: Body, node: Node) -> None:
    (out,) = node.outputs
    shape = physical_shape(out.type, body.layouts[out])
    (r, s), tap = _forward(body, node, 0.0)
    total = te.compute(shape, lambda *i: _window_sum(tap(*i, r, s), [r, s]), name="window")
    share = _divisor(node, node.inputs[0].shape[2:])

    def mean(cb, n, h, w, lane):
        return _share(total(cb, n, h, w, lane), share(h, w), out.dtype)

    body.define(out, te.compute(shape, mean, name="mid_mean"))
    body.lowered.tiles.append("mid_mean")


def _divisor(node: Node, source: tuple[int, int]):
    """The count by which output (h, w) of an average pool is divided, as an expression."""
    bounds = []
    for i, size in enumerate(source):
        k, s, p = node.attrs["kernel"][i], node.attrs["stride"][i], node.attrs["padding"][i]
        bounds.append((k, s, p, size))
    pads = node.attrs["count_include_pad"]

    def extent(o: Expr, i: int) -> Expr:
        k, s, p, size = bounds[i]
        start = o * s - p
        if pads:
            return tirx.min(start + k, size + p) - start
        return tirx.min(start + k, size) - tirx.max(start, 0)

    return lambda h, w: extent(h, 0) * extent(w, 1)


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
        return _window_sum(value, axes)

    shape = physical_shape(out.type, layout)
    total = te.compute(shape, element, name="window")

    def mean(cb, n, h, w, lane):
        (h0, h1), (w0, w1) = range_of(h, 0), range_of(w, 1)
        return _share(total(cb, n, h, w, lane), (h1 - h0) * (w1 - w0), out.dtype)

    body.define(out, te.compute(shape, mean, name="mid_mean"))
    body.lowered.tiles.append("mid_mean")


def _scatter(body: Body, node: Node, term) -> None:
    """A pool's gradient: sum over the windows that cover (h, w) of ``term(oh, ow, tap)``."""
    out = node.out
    layout: Blocked = body.layouts[out]
    (kh, kw), (sh, sw) = node.attrs["kernel"], node.attrs["stride"]
    (ph, pw), (dh, dw) = node.attrs["padding"], node.attrs.get("dilation", (1, 1))
    oh, ow = node.inputs[0].shape[2:]
    r, s = te.reduce_axis((0, kh), "r"), te.reduce_axis((0, kw), "s")

    def element(cb, n, h, w, lane):
        y, x = h + ph - r * dh, w + pw - s * dw
        tests = [y >= 0, y <= (oh - 1) * sh, x >= 0, x <= (ow - 1) * sw]
        tests += [tirx.floormod(y, sh) == 0] if sh > 1 else []
        tests += [tirx.floormod(x, sw) == 0] if sw > 1 else []
        coord = (n, Lane(cb, lane, layout), tirx.floordiv(y, sh), tirx.floordiv(x, sw))
        value = term(coord, r * kw + s)
        return _window_sum(tirx.if_then_else(tirx.all(*tests), value, zero(out.dtype)), [r, s])

    total = te.compute(physical_shape(out.type, layout), element, name="window")
    _define_narrowed(body, out, total)


def _max_pool_grad(body: Body, node: Node) -> None:
    dy, index = node.inputs

    def term(coord, tap):
        hit = tirx.EQ(body.at(index, coord), tirx.Cast("int32", tap))
        return tirx.Select(hit, body.at(dy, coord), zero(dy.dtype))

    _scatter(body, node, term)


def _avg_pool_grad(body: Body, node: Node) -> None:
    (dy,) = node.inputs
    share = _divisor(node, tuple(node.attrs["shape"][2:]))

    def term(coord, tap):
        return _share(body.at(dy, coord), share(coord[2], coord[3]), dy.dtype)

    _scatter(body, node, term)


def _adaptive_grad(body: Body, node: Node) -> None:
    """Each element gathers from the outputs whose range holds it: at most a few per axis."""
    (dy,), out = node.inputs, node.out
    layout: Blocked = body.layouts[out]
    sizes, outs = out.shape[2:], dy.shape[2:]
    bounds = [adaptive_bounds(s, o) for s, o in zip(sizes, outs, strict=True)]
    covers = [
        int(max(sum(lo <= p < hi for lo, hi in b) for p in range(s)))
        for b, s in zip(bounds, sizes, strict=True)
    ]
    axes = [te.reduce_axis((0, c), name) for c, name in zip(covers, "rs", strict=True)]

    def candidate(p: Expr, i: int) -> tuple[Expr, Expr, Expr, Expr]:
        """The output that may hold p, the test that it does, and its range's extent."""
        size, extent = sizes[i], outs[i]
        o = (
            (p * extent) // size
            - (0 if covers[i] == 1 else _reach(bounds[i], size, extent))
            + axes[i]
        )
        lo, hi = (o * size) // extent, ((o + 1) * size + extent - 1) // extent
        return o, tirx.all(o >= 0, o < extent, lo <= p, p < hi), hi - lo, lo

    def element(cb, n, h, w, lane):
        (y, in_h, eh, _), (x, in_w, ew, _) = candidate(h, 0), candidate(w, 1)
        value = _share(body.at(dy, (n, Lane(cb, lane, layout), y, x)), eh * ew, out.dtype)
        return _window_sum(tirx.if_then_else(tirx.all(in_h, in_w), value, zero(out.dtype)), axes)

    total = te.compute(physical_shape(out.type, layout), element, name="window")
    _define_narrowed(body, out, total)


def _reach(bounds: list[tuple[int, int]], size: int, extent: int) -> int:
    """How far below ``p*extent//size`` the first output that holds p may lie."""
    first = [min(o for o, (lo, hi) in enumerate(bounds) if lo <= p < hi) for p in range(size)]
    return int(np.max([p * extent // size - f for p, f in enumerate(first)]))
