"""Weight gradients: sums over all pixels of x * dy, with load slots on both.

======================= ==================================================================
block                   computes
======================= ==================================================================
pad, grad               x and dy, load slots applied
partial                 the sums, in the order of packed weights
dweight                 them in the weight's own order
======================= ==================================================================

See `bngen.lower.winograd` for what lies between in 3x3 convolutions.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import te, tirx

from bngen.lower import pairs
from bngen.lower.body import Body
from bngen.lower.coords import Lane, lane_of, logical_coord, zero
from bngen.lower.facts import GradientFacts, Layouts
from bngen.lower.geometry import Geometry
from bngen.lower.lowered import Lowered
from bngen.lower.opaque import Expr
from bngen.lower.operand import IMAGES, NUMBERS, gradient, operand, row_of
from bngen.plan.kernel import Kernel
from bngen.plan.layout import Blocked, physical_shape


def lower_weight_gradient(kernel: Kernel, layouts: Layouts, facts: GradientFacts) -> Lowered:
    """dW[k,c,r,s] = sum over n h w of x * dy, over whole channel blocks of each group.

    Where pairs are multiplied, they are of images: the same pixel of two of them.
    """
    node, body = kernel.anchor, Body(kernel, layouts)
    geo, (x, dy) = Geometry.weight_gradient(node), node.inputs
    form = IMAGES if facts.pairs else NUMBERS
    data, grad = operand(body, x, geo, form), gradient(body, dy, geo, form)
    groups = node.attrs["groups"]
    per_group = x.shape[1] // groups if groups > 1 and layouts[x].padded else None
    multiply = pairs.product if facts.pairs else tirx.Mul
    unpacked(body, _blocked_sums(data, grad, geo, groups, per_group, multiply))
    return body.finish("partial")


def lower_depthwise_gradient(kernel: Kernel, layouts: Layouts) -> Lowered:
    """The same where each channel is a group of its own, x and dy laid out alike."""
    node, body = kernel.anchor, Body(kernel, layouts)
    geo, (x, dy) = Geometry.weight_gradient(node), node.inputs
    sums = _depthwise_sums(operand(body, x, geo), gradient(body, dy, geo), geo)
    outer: Blocked = layouts[dy]

    def unpack(*index):
        ki, ci, r, s = logical_coord(node.out.type, layouts[node.out], index)
        lane = lane_of(ki, outer)
        return sums[lane.block, r, s, lane.lane]

    shape = physical_shape(node.out.type, layouts[node.out])
    body.results[node.out] = te.compute(shape, unpack, name="dweight")
    return body.finish("partial")


def unpacked(body: Body, taps: te.Tensor) -> None:
    """The kernel's result from ``(Kb, Cb of a group, R, S, in lanes, out lanes)``."""
    node = body.kernel.anchor
    inner, outer = (body.layouts[v] for v in node.inputs)
    groups, layout = node.attrs["groups"], body.layouts[node.out]

    def unpack(*index):
        ki, ci, r, s = logical_coord(node.out.type, layout, index)
        lane = lane_of(ki, outer)
        if not isinstance(inner, Blocked):
            return taps[lane.block, ci, r, s, 0, lane.lane]
        lanes = int(taps.shape[4])
        source = lane_of(ci, inner) if groups == 1 else Lane(ci // lanes, ci % lanes, inner)
        return taps[lane.block, source.block, r, s, source.lane, lane.lane]

    shape = physical_shape(node.out.type, layout)
    body.results[node.out] = te.compute(shape, unpack, name="dweight")


def _pixels(grad: te.Tensor) -> list[te.IterVar]:
    """The axes that are summed over: image, row, column."""
    extents = (int(e) for e in grad.shape[1:4])
    return [te.reduce_axis((0, e), name) for e, name in zip(extents, "nhw", strict=True)]


def _depthwise_sums(data: te.Tensor, grad: te.Tensor, geo: Geometry) -> te.Tensor:
    """``(blocks, R, S, lanes)``."""
    (sh, sw), (dh, dw) = geo.stride, geo.dilation
    n, h, w = axes = _pixels(grad)

    def element(kb, r, s, lane):
        taken = data[kb, n, h * sh + r * dh, w * sw + s * dw, lane]
        return te.sum(taken * grad[kb, n, h, w, lane], axis=axes)

    return te.compute((grad.shape[0], *geo.window, grad.shape[4]), element, name="partial")


def _blocked_sums(
    data: te.Tensor,
    grad: te.Tensor,
    geo: Geometry,
    groups: int,
    per_group: int | None,
    multiply: Callable[[Expr, Expr], Expr],
) -> te.Tensor:
    """``(Kb, Cb of a group, R, S, in lanes, out lanes)``.

    Where groups are padded to blocks, ``per_group`` are the channels of one: as many in lanes of a
    single block.
    """
    (sh, sw), (dh, dw) = geo.stride, geo.dilation
    n, h, w = axes = _pixels(grad)
    in_blocks, out_blocks = int(data.shape[0]) // groups, int(grad.shape[0]) // groups
    lanes = int(data.shape[4])

    def element(kb, cb, r, s, cl, lane):
        block = cb if groups == 1 else (kb // out_blocks) * in_blocks + cb
        if per_group:
            block, cl = block + tirx.floordiv(cl, lanes), tirx.floormod(cl, lanes)
        taken = data(block, n, h * sh + r * dh, w * sw + s * dw, cl)
        return te.sum(multiply(taken, grad(kb, n, h, w, lane)), axis=axes)

    inside = (1, *geo.window, per_group) if per_group else (in_blocks, *geo.window, lanes)
    shape = (grad.shape[0], *inside, grad.shape[4])
    return te.compute(shape, element, name="partial")


def lower_unpacked_gradient(kernel: Kernel, layouts: Layouts) -> Lowered:
    """The plainest nest of a weight gradient: right for anything, not tuned."""
    node = kernel.anchor
    geo = Geometry.weight_gradient(node)
    body = Body(kernel, layouts)
    x, dy = node.inputs
    n, k, oh, ow = dy.shape
    groups, cg = node.attrs["groups"], node.out.shape[1]
    (sh, sw), (dh, dw) = geo.stride, geo.dilation
    im, h, w = (te.reduce_axis((0, e), a) for e, a in ((n, "n"), (oh, "h"), (ow, "w")))

    def element(*index):
        ki, ci, r, s = logical_coord(node.out.type, layouts[node.out], index)
        (y, in_h), (z, in_w) = row_of(geo, 0, h * sh + r * dh), row_of(geo, 1, w * sw + s * dw)
        source = tirx.floordiv(ki, k // groups) * cg + ci
        product = body.at(x, (im, source, y, z)) * body.at(dy, (im, ki, h, w))
        tests = [*in_h, *in_w]
        if tests:
            product = tirx.if_then_else(tirx.all(*tests), product, zero(x.dtype))
        return te.sum(product, axis=[im, h, w])

    shape = physical_shape(node.out.type, layouts[node.out])
    body.results[node.out] = te.compute(shape, element, name="conv")
    return body.finish("conv")
