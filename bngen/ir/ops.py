"""THE op table: for each op its operands, attributes, shape rule and meaning in NumPy.

Nothing else in bngen lists op names to decide what may be fused: passes ask for an op's *kind*.

========== =====================================================================================
kind       what it promises
========== =====================================================================================
pointwise  each element of the result depends on one element of each operand (NumPy broadcasting;
           operands named in ``channel`` are vectors ``[C]`` that run along axis 1)
reduce     folds axes of one operand; a reduction over ``n h w`` can join a store loop
contract   a sum of products: convolutions in three directions, matrix product
window     a pool or its gradient: a small window over ``h w``
view       moves no data by itself: concatenation, slice, reshape
copy       the same tensor somewhere else, perhaps in another layout
coarse     rewritten into the above by fission before anything is fused
========== =====================================================================================

Meanings follow ``torch.nn.functional`` where an op exists there; they work in whatever float type
the arrays have, which makes the same table a float64 reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bngen.dtypes import BOOL, FLOAT, meet
from bngen.ir.attributes import attribute_misfit, shown, type_misfit, value_misfit
from bngen.ir.node import Attrs, TensorType

Types = Sequence[TensorType | None]
Arrays = Sequence[np.ndarray | None]


class ShapeError(ValueError):
    """Operands that an op cannot take; the message names shapes and what would fit."""


@dataclass(frozen=True)
class OpDef:
    """One row of the table.

    Attributes:
        name: as written in the text form.
        kind: see the module's table.
        operands: operand names; a trailing ``?`` marks one that may be missing.
        infer: (operand types, attributes) -> result types; raises `ShapeError`.
        evaluate: (operand arrays, attributes) -> result arrays.
        defaults: attribute names and default values; ``...`` marks a required one.
        channel: operands that are vectors along axis 1 of the first operand.
        variadic: whether the last operand repeats.
        combine: for ``reduce``: how two partial results join (``sum``, ``max``, ``moments``).
        takes: element types of the operands: ``any``; ``number``, which is all but bool; ``float``,
            one floating-point type for all of them.
    """

    name: str
    kind: str
    operands: tuple[str, ...]
    infer: Callable[[Types, Attrs], tuple[TensorType, ...]]
    evaluate: Callable[[Arrays, Attrs], tuple[np.ndarray, ...]]
    defaults: dict[str, Any] = field(default_factory=dict)
    channel: tuple[str, ...] = ()
    variadic: bool = False
    combine: str = ""
    takes: str = "any"


# --- shape rules ------------------------------------------------------------------------------


def broadcast_shapes(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """NumPy's broadcasting rule, for extents of any size; raises `ShapeError` naming the shapes."""
    rank = max(map(len, shapes))
    columns = zip(*((1,) * (rank - len(s)) + tuple(s) for s in shapes), strict=True)
    extents = [{e for e in column if e != 1} for column in columns]
    if any(len(e) > 1 for e in extents):
        listed = " and ".join(str(list(s)) for s in shapes)
        raise ShapeError(f"shapes {listed} do not broadcast")
    return tuple(e.pop() if e else 1 for e in extents)


def promote(types: Types) -> str:
    """PyTorch's promotion: float beats integer beats bool; within each, ranked beats scalar.

    So a scalar takes the type of the tensor it meets, unless it is of a higher category.
    """
    given = [t for t in types if t is not None]
    return meet(([t.dtype for t in given if t.shape], [t.dtype for t in given if not t.shape]))


def _promoted(arrays: Arrays) -> list[np.ndarray]:
    """The operands in the type that `promote` gives, so that no scalar widens what it meets."""
    dtype = promote([TensorType(a.shape, a.dtype.name) for a in arrays])
    return [a.astype(dtype, copy=False) for a in arrays]


def _check_dtypes(row: OpDef, types: Types) -> None:
    """Raise `ShapeError` where an op has no meaning for what its operands hold."""
    given = [t for t in types if t is not None]
    if row.takes == "number" and given and promote(given) == BOOL:
        raise ShapeError(f"not defined for bool, got {given[0]}")
    if row.takes == "float":
        for t in given:
            if not t.is_float:
                raise ShapeError(f"needs floating-point tensors, got {t}")
            if t.dtype != given[0].dtype:
                raise ShapeError(f"needs one floating-point type, got {given[0]} and {t}")


def _infer_pointwise(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    shape = broadcast_shapes([t.shape for t in types if t is not None])
    return (TensorType(shape, promote(types)),)


def _infer_float(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (result,) = _infer_pointwise(types, attrs)
    if result.is_float:
        return (result,)
    raise ShapeError(f"needs a floating-point tensor, got {result}")


def _infer_compare(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    return (TensorType(broadcast_shapes([t.shape for t in types]), BOOL),)


def _infer_where(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    if types[0].dtype != BOOL:
        raise ShapeError(f"the condition must be bool, got {types[0]}")
    return (TensorType(broadcast_shapes([t.shape for t in types]), promote(types[1:])),)


def _alike(types: Types) -> None:
    """Raise unless all operands that are there have one shape."""
    present = [t for t in types if t is not None]
    if any(t.shape != present[0].shape for t in present):
        raise ShapeError(f"needs operands of one shape, got {', '.join(map(str, present))}")


def _check_channels(types: Types, maps: int = 1) -> None:
    """Raise unless ``maps`` tensors of one shape come first, then vectors along their axis 1."""
    x = types[0]
    if len(x.shape) < 2:
        raise ShapeError(f"needs a channel axis (rank 2 or more), got {x}")
    _alike(types[:maps])
    for t in types[maps:]:
        if t is not None and t.shape != (x.shape[1],):
            raise ShapeError(f"per-channel operand must have shape [{x.shape[1]}], got {t}")


def _infer_first(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """Result like the first operand; the others are vectors along axis 1 (``channel``)."""
    _check_channels(types)
    return (types[0],)


def _infer_first_of_two(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """The same, where the second operand is a map like the first."""
    _check_channels(types, 2)
    return (types[0],)


def _infer_vectors(count: int):
    """Per-channel vectors in, ``count`` of their type out; a last scalar may be missing."""

    def infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        if len(types[0].shape) != 1:
            raise ShapeError(f"needs vectors [C], got {types[0]}")
        _alike(types)
        return (types[0],) * count

    return infer


def _infer_update(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    *vectors, momentum = types
    if momentum is not None and momentum.shape:
        raise ShapeError(f"the momentum must be a scalar, got {momentum}")
    return _infer_vectors(2)(vectors, attrs)


def _infer_merge(count: int):
    """Partial results ``[groups, C]`` to ``count`` vectors ``[C]``."""

    def infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        if len(types[0].shape) != 2:
            raise ShapeError(f"needs partial results [groups, C], got {types[0]}")
        _alike(types)
        return (TensorType(types[0].shape[1:], types[0].dtype),) * count

    return infer


def normalize_axes(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Non-negative, sorted, distinct axes; raises `ShapeError` when one is out of range."""
    if any(not -rank <= a < rank for a in axes):
        raise ShapeError(f"axes {shown([*axes])} are out of range for rank {rank}")
    return tuple(sorted({a % rank for a in axes}))


def _infer_reduce(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    axes = normalize_axes(attrs["axes"], len(x.shape))
    if attrs["keepdims"]:
        shape = tuple(1 if i in axes else s for i, s in enumerate(x.shape))
    else:
        shape = tuple(s for i, s in enumerate(x.shape) if i not in axes)
    return (TensorType(shape, x.dtype),)


def _infer_mean(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    if not types[0].is_float:
        raise ShapeError(f"needs a floating-point tensor, got {types[0]}")
    return _infer_reduce(types, attrs)


def _infer_stats(count: int, maps: int = 1):
    def infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        _check_channels(types, maps)
        x = types[0]
        return (TensorType((x.shape[1],), x.dtype),) * count

    return infer


def _infer_fold(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """A partial reduction of any element type; each group of rows lies within one image."""
    (x,) = types
    if len(x.shape) != 4:
        raise ShapeError(f"needs x[N,C,H,W], got {x}")
    per_image, rest = divmod(attrs["groups"], x.shape[0])
    if rest or not per_image or x.shape[2] % per_image:
        raise ShapeError(f"{attrs['groups']} groups do not divide the rows of each image of {x}")
    return (TensorType((attrs["groups"], x.shape[1]), x.dtype),)


def _infer_partial(count: int, maps: int = 1):
    def infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        _check_channels(types, maps)
        return _infer_fold(types[:1], attrs) * count

    return infer


def conv_out(size: int, window: int, stride: int, lo: int, hi: int, dilation: int) -> int:
    """Extent of a convolution's output along one axis."""
    return (size + lo + hi - dilation * (window - 1) - 1) // stride + 1


CONV = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1}
"""Attributes of every convolution. ``padding`` is (top, bottom, left, right)."""


def _conv_spatial(h: int, w: int, r: int, s: int, attrs: Attrs) -> tuple[int, int]:
    (sh, sw), (t, b, le, ri), (dh, dw) = attrs["stride"], attrs["padding"], attrs["dilation"]
    return conv_out(h, r, sh, t, b, dh), conv_out(w, s, sw, le, ri, dw)


def _check_padded(x: TensorType) -> None:
    """Raise when an operand with its padding is no tensor any more."""
    if wrong := type_misfit(x):
        raise ShapeError(f"padding {wrong}")


def _infer_conv2d(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, w = types
    if len(x.shape) != 4 or len(w.shape) != 4:
        raise ShapeError(f"needs x[N,C,H,W] and weight[K,C/groups,R,S], got {x} and {w}")
    n, c, h, wd = x.shape
    k, cg, r, s = w.shape
    g = attrs["groups"]
    if c % g or k % g:
        raise ShapeError(f"groups={g} must divide the channels of {x} and of weight {w}")
    if c // g != cg:
        raise ShapeError(
            f"x {x} has {c} channels in {g} group(s), so the weight's second axis "
            f"must be {c // g}, got {w}"
        )
    t, b, le, ri = attrs["padding"]
    _check_padded(TensorType((n, c, h + t + b, wd + le + ri), x.dtype))
    oh, ow = _conv_spatial(h, wd, r, s, attrs)
    if oh < 1 or ow < 1:
        raise ShapeError(f"window {r}x{s} (dilation {list(attrs['dilation'])}) exceeds padded {x}")
    return (TensorType((n, k, oh, ow), x.dtype),)


def _infer_gradient(dy: TensorType, forward: TensorType, attrs: Attrs) -> tuple[TensorType, ...]:
    """A gradient of ``shape``, if ``dy`` is like the result that the op has on it."""
    if dy != forward:
        shape = list(attrs["shape"])
        raise ShapeError(f"on {shape} the op gives {forward}, so dy must be like it, got {dy}")
    return (TensorType(attrs["shape"], dy.dtype),)


def _infer_conv_grad_input(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    dy, w = types
    (forward,) = _infer_conv2d([TensorType(attrs["shape"], dy.dtype), w], attrs)
    return _infer_gradient(dy, forward, attrs)


def _infer_conv_grad_weight(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, dy = types
    (forward,) = _infer_conv2d([x, TensorType(attrs["shape"], x.dtype)], attrs)
    return _infer_gradient(dy, forward, attrs)


def _infer_max_pool_grad(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    dy, index = types
    forward, taps = _infer_max_pool([TensorType(attrs["shape"], dy.dtype)], attrs)
    if not dy.is_float or index != taps:
        raise ShapeError(f"needs floating-point dy and an index {taps}, got {dy} and {index}")
    return _infer_gradient(dy, forward, attrs)


def _infer_avg_pool_grad(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (dy,) = types
    (forward,) = _infer_avg_pool([TensorType(attrs["shape"], dy.dtype)], attrs)
    return _infer_gradient(dy, forward, attrs)


def _infer_adaptive_grad(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (dy,) = types
    (forward,) = _infer_adaptive([TensorType(attrs["shape"], dy.dtype)], attrs)
    return _infer_gradient(dy, forward, attrs)


POOL = {
    "kernel": ...,
    "stride": ...,
    "padding": (0, 0),
    "dilation": (1, 1),
    "ceil_mode": False,
}
AVG_POOL = {**{k: v for k, v in POOL.items() if k != "dilation"}, "count_include_pad": True}


def pool_out(size: int, k: int, s: int, p: int, d: int, ceil_mode: bool) -> int:
    """Extent of a pool's output: PyTorch's rule, where the last window must start inside."""
    span = size + 2 * p - d * (k - 1) - 1
    out = (span + (s - 1 if ceil_mode else 0)) // s + 1
    if ceil_mode and (out - 1) * s >= size + p:
        out -= 1
    return out


def _pool_spatial(x: TensorType, attrs: Attrs) -> tuple[int, int]:
    if len(x.shape) != 4:
        raise ShapeError(f"needs x[N,C,H,W], got {x}")
    dil = attrs.get("dilation", (1, 1))
    if any(2 * p > k for p, k in zip(attrs["padding"], attrs["kernel"], strict=True)):
        raise ShapeError(f"padding {list(attrs['padding'])} exceeds half of the window")
    out = tuple(
        pool_out(x.shape[2 + i], attrs["kernel"][i], attrs["stride"][i], attrs["padding"][i],
                 dil[i], attrs["ceil_mode"])
        for i in range(2)
    )  # fmt: skip
    if min(out) < 1:
        raise ShapeError(f"window {list(attrs['kernel'])} exceeds padded {x}")
    sides = (s + 2 * p for s, p in zip(x.shape[2:], attrs["padding"], strict=True))
    _check_padded(TensorType((*x.shape[:2], *sides), x.dtype))
    return out


def _infer_max_pool(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    shape = (*x.shape[:2], *_pool_spatial(x, attrs))
    return TensorType(shape, x.dtype), TensorType(shape, "int32")


def _infer_avg_pool(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    return (TensorType((*x.shape[:2], *_pool_spatial(x, attrs)), x.dtype),)


def _infer_adaptive(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    if len(x.shape) != 4:
        raise ShapeError(f"needs x[N,C,H,W], got {x}")
    return (TensorType((*x.shape[:2], *attrs["output_size"]), x.dtype),)


def _infer_matmul(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    a, b = types
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise ShapeError(f"needs two matrices, got {a} and {b}")
    m, ka = a.shape[::-1] if attrs["trans_a"] else a.shape
    kb, n = b.shape[::-1] if attrs["trans_b"] else b.shape
    if ka != kb:
        raise ShapeError(f"inner extents {ka} and {kb} of {a} and {b} differ")
    return (TensorType((m, n), a.dtype),)


def _infer_cat(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    first, axis = types[0], attrs["axis"]
    if not 0 <= axis < len(first.shape):
        raise ShapeError(f"axis {axis} is out of range for {first}")
    for t in types[1:]:
        same = len(t.shape) == len(first.shape) and all(
            i == axis or a == b for i, (a, b) in enumerate(zip(t.shape, first.shape, strict=True))
        )
        if not same or t.dtype != first.dtype:
            raise ShapeError(f"{t} cannot be joined with {first} along axis {axis}")
    shape = list(first.shape)
    shape[axis] = sum(t.shape[axis] for t in types)
    return (TensorType(tuple(shape), first.dtype),)


def _infer_slice(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    axis, start, stop = attrs["axis"], attrs["start"], attrs["stop"]
    if not (0 <= axis < len(x.shape) and 0 <= start < stop <= x.shape[axis]):
        raise ShapeError(f"[{start}:{stop}] along axis {axis} is out of range for {x}")
    shape = list(x.shape)
    shape[axis] = stop - start
    return (TensorType(tuple(shape), x.dtype),)


def _infer_reshape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    if math.prod(attrs["shape"]) != x.size:
        raise ShapeError(f"{x} has {x.size} elements, not those of {list(attrs['shape'])}")
    return (TensorType(tuple(attrs["shape"]), x.dtype),)


def _infer_broadcast_to(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    if broadcast_shapes([x.shape, attrs["shape"]]) != tuple(attrs["shape"]):
        raise ShapeError(f"{x} does not broadcast to {list(attrs['shape'])}")
    return (TensorType(tuple(attrs["shape"]), x.dtype),)


# --- meanings ---------------------------------------------------------------------------------


def along_channel(v: np.ndarray, rank: int) -> np.ndarray:
    """A vector ``[C]`` shaped to broadcast along axis 1 of a tensor of the given rank."""
    return v.reshape(1, -1, *(1,) * (rank - 2))


def _windows(x, kernel, stride, dilation):
    """View ``[N,C,OH,OW,R,S]`` of an already padded ``[N,C,H,W]``."""
    span = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(x, span, axis=(2, 3))
    return view[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def _pad_hw(x, padding, value=0.0):
    t, b, le, r = padding
    return np.pad(x, ((0, 0), (0, 0), (t, b), (le, r)), constant_values=value)


def _conv2d(arrays, attrs):
    x, w = arrays
    g = attrs["groups"]
    k, cg, r, s = w.shape
    view = _windows(_pad_hw(x, attrs["padding"]), (r, s), attrs["stride"], attrs["dilation"])
    n, c, oh, ow = view.shape[:4]
    out = np.empty((n, k, oh, ow), np.result_type(x, w))
    for i in range(g):
        part = np.tensordot(
            view[:, i * cg : (i + 1) * cg],
            w[i * (k // g) : (i + 1) * (k // g)],
            axes=([1, 4, 5], [1, 2, 3]),
        )
        out[:, i * (k // g) : (i + 1) * (k // g)] = part.transpose(0, 3, 1, 2)
    return (out,)


def _conv2d_grad_input(arrays, attrs):
    dy, w = arrays
    n, c, h, wd = attrs["shape"]
    g, (sh, sw), (dh, dw) = attrs["groups"], attrs["stride"], attrs["dilation"]
    t, b, le, ri = attrs["padding"]
    k, cg, r, s = w.shape
    oh, ow = dy.shape[2:]
    # The padded extent that the windows touch may exceed or fall short of h + t + b.
    ph, pw = max(h + t + b, (oh - 1) * sh + dh * (r - 1) + 1), wd + le + ri
    pw = max(pw, (ow - 1) * sw + dw * (s - 1) + 1)
    dx = np.zeros((n, c, ph, pw), np.result_type(dy, w))
    for i in range(g):
        kk = slice(i * (k // g), (i + 1) * (k // g))
        taps = np.tensordot(dy[:, kk], w[kk], axes=([1], [0]))  # n oh ow cg r s
        for y in range(r):
            for x in range(s):
                rows = slice(y * dh, y * dh + (oh - 1) * sh + 1, sh)
                cols = slice(x * dw, x * dw + (ow - 1) * sw + 1, sw)
                dx[:, i * cg : (i + 1) * cg, rows, cols] += taps[..., y, x].transpose(0, 3, 1, 2)
    return (dx[:, :, t : t + h, le : le + wd],)


def _conv2d_grad_weight(arrays, attrs):
    x, dy = arrays
    k, cg, r, s = attrs["shape"]
    g = attrs["groups"]
    view = _windows(_pad_hw(x, attrs["padding"]), (r, s), attrs["stride"], attrs["dilation"])
    dw = np.empty((k, cg, r, s), np.result_type(x, dy))
    for i in range(g):
        kk = slice(i * (k // g), (i + 1) * (k // g))
        dw[kk] = np.tensordot(
            dy[:, kk], view[:, i * cg : (i + 1) * cg], axes=([0, 2, 3], [0, 2, 3])
        )
    return (dw,)


def _pool_view(x, attrs, value):
    """Windows ``[N,C,OH,OW,R,S]`` of x padded with ``value`` far enough for ceil_mode."""
    kh, kw = attrs["kernel"]
    (sh, sw), (ph, pw) = attrs["stride"], attrs["padding"]
    dh, dw = attrs.get("dilation", (1, 1))
    oh, ow = _pool_spatial(TensorType(x.shape), attrs)
    bottom = max(0, (oh - 1) * sh + dh * (kh - 1) + 1 - x.shape[2] - ph)
    right = max(0, (ow - 1) * sw + dw * (kw - 1) + 1 - x.shape[3] - pw)
    view = _windows(_pad_hw(x, (ph, bottom, pw, right), value), (kh, kw), (sh, sw), (dh, dw))
    return view[:, :, :oh, :ow]


def _max_pool2d(arrays, attrs):
    (x,) = arrays
    views = _pool_view(x, attrs, -np.inf), _pool_view(np.ones_like(x), attrs, 0.0)
    flat, inside = (view.reshape(*view.shape[:4], -1) for view in views)
    # The first of those that tie, never a padded one; the last of several NaN.
    index = np.argmax((flat == flat.max(-1, keepdims=True)) & (inside > 0), axis=-1)
    nan = np.isnan(flat)
    index = np.where(nan.any(-1), flat.shape[-1] - 1 - np.argmax(nan[..., ::-1], axis=-1), index)
    return np.take_along_axis(flat, index[..., None], -1)[..., 0], index.astype(np.int32)


def _scatter_windows(values, attrs, shape):
    """Add ``values[N,C,OH,OW,R,S]`` to the elements of ``shape`` that the windows cover."""
    n, c, h, w = shape
    (kh, kw), (sh, sw), (ph, pw) = attrs["kernel"], attrs["stride"], attrs["padding"]
    dh, dw = attrs.get("dilation", (1, 1))
    oh, ow = values.shape[2:4]
    full_h = max(h + 2 * ph, (oh - 1) * sh + dh * (kh - 1) + 1)
    full_w = max(w + 2 * pw, (ow - 1) * sw + dw * (kw - 1) + 1)
    dx = np.zeros((n, c, full_h, full_w), values.dtype)
    for y in range(kh):
        for x in range(kw):
            rows = slice(y * dh, y * dh + (oh - 1) * sh + 1, sh)
            cols = slice(x * dw, x * dw + (ow - 1) * sw + 1, sw)
            dx[:, :, rows, cols] += values[..., y, x]
    return dx[:, :, ph : ph + h, pw : pw + w]


def _max_pool2d_grad(arrays, attrs):
    dy, index = arrays
    kh, kw = attrs["kernel"]
    taps = np.arange(kh * kw).reshape(kh, kw)
    values = np.where(index[..., None, None] == taps, dy[..., None, None], 0).astype(dy.dtype)
    return (_scatter_windows(values, attrs, attrs["shape"]),)


def avg_pool_divisor(h: int, w: int, attrs: Attrs) -> np.ndarray:
    """The count ``[OH,OW]`` by which an average pool over ``h x w`` divides (PyTorch's rule)."""
    counts = []
    for i, size in enumerate((h, w)):
        k, s, p = attrs["kernel"][i], attrs["stride"][i], attrs["padding"][i]
        starts = np.arange(pool_out(size, k, s, p, 1, attrs["ceil_mode"])) * s - p
        if attrs["count_include_pad"]:
            counts.append(np.minimum(starts + k, size + p) - starts)
        else:
            counts.append(np.minimum(starts + k, size) - np.maximum(starts, 0))
    return counts[0][:, None] * counts[1][None, :]


def _avg_pool2d(arrays, attrs):
    (x,) = arrays
    total = _pool_view(x, attrs, 0.0).sum(axis=(4, 5))
    return ((total / avg_pool_divisor(*x.shape[2:], attrs)).astype(x.dtype),)


def _avg_pool2d_grad(arrays, attrs):
    (dy,) = arrays
    share = (dy / avg_pool_divisor(*attrs["shape"][2:], attrs)).astype(dy.dtype)
    kh, kw = attrs["kernel"]
    values = np.broadcast_to(share[..., None, None], (*share.shape, kh, kw))
    return (_scatter_windows(values, attrs, attrs["shape"]),)


def adaptive_bounds(size: int, out: int) -> list[tuple[int, int]]:
    """Half-open input range of each output of an adaptive pool along one axis."""
    return [(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]


def _averaging_matrix(size: int, out: int, dtype) -> np.ndarray:
    m = np.zeros((out, size), dtype)
    for i, (lo, hi) in enumerate(adaptive_bounds(size, out)):
        m[i, lo:hi] = 1.0 / (hi - lo)
    return m


def _adaptive_avg_pool2d(arrays, attrs):
    (x,) = arrays
    oh, ow = attrs["output_size"]
    ah, aw = (_averaging_matrix(s, o, x.dtype) for s, o in zip(x.shape[2:], (oh, ow), strict=True))
    return (np.einsum("nchw,oh,pw->ncop", x, ah, aw, optimize=True),)


def _adaptive_avg_pool2d_grad(arrays, attrs):
    (dy,) = arrays
    h, w = attrs["shape"][2:]
    ah = _averaging_matrix(h, dy.shape[2], dy.dtype)
    aw = _averaging_matrix(w, dy.shape[3], dy.dtype)
    return (np.einsum("ncop,oh,pw->nchw", dy, ah, aw, optimize=True),)


def _matmul(arrays, attrs):
    a, b = arrays
    return ((a.T if attrs["trans_a"] else a) @ (b.T if attrs["trans_b"] else b),)


def _spatial_axes(x) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))


def _bn_stats(arrays, attrs):
    (x,) = arrays
    # Summed in double precision, as PyTorch does: the mean of a constant channel is that constant.
    moments = (fn(x, axis=_spatial_axes(x), dtype=np.float64) for fn in (np.mean, np.var))
    return tuple(m.astype(x.dtype) for m in moments)


def _bn_var(arrays, attrs):
    x, mean = arrays
    centred = x - along_channel(mean, x.ndim)
    return ((centred * centred).mean(axis=_spatial_axes(x)),)


def _row_groups(x, groups):
    """``[G, rows*W per group, C]``: the rows (n, h) in order, cut into equal groups."""
    return np.moveaxis(x, 1, -1).reshape(groups, -1, x.shape[1])


def _bn_partial_stats(arrays, attrs):
    """Sum of each group, then deviations from its rounded mean: their squares' sum, and their sum.

    In exact arithmetic the last is zero; in floating point it corrects the first two (the corrected
    two-pass algorithm; Chan, Golub and LeVeque 1983).
    """
    rows = _row_groups(arrays[0], attrs["groups"])
    total = rows.sum(axis=1)
    deviations = rows - total[:, None] / rows.dtype.type(rows.shape[1])
    return total, np.square(deviations).sum(axis=1), deviations.sum(axis=1)


def _bn_merge_stats(arrays, attrs):
    """Chan, Golub and LeVeque's merge of equally large groups, all groups at once."""
    total, m2, residual = (a.astype(np.float64) for a in arrays)
    dtype, count = arrays[0].dtype, attrs["count"]
    # What the deviations were taken from, rounded as it was there.
    centres = (arrays[0] / dtype.type(count)).astype(np.float64)
    # An infinity is its own mean, though no deviation from it is a number.
    means = np.where(np.isinf(centres), centres, centres + residual / count)
    mean = means.mean(axis=0)
    within = (m2 - np.square(residual) / count).sum(axis=0)
    spread = within + count * np.square(means - mean).sum(axis=0)
    return mean.astype(dtype), (spread / (count * len(total))).astype(dtype)


def _bn_partial_mean(arrays, attrs):
    """Sum of each group in double precision, as a rounded sum and the rest."""
    dtype = arrays[0].dtype
    total = _row_groups(arrays[0], attrs["groups"]).astype(np.float64).sum(axis=1)
    rounded = total.astype(dtype)
    return rounded, (total - rounded).astype(dtype)


def _bn_merge_mean(arrays, attrs):
    total, rest = (a.astype(np.float64) for a in arrays)
    total = np.where(np.isinf(total), total, total + rest)
    return ((total.sum(axis=0) / attrs["count"]).astype(arrays[0].dtype),)


def _bn_normalize(arrays, attrs):
    x, mean, var, weight, bias = arrays
    scale = 1.0 / np.sqrt(var + x.dtype.type(attrs["eps"]))
    scale = scale if weight is None else scale * weight
    y = (x - along_channel(mean, x.ndim)) * along_channel(scale, x.ndim)
    return (y if bias is None else y + along_channel(bias, x.ndim),)


def _bn_scale(arrays, attrs):
    var, weight = arrays
    scale = 1.0 / np.sqrt(var + var.dtype.type(attrs["eps"]))
    return (scale if weight is None else scale * weight,)


def _bn_apply(arrays, attrs):
    x, *vectors = arrays
    mean, scale, bias = (v if v is None else along_channel(v, x.ndim) for v in vectors)
    y = (x - mean) * scale
    return (y if bias is None else y + bias,)


def _bn_grad_apply(arrays, attrs):
    dy, x, *vectors = arrays
    mean, scale, mean_dy, slope = (along_channel(v, x.ndim) for v in vectors)
    return ((dy - mean_dy - (x - mean) * slope) * scale,)


def _batch_norm(arrays, attrs):
    x, weight, bias = arrays
    mean, var = _bn_stats([x], attrs)
    return (*_bn_normalize([x, mean, var, weight, bias], attrs), mean, var)


def _bn_update(arrays, attrs):
    running_mean, running_var, mean, var, momentum = arrays
    m = attrs["momentum"] if momentum is None else momentum
    n = attrs["count"]
    unbiased = var * (n / (n - 1)) if n > 1 else var * np.nan
    return (
        ((1 - m) * running_mean + m * mean).astype(running_mean.dtype),
        ((1 - m) * running_var + m * unbiased).astype(running_var.dtype),
    )


def _bn_grad_direct(arrays, attrs):
    dy, var, weight = arrays
    scale = 1.0 / np.sqrt(var + dy.dtype.type(attrs["eps"]))
    return (dy * along_channel(scale if weight is None else scale * weight, dy.ndim),)


def _bn_grad_affine(arrays, attrs):
    x, mean, slope, offset = (
        a if i == 0 else along_channel(a, arrays[0].ndim) for i, a in enumerate(arrays)
    )
    return ((x - mean) * slope + offset,)


def _batch_norm_grad(arrays, attrs):
    dy, x, mean, var, weight = arrays
    axes, count = _spatial_axes(x), x.size // x.shape[1]
    centred = x - along_channel(mean, x.ndim)
    inv = 1.0 / np.sqrt(var + x.dtype.type(attrs["eps"]))
    dbias = dy.sum(axis=axes)
    dweight = (dy * centred).sum(axis=axes) * inv
    scale = inv if weight is None else inv * weight
    xhat = centred * along_channel(inv, x.ndim)
    inner = dy - along_channel(dbias / count, x.ndim)
    inner = inner - xhat * along_channel(dweight / count, x.ndim)
    return inner * along_channel(scale, x.ndim), dweight, dbias


def _bn_partial_var(arrays, attrs):
    x, mean = arrays
    rows = _row_groups(x - along_channel(mean, x.ndim), attrs["groups"])
    return (np.square(rows).sum(axis=1),)


def _bn_grad_sums(arrays, attrs):
    dy, x, mean = arrays
    axes = _spatial_axes(x)
    return dy.sum(axis=axes), (dy * (x - along_channel(mean, x.ndim))).sum(axis=axes)


def _bn_grad_partial_sums(arrays, attrs):
    dy, x, mean = arrays
    centred = x - along_channel(mean, x.ndim)
    return tuple(_row_groups(v, attrs["groups"]).sum(axis=1) for v in (dy, dy * centred))


def _bn_grad_input(arrays, attrs):
    """gamma*invstd * (dy - sum(dy)/M - (x-mean) * sum(dy*(x-mean)) / (M*(var+eps)))."""
    dy, x, mean, var, weight, sum_dy, sum_dy_centred = arrays
    spread, count = var + x.dtype.type(attrs["eps"]), attrs["count"]
    scale = 1.0 / np.sqrt(spread)
    scale = scale if weight is None else scale * weight
    centred = x - along_channel(mean, x.ndim)
    inner = dy - along_channel(sum_dy / count, x.ndim)
    inner = inner - centred * along_channel(sum_dy_centred / (count * spread), x.ndim)
    return (inner * along_channel(scale, x.ndim),)


MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
"""Shifts and factors of a 64-bit mix: splitmix64's finalizer (Stafford's mix 13)."""
STREAM = 0x9E3779B97F4A7C15
"""What a stream adds to a mixed seed: splitmix64's increment."""
ROUND = ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1))
"""Shifts and factors of a round over elements: lowbias32 (Wellons, "hash-prospector")."""


def _mixed(z: int) -> int:
    for shift, factor in MIX:
        z = (z ^ (z >> shift)) * factor % 2**64
    return z


def random_key(seed: int, stream: int) -> tuple[int, int]:
    """What elements are hashed with: the low and the high half of 64 bits."""
    key = _mixed((_mixed(seed % 2**64) + stream * STREAM) % 2**64)
    return key % 2**32, key >> 32


def _random_uniform(arrays, attrs):
    """Numbers in [0, 1): each element's row-major number, hashed with 64 bits of seed and stream.

    Their grid is 2**-24, and 2**-32 below that, so that rare events keep their probability.
    """
    (seed,) = arrays
    with np.errstate(over="ignore"):
        x = np.arange(math.prod(attrs["shape"]), dtype=np.uint32)
        for half in random_key(int(seed.item()), attrs["stream"]):
            x = x ^ np.uint32(half)
            for shift, factor in ROUND:
                x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    high, low = (x >> np.uint32(8)).astype(np.float32), (x & np.uint32(255)).astype(np.float32)
    u = np.where(high == 0, low * np.float32(2.0**-32), high * np.float32(2.0**-24))
    return (u.reshape(attrs["shape"]),)


def _one_hot(arrays, attrs):
    (labels,) = arrays
    classes = np.arange(attrs["classes"]).reshape(-1, *(1,) * (labels.ndim - 1))
    return ((np.expand_dims(labels, 1) == classes).astype(FLOAT),)


_MOST_DRAWN = 2**32
"""Random numbers of one draw: each is a function of its number, in 32 bits."""


def _infer_constant(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    if wrong := value_misfit(attrs["value"], attrs["dtype"]):
        raise ShapeError(wrong)
    return (TensorType((), attrs["dtype"]),)


def _infer_hardtanh(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    if attrs["lo"] > attrs["hi"]:
        raise ShapeError(f"lo {attrs['lo']} exceeds hi {attrs['hi']}")
    return _infer_float(types, attrs)


def _infer_one_hot(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (labels,) = types
    if labels.element.kind != "int" or not labels.shape:
        raise ShapeError(f"labels must be integers with a batch axis, got {labels}")
    return (TensorType((labels.shape[0], attrs["classes"], *labels.shape[1:])),)


def _infer_random(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (seed,) = types
    if seed.element.kind != "int" or seed.shape:
        raise ShapeError(f"the seed must be a single integer, got {seed}")
    if math.prod(attrs["shape"]) > _MOST_DRAWN:
        raise ShapeError(f"{list(attrs['shape'])} are more than 2^32 numbers")
    return (TensorType(tuple(attrs["shape"])),)


def _unary(fn):
    return lambda arrays, attrs: (fn(arrays[0]),)


def _binary(fn):
    def evaluate(arrays, attrs):
        return (np.asarray(fn(*_promoted(arrays))),)

    return evaluate


def _where(arrays, attrs):
    return (np.where(arrays[0], *_promoted(arrays[1:])),)


def _sigmoid(x):
    # exp of a negative number never overflows, and small results keep their digits.
    tail = np.exp(-np.abs(x))
    return (np.where(x >= 0, x.dtype.type(1), tail) / (1 + tail)).astype(x.dtype)


def _cast(arrays, attrs):
    return (arrays[0].astype(attrs["dtype"]),)


def _constant(arrays, attrs):
    return (np.asarray(attrs["value"], attrs["dtype"]),)


def _reduce(fn):
    def evaluate(arrays, attrs):
        (x,) = arrays
        axes = normalize_axes(attrs["axes"], x.ndim)
        return (np.asarray(fn(x, axis=axes, keepdims=attrs["keepdims"])).astype(x.dtype),)

    return evaluate


def _slice(arrays, attrs):
    index = (slice(None),) * attrs["axis"] + (slice(attrs["start"], attrs["stop"]),)
    return (arrays[0][index],)


# --- the table --------------------------------------------------------------------------------


def _pointwise(name, operands, fn, infer=_infer_pointwise, **kw):
    return OpDef(name, "pointwise", operands, infer, fn, **kw)


_REDUCE = {"axes": ..., "keepdims": False}

_TABLE = (
    # arithmetic
    *(
        _pointwise(name, ("a", "b"), _binary(fn))
        for name, fn in (
            ("add", np.add), ("mul", np.multiply),
            ("maximum", np.maximum), ("minimum", np.minimum),
        )
    ),
    _pointwise("sub", ("a", "b"), _binary(np.subtract), takes="number"),
    _pointwise("pow", ("a", "b"), _binary(np.power), _infer_float),
    _pointwise("div", ("a", "b"), _binary(np.divide), _infer_float),
    *(
        _pointwise(name, ("a", "b"), _binary(fn), _infer_compare)
        for name, fn in (
            ("greater", np.greater), ("greater_equal", np.greater_equal), ("less", np.less),
            ("less_equal", np.less_equal), ("equal", np.equal), ("not_equal", np.not_equal),
        )
    ),
    *(
        _pointwise(name, ("x",), _unary(fn), _infer_float)
        for name, fn in (
            ("exp", np.exp), ("log", np.log), ("sqrt", np.sqrt), ("tanh", np.tanh),
            ("rsqrt", lambda x: (1 / np.sqrt(x)).astype(x.dtype)), ("sigmoid", _sigmoid),
            ("silu", lambda x: x * _sigmoid(x)),
        )
    ),
    _pointwise("neg", ("x",), _unary(np.negative), takes="number"),
    _pointwise("abs", ("x",), _unary(np.abs), takes="number"),
    _pointwise(
        "relu", ("x",), _unary(lambda x: np.where(x < 0, x.dtype.type(0), x)), takes="number"
    ),
    _pointwise(
        "leaky_relu", ("x",),
        lambda a, at: (np.where(a[0] > 0, a[0], a[0] * a[0].dtype.type(at["slope"])),),
        _infer_float, defaults={"slope": 0.01},
    ),
    _pointwise(
        "hardtanh", ("x",), lambda a, at: (np.clip(a[0], at["lo"], at["hi"]).astype(a[0].dtype),),
        _infer_hardtanh, defaults={"lo": -1.0, "hi": 1.0},
    ),
    _pointwise("where", ("cond", "a", "b"), _where, _infer_where),
    _pointwise(
        "cast", ("x",), _cast,
        lambda t, at: (TensorType(t[0].shape, at["dtype"]),), defaults={"dtype": ...},
    ),
    _pointwise("stop_gradient", ("x",), _unary(lambda x: x)),
    _pointwise(
        "constant", (), _constant, _infer_constant,
        defaults={"value": ..., "dtype": FLOAT},
    ),
    _pointwise(
        "broadcast_to", ("x",), lambda a, at: (np.broadcast_to(a[0], at["shape"]).copy(),),
        _infer_broadcast_to, defaults={"shape": ...},
    ),
    _pointwise(
        "random_uniform", ("seed",), _random_uniform, _infer_random,
        defaults={"shape": ..., "stream": 0},
    ),
    _pointwise("one_hot", ("labels",), _one_hot, _infer_one_hot, defaults={"classes": ...}),
    # per-channel sub-layers
    _pointwise(
        "bias_add", ("x", "bias"), lambda a, at: (a[0] + along_channel(a[1], a[0].ndim),),
        _infer_first, channel=("bias",), takes="float",
    ),
    _pointwise(
        "bn_normalize", ("x", "mean", "var", "weight?", "bias?"), _bn_normalize, _infer_first,
        defaults={"eps": 1e-5}, channel=("mean", "var", "weight", "bias"), takes="float",
    ),
    _pointwise(
        "bn_grad_direct", ("dy", "var", "weight?"), _bn_grad_direct, _infer_first,
        defaults={"eps": 1e-5}, channel=("var", "weight"), takes="float",
    ),
    _pointwise(
        "bn_grad_affine", ("x", "mean", "slope", "offset"), _bn_grad_affine, _infer_first,
        channel=("mean", "slope", "offset"), takes="float",
    ),
    _pointwise(
        "bn_grad_input", ("dy", "x", "mean", "var", "weight?", "sum_dy", "sum_dy_centred"),
        _bn_grad_input, _infer_first_of_two, defaults={"eps": 1e-5, "count": ...},
        channel=("mean", "var", "weight", "sum_dy", "sum_dy_centred"), takes="float",
    ),
    # ... with what depends on the channel alone computed beforehand
    _pointwise(
        "bn_scale", ("var", "weight?"), _bn_scale, _infer_vectors(1), defaults={"eps": 1e-5},
        takes="float",
    ),
    _pointwise(
        "bn_apply", ("x", "mean", "scale", "bias?"), _bn_apply, _infer_first,
        channel=("mean", "scale", "bias"), takes="float",
    ),
    _pointwise(
        "bn_grad_apply", ("dy", "x", "mean", "scale", "mean_dy", "slope"), _bn_grad_apply,
        _infer_first_of_two, channel=("mean", "scale", "mean_dy", "slope"),
        takes="float",
    ),
    _pointwise(
        "channel_scale", ("x", "scale"),
        lambda a, at: (a[0] * along_channel(a[1], a[0].ndim),), _infer_first, channel=("scale",),
        takes="float",
    ),
    _pointwise(
        "bn_update", ("running_mean", "running_var", "mean", "var", "momentum?"), _bn_update,
        _infer_update, defaults={"momentum": 0.1, "count": ...}, takes="float",
    ),
    # reductions
    OpDef(
        "sum", "reduce", ("x",), _infer_reduce, _reduce(np.sum), _REDUCE, combine="sum",
        takes="number",
    ),
    OpDef("mean", "reduce", ("x",), _infer_mean, _reduce(np.mean), _REDUCE, combine="sum"),
    OpDef(
        "amax", "reduce", ("x",), _infer_reduce, _reduce(np.max), _REDUCE, combine="max",
        takes="number",
    ),
    OpDef(
        "bn_stats", "reduce", ("x",), _infer_stats(2), _bn_stats, combine="moments", takes="float"
    ),
    OpDef(
        "bn_mean", "reduce", ("x",), _infer_stats(1), lambda a, at: _bn_stats(a, at)[:1],
        combine="sum", takes="float",
    ),
    OpDef(
        "bn_var", "reduce", ("x", "mean"), _infer_stats(1), _bn_var, channel=("mean",),
        combine="sum", takes="float",
    ),
    OpDef(
        "partial_sum", "reduce", ("x",), _infer_fold,
        lambda a, at: (_row_groups(a[0], at["groups"]).sum(axis=1, dtype=a[0].dtype),),
        {"groups": ...}, combine="sum", takes="number",
    ),
    OpDef(
        "partial_max", "reduce", ("x",), _infer_fold,
        lambda a, at: (_row_groups(a[0], at["groups"]).max(axis=1),), {"groups": ...},
        combine="max", takes="number",
    ),
    OpDef(
        "bn_partial_stats", "reduce", ("x",), _infer_partial(3), _bn_partial_stats,
        {"groups": ...}, combine="moments", takes="float",
    ),
    OpDef(
        "bn_partial_mean", "reduce", ("x",), _infer_partial(2), _bn_partial_mean, {"groups": ...},
        combine="sum", takes="float",
    ),
    OpDef(
        "bn_merge_mean", "reduce", ("sum", "rest"), _infer_merge(1), _bn_merge_mean, {"count": ...},
        combine="sum", takes="float",
    ),
    OpDef(
        "bn_merge_stats", "reduce", ("sum", "m2", "residual"), _infer_merge(2), _bn_merge_stats,
        {"count": ...}, combine="moments", takes="float",
    ),
    OpDef(
        "bn_partial_var", "reduce", ("x", "mean"), _infer_partial(1), _bn_partial_var,
        {"groups": ...}, channel=("mean",), combine="sum", takes="float",
    ),
    OpDef(
        "bn_grad_sums", "reduce", ("dy", "x", "mean"), _infer_stats(2, maps=2), _bn_grad_sums,
        channel=("mean",), combine="sum", takes="float",
    ),
    OpDef(
        "bn_grad_partial_sums", "reduce", ("dy", "x", "mean"), _infer_partial(2, maps=2),
        _bn_grad_partial_sums, {"groups": ...}, channel=("mean",), combine="sum", takes="float",
    ),
    # contractions
    OpDef("conv2d", "contract", ("x", "weight"), _infer_conv2d, _conv2d, CONV, takes="float"),
    OpDef(
        "conv2d_grad_input", "contract", ("dy", "weight"), _infer_conv_grad_input,
        _conv2d_grad_input, {**CONV, "shape": ...}, takes="float",
    ),
    OpDef(
        "conv2d_grad_weight", "contract", ("x", "dy"), _infer_conv_grad_weight,
        _conv2d_grad_weight, {**CONV, "shape": ...}, takes="float",
    ),
    OpDef(
        "matmul", "contract", ("a", "b"), _infer_matmul, _matmul,
        {"trans_a": False, "trans_b": False}, takes="float",
    ),
    # windows
    OpDef("max_pool2d", "window", ("x",), _infer_max_pool, _max_pool2d, POOL, takes="float"),
    OpDef(
        "max_pool2d_grad", "window", ("dy", "index"), _infer_max_pool_grad, _max_pool2d_grad,
        {**POOL, "shape": ...},
    ),
    OpDef("avg_pool2d", "window", ("x",), _infer_avg_pool, _avg_pool2d, AVG_POOL, takes="float"),
    OpDef(
        "avg_pool2d_grad", "window", ("dy",), _infer_avg_pool_grad, _avg_pool2d_grad,
        {**AVG_POOL, "shape": ...}, takes="float",
    ),
    OpDef(
        "adaptive_avg_pool2d", "window", ("x",), _infer_adaptive, _adaptive_avg_pool2d,
        {"output_size": ...}, takes="float",
    ),
    OpDef(
        "adaptive_avg_pool2d_grad", "window", ("dy",), _infer_adaptive_grad,
        _adaptive_avg_pool2d_grad, {"output_size": ..., "shape": ...}, takes="float",
    ),
    # data movement
    OpDef("copy", "copy", ("x",), lambda t, at: (t[0],), lambda a, at: (a[0],)),
    # views
    OpDef(
        "cat", "view", ("x",), _infer_cat,
        lambda a, at: (np.concatenate(a, axis=at["axis"]),), {"axis": 1}, variadic=True,
    ),
    OpDef(
        "slice", "view", ("x",), _infer_slice, _slice, {"axis": 1, "start": ..., "stop": ...}
    ),
    OpDef(
        "reshape", "view", ("x",), _infer_reshape,
        lambda a, at: (np.ascontiguousarray(a[0]).reshape(at["shape"]),), {"shape": ...},
    ),
    # coarse
    OpDef(
        "batch_norm", "coarse", ("x", "weight?", "bias?"),
        lambda t, at: (t[0], *_infer_stats(2)(t, at)), _batch_norm,
        {"eps": 1e-5}, channel=("weight", "bias"), takes="float",
    ),
    OpDef(
        "batch_norm_grad", "coarse", ("dy", "x", "mean", "var", "weight?"),
        lambda t, at: (t[0], *_infer_stats(2, maps=2)(t, at)), _batch_norm_grad, {"eps": 1e-5},
        channel=("mean", "var", "weight"), takes="float",
    ),
)  # fmt: skip

OPS: dict[str, OpDef] = {row.name: row for row in _TABLE}


def op_def(name: str) -> OpDef:
    """The row of an op; raises `ShapeError` for a name that is not in the table."""
    if name in OPS:
        return OPS[name]
    import difflib  # only on the way to an error

    near = difflib.get_close_matches(name, OPS, 3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ShapeError(f"unknown op {name!r}{hint}")


def infer(name: str, types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """Result types of an op; raises `ShapeError` for operands that do not fit."""
    row = op_def(name)
    _check_dtypes(row, types)
    results = row.infer(types, attrs)
    for result in results:
        if wrong := type_misfit(result):
            raise ShapeError(wrong)
    return results


def complete_attrs(name: str, given: dict[str, Any]) -> Attrs:
    """All attributes of an op, defaults filled in.

    Raises:
        ShapeError: for one that is unknown, missing, or not what it may be (`attributes`).
    """
    row = op_def(name)
    unknown = set(given) - set(row.defaults)
    merged = {**row.defaults, **given}
    missing = [k for k, v in merged.items() if v is ...]
    if unknown or missing:
        bad = f"unknown attributes {sorted(unknown)}" if unknown else f"missing {missing}"
        raise ShapeError(f"{name}: {bad}; it takes {sorted(row.defaults)}")
    if wrong := attribute_misfit(name, merged):
        raise ShapeError(wrong)
    return Attrs.of(**merged)
