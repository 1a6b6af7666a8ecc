"""Convolutions with a 3x3 window by Winograd's minimal filtering, F(2x2, 3x3).

A tile of 2x2 outputs takes 36 multiplications a pair of channels directly, and 16 this way
(Winograd 1980; Lavin and Gray, arXiv 1509.09308). With ``d`` the 4x4 inputs that a tile reads,
``g`` the window and ``y`` the outputs,

    y = A' [(G g G') * (B' d B)] A          dg = G' [sum of (A dy A') * (B' d B) over tiles] G

where ``*`` goes element by element, so that each of 16 points is a product of matrices over
channels; the second identity, the transpose of the first, is the weight gradient.

All coefficients are 0, 1, -1 and 1/2, and a point's sum has a ninth of the terms of a direct one:
the error against float64 is 0.3 to 1.1 times that of PyTorch's direct convolutions. Coefficients
of 0 are left out, so an output depends on its own window only, as directly.

Where pairs of bfloat16 are multiplied, of channels or, in a weight gradient, of images, points and
taps are rounded to that type: an error of some 4e-3 (root mean square, of the result's), beside
2.3e-3 that the rounding of the operands costs any such convolution.

======================= ==================================================================
block                   computes
======================= ==================================================================
pad, grad               operands, load slots applied, as for direct convolutions
points                  B' d B of each tile
taps                    G g G', once a call
product                 the 16 products of matrices
merge                   A' m A: the convolution's result, then the store slot
grad_points, partial    A dy A' of each tile, and the sums over tiles
======================= ==================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te, tirx

from bngen.dtypes import PAIRED
from bngen.lower import pairs
from bngen.lower.body import Body
from bngen.lower.facts import GradientFacts, Layouts
from bngen.lower.geometry import POINTS, TILE, Geometry
from bngen.lower.lowered import Lowered
from bngen.lower.opaque import Expr, dtype_of
from bngen.lower.operand import NUMBERS, WHOLE_PAIRS, gradient, operand, term
from bngen.lower.stored import rounded
from bngen.lower.wgrad import unpacked
from bngen.plan.kernel import Kernel
from bngen.plan.layout import PackedWeight, physical_shape

Read = Callable[[Any], Expr]
"""An element by its number along one axis."""


def lower_winograd(kernel: Kernel, layouts: Layouts) -> Lowered:
    """A convolution, or a data gradient, with a dense 3x3 window over packed weights."""
    x, weight = kernel.anchor.inputs
    body = Body(kernel, layouts)
    data = operand(body, x, Geometry.of_convolution(kernel.anchor).of_whole_tiles(TILE))
    body.define(kernel.anchor.out, convolved(body, data, body.memory(weight), layouts[weight]))
    body.store_slot()
    return body.finish("merge")


def lower_winograd_wgrad(kernel: Kernel, layouts: Layouts, facts: GradientFacts) -> Lowered:
    """The weight gradient of such a convolution."""
    x, dy = kernel.anchor.inputs
    body, form = Body(kernel, layouts), WHOLE_PAIRS if facts.pairs else NUMBERS
    geo = Geometry.weight_gradient(kernel.anchor).of_whole_tiles(TILE)
    data, grad = operand(body, x, geo, form), gradient(body, dy, geo, form)
    unpacked(body, windows_of(weight_sums(body, data, grad, paired=bool(facts.pairs))))
    return body.finish("partial")


def _of_an_image(transformed: Read, image: Expr) -> Expr:
    return transformed(image)


def _of_halves(transformed: Read, image: Expr) -> Expr:
    return pairs.half(rounded(transformed(image), PAIRED))


def _of_two_images(transformed: Read, image: Expr) -> Expr:
    return pairs.pair(*(rounded(transformed(image * 2 + i), PAIRED) for i in (0, 1)))


def points(body: Body, data: te.Tensor, finish=_of_an_image, images: int = 1) -> te.Tensor:
    """B' d B of every tile of a padded operand: ``(4, 4, blocks, N, rows, columns, lanes)``.

    Args:
        body: the kernel.
        data: the operand.
        finish: what an element is of those of the images it is made of: ``(of an image, which)``.
        images: of an element.
    """
    blocks, n, h, w, lanes = (int(e) for e in data.shape)
    rows, columns = ((e - 2) // TILE for e in (h, w))

    def element(i, j, cb, image, p, q, lane):
        def of(n: Expr) -> Expr:
            def at(a: Any) -> Read:
                return lambda b: data(cb, n, p * TILE + a, q * TILE + b, lane)

            return _inputs(i, lambda a: _inputs(j, at(a)))

        return finish(of, image)

    body.lowered.points["points"] = data.op.name
    shape = (POINTS, POINTS, blocks, n // images, rows, columns, lanes)
    return te.compute(shape, element, name="points")


def grad_points(body: Body, grad: te.Tensor, finish=_of_an_image, images: int = 1) -> te.Tensor:
    """A dy A' of every tile: ``(4, 4, blocks, N, rows, columns, lanes)``; see `points`."""
    blocks, n, h, w, lanes = (int(e) for e in grad.shape)

    def element(i, j, kb, image, p, q, lane):
        def of(n: Expr) -> Expr:
            def at(a: Any) -> Read:
                return lambda b: grad(kb, n, p * TILE + a, q * TILE + b, lane)

            return _spread(i, lambda a: _spread(j, at(a)))

        return finish(of, image)

    shape = (POINTS, POINTS, blocks, n // images, h // TILE, w // TILE, lanes)
    body.lowered.points["grad_points"] = grad.op.name
    return te.compute(shape, element, name="grad_points")


def convolved(body: Body, data: te.Tensor, w: te.Tensor, packed: PackedWeight) -> te.Tensor:
    """The convolution of a padded operand with packed weights, tile by tile."""
    out = body.kernel.anchor.out
    x = points(body, data, _of_halves if packed.paired else _of_an_image)
    _, _, in_blocks, n, rows, columns, _ = (int(e) for e in x.shape)
    out_blocks, in_lanes, lanes = (int(w.shape[axis]) for axis in (0, 4, 5))

    def tap(i, j, kb, cb, cl, lane):
        def of(number: Callable[[Expr], Expr]) -> Expr:
            return _taps(i, lambda r: _taps(j, lambda s: number(w(kb, cb, r, s, cl, lane))))

        if not packed.paired:
            return of(lambda weight: weight)
        return pairs.pair(*(rounded(of(half), PAIRED) for half in (pairs.low, pairs.high)))

    taps = te.compute((POINTS, POINTS, out_blocks, in_blocks, in_lanes, lanes), tap, name="taps")
    cb, cl = te.reduce_axis((0, in_blocks), "cb"), te.reduce_axis((0, in_lanes), "cl")

    def multiply(i, j, kb, image, p, q, lane):
        def taken(channel: Expr) -> Expr:
            return x(i, j, cb, image, p, q, channel)

        return te.sum(term(packed, taken, cl, taps(i, j, kb, cb, cl, lane)), axis=[cb, cl])

    shape = (POINTS, POINTS, out_blocks, n, rows, columns, lanes)
    product = te.compute(shape, multiply, name="product")

    def merge(kb, image, y, z, lane):
        p, q = tirx.floordiv(y, TILE), tirx.floordiv(z, TILE)

        def at(i: int) -> Read:
            return lambda j: product[i, j, kb, image, p, q, lane]

        a, b = tirx.floormod(y, TILE), tirx.floormod(z, TILE)
        return _outputs(a, lambda i: _outputs(b, at(i)))

    body.lowered.nests.append("product")
    return te.compute(physical_shape(out.type, body.layouts[out]), merge, name="merge")


def weight_sums(body: Body, data: te.Tensor, grad: te.Tensor, *, paired: bool) -> te.Tensor:
    """The sums over all tiles at the 16 points: ``(Kb, Cb, 4, 4, in lanes, out lanes)``."""
    lanes = int(grad.shape[4])
    of = (_of_two_images, 2) if paired else (_of_an_image, 1)
    x, dy = points(body, data, *of), grad_points(body, grad, *of)
    axes = [te.reduce_axis((0, e), a) for e, a in zip(dy.shape[3:6], "nhw", strict=True)]
    multiply = pairs.product if paired else tirx.Mul

    def element(kb, cb, i, j, cl, lane):
        return te.sum(multiply(x(i, j, cb, *axes, cl), dy(i, j, kb, *axes, lane)), axis=axes)

    shape = (int(grad.shape[0]), int(data.shape[0]), POINTS, POINTS, int(data.shape[4]), lanes)
    return te.compute(shape, element, name="partial")


def windows_of(sums: te.Tensor) -> te.Tensor:
    """G' m G of those: the gradient ``(Kb, Cb, 3, 3, in lanes, out lanes)`` of packed weights."""

    def element(kb, cb, r, s, cl, lane):
        return _window(r, lambda i: _window(s, lambda j: sums[kb, cb, i, j, cl, lane]))

    out_blocks, in_blocks, _, _, in_lanes, lanes = sums.shape
    return te.compute((out_blocks, in_blocks, 3, 3, in_lanes, lanes), element, name="windows")


def _choose(number: Expr, options: list[Any]) -> Expr:
    """One of several by its number; where the loop over numbers is written out, only that."""
    chosen = options[-1]
    for i in reversed(range(len(options) - 1)):
        chosen = tirx.Select(number == i, options[i], chosen)
    return chosen


def _inputs(i: Expr, d: Read) -> Expr:
    """Row i of B'd: d0 - d2, d1 + d2, d2 - d1, d1 - d3."""
    a, b = d(_choose(i, [0, 1, 2, 1])), d(_choose(i, [2, 2, 1, 3]))
    return tirx.Select(i == 1, a + b, a - b)


def _taps(i: Expr, g: Read) -> Expr:
    """Row i of G g: g0, (g0 + g1 + g2)/2, (g0 - g1 + g2)/2, g2."""
    ends = g(0) + g(2)
    half = tirx.const(0.5, dtype_of(ends))
    return _choose(i, [g(0), (ends + g(1)) * half, (ends - g(1)) * half, g(2)])


def _outputs(a: Expr, m: Read) -> Expr:
    """Row a of A'm: m0 + m1 + m2, m1 - m2 - m3."""
    return tirx.Select(a == 0, m(0) + m(1) + m(2), m(1) - m(2) - m(3))


def _spread(i: Expr, dy: Read) -> Expr:
    """Row i of A dy: dy0, dy0 + dy1, dy0 - dy1, -dy1."""
    return _choose(i, [dy(0), dy(0) + dy(1), dy(0) - dy(1), -dy(1)])


def _window(r: Expr, m: Read) -> Expr:
    """Row r of G'm: m0 + (m1 + m2)/2, (m1 - m2)/2, (m1 + m2)/2 + m3."""
    both = m(1) + m(2)
    half = tirx.const(0.5, dtype_of(both))
    both = both * half
    return _choose(r, [m(0) + both, (m(1) - m(2)) * half, both + m(3)])
