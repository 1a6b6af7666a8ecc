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

from tvm import te, tirx

from bngen.ir.types import Value
from bngen.lower.body import Body, Lowered
from bngen.lower.conv import Geometry, operand
from bngen.lower.coords import Lane, lane_of, logical_coord, zero
from bngen.lower.winograd import POINTS, TILE, is_winograd, weight_sums, windows_of
from bngen.plan.kernel import Kernel
from bngen.plan.layout import Blocked, physical_shape


def lower_weight_gradient(kernel: Kernel, layouts: dict) -> Lowered:
    """dW[k,c,r,s] = sum over n h w of x * dy."""
    node = kernel.anchor
    x, dy = node.inputs
    k, cg, rows, cols = node.out.shape
    groups = node.attrs["groups"]
    outer: Blocked = layouts[dy]
    inner = layouts[x]
    geo = _forward_geometry(node)
    depthwise = groups > 1 and cg == 1 and k == groups and inner == outer
    aligned = groups == 1 or (cg % outer.lanes == 0 and k // groups % outer.lanes == 0)
    if not depthwise and not aligned:
        return _generic_weight_gradient(kernel, layouts, geo)
    wide = isinstance(inner, Blocked)
    winograd = wide and is_winograd(kernel)
    kind = "winograd_wgrad" if winograd else "depthwise_wgrad" if depthwise else "wgrad"
    body = Body(kernel, layouts, kind)
    if winograd:
        geo = geo.of_whole_tiles(TILE)
    data, grad = operand(body, x, geo, "pad"), _gradient(body, dy, geo)
    n, (h, w) = dy.shape[0], geo.out
    if winograd:
        partial = weight_sums(body, data, grad)
        taps = windows_of(partial)
        h, w, rows, cols = h // TILE, w // TILE, POINTS, POINTS
    else:
        sums = _depthwise_sums if depthwise else _blocked_sums
        taps = partial = sums(data, grad, geo, groups)

    def unpack(ki, ci, r, s):
        lane = lane_of(ki, outer)
        if depthwise:
            return taps[lane.block, r, s, lane.lane]
        if not wide:
            return taps[lane.block, ci, r, s, 0, lane.lane]
        lanes = inner.lanes
        source = lane_of(ci, inner) if groups == 1 else Lane(ci // lanes, ci % lanes, inner)
        return taps[lane.block, source.block, r, s, source.lane, lane.lane]

    body.results[node.out] = te.compute(node.out.shape, unpack, name="dweight")
    body.lowered.main = "partial"
    return body.finish(
        n=n, h=h, w=w, out_blocks=outer.blocks, lanes=outer.lanes, r=rows, s=cols,
        in_blocks=1 if depthwise else int(partial.shape[1]),
        in_lanes=inner.lanes if wide and not depthwise else 1,
        stride_h=geo.stride[0], stride_w=geo.stride[1], padded_w=int(data.shape[3]),
        dilation_h=geo.dilation[0], groups=groups,
    )  # fmt: skip


def _forward_geometry(node) -> Geometry:
    """Geometry of the forward convolution that a weight gradient belongs to."""

    class Forward:
        attrs = node.attrs
        inputs = (node.inputs[0], node.out)
        out = node.inputs[1]

    return Geometry(Forward, flipped=False)


def _gradient(body: Body, dy: Value, geo: Geometry) -> te.Tensor:
    """The gradient with its load slot applied, zero where tiles reach over the map."""
    layout: Blocked = body.layouts[dy]
    blocks, n, h, w, lanes = physical_shape(dy.type, layout)
    whole = geo.out == (h, w)
    if whole and body.is_loaded(dy):
        return body.tensors[dy]

    def element(*index):
        value = body.at(dy, logical_coord(dy.type, layout, index))
        return value if whole else tirx.if_then_else(
            tirx.all(index[2] < h, index[3] < w), value, zero(dy.dtype)
        )  # fmt: skip

    tensor = te.compute((blocks, n, *geo.out, lanes), element, name="grad")
    body.lowered.pads.append("grad")
    return tensor


def _pixels(grad: te.Tensor) -> list[te.IterVar]:
    """The axes that are summed over: image, row, column."""
    extents = (int(e) for e in grad.shape[1:4])
    return [te.reduce_axis((0, e), name) for e, name in zip(extents, "nhw", strict=True)]


def _depthwise_sums(data: te.Tensor, grad: te.Tensor, geo: Geometry, _: int) -> te.Tensor:
    """``(blocks, R, S, lanes)``."""
    (sh, sw), (dh, dw) = geo.stride, geo.dilation
    n, h, w = axes = _pixels(grad)

    def element(kb, r, s, lane):
        taken = data[kb, n, h * sh + r * dh, w * sw + s * dw, lane]
        return te.sum(taken * grad[kb, n, h, w, lane], axis=axes)

    return te.compute((grad.shape[0], *geo.window, grad.shape[4]), element, name="partial")


def _blocked_sums(data: te.Tensor, grad: te.Tensor, geo: Geometry, groups: int) -> te.Tensor:
    """``(Kb, Cb of a group, R, S, in lanes, out lanes)``."""
    (sh, sw), (dh, dw) = geo.stride, geo.dilation
    n, h, w = axes = _pixels(grad)
    in_blocks, out_blocks = int(data.shape[0]) // groups, int(grad.shape[0]) // groups

    def element(kb, cb, r, s, cl, lane):
        first = 0 if groups == 1 else (kb // out_blocks) * in_blocks
        taken = data[first + cb, n, h * sh + r * dh, w * sw + s * dw, cl]
        return te.sum(taken * grad[kb, n, h, w, lane], axis=axes)

    shape = (grad.shape[0], in_blocks, *geo.window, data.shape[4], grad.shape[4])
    return te.compute(shape, element, name="partial")


def _generic_weight_gradient(kernel: Kernel, layouts: dict, geo: Geometry) -> Lowered:
    node = kernel.anchor
    body = Body(kernel, layouts, "generic")
    x, dy = node.inputs
    n, k, oh, ow = dy.shape
    groups, cg = node.attrs["groups"], node.out.shape[1]
    (sh, sw), (dh, dw) = geo.stride, geo.dilation
    im, h, w = (te.reduce_axis((0, e), a) for e, a in ((n, "n"), (oh, "h"), (ow, "w")))

    def element(ki, ci, r, s):
        (y, in_h), (z, in_w) = geo.inside(0, h * sh + r * dh), geo.inside(1, w * sw + s * dw)
        source = tirx.floordiv(ki, k // groups) * cg + ci
        product = body.at(x, (im, source, y, z)) * body.at(dy, (im, ki, h, w))
        tests = [*in_h, *in_w]
        if tests:
            product = tirx.if_then_else(tirx.all(*tests), product, zero(x.dtype))
        return te.sum(product, axis=[im, h, w])

    result = te.compute(node.out.shape, element, name="conv")
    body.results[node.out] = result
    body.lowered.main = "conv"
    return body.finish(n=n, h=oh, w=ow, out_blocks=k, lanes=1)
