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

from tvm import te

from bngen.lower.body import Body
from bngen.lower.facts import Layouts
from bngen.lower.geometry import Geometry
from bngen.lower.joined_rows import with_joined_rows
from bngen.lower.lowered import Lowered
from bngen.lower.operand import form_of, operand, summed_channel, term
from bngen.plan.kernel import Kernel
from bngen.plan.layout import PackedWeight, physical_shape


def lower_conv(kernel: Kernel, layouts: Layouts) -> Lowered:
    """Forward convolution or data gradient over a weight packed in blocks."""
    return _lowered(*with_joined_rows(kernel, layouts), _blocked)


def lower_depthwise(kernel: Kernel, layouts: Layouts) -> Lowered:
    """The same of one input channel an output channel."""
    return _lowered(kernel, layouts, _depthwise)


def _lowered(kernel: Kernel, layouts: Layouts, nest) -> Lowered:
    node = kernel.anchor
    geo, packed = Geometry.of_convolution(node), layouts[node.inputs[1]]
    body = Body(kernel, layouts)
    data, w = operand(body, node.inputs[0], geo, form_of(packed)), body.memory(node.inputs[1])
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

    def element(kb, n, h, wi, l):  # noqa: E741
        def taken(channel):
            block, lane = summed_channel(packed, kb, cb, channel)
            return data(block, n, h * sh + r * dh, wi * sw + s * dw, lane)

        return te.sum(term(packed, taken, cl, w(kb, cb, r, s, cl, l)), axis=[cb, r, s, cl])

    return element


def _depthwise(data: te.Tensor, w: te.Tensor, geo: Geometry, _: PackedWeight):
    (sh, sw), (dh, dw), (rows, cols) = geo.stride, geo.dilation, geo.window
    r, s = te.reduce_axis((0, rows), "r"), te.reduce_axis((0, cols), "s")

    def element(kb, n, h, wi, l):  # noqa: E741
        taken = data[kb, n, h * sh + r * dh, wi * sw + s * dw, l]
        return te.sum(taken * w[kb, r, s, l], axis=[r, s])

    return element
