"""Sums over the taps of a pool's window, and the counts by which an average divides them."""

from __future__ import annotations

import math

from tvm import te, tirx

from bngen.ir.node import Node
from bngen.ir.types import Value
from bngen.lower.body import Body
from bngen.lower.opaque import Expr, dtype_of, exactly

LONG_WINDOW = 64
"""Taps that are summed in the element's own type: they lose no more than 4e-6."""


def window_sum(value: Expr, axes: list) -> Expr:
    """A sum over the taps of a window, in the exact type where many would cost digits."""
    taps = math.prod(int(a.dom.extent) for a in axes)
    return te.sum(exactly(value) if taps > LONG_WINDOW else value, axis=axes)


def share(total: Expr, count: Expr, dtype: str) -> Expr:
    """``total / count`` in a value's own type, divided in that of the total."""
    part = total / tirx.Cast(dtype_of(total), count)
    return part if dtype_of(part) == dtype else tirx.Cast(dtype, part)


def define_narrowed(body: Body, out: Value, total: te.Tensor) -> None:
    """Later reads of ``out`` read ``total``, by way of a stage where it is wider than ``out``."""
    if str(total.dtype) == out.dtype:
        body.define(out, total)
        return
    narrow = te.compute(total.shape, lambda *i: tirx.Cast(out.dtype, total(*i)), name="mid_sum")
    body.define(out, narrow)
    body.lowered.tiles.append("mid_sum")


def divisor(node: Node, source: tuple[int, int]):
    """The count by which output (h, w) of an average pool is divided, as an expression."""
    if node.attrs["divisor"]:
        return lambda h, w: tirx.const(node.attrs["divisor"], "int32")
    bounds = []
    for i, size in enumerate(source):
        k, s, p = node.attrs["kernel"][i], node.attrs["stride"][i], node.attrs["padding"][i]
        bounds.append((k, s, p, size))
    pads = node.attrs["count_include_pad"]

    def extent(o: Expr, i: int) -> Expr:
        k, s, p, size = bounds[i]
        start = o * s - p
        if pads:
            return tirx.min(start + k, size + p) - start
        return tirx.min(start + k, size) - tirx.max(start, 0)

    return lambda h, w: extent(h, 0) * extent(w, 1)
