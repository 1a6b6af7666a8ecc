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
from bngen.ir.ops.resize import Taps, taps_of
from bngen.lower.averages import define_narrowed, window_sum
from bngen.lower.body import Body
from bngen.lower.coords import Lane, zero
from bngen.lower.gather import nearest_formulas
from bngen.lower.opaque import Expr
from bngen.plan.layout import Blocked, physical_shape

POSITION = "float64"
# --- mixtures -----------------------------------------------------------------------------------


def _bilinear_formulas(node: Node, shape: Sequence[int]) -> list[Callable[[Expr], tuple]]:
    """For each axis: the first element of the mixture at a place, and the second's share."""
    aligned = node.attrs["align_corners"]

    def along(size: int, out: int, scale: float) -> Callable[[Expr], tuple[Expr, Expr]]:
        def mixed(o: Expr) -> tuple[Expr, Expr]:
            if out == size:
                return o, tirx.const(0, POSITION)
            number = lambda v: tirx.const(v, POSITION)  # noqa: E731
            at = tirx.Cast(POSITION, o)
            at = at * number(scale) if aligned else (at + number(0.5)) * number(scale) - number(0.5)
            at = tirx.max(at, number(0))
            first = tirx.min(tirx.Cast("int32", at), size - 1)
            share = at - tirx.Cast(POSITION, first)
            return first, tirx.max(tirx.min(share, number(1)), number(0))

        return mixed

    return [along(*numbers) for numbers in zip(
        shape[2:], node.attrs["output_size"], node.attrs["scale"], strict=True)]  # fmt: skip


def bilinear(body: Body, node: Node) -> None:
    """Four elements, each with its share."""
    x, out = node.inputs[0], node.out
    layout: Blocked = body.layouts[x]
    axes = [te.reduce_axis((0, 2), name) for name in "rs"]

    def tap(mixed: tuple[Expr, Expr], k: te.IterVar, size: int) -> tuple[Expr, Expr]:
        first, share = mixed
        one = tirx.const(1, POSITION)
        return tirx.min(first + k.var, size - 1), tirx.Select(k.var == 0, one - share, share)

    formulas = _bilinear_formulas(node, x.shape)

    def element(cb, n, h, w, lane):
        (y, by_h), (z, by_w) = (
            tap(formula(o), k, size)
            for formula, o, k, size in zip(formulas, (h, w), axes, x.shape[2:], strict=True)
        )
        share = tirx.Cast(out.dtype, by_h * by_w)
        return window_sum(body.at(x, (n, Lane(cb, lane, layout), y, z)) * share, axes)

    total = te.compute(physical_shape(out.type, layout), element, name="window")
    define_narrowed(body, out, total)


# --- gradients ----------------------------------------------------------------------------------


def nearest_grad(body: Body, node: Node) -> None:
    """The sum over the results that an element has become."""
    formulas = nearest_formulas(node, node.attrs["shape"])
    _gather(body, node, [
        lambda o, p, f=formula: (tirx.EQ(f(o), p), None) for formula in formulas
    ])  # fmt: skip


def bilinear_grad(body: Body, node: Node) -> None:
    """The sum over the results that an element has a share in."""

    def weight(mixed: Callable[[Expr], tuple[Expr, Expr]], size: int):
        def of(o: Expr, p: Expr) -> tuple[Expr, Expr]:
            first, share = mixed(o)
            none, one = (tirx.const(v, POSITION) for v in (0, 1))
            own = tirx.Select(tirx.EQ(first, p), one - share, none)
            second = tirx.Select(tirx.EQ(tirx.min(first + 1, size - 1), p), share, none)
            return tirx.const(1, "bool"), own + second

        return of

    shape = node.attrs["shape"]
    formulas = _bilinear_formulas(node, shape)
    _gather(body, node, [weight(f, s) for f, s in zip(formulas, shape[2:], strict=True)])


def _gather(body: Body, node: Node, weights: list[Callable[[Any, Any], tuple]]) -> None:
    """Sum of what lies within reach, by (whether it counts, its share) of (result, element)."""
    (dy,), out = node.inputs, node.out
    layout: Blocked = body.layouts[out]
    reaches = [_reach(taps, size) for taps, size in zip(
        taps_of(out.shape, node.attrs), out.shape[2:], strict=True)]  # fmt: skip
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
    out = len(taps.share)
    guess = np.arange(size) * out // size
    first, last = np.full(size, out), np.full(size, -1)
    for places in (taps.first, taps.second):
        np.minimum.at(first, places, np.arange(out))
        np.maximum.at(last, places, np.arange(out))
    used = last >= 0
    ahead = int(np.max((guess - first)[used]))
    return out, ahead, int(np.max((last - guess)[used])) + ahead + 1
