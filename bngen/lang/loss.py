"""Losses of classification, made of ops that fuse and differentiate like any others."""

from __future__ import annotations

from typing import Any

from bngen.dtypes import INDEX
from bngen.ir.attributes import shown
from bngen.lang.emission import emit
from bngen.lang.operands import rounded_once, same_float_type
from bngen.lang.pointwise import exp, log, log1p, maximum, where
from bngen.lang.reductions import log_softmax
from bngen.lang.tensor import Tensor
from bngen.lang.trace import error
from bngen.lang.traced import check_tensor
from bngen.lang.types import integer, real

REDUCTIONS = ("mean", "sum", "none")


@rounded_once
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Negative log-likelihood of ``softmax(input)`` at the labels, or its mean over soft ones.

    Args:
        input: logits ``[C]``, ``[N, C]`` or ``[N, C, ...]``.
        target: integer labels, the shape of ``input`` without ``C``; or a probability for each
            class, of the shape and type of ``input``.
        weight: a factor for each class ``[C]``; the mean over labels is then a weighted one.
        ignore_index: a label that counts for nothing; there is none among probabilities.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: share of the target spread evenly over all classes.
    """
    smoothing = real("cross_entropy", "label_smoothing", label_smoothing, 0, 1)
    same_float_type("cross_entropy", ("weight",), input=input, weight=weight)
    check_tensor("cross_entropy", "target", target)
    if target.shape == input.shape and target.type.is_float:
        return _of_probabilities(input, target, weight, ignore_index, reduction, smoothing)
    _check("cross_entropy", input, target, weight, reduction)
    batch = _batched(input)
    log_p = log_softmax(batch, 1)
    return _of_labels(
        "cross_entropy", log_p, target.reshape(batch.shape[0], *batch.shape[2:]), weight,
        ignore_index, reduction, smoothing, target.shape,
    )  # fmt: skip


@rounded_once
def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Minus the log-probability of the labels.

    Args:
        input: log-probabilities ``[C]``, ``[N, C]`` or ``[N, C, ...]``.
        target: integer labels, the shape of ``input`` without ``C``.
        weight: a factor for each class ``[C]``; the mean is then a weighted one.
        ignore_index: a label that counts for nothing.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
    """
    same_float_type("nll_loss", ("weight",), input=input, weight=weight)
    check_tensor("nll_loss", "target", target)
    _check("nll_loss", input, target, weight, reduction)
    batch = _batched(input)
    return _of_labels(
        "nll_loss", batch, target.reshape(batch.shape[0], *batch.shape[2:]), weight, ignore_index,
        reduction, 0.0, target.shape,
    )  # fmt: skip


@rounded_once
def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Binary cross-entropy of ``sigmoid(input)``, without overflow.

    Args:
        input: logits.
        target: how likely the truth of each is, of the same shape.
        weight: a factor for each loss, which broadcasts.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        pos_weight: a factor for what is true, which broadcasts.
    """
    label = "binary_cross_entropy_with_logits"
    same_float_type(
        label, ("weight", "pos_weight"), input=input, target=target, weight=weight,
        pos_weight=pos_weight,
    )  # fmt: skip
    if target.shape != input.shape:
        raise error(f"{label}: target {target.type} for input {input.type}", "they are alike")
    check_reduction(label, reduction)
    loss = emit("bce_with_logits", input, target, pos_weight, label=label)
    return reduced(loss if weight is None else loss * weight, reduction)


@rounded_once
def binary_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """Binary cross-entropy of probabilities, whose logarithms count as -100 at least.

    Args:
        input: how likely each is said to be, from 0 to 1.
        target: how likely it is, of the same shape. Its gradient is bounded, too, which PyTorch's
            is not.
        weight: a factor for each loss, which broadcasts.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
    """
    label = "binary_cross_entropy"
    same_float_type(label, ("weight",), input=input, target=target, weight=weight)
    if target.shape != input.shape:
        raise error(f"{label}: target {target.type} for input {input.type}", "they are alike")
    check_reduction(label, reduction)
    # Not the logarithms' own gradients: one by 0 would be infinite, and cut off there.
    known = input.detach()
    yes, no = (maximum(v, _LEAST_LOG) for v in (log(known), log1p(-known)))
    loss = -(target * yes + (1.0 - target) * no)
    slope = (known - target.detach()) / maximum(known * (1.0 - known), _LEAST_SPREAD)
    loss = loss + slope * (input - known)
    return reduced(loss if weight is None else loss * weight, reduction)


_LEAST_LOG, _LEAST_SPREAD = -100.0, 1e-12
"""PyTorch's bounds of a logarithm, and of ``p * (1 - p)`` where one divides by it."""


@rounded_once
def kl_div(
    input: Tensor, target: Tensor, reduction: str = "mean", log_target: bool = False
) -> Tensor:
    """Divergence of ``target`` from the distribution whose logarithm ``input`` is.

    Args:
        input: log-probabilities.
        target: probabilities, or their logarithms.
        reduction: ``"batchmean"``, the sum over the first extent; ``"mean"``, over all elements,
            ``"sum"`` or ``"none"``.
        log_target: whether ``target`` holds logarithms.
    """
    same_float_type("kl_div", input=input, target=target)
    check_reduction("kl_div", reduction, (*REDUCTIONS, "batchmean"))
    if log_target:
        loss = exp(target) * (target - input)
    else:
        none = target == 0.0  # of which the logarithm must not leak, nor its slope
        loss = where(none, 0.0, target * log(where(none, 1.0, target))) - target * input
    if reduction != "batchmean":
        return reduced(loss, reduction)
    if not loss.ndim:
        raise error(f"kl_div: input {input.type} has no batch", "use another reduction")
    return loss.sum() / loss.shape[0]


def reduced(loss: Tensor, reduction: str) -> Tensor:
    """The losses of all elements folded as asked for."""
    return {"mean": loss.mean, "sum": loss.sum, "none": lambda: loss}[reduction]()


def check_reduction(label: str, reduction: Any, known: tuple[str, ...] = REDUCTIONS) -> None:
    """Raise unless losses can be folded so."""
    if not isinstance(reduction, str) or reduction not in known:
        listed = ", ".join(map(repr, known[:-1]))
        raise error(f"{label}: reduction {shown(reduction)}", f"use {listed} or {known[-1]!r}")


def _batched(x: Tensor) -> Tensor:
    """A lone sample as a batch of one."""
    return x.reshape(1, -1) if x.ndim == 1 else x


def _along_classes(weight: Tensor, x: Tensor) -> Tensor:
    return weight.view(1, -1, *(1,) * (x.ndim - 2))


def _of_probabilities(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str,
    smoothing: float,
) -> Tensor:  # fmt: skip
    same_float_type("cross_entropy", ("weight",), input=input, target=target)
    check_reduction("cross_entropy", reduction)
    _check_classes("cross_entropy", input, weight)
    if integer("cross_entropy", "ignore_index", ignore_index, -(2**63)) >= 0:
        hint = "leave ignore_index out, and give its samples zeros"
        raise error("cross_entropy: no label is to be ignored among probabilities", hint)
    batch = _batched(input)
    share, log_p = target.reshape(batch.shape), log_softmax(batch, 1)
    if smoothing:
        share = share * (1.0 - smoothing) + smoothing / batch.shape[1]
    if weight is not None:
        share = share * _along_classes(weight, batch)
    loss = -(log_p * share).sum(1)
    if reduction == "none":
        return loss.reshape(input.shape[:1] * (input.ndim > 1) + input.shape[2:])
    return reduced(loss, reduction)


def _of_labels(
    label: str, log_p: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int,
    reduction: str, smoothing: float, shape: tuple[int, ...],
) -> Tensor:  # fmt: skip
    """Minus the log-probabilities ``[N, C, ...]`` at the labels, folded, or of a shape."""
    classes = log_p.shape[1]
    target = target.to(INDEX)  # which holds every label and every index to ignore
    hit = emit("one_hot", target, label=label, classes=classes) > 0.5
    valid = target != ignore_index
    # PyTorch raises for a label that is no class. A compiled program cannot; its loss is NaN.
    known = where(target >= 0, target < classes, False)
    # Selecting, not multiplying by one_hot: a logit of -inf at another class must not give NaN.
    loss = -where(hit, log_p, 0.0).sum(1)
    share = valid.to(log_p.dtype)
    if weight is not None:
        by_class = _along_classes(weight, log_p)
        of_label = where(hit, by_class, 0.0).sum(1)
        loss, share = loss * of_label, share * of_label
    if smoothing > 0:
        spread = -(log_p if weight is None else log_p * by_class).sum(1)
        loss = loss * (1.0 - smoothing) + spread * (smoothing / classes)
    loss = where(valid, where(known, loss, float("nan")), 0.0)
    if reduction == "none":
        return loss.reshape(shape)
    return loss.sum() / share.sum() if reduction == "mean" else loss.sum()


def _check(
    label: str, logits: Tensor, labels: Tensor, weight: Tensor | None, reduction: str
) -> None:
    if labels.type.element.kind != "int":
        hint = "labels are class numbers: bg.Tensor[8, bg.int64]"
        raise error(f"{label}: target is {labels.type}", hint)
    if not logits.ndim or labels.shape != logits.shape[:1] * (logits.ndim > 1) + logits.shape[2:]:
        what = f"{label}: input {logits.type} does not fit target {labels.type}"
        raise error(what, "input is [C], [N,C] or [N,C,H,W], target the same without C")
    _check_classes(label, logits, weight)
    check_reduction(label, reduction)


def _check_classes(label: str, logits: Tensor, weight: Tensor | None) -> None:
    if not logits.ndim:
        raise error(f"{label}: input {logits.type} has no classes")
    classes = logits.shape[0 if logits.ndim == 1 else 1]
    if weight is not None and weight.shape != (classes,):
        raise error(f"{label}: weight is {weight.type} for {classes} classes")
