"""Functions that compute nothing: other shapes, orders of axes, and parts of the same elements.

Named as in ``torch`` and ``torch.nn.functional``. Where PyTorch's function takes sizes or axes as a
tuple and its tensor's method takes them one by one, either is taken here.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

from bngen.ir.attributes import shown
from bngen.lang.axes import axes_of, axis_of
from bngen.lang.emission import emit
from bngen.lang.tensor import Tensor
from bngen.lang.trace import error
from bngen.lang.traced import check_tensor
from bngen.lang.types import Ints, integer, integers


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Join tensors along an axis; channels are ``dim=1``.

    Args:
        tensors: of one dtype, and of one shape but for the extent along ``dim``.
        dim: the axis.
    """
    _check_all("cat", tensors)
    axis = axis_of("cat", tensors[0], dim)
    if len(tensors) == 1:
        return tensors[0]
    return emit("cat", *tensors, axis=axis, hint="only the joined axis may differ in extent")


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Join tensors of one shape along a new axis."""
    _check_all("stack", tensors)
    if any(x.shape != tensors[0].shape for x in tensors):
        raise error(f"stack: shapes {shown([list(x.shape) for x in tensors])} differ")
    return cat([unsqueeze(x, dim) for x in tensors], dim)


def reshape(input: Tensor, shape: Ints, *more: int) -> Tensor:
    """The same elements in order, in another shape; one extent may be -1."""
    check_tensor("reshape", "input", input)
    return input.reshape(shape, *more) if more else input.reshape(shape)


def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Join the axes from ``start_dim`` to ``end_dim`` into one."""
    return check_tensor("flatten", "input", input).flatten(start_dim, end_dim)


def unflatten(input: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """Cut an axis into several; one extent may be -1."""
    axis = axis_of("unflatten", check_tensor("unflatten", "input", input), dim)
    known = math.prod(s for s in sizes if s != -1)
    whole = [input.shape[axis] // max(known, 1) if s == -1 else s for s in sizes]
    if math.prod(whole) != input.shape[axis]:
        raise error(f"unflatten: {shown([*sizes])} do not make up axis {dim} of {input.type}")
    return input.reshape((*input.shape[:axis], *whole, *input.shape[axis + 1 :]))


def squeeze(input: Tensor, dim: Ints | None = None) -> Tensor:
    """Without axes of extent 1: all of them, or those of ``dim`` that have it."""
    check_tensor("squeeze", "input", input)
    dims = range(input.ndim) if dim is None else axes_of("squeeze", input, (dim,))
    gone = {d for d in dims if input.shape[d] == 1}
    return input.reshape(tuple(s for i, s in enumerate(input.shape) if i not in gone))


def unsqueeze(input: Tensor, dim: int) -> Tensor:
    """With an axis of extent 1 before ``dim``."""
    at = _new_axis("unsqueeze", check_tensor("unsqueeze", "input", input), dim)
    return input.reshape((*input.shape[:at], 1, *input.shape[at:]))


# --- parts ------------------------------------------------------------------------------------


def narrow(input: Tensor, dim: int, start: int, length: int) -> Tensor:
    """``length`` elements of an axis from ``start`` on."""
    axis = axis_of("narrow", check_tensor("narrow", "input", input), dim)
    extent = input.shape[axis]
    start = integer("narrow", "start", start, -extent)
    start, length = start % extent if start < 0 else start, integer("narrow", "length", length, 1)
    if (start, length) == (0, extent):
        return input
    return emit("slice", input, label="narrow", axis=axis, start=start, stop=start + length)


def split(tensor: Tensor, split_size_or_sections: Ints, dim: int = 0) -> tuple[Tensor, ...]:
    """Parts of an axis: of one extent, but for the last, or of those listed."""
    axis = axis_of("split", check_tensor("split", "tensor", tensor), dim)
    extent, sizes = tensor.shape[axis], split_size_or_sections
    if isinstance(sizes, numbers.Integral):
        size = integer("split", "split_size", sizes, 1)
        sizes = [min(size, extent - start) for start in range(0, extent, size)]
    sizes = integers("split", (sizes,))
    if sum(sizes) != extent:
        raise error(f"split: {shown([*sizes])} do not make up axis {dim} of {tensor.type}")
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(narrow(tensor, axis, a, n) for a, n in zip(starts, sizes, strict=True))


def chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """At most ``chunks`` parts of an axis, as alike as PyTorch makes them."""
    axis = axis_of("chunk", check_tensor("chunk", "input", input), dim)
    return split(input, -(-input.shape[axis] // integer("chunk", "chunks", chunks, 1)), axis)


def unbind(input: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """The parts of extent 1 of an axis, without it."""
    axis = axis_of("unbind", check_tensor("unbind", "input", input), dim)
    shape = (*input.shape[:axis], *input.shape[axis + 1 :])
    return tuple(part.reshape(shape) for part in split(input, 1, axis))


# --- orders of axes ---------------------------------------------------------------------------


def permute(input: Tensor, dims: Ints, *more: int) -> Tensor:
    """The axes in the order ``dims``."""
    order = axes_of("permute", check_tensor("permute", "input", input), (dims, *more))
    if sorted(order) != [*range(input.ndim)]:
        raise error(f"permute: {shown([*order])} is no order of the axes of {input.type}")
    return _rearranged(input, input.shape, order, [input.shape[i] for i in order])


def transpose(input: Tensor, dim0: int, dim1: int) -> Tensor:
    """Two axes in each other's place."""
    check_tensor("transpose", "input", input)
    if not input.shape and dim0 in (0, -1) and dim1 in (0, -1):
        return input
    a, b = (axis_of("transpose", input, d) for d in (dim0, dim1))
    order = [{a: b, b: a}.get(i, i) for i in range(input.ndim)]
    return permute(input, order)


def swapaxes(input: Tensor, axis0: int, axis1: int) -> Tensor:
    """The same as `transpose`."""
    return transpose(input, axis0, axis1)


def swapdims(input: Tensor, dim0: int, dim1: int) -> Tensor:
    """The same as `transpose`."""
    return transpose(input, dim0, dim1)


def t(input: Tensor) -> Tensor:
    """A matrix transposed; a vector as it is."""
    if check_tensor("t", "input", input).ndim > 2:
        raise error(f"t: {input.type} is no matrix", "bg.transpose(x, dim0, dim1)")
    return transpose(input, 0, 1) if input.ndim == 2 else input


def movedim(input: Tensor, source: Ints, destination: Ints) -> Tensor:
    """Axes at other places, the rest in order."""
    check_tensor("movedim", "input", input)
    a, b = (axes_of("movedim", input, (d,)) for d in (source, destination))
    if len({*a}) != len(a) or len({*b}) != len(b) or len(a) != len(b):
        raise error(f"movedim: {shown(source)} cannot go to {shown(destination)}")
    rest = iter([i for i in range(input.ndim) if i not in a])
    goes = dict(zip(b, a, strict=True))
    return permute(input, [goes[i] if i in goes else next(rest) for i in range(input.ndim)])


def channel_shuffle(input: Tensor, groups: int) -> Tensor:
    """Channels of each of ``groups`` in turn: the first of each, the second of each, ..."""
    n, c, *rest = _of_channels("channel_shuffle", input, 3)
    g = integer("channel_shuffle", "groups", groups, 1)
    if c % g:
        raise error(f"channel_shuffle: {g} groups do not divide the channels of {input.type}")
    order = [0, 2, 1, *range(3, 3 + len(rest))]
    return _rearranged(input, [n, g, c // g, *rest], order, input.shape)


def pixel_shuffle(input: Tensor, upscale_factor: int) -> Tensor:
    """``[..., C*r*r, H, W]`` as ``[..., C, H*r, W*r]``."""
    *rest, c, h, w = _of_channels("pixel_shuffle", input, 3)
    r = integer("pixel_shuffle", "upscale_factor", upscale_factor, 1)
    if c % (r * r):
        raise error(f"pixel_shuffle: {r * r} does not divide the channels of {input.type}")
    k, shape = len(rest), (*rest, c // (r * r), h * r, w * r)
    order = [*range(k + 1), k + 3, k + 1, k + 4, k + 2]
    return _rearranged(input, [*rest, c // (r * r), r, r, h, w], order, shape)


def pixel_unshuffle(input: Tensor, downscale_factor: int) -> Tensor:
    """``[..., C, H*r, W*r]`` as ``[..., C*r*r, H, W]``."""
    *rest, c, h, w = _of_channels("pixel_unshuffle", input, 3)
    r = integer("pixel_unshuffle", "downscale_factor", downscale_factor, 1)
    if h % r or w % r:
        raise error(f"pixel_unshuffle: {r} does not divide the height and width of {input.type}")
    k, shape = len(rest), (*rest, c * r * r, h // r, w // r)
    order = [*range(k + 1), k + 2, k + 4, k + 1, k + 3]
    return _rearranged(input, [*rest, c, h // r, r, w // r, r], order, shape)


def expand(input: Tensor, size: Ints, *more: int) -> Tensor:
    """Axes of extent 1 repeated, and axes before the first; -1 keeps an extent."""
    sizes = integers("expand", (size, *more))
    new = len(sizes) - check_tensor("expand", "input", input).ndim
    shape = tuple(input.shape[i - new] if s == -1 and i >= new else s for i, s in enumerate(sizes))
    if new < 0 or -1 in shape:
        raise error(f"expand: {input.type} has no place in {shown([*sizes])}")
    if shape == input.shape:
        return input
    return emit("broadcast_to", input, label="expand", shape=shape)


# --- arguments --------------------------------------------------------------------------------


def _rearranged(x: Tensor, split: Sequence[int], order: Sequence[int], shape: Any) -> Tensor:
    if [*order] == sorted(order):
        return x.reshape(tuple(shape))
    return emit("rearrange", x, split=tuple(split), order=tuple(order), shape=tuple(shape))


def _check_all(label: str, tensors: Sequence[Tensor]) -> None:
    if not isinstance(tensors, Sequence) or not tensors:
        raise error(f"{label}: needs a list of tensors", f"bg.{label}([a, b], dim=1)")
    for i, x in enumerate(tensors):
        check_tensor(label, f"tensor {i + 1}", x)


def _new_axis(label: str, x: Tensor, dim: int) -> int:
    if not isinstance(dim, numbers.Integral) or not -x.ndim - 1 <= dim <= x.ndim:
        raise error(f"{label}: dim {shown(dim)} is out of range for {x.type}")
    return int(dim) % (x.ndim + 1)


def _of_channels(label: str, x: Tensor, least: int) -> tuple[int, ...]:
    if check_tensor(label, "input", x).ndim < least:
        raise error(f"{label}: {x.type} has fewer than {least} axes")
    return x.shape
