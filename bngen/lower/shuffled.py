"""Grouped convolutions whose groups cut channel blocks: each lane sums over channels of its own.

Output channel k of groups of ``out_per`` channels reads the input channels
``k // out_per * in_per + j``, j < ``in_per``. A first stage puts them where they are needed, term j
of each lane side by side, and then all is as in a depthwise convolution of ``in_per`` terms::

    4 channels a group, 8 lanes:   pad       a0 a1 a2 a3 b0 b1 b2 b3
                                   shuffle   a0 a0 a0 a0 b0 b0 b0 b0    (j = 0)
                                             a1 a1 a1 a1 b1 b1 b1 b1    (j = 1)  ..

A term is a shuffle of the vectors of some channel blocks (`bngen.codegen.shuffles`), which all taps
of the window share. A depthwise convolution of several outputs a channel is one of a single term.

The road not taken: a dense convolution of blocks with zeros between groups. It takes up to as many
times more multiply-adds as a block has groups, and lets one channel's NaN into other groups.

======================= ==================================================================
block                   computes
======================= ==================================================================
pad                     the input tile: load slot applied, zero outside the image
shuffle                 ``(out blocks, terms, N, padded h, padded w, lanes)``, see above
conv                    sums of products over (term, window row, column)
partial                 of a weight gradient: those over the pixels
store_*, mid_*, sum_*   the store slot, see `Body.store_slot`
======================= ==================================================================
"""

from __future__ import annotations

from tvm import te, tirx

from bngen.ir.types import Value
from bngen.lower.body import Body
from bngen.lower.coords import Lane, lane_of, logical_coord
from bngen.lower.facts import Layouts
from bngen.lower.geometry import Geometry
from bngen.lower.lowered import Lowered
from bngen.lower.operand import gradient, operand
from bngen.plan.groups import groups_of
from bngen.plan.kernel import Kernel
from bngen.plan.layout import physical_shape


def lower_shuffled(kernel: Kernel, layouts: Layouts) -> Lowered:
    """A convolution, or data gradient, over a shuffled weight."""
    node, body = kernel.anchor, Body(kernel, layouts)
    geo = Geometry.of_convolution(node)
    (x, weight), outer = node.inputs, layouts[node.out]
    data, w = shuffled(body, operand(body, x, geo), x, node.out), body.memory(weight)
    (sh, sw), (dh, dw), (rows, cols) = geo.stride, geo.dilation, geo.window
    j, r, s = (te.reduce_axis((0, e), a) for e, a in ((w.shape[1], "j"), (rows, "r"), (cols, "s")))

    def element(kb, n, h, wi, l):  # noqa: E741
        taken = data[kb, j, n, h * sh + r * dh, wi * sw + s * dw, l]
        return te.sum(taken * w[kb, j, r, s, l], axis=[j, r, s])

    body.define(node.out, te.compute(physical_shape(node.out.type, outer), element, name="conv"))
    body.store_slot()
    return body.finish("conv")


def lower_shuffled_gradient(kernel: Kernel, layouts: Layouts) -> Lowered:
    """The weight gradient: ``(out blocks, terms, R, S, lanes)``, then in the weight's own order."""
    node, body = kernel.anchor, Body(kernel, layouts)
    geo, (x, dy) = Geometry.weight_gradient(node), node.inputs
    data, grad = shuffled(body, operand(body, x, geo), x, dy), gradient(body, dy, geo)
    blocks, n, h, w, lanes = grad.shape
    axes = [te.reduce_axis((0, e), a) for e, a in ((n, "n"), (h, "h"), (w, "w"))]
    (sh, sw), (dh, dw) = geo.stride, geo.dilation

    def element(kb, j, r, s, lane):
        image, p, q = axes
        taken = data[kb, j, image, p * sh + r * dh, q * sw + s * dw, lane]
        return te.sum(taken * grad[kb, image, p, q, lane], axis=axes)

    sums = te.compute((blocks, data.shape[1], *geo.window, lanes), element, name="partial")
    layout = layouts[node.out]

    def unpack(*index):
        ki, ci, r, s = logical_coord(node.out.type, layout, index)
        lane = lane_of(ki, layouts[dy])
        return sums[lane.block, ci, r, s, lane.lane]

    shape = physical_shape(node.out.type, layout)
    body.results[node.out] = te.compute(shape, unpack, name="dweight")
    return body.finish("partial")


def shuffled(body: Body, data: te.Tensor, source: Value, out: Value) -> te.Tensor:
    """The terms of each lane of ``out``'s blocks: ``(out blocks, terms, N, H, W, lanes)``.

    Args:
        body: the kernel.
        data: what is summed over, in the channel blocks of ``source``.
        source: its logical value.
        out: what has a channel in each lane.
    """
    groups = groups_of(body.kernel.anchor.attrs["groups"], source, out, body.layouts)
    inner, outer = groups.inner, groups.outer

    def element(kb, j, n, y, x, lane):
        k = Lane(kb, lane, outer).logical()
        if groups.reads_beyond:
            k = tirx.min(k, outer.channels - 1)
        place = lane_of(tirx.floordiv(k, groups.out_per) * groups.in_per + j, inner)
        return data[place.block, n, y, x, place.lane]

    _, n, h, w, _ = data.shape
    body.lowered.shuffles.append("shuffle")
    return te.compute((outer.blocks, groups.in_per, n, h, w, outer.lanes), element, name="shuffle")
