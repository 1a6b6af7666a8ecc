"""Convolution and pools over one axis: those of two, of maps that are one row high.

Named and ordered as in ``torch.nn.functional``. ``[N, C, L]`` becomes ``[N, C, 1, L]``, which moves
nothing, and back; so does ``[C, L]``, which is one without a batch.
"""

from __future__ import annotations

from typing import Any

from bngen.ir.attributes import shown
from bngen.lang.operands import same_float_type
from bngen.lang.tensor import Tensor
from bngen.lang.trace import error
from bngen.lang.traced import check_tensor
from bngen.lang.types import integer
from bngen.lang.windows import adaptive_avg_pool2d, avg_pool2d, conv2d, max_pool2d

One = int | tuple[int]


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: One = 1,
    padding: One | str = 0,
    dilation: One = 1,
    groups: int = 1,
) -> Tensor:
    """1-D convolution (cross-correlation).

    Args:
        input: ``[N, C, L]`` or ``[C, L]``.
        weight: ``[K, C / groups, S]``; ``groups == C`` is a depthwise convolution.
        bias: ``[K]``.
        stride: step of the window.
        padding: zeros at each side; ``"valid"`` is none, ``"same"`` as many as keep the size
            (a stride of 1 only; an odd one goes to the right).
        dilation: distance between the taps of the window.
        groups: blocks of channels that do not mix.
    """
    same_float_type("conv1d", ("bias",), input=input, weight=weight, bias=bias)
    if weight.ndim != 3:
        raise error(f"conv1d: weight is {weight.type}", "weight is [K,C/groups,S]")
    k, c, s = weight.shape
    row, step = _row("conv1d", input), (1, _one("conv1d", "stride", stride))
    pads = padding if isinstance(padding, str) else (0, _one("conv1d", "padding", padding, 0))
    dilations = (1, _one("conv1d", "dilation", dilation))
    y = conv2d(row, weight.reshape(k, c, 1, s), bias, step, pads, dilations, groups)
    return _line(y, input)


def max_pool1d(
    input: Tensor,
    kernel_size: One,
    stride: One | None = None,
    padding: One = 0,
    dilation: One = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """Largest element of each window of ``[N, C, L]``; ``stride`` is the window by default."""
    label = "max_pool1d"
    sizes = _pool(label, kernel_size, stride, padding)
    dilations = (1, _one(label, "dilation", dilation))
    return _line(max_pool2d(_row(label, input), *sizes, dilations, ceil_mode), input)


def avg_pool1d(
    input: Tensor,
    kernel_size: One,
    stride: One | None = None,
    padding: One = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """Mean of each window of ``[N, C, L]``; ``stride`` is the window by default."""
    label = "avg_pool1d"
    sizes = _pool(label, kernel_size, stride, padding)
    return _line(avg_pool2d(_row(label, input), *sizes, ceil_mode, count_include_pad), input)


def adaptive_avg_pool1d(input: Tensor, output_size: One) -> Tensor:
    """Means of windows spread evenly so that the result has ``output_size``."""
    label = "adaptive_avg_pool1d"
    extent = _one(label, "output_size", output_size)
    return _line(adaptive_avg_pool2d(_row(label, input), (1, extent)), input)


def _row(label: str, x: Tensor) -> Tensor:
    check_tensor(label, "input", x)
    if x.ndim not in (2, 3):
        raise error(f"{label}: input is {x.type}", "input is [N,C,L] or [C,L]")
    batch = x.shape[0] if x.ndim == 3 else 1
    return x.reshape(batch, x.shape[-2], 1, x.shape[-1])


def _line(y: Tensor, like: Tensor) -> Tensor:
    n, c, _, extent = y.shape
    return y.reshape((n, c, extent)[-like.ndim :])


def _pool(label: str, kernel_size: One, stride: One | None, padding: One) -> tuple[Any, ...]:
    """Window, stride and padding of the pool over two axes."""
    kernel = _one(label, "kernel_size", kernel_size)
    as_kernel = stride is None or (isinstance(stride, tuple) and not stride)
    step = kernel if as_kernel else _one(label, "stride", stride)
    return (1, kernel), (1, step), (0, _one(label, "padding", padding, 0))


def _one(label: str, what: str, value: Any, least: int = 1) -> int:
    """An int, or one in a sequence; raises when it is below ``least``."""
    if isinstance(value, tuple | list):
        if len(value) != 1:
            raise error(f"{label}: {what} must be an integer, got {shown(value)}")
        (value,) = value
    return integer(label, what, value, least)
