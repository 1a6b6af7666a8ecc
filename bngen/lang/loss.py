"""The classification loss, made of primitives so that it fuses and differentiates like them."""

from __future__ import annotations

from bngen.dtypes import INDEX
from bngen.lang.pointwise import where
from bngen.lang.reductions import log_softmax
from bngen.lang.tensor import Tensor, check_tensor, emit, same_float_type
from bngen.lang.trace import error
from bngen.lang.types import real


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Negative log-likelihood of ``softmax(input)`` at the labels.

    Args:
        input: logits ``[N, C]`` or ``[N, C, H, W]``.
        target: integer labels, the shape of ``input`` without ``C``.
        weight: a factor for each class ``[C]``; the mean is then a weighted one.
        ignore_index: a label that counts for nothing.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: share of the target spread evenly over all classes.
    """
    _check(input, target, weight, reduction, label_smoothing)
    classes = input.shape[1]
    log_p = log_softmax(input, 1)
    target = target.to(INDEX)  # which holds every label and every index to ignore
    hit = emit("one_hot", target, label="cross_entropy", classes=classes) > 0.5
    valid = target != ignore_index
    # PyTorch raises for a label that is no class. A compiled program cannot; its loss is NaN.
    known = where(target >= 0, target < classes, False)
    # Selecting, not multiplying by one_hot: a logit of -inf at another class must not give NaN.
    loss = -where(hit, log_p, 0.0).sum(1)
    share = valid.to(input.dtype)
    if weight is not None:
        by_class = weight.view(1, classes, *(1,) * (input.ndim - 2))
        of_label = where(hit, by_class, 0.0).sum(1)
        loss, share = loss * of_label, share * of_label
    if label_smoothing > 0:
        spread = -(log_p if weight is None else log_p * by_class).sum(1)
        loss = loss * (1.0 - label_smoothing) + spread * (label_smoothing / classes)
    loss = where(valid, where(known, loss, float("nan")), 0.0)
    if reduction == "none":
        return loss
    return loss.sum() / share.sum() if reduction == "mean" else loss.sum()


def _check(
    logits: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    reduction: str,
    label_smoothing: float,
) -> None:
    same_float_type("cross_entropy", ("weight",), input=logits, weight=weight)
    check_tensor("cross_entropy", "target", labels)
    if labels.type.element.kind != "int":
        hint = "labels are class numbers: bg.Tensor[8, bg.int64]"
        raise error(f"cross_entropy: target is {labels.type}", hint)
    if logits.ndim < 2 or labels.shape != (logits.shape[0], *logits.shape[2:]):
        what = f"cross_entropy: input {logits.type} does not fit target {labels.type}"
        raise error(what, "input is [N,C] or [N,C,H,W], target the same without C")
    if weight is not None and weight.shape != (logits.shape[1],):
        raise error(f"cross_entropy: weight is {weight.type} for {logits.shape[1]} classes")
    if not isinstance(reduction, str) or reduction not in ("mean", "sum", "none"):
        raise error(f"cross_entropy: reduction {reduction!r}", "use 'mean', 'sum' or 'none'")
    real("cross_entropy", "label_smoothing", label_smoothing, 0, 1)
