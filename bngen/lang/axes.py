"""Axes and shapes as users write them, and the ops over them that methods and functions share.

In: a tensor, and axes that may count from the end, or a shape with one -1. Out: the axes in order,
or a node with them.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

from bngen.dtypes import BOOL
from bngen.ir.attributes import shown
from bngen.ir.ops.reduce import normalize_axes
from bngen.ir.ops.row import ShapeError
from bngen.lang.emission import cast, emit
from bngen.lang.trace import error
from bngen.lang.traced import Traced, check_tensor
from bngen.lang.types import flag, integers


def axis_of(label: str, x: Traced, dim: int) -> int:
    """A non-negative axis; raises `ProgramError` when ``x`` has no such one."""
    if not isinstance(dim, numbers.Integral) or not -x.ndim <= dim < x.ndim:
        raise error(f"{label}: dim {shown(dim)} is out of range for {x.type}")
    return int(dim) % x.ndim


def axes_of(label: str, x: Traced, dims: tuple[Any, ...]) -> tuple[int, ...]:
    """Non-negative axes, given one by one or in one sequence."""
    return tuple(axis_of(label, x, d) for d in integers(label, dims))


def reduction(
    op: str,
    x: Traced,
    dim: int | Sequence[int] | None,
    keepdim: bool,
    label: str | None = None,
) -> Traced:
    """Fold axes of ``x``: all of them when ``dim`` is ``None`` or empty."""
    label = label or op
    check_tensor(label, "x", x)
    if isinstance(dim, numbers.Integral):
        dims: tuple[int, ...] = (int(dim),)
    elif dim is None or (isinstance(dim, Sequence) and len(dim) == 0):
        dims = tuple(range(x.ndim))
    elif isinstance(dim, Sequence) and all(isinstance(d, numbers.Integral) for d in dim):
        dims = tuple(int(d) for d in dim)
    else:
        raise error(f"{label}: dim must be an int or a tuple of ints, got {shown(dim)}")
    try:
        axes = normalize_axes(dims, x.ndim)
    except ShapeError as e:
        raise error(f"{label}: {e} ({x.type})") from None
    return emit(op, x, label=label, axes=axes, keepdims=flag(label, "keepdim", keepdim))


def largest(label: str, x: Traced, dim: int | Sequence[int] | None, keepdim: bool) -> Traced:
    """The largest element over axes of ``x``, of any element type."""
    if x.dtype == BOOL:
        return cast(reduction("amax", cast(x, "uint8"), dim, keepdim, label), BOOL)
    return reduction("amax", x, dim, keepdim, label)


def reshaped(x: Traced, shape: tuple[Any, ...]) -> Traced:
    """The same elements in order, in another shape; ``x`` itself where it has that one."""
    if not all(isinstance(e, numbers.Integral) and e >= -1 and e != 0 for e in shape):
        raise error(f"reshape: {shown([*shape])} is no shape", "use positive integers and one -1")
    extents = [int(e) for e in shape]
    if extents.count(-1) > 1:
        raise error(f"reshape: {extents} has more than one -1")
    if -1 in extents:
        rest = math.prod(e for e in extents if e != -1)
        if x.type.size % rest:
            raise error(
                f"reshape: {x.type} has {x.type.size} elements, no multiple of {shown(rest)}"
            )
        extents[extents.index(-1)] = x.type.size // rest
    if tuple(extents) == x.shape:
        return x
    return emit("reshape", x, shape=tuple(extents))
