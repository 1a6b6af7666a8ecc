"""Normalizations of each image by itself, composed of reductions and pointwise ops.

Named as in ``torch.nn.functional``. Feature maps stay feature maps: sums run over the pixels of
each channel, and what groups of channels have in common is computed from those.
"""

from __future__ import annotations

from collections.abc import Sequence

from bngen.lang.axes import reduction
from bngen.lang.emission import emit
from bngen.lang.normalization import (
    HINT,
    as_map,
    deviations,
    evaluate_running,
    inverse_std,
    same_or_computed,
    update_running,
)
from bngen.lang.operands import computed, rounded_once, same_float_type
from bngen.lang.places import pad
from bngen.lang.shapes import narrow
from bngen.lang.tensor import Tensor
from bngen.lang.trace import current_trace, error
from bngen.lang.types import flag, integer, integers, real


@rounded_once
def layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalize over the last axes, which have ``normalized_shape``, as weight and bias do."""
    operands = {"input": input, "weight": weight, "bias": bias}
    same_float_type("layer_norm", ("weight", "bias"), **operands)
    shape = integers("layer_norm", (normalized_shape,))
    given = [x.shape for x in (weight, bias) if x is not None]
    if not shape or input.shape[-len(shape) :] != shape or any(s != shape for s in given):
        hint = "weight and bias have the shape that is normalized over, the last axes of x"
        raise error(f"layer_norm: {list(shape)} of {input.type}", hint)
    axes = tuple(range(input.ndim - len(shape), input.ndim))
    _, centred, var = deviations(input, lambda v: reduction("mean", v, axes, True))
    y = centred * inverse_std(var, real("layer_norm", "eps", eps, 0))
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


@rounded_once
def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalize each image by groups of its channels.

    Args:
        input: ``[N, C, ...]``.
        num_groups: how many groups; it divides C.
        weight: factor ``[C]``.
        bias: summand ``[C]``.
        eps: added to the variance.
    """
    _check_channels("group_norm", input, weight, bias)
    groups = integer("group_norm", "num_groups", num_groups, 1)
    if input.shape[1] % groups:
        raise error(f"group_norm: {groups} groups do not divide the channels of {input.type}")
    y, _, _ = _normalize_images("group_norm", input, groups, weight, bias, eps)
    return y


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalize each channel of each image; or, without ``use_input_stats``, by running statistics.

    Those, where given, are updated in place with the mean over the images. Arguments are those of
    `batch_norm`.
    """
    label = "instance_norm"
    statistics = {"running_mean": running_mean, "running_var": running_var}
    _check_channels(label, input, weight, bias, **statistics)
    trace = current_trace(label)
    if (running_mean is None) != (running_var is None):
        raise error(f"{label}: only one running statistic", "give both or neither")
    if not flag(label, "use_input_stats", use_input_stats):
        eps = real(label, "eps", eps, 0)
        return evaluate_running(trace, input, running_mean, running_var, weight, bias, eps, label)
    count = input.numel() // (input.shape[0] * input.shape[1])
    if count == 1:
        raise error(f"{label}: {input.type} has a single value per channel, which has no variance")
    vectors = computed(weight), computed(bias)
    y, mean, var = _normalize_images(label, computed(input), input.shape[1], *vectors, eps)
    if running_mean is not None:
        means = [v.reshape(v.shape[:2]).mean(0).detach() for v in (mean, var)]
        factor = real(label, "momentum", momentum)
        update_running(trace, running_mean, running_var, *means, factor, count)
    return y.to(input.dtype)


@rounded_once
def local_response_norm(
    input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """Divide by ``(k + alpha * mean) ** beta``, of the squares of ``size`` channels around each."""
    label = "local_response_norm"
    _check_channels(label, input, None, None)
    size, channels = integer(label, "size", size, 1), input.shape[1]
    square, total = input * input, None
    for shift in range(max(-(size // 2), 1 - channels), min(size - size // 2, channels)):
        # The channel ``shift`` further on, and zeros where there is none.
        margins = (max(-shift, 0), max(shift, 0))
        part = narrow(square, 1, margins[1], channels - abs(shift))
        part = pad(part, (*(0, 0) * (input.ndim - 2), *margins))
        total = part if total is None else total + part
    scale = total * (real(label, "alpha", alpha) / size) + real(label, "k", k)
    return input / scale ** real(label, "beta", beta)


def _check_channels(
    label: str,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    **statistics: Tensor | None,
) -> None:
    vectors = {"weight": weight, "bias": bias, **statistics}
    same_or_computed(label, tuple(vectors), input=x, **vectors)
    if x.ndim < 2 or any(v is not None and v.shape != (x.shape[1],) for v in vectors.values()):
        given = ", ".join(f"{n} {v.type}" for n, v in vectors.items() if v is not None)
        raise error(f"{label}: input {x.type}{', ' if given else ''}{given}", HINT)


def _normalize_images(
    label: str,
    input: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The normalized input, and means and variances ``[N, C, 1, 1]``.

    Sums run over the pixels of each channel first, which needs no other layout of the map than
    convolutions do; those of a group's channels are put together afterwards.
    """
    x = as_map(input)
    x = x if x.ndim == 4 else x.reshape((*x.shape, 1, 1))
    n, c = x.shape[:2]

    def over_group(means: Tensor) -> Tensor:
        if groups == c:
            return means
        mean = reduction("mean", means.reshape((n, groups, c // groups)), 2, True)
        spread = emit("broadcast_to", mean, label=label, shape=(n, groups, c // groups))
        return spread.reshape((n, c, 1, 1))

    def means_of(v: Tensor) -> Tensor:
        return over_group(reduction("mean", v, (2, 3), True))

    mean, centred, var = deviations(x, means_of)
    scale = inverse_std(var, real(label, "eps", eps, 0))
    scale = scale if weight is None else scale * weight.reshape((1, c, 1, 1))
    y = centred * scale
    y = y if bias is None else y + bias.reshape((1, c, 1, 1))
    return y.reshape(input.shape), mean, var
