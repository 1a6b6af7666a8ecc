"""Batch normalization and its two sub-layers.

In training mode `batch_norm` is one coarse node, which the compiler splits; `bn_stats` and
`bn_normalize` are its halves, for programs that write the split form by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from bngen.lang.axes import reduction
from bngen.lang.collectives import group_name
from bngen.lang.emission import emit, emit_all
from bngen.lang.operands import computed, same_float_type
from bngen.lang.tensor import Tensor
from bngen.lang.trace import Trace, current_trace, error
from bngen.lang.traced import check_tensor, wrap
from bngen.lang.types import flag, real

HINT = "x is [N,C,...]; weight, bias and statistics are vectors [C]"


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor | None = 0.1,
    eps: float = 1e-5,
    *,
    num_batches_tracked: Tensor | None = None,
    group: str | None = None,
    layer: str | None = None,
) -> Tensor:
    """Normalize each channel: by the batch's statistics in training, else by the running ones.

    In training the running statistics, where given, are updated in place when the program ends:
    ``running = (1 - momentum) * running + momentum * batch``, with the unbiased variance.

    With a ``group`` the batch is that of all its ranks together, as in PyTorch's
    ``SyncBatchNorm``; they may have shares of different sizes. In evaluation nothing is exchanged.

    Args:
        input: ``[N, C]`` or ``[N, C, ...]``.
        running_mean: ``[C]``, an argument or buffer of the program; or ``None``.
        running_var: ``[C]``, likewise.
        weight: factor ``[C]``.
        bias: summand ``[C]``.
        training: whose statistics to use.
        momentum: weight of the new batch, a number or computed, without axes; ``None`` averages all
            batches so far.
        eps: added to the variance.
        num_batches_tracked: int64 without axes; counts training batches. Needed for
            ``momentum=None``.
        group: the name of the ranks whose batches are one, see ``bngen.connect``; None for this
            process alone.
        layer: what messages about ranks call it; by default what its weight is called.

    Raises:
        ProgramError: operands that do not fit; running statistics missing in evaluation; a
            single value per channel in training, without a group.
    """
    same_or_computed(
        "batch_norm", ("running_mean", "running_var", "weight", "bias"), input=input,
        running_mean=running_mean, running_var=running_var, weight=weight, bias=bias,
    )  # fmt: skip
    eps = real("batch_norm", "eps", eps, 0)
    trace = current_trace("batch_norm")
    if (running_mean is None) != (running_var is None):
        raise error("batch_norm: only one running statistic", "give both or neither")
    if not flag("batch_norm", "training", training):
        return evaluate_running(trace, input, running_mean, running_var, weight, bias, eps)
    if group is not None:
        group_name("batch_norm", group)
    elif input.ndim >= 2 and input.numel() == input.shape[1]:
        raise error(
            f"batch_norm: {input.type} has a single value per channel, which has no variance",
            "train with a larger batch or feature map, or use training=False",
        )
    by_rows = group is None and _are_rows(input, weight, bias)
    operands = map(computed, (input if by_rows else as_map(input), weight, bias))
    if by_rows:
        y, mean, var = _of_rows(*operands, eps)
    elif group is None:
        y, mean, var = emit_all("batch_norm", *operands, hint=HINT, eps=eps)
    if group is None:
        count: int | Tensor = input.numel() // input.shape[1]
    else:
        y, mean, var, count = emit_all(
            "sync_batch_norm", *operands, label="batch_norm", hint=HINT, eps=eps,
            group=group, name=layer or _layer_name(weight),
        )  # fmt: skip
    y = y.to(input.dtype).reshape(input.shape)
    if running_mean is not None:
        factor = _momentum(trace, momentum, num_batches_tracked)
        update_running(trace, running_mean, running_var, mean, var, factor, count)
    return y


def _are_rows(x: Tensor, *vectors: Tensor | None) -> bool:
    """Whether `_of_rows` can take it."""
    fit = all(v is None or v.shape == x.shape[1:2] for v in vectors)
    return x.ndim == 3 and x.shape[0] == 1 and fit


def _of_rows(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The normalized ``[1, C, L]``, mean and variance ``[C]``: weights, when they are standardized.

    A channel lies in one piece. As a map's, channels would first be interleaved, and all of it
    turned back for the convolution that packs it.
    """
    channels = x.shape[1]
    rows = x.reshape(channels, x.shape[2])
    mean, centred, var = deviations(rows, lambda v: reduction("mean", v, (1,), True))
    scale = inverse_std(var, eps)
    scale = scale if weight is None else scale * weight.reshape(channels, 1)
    y = centred * scale
    y = y if bias is None else y + bias.reshape(channels, 1)
    return y.reshape(x.shape), mean.reshape(channels), var.reshape(channels)


FEW = 16
"""Elements of a mean below which its gradient goes every way there is: see `deviations`."""


def deviations(x: Tensor, mean_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Means, deviations from them, and means of their squares.

    The last are stationary in the mean, as deviations add up to zero: no gradient need take that
    way, which would be a sum of its own over what all others give. That sum also takes out what
    rounding has left of a mean, and of few elements, where gradients nearly cancel, it is worth
    having: without it the error was twice as large for 3, 1.04 times for 8, the same from 16 on.
    """
    mean = mean_of(x)
    centred = x - mean
    held = centred if x.numel() < FEW * mean.numel() else x - mean.detach()
    return mean, centred, mean_of(held * held)


def inverse_std(var: Tensor, eps: float) -> Tensor:
    """One over the root of a variance."""
    return (var + eps).rsqrt()


def _layer_name(weight: Tensor | None) -> str | None:
    return None if weight is None else weight.name.removesuffix(".weight")


LONG_ROW = 1024
"""Columns of a map up to which sums along a row are fast."""


def as_map(x: Tensor) -> Tensor:
    """``[N, C, ...]`` of rank 3, or 5 and more, as ``[N, C, H, W]``; any other as it is.

    Statistics and normalizations are computed channel by channel, however pixels are arranged.
    """
    if x.ndim in (2, 4) or not x.shape[2:]:
        return x
    pixels = math.prod(x.shape[2:])
    if x.ndim > 4 and x.shape[-1] <= LONG_ROW:
        columns = x.shape[-1]
    else:
        columns = max(w for w in range(1, LONG_ROW + 1) if pixels % w == 0)
    return x.reshape((*x.shape[:2], pixels // columns, columns))


def bn_stats(input: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, two vectors ``[C]``: BN's first sub-layer.

    They are of the dtype that ``input`` is computed in, float32 for bfloat16.
    """
    same_float_type("bn_stats", input=input)
    mean, var = emit_all("bn_stats", computed(input), hint=HINT)
    return mean, var


def bn_normalize(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """``(input - mean) / sqrt(var + eps) * weight + bias`` by channel: BN's second sub-layer."""
    same_or_computed(
        "bn_normalize", ("weight", "bias"), input=input, mean=mean, var=var, weight=weight,
        bias=bias,
    )  # fmt: skip
    eps = real("bn_normalize", "eps", eps, 0)
    operands = map(computed, (input, mean, var, weight, bias))
    return emit("bn_normalize", *operands, hint=HINT, eps=eps).to(input.dtype)


def same_or_computed(
    label: str, optional: Sequence[str], input: Tensor, **vectors: Tensor | None
) -> None:
    """Raise unless vectors are all of the input's dtype, or all of the one it is computed in."""
    check_tensor(label, "input", input)
    given = next((v for v in vectors.values() if isinstance(v, Tensor)), input)
    if input.type.element.stored_only and given.dtype == input.type.element.computed:
        same_float_type(label, optional, **vectors)
    else:
        same_float_type(label, optional, input=input, **vectors)


_MANY = 2**62
"""A count of elements whose variance is as good as unbiased."""


# --- running statistics -------------------------------------------------------------------------


def evaluate_running(
    trace: Trace,
    x: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    label: str = "batch_norm",
) -> Tensor:
    """Normalize by running statistics, as they are at this point of the program."""
    if mean is None:
        hint = "pass running_mean and running_var, or training=True"
        raise error(f"{label}: no running statistics to evaluate with", hint)
    mean, var = (wrap(trace, trace.latest(v.value)) for v in (mean, var))
    operands = map(computed, (x, mean, var, weight, bias))
    return emit("bn_normalize", *operands, label=label, hint=HINT, eps=eps).to(x.dtype)


def _momentum(
    trace: Trace, momentum: float | Tensor | None, tracked: Tensor | None
) -> float | Tensor:
    """Count the batch; the weight it has in the running statistics."""
    if tracked is not None:
        check_tensor("batch_norm", "num_batches_tracked", tracked)
        if tracked.shape or tracked.type.element.kind != "int":
            hint = "declare it as bg.Tensor[bg.int64]"
            raise error(f"batch_norm: num_batches_tracked is {tracked.type}", hint)
        seen = wrap(trace, trace.latest(tracked.value)) + 1
        trace.set_update("batch_norm", tracked.value, seen.value)
    if momentum is None:
        if tracked is None:
            hint = "pass num_batches_tracked=, or a momentum"
            raise error("batch_norm: momentum=None averages over batches nobody counts", hint)
        return 1.0 / seen
    if not isinstance(momentum, Tensor):
        return real("batch_norm", "momentum", momentum)
    if momentum.shape or not momentum.type.is_float:
        hint = "compute it as a float without axes"
        raise error(f"batch_norm: momentum is {momentum.type}", hint)
    return momentum


def update_running(
    trace: Trace,
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    var: Tensor,
    momentum: float | Tensor,
    count: int | Tensor,
) -> None:
    """Record the new running statistics; a layer applied twice goes on from its first update."""
    for x in (running_mean, running_var):
        if x.shape != mean.shape:
            raise error(f"batch_norm: a running statistic is {x.type}, expected {mean.type}", HINT)
    old = [computed(wrap(trace, trace.latest(v.value))) for v in (running_mean, running_var)]
    mean, var = computed(mean), computed(var)
    fixed = isinstance(momentum, float)
    if isinstance(count, Tensor):
        # Of all ranks, known when the program runs: the variance is unbiased before it gets there.
        var, count = var * (count / (count - 1.0)), _MANY
    new = emit_all(
        "bn_update", *old, mean, var, None if fixed else momentum.to(mean.dtype),
        label="batch_norm", momentum=momentum if fixed else 0.0, count=count,
    )  # fmt: skip
    for target, value in zip((running_mean, running_var), new, strict=True):
        trace.set_update("batch_norm", target.value, value.to(target.dtype).value)
