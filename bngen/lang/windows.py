"""Convolution, matrix product and pools, named and ordered as in ``torch.nn.functional``."""

from __future__ import annotations

from typing import Any

from bngen.ir.attributes import shown
from bngen.lang.tensor import Tensor, check_tensor, emit, same_float_type
from bngen.lang.trace import error
from bngen.lang.types import flag, integer

Pair = int | tuple[int, int]

_CONV_HINT = "x is [N,C,H,W], weight [K,C/groups,R,S], bias [K]"
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
        padding=_conv_padding(padding, strides, dilations, window), groups=groups,
    )  # fmt: skip
    if bias is None:
        return y
    return emit("bias_add", y, bias, label="conv2d", hint=_CONV_HINT)


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
    if bias is not None:
        y = emit("bias_add", y, bias, label="linear", hint=hint)
    return y.reshape(*input.shape[:-1], weight.shape[0])


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
    divisor_override: None = None,
) -> Tensor:
    """Mean of each window of ``[N, C, H, W]``; ``stride`` is the window by default."""
    same_float_type("avg_pool2d", input=input)
    if divisor_override is not None:
        hint = "multiply the result of avg_pool2d by kernel area / divisor instead"
        raise error("avg_pool2d: divisor_override is not supported", hint)
    return emit(
        "avg_pool2d", input, hint=_POOL_HINT,
        **_pool("avg_pool2d", kernel_size, stride, padding, ceil_mode),
        count_include_pad=flag("avg_pool2d", "count_include_pad", count_include_pad),
    )  # fmt: skip


def adaptive_avg_pool2d(input: Tensor, output_size: int | tuple[int | None, int | None]) -> Tensor:
    """Means of windows spread evenly so that the result has ``output_size``.

    An entry of ``None`` keeps the extent of that axis.
    """
    same_float_type("adaptive_avg_pool2d", input=input)
    if input.ndim != 4:
        raise error(f"adaptive_avg_pool2d: needs x[N,C,H,W], got {input.type}")
    if isinstance(output_size, tuple | list) and len(output_size) == 2:
        size = [s if o is None else o for o, s in zip(output_size, input.shape[2:], strict=True)]
    else:
        size = output_size
    extents = pair("adaptive_avg_pool2d", "output_size", size)
    return emit("adaptive_avg_pool2d", input, output_size=extents)


def pair(label: str, what: str, value: Any, least: int = 1) -> tuple[int, int]:
    """An int or one or two ints in a sequence as a pair; raises when one is below ``least``."""
    both = tuple(value) if isinstance(value, tuple | list) else (value,)
    if len(both) not in (1, 2):
        raise error(f"{label}: {what} must be an integer or a pair of them, got {shown(value)}")
    return integer(label, what, both[0], least), integer(label, what, both[-1], least)


def _conv_padding(
    padding: Pair | str, strides: tuple[int, int], dilations: tuple[int, int], window: tuple
) -> tuple[int, int, int, int]:
    """Zeros at (top, bottom, left, right)."""
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
