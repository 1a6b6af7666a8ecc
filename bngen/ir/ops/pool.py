"""Windows: pools and their gradients, with PyTorch's rules for sizes, ties and divisors."""

from __future__ import annotations

import numpy as np

from bngen.ir.ops.row import (
    OpDef,
    ShapeError,
    Types,
    check_padded,
    infer_gradient,
    pad_hw,
    windows,
)
from bngen.ir.types import Attrs, TensorType

TAP = "int32"
"""What the index of a window's greatest element is, counted row by row within the window."""
POOL = {
    "kernel": ...,
    "stride": ...,
    "padding": (0, 0),
    "dilation": (1, 1),
    "ceil_mode": False,
}
AVG_POOL = {
    **{k: v for k, v in POOL.items() if k != "dilation"},
    "count_include_pad": True,
    "divisor": 0,
}
"""Attributes of average pools. ``divisor`` is what sums are divided by; 0 for the pool's own."""


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
    check_padded(TensorType((*x.shape[:2], *sides), x.dtype))
    return out


def _infer_max_pool(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    shape = (*x.shape[:2], *_pool_spatial(x, attrs))
    return TensorType(shape, x.dtype), TensorType(shape, TAP)


def _infer_avg_pool(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    return (TensorType((*x.shape[:2], *_pool_spatial(x, attrs)), x.dtype),)


def _infer_adaptive(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    if len(x.shape) != 4:
        raise ShapeError(f"needs x[N,C,H,W], got {x}")
    return (TensorType((*x.shape[:2], *attrs["output_size"]), x.dtype),)


def _infer_max_pool_grad(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    dy, index = types
    forward, taps = _infer_max_pool([TensorType(attrs["shape"], dy.dtype)], attrs)
    if not dy.is_float or index != taps:
        raise ShapeError(f"needs floating-point dy and an index {taps}, got {dy} and {index}")
    return infer_gradient(dy, forward, attrs)


def _infer_avg_pool_grad(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (dy,) = types
    (forward,) = _infer_avg_pool([TensorType(attrs["shape"], dy.dtype)], attrs)
    return infer_gradient(dy, forward, attrs)


def _infer_adaptive_grad(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (dy,) = types
    (forward,) = _infer_adaptive([TensorType(attrs["shape"], dy.dtype)], attrs)
    return infer_gradient(dy, forward, attrs)


def _pool_view(x, attrs, value):
    """Windows ``[N,C,OH,OW,R,S]`` of x padded with ``value`` far enough for ceil_mode."""
    kh, kw = attrs["kernel"]
    (sh, sw), (ph, pw) = attrs["stride"], attrs["padding"]
    dh, dw = attrs.get("dilation", (1, 1))
    oh, ow = _pool_spatial(TensorType(x.shape), attrs)
    bottom = max(0, (oh - 1) * sh + dh * (kh - 1) + 1 - x.shape[2] - ph)
    right = max(0, (ow - 1) * sw + dw * (kw - 1) + 1 - x.shape[3] - pw)
    view = windows(pad_hw(x, (ph, bottom, pw, right), value), (kh, kw), (sh, sw), (dh, dw))
    return view[:, :, :oh, :ow]


def _max_pool2d(arrays, attrs):
    (x,) = arrays
    views = _pool_view(x, attrs, -np.inf), _pool_view(np.ones_like(x), attrs, 0.0)
    flat, inside = (view.reshape(*view.shape[:4], -1) for view in views)
    # The first of those that tie, never a padded one; the last of several NaN.
    index = np.argmax((flat == flat.max(-1, keepdims=True)) & (inside > 0), axis=-1)
    nan = np.isnan(flat)
    index = np.where(nan.any(-1), flat.shape[-1] - 1 - np.argmax(nan[..., ::-1], axis=-1), index)
    return np.take_along_axis(flat, index[..., None], -1)[..., 0], index.astype(TAP)


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
    if attrs["divisor"]:
        return np.full((1, 1), attrs["divisor"])
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


WINDOW = (
    OpDef(
        "max_pool2d", "window", ("x",), _infer_max_pool, _max_pool2d, POOL, results=("", "index"),
        takes="float", autocast="follows",
    ),
    OpDef(
        "max_pool2d_grad", "window", ("dy", "index"), _infer_max_pool_grad, _max_pool2d_grad,
        {**POOL, "shape": ...},
    ),
    OpDef(
        "avg_pool2d", "window", ("x",), _infer_avg_pool, _avg_pool2d, AVG_POOL, takes="float",
        autocast="follows",
    ),
    OpDef(
        "avg_pool2d_grad", "window", ("dy",), _infer_avg_pool_grad, _avg_pool2d_grad,
        {**AVG_POOL, "shape": ...}, takes="float",
    ),
    OpDef(
        "adaptive_avg_pool2d", "window", ("x",), _infer_adaptive, _adaptive_avg_pool2d,
        {"output_size": ...}, takes="float", autocast="follows",
    ),
    OpDef(
        "adaptive_avg_pool2d_grad", "window", ("dy",), _infer_adaptive_grad,
        _adaptive_avg_pool2d_grad, {"output_size": ..., "shape": ...}, takes="float",
    ),
)  # fmt: skip
