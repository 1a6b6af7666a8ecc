"""Gradients of pools: each element gathers from the outputs whose windows hold it.

Blocks: ``window`` (the sum over those outputs), ``mid_sum`` (it in the value's own type).
"""

from __future__ import annotations

import numpy as np
from tvm import te, tirx

from bngen.ir.node import Node
from bngen.ir.ops.pool import adaptive_bounds
from bngen.lower.averages import define_narrowed, divisor, share, window_sum
from bngen.lower.body import Body
from bngen.lower.coords import Lane, zero
from bngen.lower.opaque import Expr
from bngen.plan.layout import Blocked, physical_shape


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
        return window_sum(tirx.if_then_else(tirx.all(*tests), value, zero(out.dtype)), [r, s])

    total = te.compute(physical_shape(out.type, layout), element, name="window")
    define_narrowed(body, out, total)


def max_pool_grad(body: Body, node: Node) -> None:
    """What went to the tap that won."""
    dy, index = node.inputs

    def term(coord, tap):
        hit = tirx.EQ(body.at(index, coord), tirx.Cast("int32", tap))
        return tirx.Select(hit, body.at(dy, coord), zero(dy.dtype))

    _scatter(body, node, term)


def avg_pool_grad(body: Body, node: Node) -> None:
    """Its share of every window."""
    (dy,) = node.inputs
    count = divisor(node, tuple(node.attrs["shape"][2:]))

    def term(coord, tap):
        return share(body.at(dy, coord), count(coord[2], coord[3]), dy.dtype)

    _scatter(body, node, term)


def adaptive_grad(body: Body, node: Node) -> None:
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

    def candidate(p: Expr, i: int) -> tuple[Expr, Expr, Expr]:
        """The output that may hold p, the test that it does, and its range's extent."""
        size, extent = sizes[i], outs[i]
        o = (
            (p * extent) // size
            - (0 if covers[i] == 1 else _reach(bounds[i], size, extent))
            + axes[i]
        )
        lo, hi = (o * size) // extent, ((o + 1) * size + extent - 1) // extent
        return o, tirx.all(o >= 0, o < extent, lo <= p, p < hi), hi - lo

    def element(cb, n, h, w, lane):
        (y, in_h, eh), (x, in_w, ew) = candidate(h, 0), candidate(w, 1)
        value = share(body.at(dy, (n, Lane(cb, lane, layout), y, x)), eh * ew, out.dtype)
        return window_sum(tirx.if_then_else(tirx.all(in_h, in_w), value, zero(out.dtype)), axes)

    total = te.compute(physical_shape(out.type, layout), element, name="window")
    define_narrowed(body, out, total)


def _reach(bounds: list[tuple[int, int]], size: int, extent: int) -> int:
    """How far below ``p*extent//size`` the first output that holds p may lie."""
    first = [min(o for o, (lo, hi) in enumerate(bounds) if lo <= p < hi) for p in range(size)]
    return int(np.max([p * extent // size - f for p, f in enumerate(first)]))
