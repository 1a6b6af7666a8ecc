"""Convolution, matrix product and pools, named and ordered as in ``torch.nn.functional``."""

from __future__ import annotations

import math
from typing import Any

from bngen.ir.attributes import MOST, shown
from bngen.ir.ops.gather import FILLED, Piece, flattened
from bngen.ir.ops.pool import adaptive_bounds
from bngen.lang.emission import emit
from bngen.lang.operands import computed, same_float_type
from bngen.lang.tensor import Tensor
from bngen.lang.trace import error
from bngen.lang.traced import check_tensor
from bngen.lang.types import flag, integer

Pair = int | tuple[int, int]

_CONV_HINT = "x is [N,C,H,W], weight [K,C/groups,R,S], bias [K]"
_TRANSPOSED_HINT = "x is [N,C,H,W], weight [C,K/groups,R,S], bias [K]"
_POOL_HINT = "x is [N,C,H,W]; choose a smaller window, more padding or a larger image"


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    """2-D convolution (cross-correlation).

    Args:
        input: ``[N, C, H, W]``.
        weight: ``[K, C / groups, R, S]``; ``groups == C`` is a depthwise convolution.
        bias: ``[K]``.
        stride: step of the window, for h and w.
        padding: zeros at each side, for h and w; ``"valid"`` is none, ``"same"`` as many as
            keep the size (strides of 1 only; an odd one goes to the bottom and right).
        dilation: distance between the taps of the window.
        groups: blocks of channels that do not mix.
    """
    same_float_type("conv2d", ("bias",), input=input, weight=weight, bias=bias)
    strides, dilations = pair("conv2d", "stride", stride), pair("conv2d", "dilation", dilation)
    groups = integer("conv2d", "groups", groups, 1)
    window = weight.shape[2:] if weight.ndim == 4 else (1, 1)
    y = emit(
        "conv2d", input, weight, hint=_CONV_HINT, stride=strides, dilation=dilations,
        padding=conv_padding(padding, strides, dilations, window), groups=groups,
    )  # fmt: skip
    return _biased("conv2d", y, bias, _CONV_HINT).to(input.dtype)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
) -> Tensor:
    """Transposed 2-D convolution: the gradient of a convolution by its input.

    Args:
        input: ``[N, C, H, W]``.
        weight: ``[C, K / groups, R, S]``, the weight of that convolution.
        bias: ``[K]``.
        stride: rows and columns of the result from one window to the next.
        padding: of that convolution: rows and columns that the result lacks at each side.
        output_padding: rows and columns more at the bottom and right; fewer than strides or
            dilations.
        groups: blocks of channels that do not mix.
        dilation: distance between the taps of the window.
    """
    label = "conv_transpose2d"
    same_float_type(label, ("bias",), input=input, weight=weight, bias=bias)
    strides, dilations = pair(label, "stride", stride), pair(label, "dilation", dilation)
    pads, more = (
        pair(label, "padding", padding, 0),
        pair(label, "output_padding", output_padding, 0),
    )
    groups = integer(label, "groups", groups, 1)
    if input.ndim != 4 or weight.ndim != 4:
        raise error(f"{label}: {input.type} with weight {weight.type}", _TRANSPOSED_HINT)
    if any(m >= max(s, d) for m, s, d in zip(more, strides, dilations, strict=True)):
        raise error(f"{label}: output_padding {more}", "it is fewer than the stride or dilation")
    # Rows from the stride on are in no window, and zero.
    within = [min(m, s - 1) for m, s in zip(more, strides, strict=True)]
    sides = [
        (extent - 1) * s - 2 * p + d * (k - 1) + 1 + m
        for extent, s, p, d, k, m in zip(
            input.shape[2:], strides, pads, dilations, weight.shape[2:], within, strict=True
        )
    ]
    (ph, pw), channels = pads, weight.shape[1] * groups
    y = emit(
        "conv2d_grad_input", input, weight, label=label, hint=_TRANSPOSED_HINT, stride=strides,
        dilation=dilations, padding=(ph, ph, pw, pw), groups=groups,
        shape=(input.shape[0], channels, *sides),
    )  # fmt: skip
    for axis, (m, w) in enumerate(zip(more, within, strict=True), start=2):
        if m > w:
            pieces = (y.shape[axis], 0, 1, m - w, FILLED, 0)
            y = emit("gather", y, label=label, axis=axis, pieces=pieces)
    return _biased(label, y, bias, _TRANSPOSED_HINT).to(input.dtype)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``input @ weight.T + bias`` over the last axis of ``input``.

    Args:
        input: ``[..., in]``.
        weight: ``[out, in]``.
        bias: ``[out]``.
    """
    same_float_type("linear", ("bias",), input=input, weight=weight, bias=bias)
    hint = "input is [..., in], weight [out, in], bias [out]"
    if weight.ndim != 2 or not input.shape or input.shape[-1] != weight.shape[1]:
        raise error(f"linear: input {input.type} does not fit weight {weight.type}", hint)
    rows = input.reshape(-1, input.shape[-1])
    y = emit("matmul", rows, weight, label="linear", hint=hint, trans_b=True)
    y = _biased("linear", y, bias, hint).to(input.dtype)
    return y.reshape(*input.shape[:-1], weight.shape[0])


def _biased(label: str, y: Tensor, bias: Tensor | None, hint: str) -> Tensor:
    """Sums of products and a bias, before they are rounded."""
    if bias is None:
        return y
    return emit("bias_add", y, computed(bias), label=label, hint=hint)


def matmul(input: Tensor, other: Tensor) -> Tensor:
    """Product of two matrices, ``[M, K] @ [K, N]``."""
    return check_tensor("matmul", "input", input) @ other


def max_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """Largest element of each window of ``[N, C, H, W]``; ``stride`` is the window by default."""
    same_float_type("max_pool2d", input=input)
    return emit(
        "max_pool2d", input, hint=_POOL_HINT,
        **_pool("max_pool2d", kernel_size, stride, padding, ceil_mode),
        dilation=pair("max_pool2d", "dilation", dilation),
    )  # fmt: skip


def avg_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Mean of each window of ``[N, C, H, W]``; ``stride`` is the window by default.

    With ``divisor_override`` it is the window's sum divided by that.
    """
    same_float_type("avg_pool2d", input=input)
    if divisor_override == 0:
        raise error("avg_pool2d: divisor_override is 0", "leave it out for the window's own")
    divisor = 0 if divisor_override is None else divisor_override
    return emit(
        "avg_pool2d", input, hint=_POOL_HINT,
        **_pool("avg_pool2d", kernel_size, stride, padding, ceil_mode),
        count_include_pad=flag("avg_pool2d", "count_include_pad", count_include_pad),
        divisor=integer("avg_pool2d", "divisor_override", divisor, -MOST),
    )  # fmt: skip


def adaptive_avg_pool2d(input: Tensor, output_size: int | tuple[int | None, int | None]) -> Tensor:
    """Means of windows spread evenly so that the result has ``output_size``.

    An entry of ``None`` keeps the extent of that axis.
    """
    same_float_type("adaptive_avg_pool2d", input=input)
    extents = _adaptive("adaptive_avg_pool2d", input, output_size)
    return emit("adaptive_avg_pool2d", input, output_size=extents)


MOST_WINDOWS = 2**14
"""Windows along an axis that are laid side by side."""


def adaptive_max_pool2d(
    input: Tensor,
    output_size: int | tuple[int | None, int | None],
    return_indices: bool = False,
) -> Tensor:
    """Maxima of windows spread evenly so that the result has ``output_size``.

    An entry of ``None`` keeps the extent of that axis. ``return_indices`` is not supported.
    """
    label = "adaptive_max_pool2d"
    same_float_type(label, input=input)
    if flag(label, "return_indices", return_indices):
        raise error(f"{label}: return_indices is not supported", "leave it out")
    extents = _adaptive(label, input, output_size)
    if max(extents) > MOST_WINDOWS:
        raise error(f"{label}: output_size {shown(extents)} exceeds {MOST_WINDOWS}")
    kernel = []
    for axis, out in enumerate(extents, start=2):
        # Windows that overlap or differ are laid side by side first, as long as the longest.
        bounds = adaptive_bounds(input.shape[axis], out)
        longest = max(stop - start for start, stop in bounds)
        runs = [
            run
            for start, stop in bounds
            for run in (Piece(stop - start, start, 1), Piece(longest - (stop - start), FILLED, 0))
        ]
        pieces = flattened(run for run in runs if run.count)
        if longest * out != input.shape[axis]:
            fill = -math.inf
            input = emit("gather", input, label=label, axis=axis, pieces=pieces, fill=fill)
        kernel.append(longest)
    return emit("max_pool2d", input, label=label, kernel=tuple(kernel), stride=tuple(kernel))


def pair(label: str, what: str, value: Any, least: int = 1) -> tuple[int, int]:
    """An int or one or two ints in a sequence as a pair; raises when one is below ``least``."""
    both = tuple(value) if isinstance(value, tuple | list) else (value,)
    if len(both) not in (1, 2):
        raise error(f"{label}: {what} must be an integer or a pair of them, got {shown(value)}")
    return integer(label, what, both[0], least), integer(label, what, both[-1], least)


def _adaptive(
    label: str, x: Tensor, output_size: int | tuple[int | None, int | None]
) -> tuple[int, int]:
    """Height and width of the result of an adaptive pool."""
    if x.ndim != 4:
        raise error(f"{label}: needs x[N,C,H,W], got {x.type}")
    if isinstance(output_size, tuple | list) and len(output_size) == 2:
        size = [s if o is None else o for o, s in zip(output_size, x.shape[2:], strict=True)]
    else:
        size = output_size
    return pair(label, "output_size", size)


def conv_padding(
    padding: Pair | str, strides: tuple[int, int], dilations: tuple[int, int], window: tuple
) -> tuple[int, int, int, int]:
    """Zeros at (top, bottom, left, right) of a convolution's input."""
    if padding == "valid":
        return (0, 0, 0, 0)
    if padding == "same":
        if strides != (1, 1):
            hint = "give the padding in numbers"
            raise error(f"conv2d: padding='same' needs a stride of 1, got {strides}", hint)
        totals = [d * (k - 1) for d, k in zip(dilations, window, strict=True)]
        return tuple(side for t in totals for side in (t // 2, t - t // 2))
    if isinstance(padding, str):
        raise error(f"conv2d: padding {padding!r}", "use an int, a pair, 'same' or 'valid'")
    h, w = pair("conv2d", "padding", padding, least=0)
    return (h, h, w, w)


def _pool(
    label: str, kernel_size: Pair, stride: Pair | None, padding: Pair, ceil_mode: bool
) -> dict[str, Any]:
    kernel = pair(label, "kernel_size", kernel_size)
    as_kernel = stride is None or (isinstance(stride, tuple) and not stride)
    return {
        "kernel": kernel,
        "stride": kernel if as_kernel else pair(label, "stride", stride),
        "padding": pair(label, "padding", padding, least=0),
        "ceil_mode": flag(label, "ceil_mode", ceil_mode),
    }
