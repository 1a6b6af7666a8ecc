"""Maps of another height and width: the nearest element, or mixtures of four or sixteen.

Where an element comes from is PyTorch's rule to the last rounding, as the nearest one jumps there.
``scale`` is how far one goes in the operand for each step in the result, in h and w.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bngen.ir.ops.row import Evaluate, OpDef, ShapeError, Types, infer_gradient, pointwise
from bngen.ir.types import Attrs, TensorType

NEAREST = {"output_size": ..., "scale": ..., "centred": False}
"""Attributes. ``centred`` asks for the nearest of each element's centre ("nearest-exact")."""
MIXTURE = {"output_size": ..., "scale": ..., "align_corners": False}
"""Attributes. With ``align_corners`` positions are those of elements, else of their centres."""
CUBIC = -0.75
"""The slope of the cubic kernel at distance 1 (Keys 1981, who calls it a), as PyTorch has it."""


class Taps(NamedTuple):
    """Along one axis, ``[taps, out]``: the elements that results are mixtures of, and shares."""

    elements: np.ndarray
    shares: np.ndarray


def nearest_indices(size: int, out: int, scale: float, centred: bool) -> np.ndarray:
    """For each result along an axis the element that it is (PyTorch's rule, in its float32)."""
    places = np.arange(out)
    if not centred and out in (size, 2 * size):  # whatever the scale
        return places // (out // size)
    at = places.astype(np.float32) + np.float32(0.5 if centred else 0)
    return np.minimum(np.floor(at * np.float32(scale)).astype(np.int64), size - 1)


def bilinear_taps(size: int, out: int, scale: float, aligned: bool) -> Taps:
    """The two taps of each result along an axis (PyTorch's rule, in float64)."""
    places = np.arange(out)
    if out == size:
        return Taps(np.stack([places, places]), np.stack([np.ones(out), np.zeros(out)]))
    at = places * scale if aligned else np.maximum((places + 0.5) * scale - 0.5, 0)
    first = np.minimum(at.astype(np.int64), size - 1)
    share = np.clip(at - first, 0, 1)
    return Taps(np.stack([first, first + (first < size - 1)]), np.stack([1 - share, share]))


def bicubic_taps(size: int, out: int, scale: float, aligned: bool) -> Taps:
    """The four taps of each result along an axis (PyTorch's rule, in float64).

    Beyond a border stands what is at the border.
    """
    places = np.arange(out)
    at = places * scale if aligned else (places + 0.5) * scale - 0.5
    second = np.minimum(np.floor(at).astype(np.int64), size - 1)
    steps = np.arange(-1, 3)[:, None]
    distance = np.abs(np.clip(at - second, 0, 1) - steps)
    return Taps(np.clip(second + steps, 0, size - 1), cubic(distance))


def cubic(distance: np.ndarray) -> np.ndarray:
    """Share of an element at a distance of 0 to 2 (Keys 1981, equation 4)."""
    a, d = CUBIC, distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, far)


def taps_of(op: str, shape: Sequence[int], attrs: Attrs) -> list[Taps]:
    """Those of h and of w, for an op of any mode or its gradient."""
    found = []
    mixed = {"resize_bilinear": bilinear_taps, "resize_bicubic": bicubic_taps}
    mode = mixed.get(op.removesuffix("_grad"))
    for size, out, scale in zip(shape[2:], attrs["output_size"], attrs["scale"], strict=True):
        if mode is not None:
            found.append(mode(size, out, scale, attrs["align_corners"]))
        else:
            nearest = nearest_indices(size, out, scale, attrs["centred"])
            found.append(Taps(nearest[None], np.ones((1, out))))
    return found


def _infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    if len(x.shape) != 4:
        raise ShapeError(f"needs x[N,C,H,W], got {x}")
    return (TensorType((*x.shape[:2], *attrs["output_size"]), x.dtype),)


def _infer_grad(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (dy,) = types
    (forward,) = _infer([TensorType(attrs["shape"], dy.dtype)], attrs)
    return infer_gradient(dy, forward, attrs)


def _nearest(arrays, attrs):
    (x,) = arrays
    rows, columns = (t.elements[0] for t in taps_of("resize_nearest", x.shape, attrs))
    return (x[:, :, rows[:, None], columns[None, :]],)


def _mixture(op: str) -> Evaluate:
    def evaluate(arrays, attrs):
        (x,) = arrays
        for axis, taps in zip((2, 3), taps_of(op, x.shape, attrs), strict=True):
            shares = taps.shares.reshape(len(taps.shares), -1, *(1,) * (3 - axis)).astype(x.dtype)
            x = sum(np.take(x, e, axis) * s for e, s in zip(taps.elements, shares, strict=True))
        return (x,)

    return evaluate


def _spread(op: str) -> Evaluate:
    def evaluate(arrays, attrs):
        (dx,) = arrays
        for axis, taps in zip((2, 3), taps_of(op, attrs["shape"], attrs), strict=True):
            spread = np.zeros((attrs["shape"][axis], taps.shares.shape[1]), dx.dtype)
            places = np.broadcast_to(np.arange(taps.shares.shape[1]), taps.shares.shape)
            np.add.at(spread, (taps.elements, places), taps.shares)
            dx = np.moveaxis(np.tensordot(dx, spread, axes=([axis], [1])), -1, axis)
        return (dx,)

    return evaluate


def _mixed(name: str) -> OpDef:
    return OpDef(
        name, "window", ("x",), _infer, _mixture(name), MIXTURE, takes="float", autocast="follows",
    )  # fmt: skip


def _gradient(name: str, attrs: dict) -> OpDef:
    return OpDef(
        name, "window", ("dy",), _infer_grad, _spread(name), {**attrs, "shape": ...},
        takes="float",
    )  # fmt: skip


RESIZE = (
    pointwise(
        "resize_nearest", ("x",), _nearest, _infer, gathers=True, rounds=False, defaults=NEAREST,
    ),
    _gradient("resize_nearest_grad", NEAREST),
    _mixed("resize_bilinear"),
    _gradient("resize_bilinear_grad", MIXTURE),
    _mixed("resize_bicubic"),
    _gradient("resize_bicubic_grad", MIXTURE),
)  # fmt: skip
