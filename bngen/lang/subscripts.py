"""Subscripts of tensors: integers, slices, ``...`` and None, as NumPy and PyTorch read them.

In: a tensor and what stands in the brackets. Out: slices and gathers, an axis each, and a reshape.
"""

from __future__ import annotations

import numbers
from typing import Any

from bngen.ir.attributes import shown
from bngen.lang.axes import reshaped
from bngen.lang.emission import emit
from bngen.lang.trace import error
from bngen.lang.traced import Traced


def subscript(x: Traced, index: tuple[Any, ...]) -> Traced:
    """``x[1, :, 3:5, ::2]``: integers and slices, one axis after the other; None for a new axis."""
    at = next((k for k, i in enumerate(index) if i is Ellipsis), None)
    if at is not None:
        given = sum(i is not None for i in index) - 1
        index = (*index[:at], *(slice(None),) * (x.ndim - given), *index[at + 1 :])
    items = [i for i in index if i is not None]
    if len(items) > x.ndim:
        raise error(f"subscript: {len(items)} indices for {x.type}")
    for axis, item in enumerate(items):
        x = _subscript_axis(x, axis, item)
    # An integer takes its axis away, None puts one of extent 1 in.
    shape, extents = [], iter(x.shape)
    for item in index:
        extent = 1 if item is None else next(extents)
        if item is None or isinstance(item, slice):
            shape.append(extent)
    return reshaped(x, (*shape, *extents))


def _subscript_axis(x: Traced, axis: int, item: Any) -> Traced:
    extent = x.shape[axis]
    if isinstance(item, slice) and (item.step is None or item.step > 0):
        start, stop, step = item.indices(extent)
    elif _is_integer(item) and -extent <= item < extent:
        start, stop, step = int(item) % extent, int(item) % extent + 1, 1
    else:
        hint = "use integers inside the axis and slices of steps of 1 or more"
        raise error(f"subscript: {shown(item)} does not index axis {axis} of {x.type}", hint)
    if step > 1 and len(range(start, stop, step)) > 1:
        pieces, fill = (len(range(start, stop, step)), start, step), x.type.element.scalar(0)
        return emit("gather", x, label="subscript", axis=axis, pieces=pieces, fill=fill)
    stop = min(stop, start + 1) if step > 1 else stop
    if (start, stop) == (0, extent):
        return x
    return emit("slice", x, label="subscript", axis=axis, start=start, stop=stop)


def _is_integer(item: Any) -> bool:
    """Not a bool: that stands for a mask, in NumPy and PyTorch."""
    return isinstance(item, numbers.Integral) and not isinstance(item, bool)
