"""Contractions: convolutions in three directions, and the matrix product.

A convolution's ``groups`` are blocks of channels that do not mix.
"""

from __future__ import annotations

import numpy as np

from bngen.dtypes import DTYPES
from bngen.ir.attributes import SIDES
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


def conv_out(size: int, window: int, stride: int, lo: int, hi: int, dilation: int) -> int:
    """Extent of a convolution's output along one axis."""
    return (size + lo + hi - dilation * (window - 1) - 1) // stride + 1


CONV = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1}
"""Attributes of every convolution. ``padding`` is (top, bottom, left, right)."""


def _conv_spatial(h: int, w: int, r: int, s: int, attrs: Attrs) -> tuple[int, int]:
    (sh, sw), (t, b, le, ri), (dh, dw) = attrs["stride"], attrs["padding"], attrs["dilation"]
    return conv_out(h, r, sh, t, b, dh), conv_out(w, s, sw, le, ri, dw)


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
    check_padded(TensorType((n, c, h + t + b, wd + le + ri), x.dtype))
    oh, ow = _conv_spatial(h, wd, r, s, attrs)
    if oh < 1 or ow < 1:
        raise ShapeError(f"window {r}x{s} (dilation {list(attrs['dilation'])}) exceeds padded {x}")
    return (TensorType((n, k, oh, ow), x.element.accumulator),)


def _infer_conv_grad_input(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    dy, w = types
    (forward,) = _infer_conv2d([TensorType(attrs["shape"], dy.dtype), w], attrs)
    return _infer_gradient(dy, forward, attrs)


def _infer_conv_grad_weight(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, dy = types
    (forward,) = _infer_conv2d([x, TensorType(attrs["shape"], x.dtype)], attrs)
    return _infer_gradient(dy, forward, attrs)


def _infer_gradient(dy: TensorType, forward: TensorType, attrs: Attrs) -> tuple[TensorType, ...]:
    """A gradient of the accumulator's type: what arrives is a factor, like the operands."""
    (gradient,) = infer_gradient(dy, TensorType(forward.shape, dy.dtype), attrs)
    return (TensorType(gradient.shape, dy.element.accumulator),)


def _infer_matmul(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    a, b = types
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise ShapeError(f"needs two matrices, got {a} and {b}")
    m, ka = a.shape[::-1] if attrs["trans_a"] else a.shape
    kb, n = b.shape[::-1] if attrs["trans_b"] else b.shape
    if ka != kb:
        raise ShapeError(f"inner extents {ka} and {kb} of {a} and {b} differ")
    return (TensorType((m, n), a.element.accumulator),)


def _factors(arrays):
    """Factors in the type that their products are summed in."""
    return [a.astype(DTYPES[a.dtype.name].accumulator, copy=False) for a in arrays]


def _conv2d(arrays, attrs):
    x, w = _factors(arrays)
    g = attrs["groups"]
    k, cg, r, s = w.shape
    view = windows(pad_hw(x, attrs["padding"]), (r, s), attrs["stride"], attrs["dilation"])
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
    dy, w = _factors(arrays)
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
    x, dy = _factors(arrays)
    k, cg, r, s = attrs["shape"]
    g = attrs["groups"]
    view = windows(pad_hw(x, attrs["padding"]), (r, s), attrs["stride"], attrs["dilation"])
    dw = np.empty((k, cg, r, s), np.result_type(x, dy))
    for i in range(g):
        kk = slice(i * (k // g), (i + 1) * (k // g))
        dw[kk] = np.tensordot(
            dy[:, kk], view[:, i * cg : (i + 1) * cg], axes=([0, 2, 3], [0, 2, 3])
        )
    return (dw,)


def _matmul(arrays, attrs):
    a, b = _factors(arrays)
    return ((a.T if attrs["trans_a"] else a) @ (b.T if attrs["trans_b"] else b),)


def _convolution(name, operands, fn, infer, direction, **more) -> OpDef:
    given = {"shape": ...} if direction != "forward" else {}
    more |= {"autocast": "narrows"} if direction != "weight" else {}
    return OpDef(
        name, "contract", operands, infer, fn, {**CONV, **given}, {"padding": SIDES},
        takes="float", accumulates=True, direction=direction, **more,
    )  # fmt: skip


CONTRACT = (
    _convolution("conv2d", ("x", "weight"), _conv2d, _infer_conv2d, "forward"),
    _convolution(
        "conv2d_grad_input", ("dy", "weight"), _conv2d_grad_input, _infer_conv_grad_input, "input"
    ),
    _convolution(
        "conv2d_grad_weight", ("x", "dy"), _conv2d_grad_weight, _infer_conv_grad_weight, "weight",
        store_slot=False,
    ),
    OpDef(
        "matmul", "contract", ("a", "b"), _infer_matmul, _matmul,
        {"trans_a": False, "trans_b": False}, takes="float", accumulates=True,
        autocast="narrows",
    ),
)  # fmt: skip
