"""Calls of PyTorch that bngen's language has no word for, but all the parts of.

In: PyTorch's arguments, by PyTorch's names, with bngen's tensors. Out: bngen's tensors. `COMPOSED`
has them by function or by method's name; `vocabulary` has the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from bngen.dtypes import EXACT
from bngen.lang import activations, emission, places, pointwise, reductions, shapes, windows
from bngen.lang.axes import axis_of, reduction
from bngen.lang.operands import rounded_once
from bngen.lang.tensor import Tensor
from bngen.lang.types import is_scalar
from bngen.torch_bridge.element_types import UnsupportedError, dtype_of


def _to(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``to`` a type, a device or both, or as another tensor is; where that is cannot be seen here.

    Memory formats are the planner's.
    """
    wanted = [*args, kwargs.get("dtype"), kwargs.get("other")]
    for value in wanted:
        if isinstance(value, Tensor):
            return input.to(value.dtype)
        if isinstance(value, torch.dtype):
            return input.to(dtype_of(value))
    return input


def _type_as(input: Tensor, other: Tensor) -> Tensor:
    return input.to(other.dtype)


def _converter(dtype: torch.dtype) -> Callable[..., Tensor]:
    def convert(input: Tensor, memory_format: Any = None) -> Tensor:
        return input.to(dtype_of(dtype))

    return convert


# --- choices ----------------------------------------------------------------------------------


def _where(input: Tensor, condition: Tensor, other: Any) -> Tensor:
    return pointwise.where(condition, input, other)


def _masked_fill(input: Tensor, mask: Tensor, value: Any) -> Tensor:
    return pointwise.where(mask, value, input).to(input.dtype)


def _nan_to_num(
    input: Tensor, nan: float | None = None, posinf: float | None = None,
    neginf: float | None = None,
) -> Tensor:  # fmt: skip
    if not input.type.is_float:
        return input
    most = torch.finfo(getattr(torch, input.dtype)).max
    ends = (most if posinf is None else posinf), (-most if neginf is None else neginf)
    y = pointwise.where(pointwise.isnan(input), 0.0 if nan is None else nan, input)
    y = pointwise.where(input == float("inf"), ends[0], y)
    return pointwise.where(input == float("-inf"), ends[1], y)


def _extreme(
    label: str,
    of_two: Callable[..., Tensor],
    of_all: Callable[..., Tensor],
    place: Callable[..., Tensor],
) -> Callable[..., Any]:
    """``torch.max`` or ``torch.min``, in each of their three meanings."""

    def call(input: Tensor, dim: Any = None, keepdim: bool = False, other: Any = None) -> Any:
        other = dim if isinstance(dim, Tensor) else other
        if other is not None:
            return of_two(input, other)
        if dim is None:
            return of_all(input)
        if not input.shape:
            raise UnsupportedError(f"{label} along an axis of a tensor without any")
        index = place(input, dim, True)
        axis = axis_of(label, input, dim)
        # A sum of one element, as the gradient is that element's alone.
        hit = emission.emit("positions", label=label, shape=input.shape, axis=axis) == index
        value = reductions.sum(pointwise.where(hit, input, 0), dim, keepdim).to(input.dtype)
        return value, index if keepdim else index.reshape(value.shape)

    return call


_max = _extreme("max", pointwise.maximum, reductions.amax, reductions.argmax)
_min = _extreme("min", pointwise.minimum, reductions.amin, reductions.argmin)


# --- arithmetic -------------------------------------------------------------------------------


@rounded_once
def _lerp(input: Tensor, end: Tensor, weight: Tensor | float) -> Tensor:
    way = end - input
    near, far = input + way * weight, end - way * (1.0 - weight)
    if is_scalar(weight):
        return near if abs(weight) < 0.5 else far
    return pointwise.where(pointwise.abs(weight) < 0.5, near, far)


def _exp2(input: Tensor) -> Tensor:
    return pointwise.pow(2.0, input if input.type.is_float else input.float())


def _logarithm(base: float) -> Callable[[Tensor], Tensor]:
    per_e = float(torch.tensor(base, dtype=torch.float64).log().reciprocal())

    def log(input: Tensor) -> Tensor:
        x = input if input.type.is_float else input.float()
        # In double precision, so that of a power of the base it is a whole number.
        return (x.to(EXACT).log() * per_e).to(x.dtype)

    return log


def _mm(input: Tensor, mat2: Tensor) -> Tensor:
    return input @ mat2


# --- activations and normalizations -----------------------------------------------------------


@rounded_once
def _glu(input: Tensor, dim: int = -1) -> Tensor:
    a, b = shapes.chunk(input, 2, dim)
    return a * pointwise.sigmoid(b)


def _softmin(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
) -> Tensor:
    if dim is None:
        raise UnsupportedError("softmin without an axis")
    return reductions.softmax(-(input if dtype is None else input.to(dtype_of(dtype))), dim)


def _rrelu(
    input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False
) -> Tensor:
    if training:
        raise UnsupportedError("rrelu in training, whose slopes PyTorch draws")
    return activations.leaky_relu(input, (lower + upper) / 2)


def _rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    if eps is None:
        eps = torch.finfo(getattr(torch, input.type.element.computed)).eps
    return _by_root_mean_square(input, weight, len(normalized_shape), eps)


@rounded_once
def _by_root_mean_square(x: Tensor, weight: Tensor | None, axes: int, eps: float) -> Tensor:
    last = tuple(range(x.ndim - axes, x.ndim))
    y = x * (reduction("mean", x * x, last, True) + eps).rsqrt()
    return y if weight is None else y * weight


@rounded_once
def _cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    if x1.shape != x2.shape:
        raise UnsupportedError("cosine_similarity of tensors of two shapes")
    a, b = (reductions.normalize(x, 2.0, dim, eps) for x in (x1, x2))
    return reductions.sum(a * b, dim)


# --- places -----------------------------------------------------------------------------------


def _repeat_interleave(
    input: Tensor, repeats: Any, dim: int | None = None, output_size: int | None = None
) -> Tensor:
    if not isinstance(repeats, int):
        raise UnsupportedError("repeat_interleave by a tensor")
    x = input.reshape(-1) if dim is None else input
    axis = 0 if dim is None else axis_of("repeat_interleave", x, dim)
    before, after = x.shape[: axis + 1], x.shape[axis + 1 :]
    spread = shapes.expand(x.reshape((*before, 1, *after)), (*before, repeats, *after))
    return spread.reshape((*before[:-1], before[-1] * repeats, *after))


def _select(input: Tensor, dim: int, index: int) -> Tensor:
    axis = axis_of("select", input, dim)
    return input[(*[slice(None)] * axis, index)]


def _ravel(input: Tensor) -> Tensor:
    return input.reshape(-1)


def _tile(input: Tensor, dims: Any, *more: int) -> Tensor:
    times = [*dims] if isinstance(dims, Sequence) else [dims, *more]
    return places.repeat(input, [*[1] * (input.ndim - len(times)), *times])


def _upsample(
    input: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
    align_corners: bool | None = None,
) -> Tensor:  # fmt: skip
    return places.interpolate(input, size, scale_factor, mode, align_corners)


def _upsample_bilinear(input: Tensor, size: Any = None, scale_factor: Any = None) -> Tensor:
    return places.interpolate(input, size, scale_factor, "bilinear", True)


def _adaptive_max_pool1d(
    input: Tensor, output_size: int | Sequence[int], return_indices: bool = False
) -> Tensor:
    if return_indices or input.ndim not in (2, 3):
        raise UnsupportedError(f"adaptive_max_pool1d of {input.type}, or with indices")
    extent = output_size if isinstance(output_size, int) else output_size[0]
    row = input.reshape((*(1,) * (3 - input.ndim), *input.shape[:-1], 1, input.shape[-1]))
    return windows.adaptive_max_pool2d(row, (1, extent)).reshape((*input.shape[:-1], extent))


# --- the table --------------------------------------------------------------------------------

COMPOSED: dict[Any, Callable[..., Any]] = {
    "to": _to,
    "type_as": _type_as,
    "double": _converter(torch.float64),
    "bfloat16": _converter(torch.bfloat16),
    "long": _converter(torch.int64),
    "int": _converter(torch.int32),
    "bool": _converter(torch.bool),
    "where": _where,
    **dict.fromkeys((torch.masked_fill, "masked_fill"), _masked_fill),
    **dict.fromkeys((torch.nan_to_num, "nan_to_num"), _nan_to_num),
    **dict.fromkeys((torch.max, "max"), _max),
    **dict.fromkeys((torch.min, "min"), _min),
    **dict.fromkeys((torch.lerp, "lerp"), _lerp),
    **dict.fromkeys((torch.exp2, torch.special.exp2, "exp2"), _exp2),
    **dict.fromkeys((torch.log2, "log2"), _logarithm(2.0)),
    **dict.fromkeys((torch.log10, "log10"), _logarithm(10.0)),
    **dict.fromkeys((torch.mm, "mm"), _mm),
    F.glu: _glu,
    F.softmin: _softmin,
    **dict.fromkeys((F.rrelu, torch.rrelu), _rrelu),
    **dict.fromkeys((F.rms_norm, torch.rms_norm), _rms_norm),
    **dict.fromkeys((F.cosine_similarity, torch.cosine_similarity), _cosine_similarity),
    **dict.fromkeys((torch.repeat_interleave, "repeat_interleave"), _repeat_interleave),
    **dict.fromkeys((torch.select, "select"), _select),
    **dict.fromkeys((torch.ravel, "ravel"), _ravel),
    **dict.fromkeys((torch.tile, "tile"), _tile),
    **dict.fromkeys((F.upsample, F.upsample_nearest), _upsample),
    F.upsample_bilinear: _upsample_bilinear,
    F.adaptive_max_pool1d: _adaptive_max_pool1d,
}
"""Function, or name of a method -> what answers it."""
