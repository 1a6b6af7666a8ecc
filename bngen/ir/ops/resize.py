"""Maps of another height and width: the nearest element, or bilinear mixtures of four.

Where an element comes from is PyTorch's rule to the last rounding, as the nearest one jumps there.
``scale`` is how far one goes in the operand for each step in the result, in h and w.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bngen.ir.ops.row import OpDef, ShapeError, Types, infer_gradient, pointwise
from bngen.ir.types import Attrs, TensorType

NEAREST = {"output_size": ..., "scale": ..., "centred": False}
"""Attributes. ``centred`` asks for the nearest of each element's centre ("nearest-exact")."""
BILINEAR = {"output_size": ..., "scale": ..., "align_corners": False}
"""Attributes. With ``align_corners`` positions are those of elements, else of their centres."""


class Taps(NamedTuple):
    """Along one axis: the two elements that each result is a mixture of, and the second's share."""

    first: np.ndarray
    second: np.ndarray
    share: np.ndarray


def nearest_indices(size: int, out: int, scale: float, centred: bool) -> np.ndarray:
    """For each result along an axis the element that it is (PyTorch's rule, in its float32)."""
    places = np.arange(out)
    if out == size:
        return places
    if out == 2 * size:
        return places // 2
    at = places.astype(np.float32) + np.float32(0.5 if centred else 0)
    return np.minimum(np.floor(at * np.float32(scale)).astype(np.int64), size - 1)


def bilinear_taps(size: int, out: int, scale: float, aligned: bool) -> Taps:
    """The taps of each result along an axis (PyTorch's rule, in float64)."""
    places = np.arange(out)
    if out == size:
        return Taps(places, places, np.zeros(out))
    at = places * scale if aligned else np.maximum((places + 0.5) * scale - 0.5, 0)
    first = np.minimum(at.astype(np.int64), size - 1)
    return Taps(first, first + (first < size - 1), np.clip(at - first, 0, 1))


def taps_of(shape: Sequence[int], attrs: Attrs) -> list[Taps]:
    """Those of h and of w, for either mode."""
    found = []
    for size, out, scale in zip(shape[2:], attrs["output_size"], attrs["scale"], strict=True):
        if "centred" in attrs:
            index = nearest_indices(size, out, scale, attrs["centred"])
            found.append(Taps(index, index, np.zeros(out)))
        else:
            found.append(bilinear_taps(size, out, scale, attrs["align_corners"]))
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
    rows, columns = (t.first for t in taps_of(x.shape, attrs))
    return (x[:, :, rows[:, None], columns[None, :]],)


def _bilinear(arrays, attrs):
    (x,) = arrays
    for axis, taps in zip((2, 3), taps_of(x.shape, attrs), strict=True):
        share = taps.share.reshape(-1, *(1,) * (3 - axis)).astype(x.dtype)
        x = np.take(x, taps.first, axis) * (1 - share) + np.take(x, taps.second, axis) * share
    return (x,)


def _grad(arrays, attrs):
    (dx,) = arrays
    for axis, taps, size in zip(
        (2, 3), taps_of(attrs["shape"], attrs), attrs["shape"][2:], strict=True
    ):
        spread = np.zeros((size, len(taps.share)), dx.dtype)
        places = np.arange(len(taps.share))
        np.add.at(spread, (taps.first, places), 1 - taps.share)
        np.add.at(spread, (taps.second, places), taps.share)
        dx = np.moveaxis(np.tensordot(dx, spread, axes=([axis], [1])), -1, axis)
    return (dx,)


def _gradient(name: str, attrs: dict) -> OpDef:
    return OpDef(
        name, "window", ("dy",), _infer_grad, _grad, {**attrs, "shape": ...}, 
        takes="float",
    )  # fmt: skip


RESIZE = (
    pointwise(
        "resize_nearest", ("x",), _nearest, _infer, gathers=True, rounds=False, defaults=NEAREST,
    ),
    _gradient("resize_nearest_grad", NEAREST),
    OpDef(
        "resize_bilinear", "window", ("x",), _infer, _bilinear, BILINEAR,
        takes="float", autocast="follows",
    ),
    _gradient("resize_bilinear_grad", BILINEAR),
)  # fmt: skip
