"""Convolutions and their data gradients, with slots on both sides.

Both are one loop nest over packed weights: the data gradient reads ``dy`` spread by the stride,
and a mirrored window.

======================= ==================================================================
block                   computes
======================= ==================================================================
pad                     the input tile: load slot applied, zero outside the image
conv                    sums of products over (input block, window row, column, input lane)
store_*, mid_*, sum_*   the store slot, see `Body.store_slot`
======================= ==================================================================
"""

from __future__ import annotations

from copy import copy

from tvm import te, tirx

from bngen.ir.types import Value
from bngen.lower.body import Body, Lowered
from bngen.lower.coords import Lane, zero
from bngen.lower.opaque import Expr
from bngen.lower.phased import is_phased, lower_phased
from bngen.lower.winograd import TILE, convolved, is_winograd
from bngen.plan.kernel import Kernel
from bngen.plan.layout import Blocked, PackedWeight, Plain, physical_shape


class Geometry:
    """Window arithmetic of one direction.

    Output row ``o`` and tap ``r`` read padded row ``o*stride + r*dilation``; padded row ``p`` is
    row ``(p - lo) / spread`` of the operand, if that is whole.
    """

    def __init__(self, node, flipped: bool):
        attrs = node.attrs
        (sh, sw), (dh, dw) = attrs["stride"], attrs["dilation"]
        top, _, left, _ = attrs["padding"]
        r, s = node.inputs[1].shape[2:]
        self.window, self.dilation = (r, s), (dh, dw)
        if flipped:
            self.stride, self.spread = (1, 1), (sh, sw)
            self.lo = (dh * (r - 1) - top, dw * (s - 1) - left)
        else:
            self.stride, self.spread, self.lo = (sh, sw), (1, 1), (top, left)
        self.out, self.source = node.out.shape[2:], node.inputs[0].shape[2:]

    def padded(self, i: int) -> int:
        """Extent of the padded operand that the windows touch along axis i."""
        return (self.out[i] - 1) * self.stride[i] + self.dilation[i] * (self.window[i] - 1) + 1

    def of_whole_tiles(self, tile: int) -> Geometry:
        """For as many more output rows and columns as tiles of ``tile`` need; they read zeros."""
        whole = copy(self)
        whole.out = tuple(-(-e // tile) * tile for e in self.out)
        return whole

    @property
    def is_identity(self) -> bool:
        """Whether padded and stored operand are the same."""
        return (
            self.spread == (1, 1)
            and self.lo == (0, 0)
            and all(self.padded(i) <= self.source[i] for i in (0, 1))
        )

    def inside(self, i: int, p: Expr) -> tuple[Expr, list[Expr]]:
        """Row of the operand for padded row p, and the conditions under which there is one."""
        offset = p - self.lo[i]
        spread, size = self.spread[i], self.source[i]
        tests = []
        if self.lo[i] > 0:
            tests.append(offset >= 0)
        if self.padded(i) - 1 - self.lo[i] > (size - 1) * spread:
            tests.append(offset <= (size - 1) * spread)
        if spread == 1:
            return offset, tests
        tests.append(tirx.floormod(offset, spread) == 0)
        return tirx.floordiv(offset, spread), tests


def padded_operand(body: Body, x: Value, geo: Geometry, name: str) -> te.Tensor:
    """The load slot as a scratch stage ``(blocks, N, padded h, padded w, lanes)``."""
    layout = body.layouts[x]
    n, c = x.shape[:2]
    blocks, lanes = (layout.blocks, layout.lanes) if isinstance(layout, Blocked) else (c, 1)

    def element(cb, image, p, q, lane):
        (h, in_h), (w, in_w) = geo.inside(0, p), geo.inside(1, q)
        channel = Lane(cb, lane, layout) if isinstance(layout, Blocked) else cb
        value = body.masked(x, (image, channel, h, w))
        tests = in_h + in_w
        return tirx.if_then_else(tirx.all(*tests), value, zero(x.dtype)) if tests else value

    shape = (blocks, n, geo.padded(0), geo.padded(1), lanes)
    tensor = te.compute(shape, element, name=name)
    body.lowered.pads.append(name)
    return tensor


def operand(body: Body, x: Value, geo: Geometry, name: str) -> te.Tensor:
    """What the nest reads: memory itself where nothing is to be done on load, else a scratch."""
    layout = body.layouts[x]
    direct = isinstance(layout, Blocked) and not layout.padded
    if direct and geo.is_identity and body.is_loaded(x):
        return body.tensors[x]
    return padded_operand(body, x, geo, name)


def lower_conv(kernel: Kernel, layouts: dict) -> Lowered:
    """Forward convolution or data gradient."""
    node = kernel.anchor
    packed = layouts[node.inputs[1]]
    if isinstance(packed, Plain):
        return lower_generic_conv(kernel, layouts)
    flipped = node.op == "conv2d_grad_input"
    if flipped and is_phased(kernel):
        return lower_phased(kernel, layouts)
    geo = Geometry(node, flipped)
    winograd = isinstance(layouts[node.inputs[0]], Blocked) and is_winograd(kernel)
    kind = "winograd" if winograd else "depthwise" if packed.depthwise else "conv"
    if winograd:
        geo = geo.of_whole_tiles(TILE)
    body = Body(kernel, layouts, kind)
    x, weight = node.inputs
    data = operand(body, x, geo, "pad")
    w = body.tensors[weight]
    if winograd:
        conv = convolved(body, data, w)
    else:
        nest = _depthwise if packed.depthwise else _blocked
        conv = nest(node.out, data, w, geo, packed, layouts)
    body.define(node.out, conv)
    body.lowered.main = conv.op.name
    body.store_slot()
    return body.finish(**conv_extents(node, geo, packed, data, w))


def _blocked(out: Value, data, w, geo: Geometry, packed: PackedWeight, layouts) -> te.Tensor:
    (sh, sw), (dh, dw), (rows, cols) = geo.stride, geo.dilation, geo.window
    _, per_group, _, _, lanes, _ = (int(e) for e in w.shape)
    cb, cl = te.reduce_axis((0, per_group), "cb"), te.reduce_axis((0, lanes), "cl")
    r, s = te.reduce_axis((0, rows), "r"), te.reduce_axis((0, cols), "s")
    out_per_group = packed.outer.blocks // packed.groups

    def element(kb, n, h, wi, l):  # noqa: E741
        first = 0 if packed.groups == 1 else (kb // out_per_group) * per_group
        taken = data[first + cb, n, h * sh + r * dh, wi * sw + s * dw, cl]
        return te.sum(taken * w[kb, cb, r, s, cl, l], axis=[cb, r, s, cl])

    return te.compute(physical_shape(out.type, layouts[out]), element, name="conv")


def _depthwise(out: Value, data, w, geo: Geometry, packed: PackedWeight, layouts) -> te.Tensor:
    (sh, sw), (dh, dw), (rows, cols) = geo.stride, geo.dilation, geo.window
    r, s = te.reduce_axis((0, rows), "r"), te.reduce_axis((0, cols), "s")

    def element(kb, n, h, wi, l):  # noqa: E741
        taken = data[kb, n, h * sh + r * dh, wi * sw + s * dw, l]
        return te.sum(taken * w[kb, r, s, l], axis=[r, s])

    return te.compute(physical_shape(out.type, layouts[out]), element, name="conv")


def conv_extents(node, geo: Geometry, packed: PackedWeight, data, w) -> dict[str, int]:
    """The facts from which knobs are chosen."""
    n, _, oh, ow = node.out.shape
    depthwise = packed.depthwise
    return {
        "n": n, "h": oh, "w": ow, "groups": packed.groups,
        "out_blocks": packed.outer.blocks, "lanes": packed.outer.lanes,
        "in_blocks": 1 if depthwise else int(w.shape[1]),
        "in_lanes": 1 if depthwise else int(w.shape[4]),
        "r": geo.window[0], "s": geo.window[1], "padded_w": int(data.shape[3]),
        "stride_h": geo.stride[0], "stride_w": geo.stride[1],
        "dilation_h": geo.dilation[0], "dilation_w": geo.dilation[1],
    }  # fmt: skip


def lower_generic_conv(kernel: Kernel, layouts: dict) -> Lowered:
    """Grouped convolutions whose groups cut channel blocks: right for anything, not tuned."""
    node = kernel.anchor
    flipped = node.op == "conv2d_grad_input"
    geo, groups = Geometry(node, flipped), node.attrs["groups"]
    body = Body(kernel, layouts, "generic")
    x, weight = node.inputs
    w = body.tensors[weight]
    outer: Blocked = layouts[node.out]
    out_per, in_per = node.out.shape[1] // groups, x.shape[1] // groups
    ci = te.reduce_axis((0, in_per), "ci")
    (rows, cols), (sh, sw), (dh, dw) = geo.window, geo.stride, geo.dilation
    r, s = te.reduce_axis((0, rows), "r"), te.reduce_axis((0, cols), "s")

    def element(kb, n, h, wi, l):  # noqa: E741
        lane = Lane(kb, l, outer)
        k = lane.logical()
        (y, in_h), (z, in_w) = geo.inside(0, h * sh + r * dh), geo.inside(1, wi * sw + s * dw)
        source = tirx.floordiv(k, out_per) * in_per + ci
        if flipped:
            tap = w[source, tirx.floormod(k, out_per), rows - 1 - r, cols - 1 - s]
        else:
            tap = w[k, ci, r, s]
        tests = [*in_h, *in_w, *([lane.valid()] if lane.valid() is not None else [])]
        product = body.at(x, (n, source, y, z)) * tap
        if tests:
            product = tirx.if_then_else(tirx.all(*tests), product, zero(x.dtype))
        return te.sum(product, axis=[ci, r, s])

    conv = te.compute(physical_shape(node.out.type, outer), element, name="conv")
    body.define(node.out, conv)
    body.lowered.main = "conv"
    body.store_slot()
    n, _, oh, ow = node.out.shape
    return body.finish(n=n, h=oh, w=ow, out_blocks=outer.blocks, lanes=outer.lanes)
