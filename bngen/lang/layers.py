"""Layers that declare their own parameters, with the names and start values of ``torch.nn``'s.

Each takes the tensor, the layer's name (opened as a scope) and then the arguments of the module of
the same kind in ``torch.nn``.
"""

from __future__ import annotations

from bngen.dtypes import INDEX
from bngen.lang import places, windows
from bngen.lang.init import layer_bias
from bngen.lang.normalization import batch_norm as _batch_norm
from bngen.lang.state import Init, buffer, parameter, scope
from bngen.lang.tensor import Tensor
from bngen.lang.trace import error
from bngen.lang.traced import check_tensor
from bngen.lang.types import flag, integer
from bngen.lang.windows import Pair, pair


def conv2d(
    input: Tensor,
    name: str,
    out_channels: int,
    kernel_size: Pair,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    bias: bool = True,
    padding_mode: str = "zeros",
    *,
    weight_init: Init = None,
    bias_init: Init = None,
) -> Tensor:
    """``nn.Conv2d``: parameters ``weight`` and, unless switched off, ``bias``.

    ``padding_mode`` is ``zeros`` or a mode of `pad`: ``reflect``, ``replicate``, ``circular``.
    """
    check_tensor("conv2d", "input", input)
    groups = integer("conv2d", "groups", groups, 1)
    if input.ndim != 4 or input.shape[1] % groups:
        hint = "x is [N,C,H,W] and groups divides C"
        raise error(f"conv2d: layer {name!r} with groups={groups} got {input.type}", hint)
    window = pair("conv2d", "kernel_size", kernel_size)
    shape = (out_channels, input.shape[1] // groups, *window)
    with scope(name):
        w = parameter("weight", shape, input.dtype, weight_init)
        b = _bias(out_channels, input.dtype, bias_init, shape) if bias else None
        if padding_mode != "zeros":
            steps = pair("conv2d", "stride", stride), pair("conv2d", "dilation", dilation)
            input = _padded(input, windows.conv_padding(padding, *steps, window), padding_mode)
            padding = 0
        return windows.conv2d(input, w, b, stride, padding, dilation, groups)


def conv_transpose2d(
    input: Tensor,
    name: str,
    out_channels: int,
    kernel_size: Pair,
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    bias: bool = True,
    dilation: Pair = 1,
    *,
    weight_init: Init = None,
    bias_init: Init = None,
) -> Tensor:
    """``nn.ConvTranspose2d``: parameters ``weight`` and, unless switched off, ``bias``."""
    check_tensor("conv_transpose2d", "input", input)
    groups = integer("conv_transpose2d", "groups", groups, 1)
    channels = integer("conv_transpose2d", "out_channels", out_channels, 1)
    if input.ndim != 4 or input.shape[1] % groups or channels % groups:
        hint = "x is [N,C,H,W] and groups divides C and out_channels"
        what = f"conv_transpose2d: layer {name!r} with groups={groups} got {input.type}"
        raise error(what, hint)
    window = pair("conv_transpose2d", "kernel_size", kernel_size)
    shape = (input.shape[1], channels // groups, *window)
    with scope(name):
        w = parameter("weight", shape, input.dtype, weight_init)
        b = _bias(channels, input.dtype, bias_init, shape) if bias else None
        return windows.conv_transpose2d(
            input, w, b, stride, padding, output_padding, groups, dilation
        )


def linear(
    input: Tensor,
    name: str,
    out_features: int,
    bias: bool = True,
    *,
    weight_init: Init = None,
    bias_init: Init = None,
) -> Tensor:
    """``nn.Linear``: parameters ``weight`` and, unless switched off, ``bias``."""
    check_tensor("linear", "input", input)
    if not input.shape:
        raise error(f"linear: layer {name!r} got a tensor without axes")
    shape = (out_features, input.shape[-1])
    with scope(name):
        w = parameter("weight", shape, input.dtype, weight_init)
        b = _bias(out_features, input.dtype, bias_init, shape) if bias else None
        return windows.linear(input, w, b)


def batch_norm(
    input: Tensor,
    name: str,
    training: bool = True,
    eps: float = 1e-5,
    momentum: float | None = 0.1,
    affine: bool = True,
    track_running_stats: bool = True,
    *,
    group: str | None = None,
) -> Tensor:
    """``nn.BatchNorm2d``: ``weight``, ``bias``, the running statistics and their count.

    Without ``track_running_stats`` the batch's statistics are used in evaluation, too. With a
    ``group`` the batch is that of all its ranks, as in ``nn.SyncBatchNorm``.
    """
    check_tensor("batch_norm", "input", input)
    if input.ndim < 2:
        raise error(f"batch_norm: layer {name!r} got {input.type}", "x is [N,C,...]")
    channels, dtype = input.shape[1], input.dtype
    weight = bias = mean = var = tracked = None
    with scope(name):
        if flag("batch_norm", "affine", affine):
            weight = parameter("weight", channels, dtype, 1.0)
            bias = parameter("bias", channels, dtype, 0.0)
        if flag("batch_norm", "track_running_stats", track_running_stats):
            mean = buffer("running_mean", channels, dtype, 0.0)
            var = buffer("running_var", channels, dtype, 1.0)
            tracked = buffer("num_batches_tracked", (), INDEX, 0)
        return _batch_norm(
            input, mean, var, weight, bias, training or not track_running_stats, momentum, eps,
            num_batches_tracked=tracked, group=group,
        )  # fmt: skip


def _padded(input: Tensor, sides: tuple[int, int, int, int], mode: str) -> Tensor:
    if mode not in ("reflect", "replicate", "circular"):
        hint = "modes are zeros, reflect, replicate, circular"
        raise error(f"conv2d: padding_mode {mode!r}", hint)
    top, bottom, left, right = sides
    return places.pad(input, (left, right, top, bottom), mode)


def _bias(extent: int, dtype: str, init: Init, weight_shape: tuple[int, ...]) -> Tensor:
    return parameter("bias", extent, dtype, layer_bias(weight_shape) if init is None else init)
