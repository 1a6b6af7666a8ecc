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

from tvm import te, tirx

from bngen.lower.body import Body
from bngen.lower.coords import Lane, zero
from bngen.lower.facts import Layouts
from bngen.lower.geometry import Geometry
from bngen.lower.lowered import Lowered
from bngen.lower.operand import operand, row_of
from bngen.plan.kernel import Kernel
from bngen.plan.layout import Blocked, PackedWeight, physical_shape


def lower_conv(kernel: Kernel, layouts: Layouts) -> Lowered:
    """Forward convolution or data gradient over a weight packed in blocks."""
    return _lowered(kernel, layouts, _blocked)


def lower_depthwise(kernel: Kernel, layouts: Layouts) -> Lowered:
    """The same of one input channel an output channel."""
    return _lowered(kernel, layouts, _depthwise)


def _lowered(kernel: Kernel, layouts: Layouts, nest) -> Lowered:
    node = kernel.anchor
    geo, packed = Geometry.of_convolution(node), layouts[node.inputs[1]]
    body = Body(kernel, layouts)
    data, w = operand(body, node.inputs[0], geo), body.tensors[node.inputs[1]]
    element = nest(data, w, geo, packed)
    shape = physical_shape(node.out.type, layouts[node.out])
    body.define(node.out, te.compute(shape, element, name="conv"))
    body.store_slot()
    return body.finish("conv")


def _blocked(data: te.Tensor, w: te.Tensor, geo: Geometry, packed: PackedWeight):
    (sh, sw), (dh, dw), (rows, cols) = geo.stride, geo.dilation, geo.window
    _, per_group, _, _, lanes, _ = (int(e) for e in w.shape)
    cb, cl = te.reduce_axis((0, per_group), "cb"), te.reduce_axis((0, lanes), "cl")
    r, s = te.reduce_axis((0, rows), "r"), te.reduce_axis((0, cols), "s")
    out_per_group = packed.outer.blocks // packed.groups

    def element(kb, n, h, wi, l):  # noqa: E741
        first = 0 if packed.groups == 1 else (kb // out_per_group) * per_group
        taken = data[first + cb, n, h * sh + r * dh, wi * sw + s * dw, cl]
        return te.sum(taken * w[kb, cb, r, s, cl, l], axis=[cb, r, s, cl])

    return element


def _depthwise(data: te.Tensor, w: te.Tensor, geo: Geometry, _: PackedWeight):
    (sh, sw), (dh, dw), (rows, cols) = geo.stride, geo.dilation, geo.window
    r, s = te.reduce_axis((0, rows), "r"), te.reduce_axis((0, cols), "s")

    def element(kb, n, h, wi, l):  # noqa: E741
        taken = data[kb, n, h * sh + r * dh, wi * sw + s * dw, l]
        return te.sum(taken * w[kb, r, s, l], axis=[r, s])

    return element


def lower_unpacked_conv(kernel: Kernel, layouts: Layouts) -> Lowered:
    """Groups that cut channel blocks, over a weight as it is: right for anything, not tuned."""
    node = kernel.anchor
    geo, groups = Geometry.of_convolution(node), node.attrs["groups"]
    body = Body(kernel, layouts)
    x, weight = node.inputs
    outer: Blocked = layouts[node.out]
    out_per, in_per = node.out.shape[1] // groups, x.shape[1] // groups
    ci = te.reduce_axis((0, in_per), "ci")
    (rows, cols), (sh, sw), (dh, dw) = geo.window, geo.stride, geo.dilation
    r, s = te.reduce_axis((0, rows), "r"), te.reduce_axis((0, cols), "s")

    def element(kb, n, h, wi, l):  # noqa: E741
        lane = Lane(kb, l, outer)
        k, valid = lane.logical(), lane.valid()
        (y, in_h), (z, in_w) = row_of(geo, 0, h * sh + r * dh), row_of(geo, 1, wi * sw + s * dw)
        source = tirx.floordiv(k, out_per) * in_per + ci
        if node.row.direction == "input":
            tap = body.at(weight, (source, tirx.floormod(k, out_per), rows - 1 - r, cols - 1 - s))
        else:
            tap = body.at(weight, (k, ci, r, s))
        tests = [*in_h, *in_w, *([valid] if valid is not None else [])]
        product = body.at(x, (n, source, y, z)) * tap
        if tests:
            product = tirx.if_then_else(tirx.all(*tests), product, zero(x.dtype))
        return te.sum(product, axis=[ci, r, s])

    conv = te.compute(physical_shape(node.out.type, outer), element, name="conv")
    body.define(node.out, conv)
    body.store_slot()
    return body.finish("conv")
