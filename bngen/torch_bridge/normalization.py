"""Batch normalization, its gradient and the parts that passes make of both, spelled out in PyTorch.

In and out as in `meanings`, of which this is the other half.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bngen.torch_bridge.meanings import Attributes, Tensors, along_channel, rows


def _sample_axes(x: Tensor) -> tuple[int, ...]:
    """All axes but the channels'."""
    return (0, *range(2, x.ndim))


def batch_norm(t: Tensors, a: Attributes) -> tuple[Tensor, ...]:
    """PyTorch's layer in training, and the statistics it normalizes by."""
    x, weight, bias = t
    y = F.batch_norm(x, None, None, weight, bias, training=True, eps=a["eps"])
    return (y, *bn_stats((x,), a))


def batch_norm_grad(t: Tensors, a: Attributes) -> tuple[Tensor, ...]:
    """Autograd's gradients of PyTorch's layer; ``mean`` and ``var`` are those of x."""
    dy, x, _, _, weight = t
    gamma = torch.ones(x.shape[1], dtype=x.dtype) if weight is None else weight
    leaves = [v.detach().requires_grad_() for v in (x, gamma, torch.zeros_like(gamma))]
    with torch.enable_grad():
        y = F.batch_norm(
            leaves[0], None, None, leaves[1], leaves[2], training=True, eps=a["eps"]
        )  # fmt: skip
        return torch.autograd.grad(y, leaves, dy)


def bn_stats(t: Tensors, a: Attributes) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel."""
    var, mean = torch.var_mean(t[0], _sample_axes(t[0]), correction=0)
    return mean, var


def bn_mean(t: Tensors, a: Attributes) -> Tensor:
    """The mean of each channel."""
    return bn_stats(t, a)[0]


def bn_var(t: Tensors, a: Attributes) -> Tensor:
    """The mean square of each channel's distance from ``mean``."""
    x, mean = t
    return (x - along_channel(mean, x)).square().mean(_sample_axes(x))


def bn_scale(t: Tensors, a: Attributes) -> Tensor:
    """What each channel is multiplied with: weight / sqrt(var + eps)."""
    var, weight = t
    scale = torch.rsqrt(var + a["eps"])
    return scale if weight is None else scale * weight


def bn_apply(t: Tensors, a: Attributes) -> Tensor:
    """``(x - mean) * scale + bias`` by channel."""
    x, mean, scale, bias = t
    y = (x - along_channel(mean, x)) * along_channel(scale, x)
    return y if bias is None else y + along_channel(bias, x)


def bn_normalize(t: Tensors, a: Attributes) -> Tensor:
    """PyTorch's layer in evaluation, differentiable by the statistics, too, which the layer is not.

    It is also the more exact of the two: the layer folds the mean into the bias, where digits
    cancel.
    """
    x, mean, var, weight, bias = t
    return bn_apply((x, mean, bn_scale((var, weight), a), bias), a)


def bn_update(t: Tensors, a: Attributes) -> tuple[Tensor, Tensor]:
    """What PyTorch's layer leaves in its buffers: computed, as there, in double precision."""
    running_mean, running_var, mean, var = (v.double() for v in t[:4])
    share = a["momentum"] if t[4] is None else float(t[4])
    count = a["count"]
    unbiased = var * (count / (count - 1) if count > 1 else math.nan)
    new = torch.lerp(running_mean, mean, share), torch.lerp(running_var, unbiased, share)
    return new[0].to(t[0].dtype), new[1].to(t[1].dtype)


def bn_grad_direct(t: Tensors, a: Attributes) -> Tensor:
    """``dy`` scaled as `bn_normalize` scales x."""
    dy, var, weight = t
    return dy * along_channel(bn_scale((var, weight), a), dy)


def bn_grad_apply(t: Tensors, a: Attributes) -> Tensor:
    """``(dy - mean_dy - (x - mean) * slope) * scale`` by channel."""
    dy, x, *vectors = t
    mean, scale, mean_dy, slope = (along_channel(v, x) for v in vectors)
    return (dy - mean_dy - (x - mean) * slope) * scale


def bn_grad_affine(t: Tensors, a: Attributes) -> Tensor:
    """``(x - mean) * slope + offset`` by channel."""
    x, mean, slope, offset = t
    return (x - along_channel(mean, x)) * along_channel(slope, x) + along_channel(offset, x)


def bn_grad_sums(t: Tensors, a: Attributes) -> tuple[Tensor, Tensor]:
    """Sums of ``dy`` and of ``dy * (x - mean)`` over each channel."""
    dy, x, mean = t
    axes = _sample_axes(x)
    return dy.sum(axes), (dy * (x - along_channel(mean, x))).sum(axes)


def bn_grad_input(t: Tensors, a: Attributes) -> Tensor:
    """`batch_norm_grad`'s first result, which it is when the two sums are those of dy."""
    dy, x, mean, var, weight, _, _ = t
    return batch_norm_grad((dy, x, mean, var, weight), a)[0]


# --- of several ranks, for one of them alone ------------------------------------------------------


def all_reduce(t: Tensors, a: Attributes) -> Tensor | tuple[Tensor, ...]:
    """A sum of one is that one."""
    return t[0] if len(t) == 1 else tuple(t)


def bn_all_stats(t: Tensors, a: Attributes) -> tuple[Tensor, ...]:
    """The statistics of one share are those of all."""
    return t[0], t[1], torch.tensor(a["count"], dtype=t[0].dtype)


def sync_batch_norm(t: Tensors, a: Attributes) -> tuple[Tensor, ...]:
    """PyTorch's layer in training, which that of one rank is."""
    return *batch_norm(t, a), torch.tensor(t[0].numel() // t[0].shape[1], dtype=t[0].dtype)


def sync_batch_norm_grad(t: Tensors, a: Attributes) -> tuple[Tensor, ...]:
    """Autograd's gradients of it."""
    dy, x, mean, var, _, weight = t
    return batch_norm_grad((dy, x, mean, var, weight), a)


# --- one a group of rows ------------------------------------------------------------------------


def bn_partial_stats(t: Tensors, a: Attributes) -> tuple[Tensor, ...]:
    """Sum, sum of squared distances from the mean, and what the sum's rounding has lost."""
    x = rows(t[0], a)
    total = x.sum(1)
    residual = (x - total[:, None] / x.shape[1]).sum(1)
    return total, x.var(1, unbiased=False) * x.shape[1], residual


def bn_merge_stats(t: Tensors, a: Attributes) -> tuple[Tensor, Tensor]:
    """Mean and variance as moments about zero: another route than the op table's merge."""
    total, m2, residual = (v.double() for v in t)
    count, dtype = a["count"], t[0].dtype
    means = (t[0] / count).double() + residual / count
    mean = means.mean(0)
    square = ((m2 - residual**2 / count) / count + means**2).mean(0)
    return mean.to(dtype), (square - mean**2).to(dtype)


def bn_partial_mean(t: Tensors, a: Attributes) -> tuple[Tensor, Tensor]:
    """The sum of each group, rounded, and the rest of it."""
    total = rows(t[0], a).double().sum(1)
    rounded = total.to(t[0].dtype)
    return rounded, (total - rounded).to(t[0].dtype)


def bn_merge_mean(t: Tensors, a: Attributes) -> Tensor:
    """The mean of all groups."""
    return ((t[0].double() + t[1].double()).sum(0) / a["count"]).to(t[0].dtype)


def bn_partial_var(t: Tensors, a: Attributes) -> Tensor:
    """The sum of squared distances from ``mean`` of each group."""
    x, mean = t
    return rows(x - along_channel(mean, x), a).square().sum(1)


def bn_grad_partial_sums(t: Tensors, a: Attributes) -> tuple[Tensor, Tensor]:
    """`bn_grad_sums` of each group."""
    dy, x, mean = t
    return rows(dy, a).sum(1), rows(dy * (x - along_channel(mean, x)), a).sum(1)
