"""Functions that take elements from other places: borders, repetitions, other sizes of a map.

Named as in ``torch`` and ``torch.nn.functional``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from bngen.dtypes import FLOAT
from bngen.ir.attributes import shown
from bngen.ir.ops.gather import FILLED, Piece, flattened
from bngen.lang.axes import axes_of
from bngen.lang.emission import emit
from bngen.lang.shapes import expand
from bngen.lang.tensor import Tensor
from bngen.lang.trace import error
from bngen.lang.traced import check_tensor
from bngen.lang.types import Ints, Scalar, flag, integer, integers, is_scalar, real
from bngen.lang.windows import adaptive_avg_pool2d


def flip(input: Tensor, dims: Ints, *more: int) -> Tensor:
    """Axes from their ends to their starts."""
    for axis in axes_of("flip", check_tensor("flip", "input", input), (dims, *more)):
        extent = input.shape[axis]
        input = _gathered("flip", input, axis, [Piece(extent, extent - 1, -1)])
    return input


def roll(input: Tensor, shifts: Ints, dims: Ints | None = None) -> Tensor:
    """Axes from a later place on, round to their start; without ``dims`` all elements in order."""
    check_tensor("roll", "input", input)
    if dims is None or (isinstance(dims, Sequence) and not dims):
        return roll(input.flatten(), shifts, 0).reshape(input.shape)
    axes, steps = axes_of("roll", input, (dims,)), integers("roll", (shifts,))
    if len(axes) != len(steps):
        raise error(f"roll: {shown(shifts)} are not as many shifts as dims {shown(dims)}")
    for axis, step in zip(axes, steps, strict=True):
        extent = input.shape[axis]
        last = step % extent
        runs = [Piece(last, extent - last, 1), Piece(extent - last, 0, 1)]
        input = _gathered("roll", input, axis, runs)
    return input


MOST_RUNS = 8
"""Repetitions along an axis from which on they are not counted one by one."""


def repeat(input: Tensor, repeats: Ints, *more: int) -> Tensor:
    """Everything again and again along its axes, and along axes before the first."""
    times = [integer("repeat", "repeats", n, 1) for n in integers("repeat", (repeats, *more))]
    new = len(times) - check_tensor("repeat", "input", input).ndim
    if new < 0:
        raise error(f"repeat: {shown([*times])} are fewer than the axes of {input.type}")
    if not times:
        return input
    shape = (*(1,) * new, *input.shape)
    for axis, (n, extent) in enumerate(zip(times, shape, strict=True)):
        if extent > 1 and n > MOST_RUNS:  # By an axis of its own, as its gradient is a sum then.
            before, after = shape[:axis], shape[axis:]
            spread = expand(input.reshape((*before, 1, *after)), (*before, n, *after))
            input = spread.reshape((*before, n * extent, *after[1:]))
        elif extent > 1:
            runs = [Piece(extent, 0, 1)] * n
            input = _gathered("repeat", input.reshape(shape), axis, runs)
        shape = input.shape if extent > 1 else shape
    return expand(
        input.reshape(shape), [n if s == 1 else s for n, s in zip(times, shape, strict=True)]
    )


def pad(
    input: Tensor, pad: Sequence[int], mode: str = "constant", value: Scalar | None = None
) -> Tensor:
    """More elements at the ends of axes.

    Args:
        input: any tensor.
        pad: how many before and after, for the last axis, then for the one before it, and so on;
            fewer than 0 leave elements out (``constant`` only).
        mode: which: ``constant``, ``reflect`` (without the border), ``replicate``, ``circular``.
        value: the number of ``constant``; 0 by default.
    """
    check_tensor("pad", "input", input)
    sides = integers("pad", (pad,))
    if len(sides) % 2 or len(sides) > 2 * input.ndim:
        raise error(f"pad: {shown([*sides])} are no pairs for the axes of {input.type}")
    if mode not in _MARGINS or (mode != "constant" and value):
        raise error(f"pad: mode {mode!r} with value {value!r}", f"modes are {', '.join(_MARGINS)}")
    fill = _number("pad", input, 0 if value is None else value)
    for i in range(0, len(sides), 2):
        axis, (before, after) = input.ndim - 1 - i // 2, sides[i : i + 2]
        runs = _MARGINS[mode](input.shape[axis], before, after)
        if runs is None:
            raise error(f"pad: {before} and {after}, mode {mode!r}, on axis {axis} of {input.type}")
        input = _gathered("pad", input, axis, runs, fill)
    return input


def _constant(extent: int, before: int, after: int) -> list[Piece] | None:
    start, stop = max(-before, 0), extent - max(-after, 0)
    if stop <= start:
        return None
    inner = Piece(stop - start, start, 1)
    return [Piece(max(before, 0), FILLED, 0), inner, Piece(max(after, 0), FILLED, 0)]


def _reflect(extent: int, before: int, after: int) -> list[Piece] | None:
    if not (0 <= before < extent and 0 <= after < extent):
        return None
    return [Piece(before, before, -1), Piece(extent, 0, 1), Piece(after, extent - 2, -1)]


def _replicate(extent: int, before: int, after: int) -> list[Piece] | None:
    if before < 0 or after < 0:
        return None
    return [Piece(before, 0, 0), Piece(extent, 0, 1), Piece(after, extent - 1, 0)]


def _circular(extent: int, before: int, after: int) -> list[Piece] | None:
    if not (0 <= before <= extent and 0 <= after <= extent):
        return None
    return [Piece(before, extent - before, 1), Piece(extent, 0, 1), Piece(after, 0, 1)]


_MARGINS = {
    "constant": _constant, "reflect": _reflect, "replicate": _replicate, "circular": _circular,
}  # fmt: skip
"""Mode -> the pieces of an axis of an extent with so many before and after; None for none."""


# --- other sizes ------------------------------------------------------------------------------


def interpolate(
    input: Tensor,
    size: Ints | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """A map of another height and width (``[N, C, H, W]``) or length (``[N, C, L]``).

    Args:
        input: a feature map.
        size: extents of the result.
        scale_factor: or how many times larger it is.
        mode: ``nearest``, ``nearest-exact``, ``bilinear``, ``bicubic`` or ``area``; of rank 3
            ``linear``, ``area`` or, in float32, ``nearest``.
        align_corners: whether corners are where corners were, else edges where edges were.
        recompute_scale_factor: whether positions follow from the extents alone, though a scale is
            given.
        antialias: not supported.
    """
    check_tensor("interpolate", "input", input)
    # Of one axis PyTorch rounds positions otherwise than of two, but for nearest in float32.
    one_axis = mode in ("linear", "area") or (mode == "nearest" and input.dtype == FLOAT)
    fits = input.ndim == 4 and mode != "linear" or input.ndim == 3 and one_axis
    if mode not in _MODES or not fits:
        modes = "nearest, nearest-exact, bilinear, bicubic, area of 4 axes; linear, area of 3"
        raise error(f"interpolate: mode {mode!r} of {input.type}", modes)
    if flag("interpolate", "antialias", antialias):
        raise error("interpolate: antialias is not supported", "leave it out")
    if align_corners is not None and mode not in _MIXTURES:
        raise error(f"interpolate: align_corners has no meaning for mode {mode!r}", "leave it out")
    extents, factors = _sizes(input, size, scale_factor)
    factors = [None] * len(extents) if recompute_scale_factor else factors
    if input.ndim == 4:
        return _resized(input, extents, factors, mode, bool(align_corners))
    column = input.reshape((*input.shape, 1))
    resized = _resized(column, [*extents, 1], [*factors, None], mode, bool(align_corners))
    return resized.reshape(resized.shape[:3])


_NEAREST = {"nearest": False, "nearest-exact": True}
"""Mode -> whether the nearest of centres is meant."""
_MIXTURES = {
    "linear": "resize_bilinear", "bilinear": "resize_bilinear", "bicubic": "resize_bicubic",
}  # fmt: skip
"""Mode -> the op of it."""
_MODES = (*_NEAREST, *_MIXTURES, "area")


def _sizes(
    x: Tensor, size: Ints | None, factor: float | Sequence[float] | None
) -> tuple[list[int], list[float | None]]:
    """Extents of the result, and the factors by which positions are told where they are given."""
    if (size is None) == (factor is None):
        raise error("interpolate: needs either a size or a scale_factor")
    count, given = x.ndim - 2, size if factor is None else factor
    listed = [*given] if isinstance(given, Sequence) else [given] * count
    if len(listed) != count:
        raise error(f"interpolate: {shown(given)} gives {x.type} no new {count} extents")
    if factor is None:
        return [integer("interpolate", "size", s, 1) for s in listed], [None] * count
    factors = [real("interpolate", "scale_factor", f, 0) for f in listed]
    extents = [math.floor(s * f) for s, f in zip(x.shape[2:], factors, strict=True)]
    if min(extents) < 1:
        raise error(f"interpolate: scale_factor {shown(factor)} leaves nothing of {x.type}")
    return extents, [*factors]


def _resized(
    x: Tensor, extents: Sequence[int], factors: Sequence[float | None], mode: str, aligned: bool
) -> Tensor:
    if mode == "area":
        return adaptive_avg_pool2d(x, tuple(extents))
    same = tuple(extents) == x.shape[2:]
    by_size = all(f in (None, 1) for f in factors)
    if same and mode == "bicubic" and not aligned and not by_size:
        # Where PyTorch's gradient is not that of what it computes.
        raise error("interpolate: bicubic to the same extents by a scale", "give the size")
    if x.shape[2:] == (1, 1):  # All elements are one.
        return expand(x, (*x.shape[:2], *extents))
    if mode == "nearest" and any(map(_is_another, x.shape[2:], extents, factors)):
        # Where the scale counts in PyTorch, for maps of some sizes and memory formats.
        what = "interpolate: nearest to 1 or 2 times the extents by another scale"
        raise error(what, "give the size, or nearest-exact")
    if same and (by_size or mode != "nearest-exact"):
        return x
    scale = tuple(
        _step(s, o, f, aligned) for s, o, f in zip(x.shape[2:], extents, factors, strict=True)
    )
    sizes = {"label": "interpolate", "output_size": tuple(extents), "scale": scale}
    if mode in _NEAREST:
        return emit("resize_nearest", x, centred=_NEAREST[mode], **sizes)
    if not x.type.is_float:
        raise error(f"interpolate: {x.type} has no mixtures", "convert it first: x.float()")
    return emit(_MIXTURES[mode], x, align_corners=aligned, **sizes)


def _is_another(size: int, out: int, factor: float | None) -> bool:
    """Whether a factor gives once or twice the extent without being 1 or 2."""
    return factor is not None and out in (size, 2 * size) and out != size * factor


def _step(size: int, out: int, factor: float | None, aligned: bool) -> float:
    """How far positions go in the operand for each step in the result."""
    if aligned:
        return (size - 1) / (out - 1) if out > 1 else 0.0
    return 1 / factor if factor else size / out


# --- arguments --------------------------------------------------------------------------------


def _gathered(
    label: str, x: Tensor, axis: int, runs: Iterable[Piece], fill: Scalar | None = None
) -> Tensor:
    runs = [run for run in runs if run.count > 0]
    if runs == [Piece(x.shape[axis], 0, 1)]:
        return x
    fill = _number(label, x, 0) if fill is None else fill
    return emit("gather", x, label=label, axis=axis, pieces=flattened(runs), fill=fill)


def _number(label: str, x: Tensor, value: Scalar) -> Scalar:
    """A number in the tensor's own element type."""
    kind = x.type.element.scalar
    if not is_scalar(value) or (kind is not float and kind(value) != value):
        raise error(f"{label}: value {shown(value)} is no {x.dtype}, which the tensor is")
    return kind(value)
