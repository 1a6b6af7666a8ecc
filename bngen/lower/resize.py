"""Maps of another height and width, and their gradients.

The nearest element is an index map (`bngen.lower.gather`); its gradient is here. Positions between
elements are computed in float64: in float32 large ones lose the digits that shares are made of.

Blocks: ``window`` (the sum over what an element is made of), ``mid_sum`` (it in its own type).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import te, tirx

from bngen.ir.node import Node
from bngen.ir.ops.resize import CUBIC, Taps, taps_of
from bngen.lower.averages import define_narrowed, window_sum
from bngen.lower.body import Body
from bngen.lower.coords import Lane, zero
from bngen.lower.gather import nearest_formulas
from bngen.lower.opaque import Expr
from bngen.plan.layout import Blocked, physical_shape

POSITION = "float64"
MixtureTap = Callable[[Expr, Expr], tuple[Expr, Expr]]
"""(place of a result, number of a tap) -> the element, and its share."""

# --- mixtures -----------------------------------------------------------------------------------


def _number(value: float) -> Expr:
    return tirx.const(value, POSITION)


def _bilinear(size: int, out: int, scale: float, aligned: bool) -> MixtureTap:
    """`bngen.ir.ops.resize.bilinear_taps`, as expressions."""

    def mixed(o: Expr) -> tuple[Expr, Expr]:
        if out == size:
            return o, _number(0)
        at = tirx.max(_position(o, scale, aligned), _number(0))
        first = tirx.min(tirx.Cast("int32", at), size - 1)
        return first, _fraction(at, first)

    def tap(o: Expr, k: Expr) -> tuple[Expr, Expr]:
        first, share = mixed(o)
        return tirx.min(first + k, size - 1), tirx.Select(k == 0, _number(1) - share, share)

    return tap


def _bicubic(size: int, out: int, scale: float, aligned: bool) -> MixtureTap:
    """`bngen.ir.ops.resize.bicubic_taps`, as expressions."""

    def tap(o: Expr, k: Expr) -> tuple[Expr, Expr]:
        at = _position(o, scale, aligned)
        second = tirx.min(tirx.Cast("int32", tirx.floor(at)), size - 1)
        distance = tirx.abs(_fraction(at, second) - tirx.Cast(POSITION, k - 1))
        element = tirx.max(tirx.min(second + (k - 1), size - 1), 0)
        return element, _cubic(distance)

    return tap


def _position(o: Expr, scale: float, aligned: bool) -> Expr:
    at = tirx.Cast(POSITION, o)
    if aligned:
        return at * _number(scale)
    return (at + _number(0.5)) * _number(scale) - _number(0.5)


def _fraction(at: Expr, whole: Expr) -> Expr:
    share = at - tirx.Cast(POSITION, whole)
    return tirx.max(tirx.min(share, _number(1)), _number(0))


def _cubic(d: Expr) -> Expr:
    """`bngen.ir.ops.resize.cubic`, as an expression."""
    a = CUBIC
    near = (_number(a + 2) * d - _number(a + 3)) * d * d + _number(1)
    far = ((_number(a) * d - _number(5 * a)) * d + _number(8 * a)) * d - _number(4 * a)
    return tirx.Select(d <= _number(1), near, far)


_MIXTURES = {"resize_bilinear": (_bilinear, 2), "resize_bicubic": (_bicubic, 4)}
"""Op -> its taps along an axis, and how many there are."""


def _taps(node: Node, shape: Sequence[int]) -> tuple[list[MixtureTap], int]:
    """The taps along h and w of an operand of ``shape``, and how many there are."""
    mode, count = _MIXTURES[node.op.removesuffix("_grad")]
    a = node.attrs
    numbers = zip(shape[2:], a["output_size"], a["scale"], strict=True)
    return [mode(*of, a["align_corners"]) for of in numbers], count


def mixture(body: Body, node: Node) -> None:
    """Elements within reach, each with its share."""
    x, out = node.inputs[0], node.out
    layout: Blocked = body.layouts[x]
    taps, count = _taps(node, x.shape)
    r, s = (te.reduce_axis((0, count), name) for name in "rs")

    def element(cb, n, h, w, lane):
        (y, by_h), (z, by_w) = taps[0](h, r.var), taps[1](w, s.var)
        share = tirx.Cast(out.dtype, by_h * by_w)
        return window_sum(body.at(x, (n, Lane(cb, lane, layout), y, z)) * share, [r, s])

    total = te.compute(physical_shape(out.type, layout), element, name="window")
    define_narrowed(body, out, total)


# --- gradients ----------------------------------------------------------------------------------


def nearest_grad(body: Body, node: Node) -> None:
    """The sum over the results that an element has become."""
    formulas = nearest_formulas(node, node.attrs["shape"])
    _gather(body, node, [
        lambda o, p, f=formula: (tirx.EQ(f(o), p), None) for formula in formulas
    ])  # fmt: skip


def mixture_grad(body: Body, node: Node) -> None:
    """The sum over the results that an element has a share in."""
    taps, count = _taps(node, node.attrs["shape"])

    def weight(tap: MixtureTap) -> Callable[[Expr, Expr], tuple[Expr, Expr]]:
        def of(o: Expr, p: Expr) -> tuple[Expr, Expr]:
            total = None
            for k in range(count):  # At a border several taps are one element.
                element, share = tap(o, tirx.const(k, "int32"))
                own = tirx.Select(tirx.EQ(element, p), share, _number(0))
                total = own if total is None else total + own
            return tirx.const(1, "bool"), total

        return of

    _gather(body, node, [weight(tap) for tap in taps])


def _gather(body: Body, node: Node, weights: list[Callable[[Any, Any], tuple]]) -> None:
    """Sum of what lies within reach, by (whether it counts, its share) of (result, element)."""
    (dy,), out = node.inputs, node.out
    layout: Blocked = body.layouts[out]
    reaches = [_reach(taps, size) for taps, size in zip(
        taps_of(node.op, out.shape, node.attrs), out.shape[2:], strict=True)]  # fmt: skip
    axes = [te.reduce_axis((0, count), name) for (_, _, count), name in zip(
        reaches, "rs", strict=True)]  # fmt: skip

    def element(cb, n, h, w, lane):
        places, tests, share = [], [], None
        for i, p in enumerate((h, w)):
            num, ahead, _ = reaches[i]
            o = tirx.floordiv(p * num, out.shape[2 + i]) - ahead + axes[i].var
            counts, part = weights[i](o, p)
            places.append(o)
            tests += [o >= 0, o < num, counts]
            share = part if share is None or part is None else share * part
        value = body.at(dy, (n, Lane(cb, lane, layout), *places))
        value = value if share is None else value * tirx.Cast(dy.dtype, share)
        return window_sum(tirx.if_then_else(tirx.all(*tests), value, zero(out.dtype)), axes)

    total = te.compute(physical_shape(out.type, layout), element, name="window")
    define_narrowed(body, out, total)


def _reach(taps: Taps, size: int) -> tuple[int, int, int]:
    """Where along an axis the results of an element are: ``(out, ahead, count)``.

    Those of element p are among the ``count`` from ``p * out // size - ahead`` on.
    """
    out = taps.shares.shape[1]
    guess = np.arange(size) * out // size
    first, last = np.full(size, out), np.full(size, -1)
    for places in taps.elements:
        np.minimum.at(first, places, np.arange(out))
        np.maximum.at(last, places, np.arange(out))
    used = last >= 0
    ahead = int(np.max((guess - first)[used]))
    return out, ahead, int(np.max((last - guess)[used])) + ahead + 1
