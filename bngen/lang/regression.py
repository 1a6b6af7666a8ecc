"""Losses of regression, named and ordered as in ``torch.nn.functional``.

In: tensors that broadcast, of types that meet as in arithmetic. What is selected by how large a
difference is, is computed of no larger one: an infinite one would make NaN of the gradient.
"""

from __future__ import annotations

from bngen.lang.loss import check_reduction, reduced
from bngen.lang.operands import rounded_once
from bngen.lang.pointwise import abs, where
from bngen.lang.tensor import Tensor
from bngen.lang.trace import error
from bngen.lang.traced import check_tensor
from bngen.lang.types import real


def _difference(label: str, input: Tensor, target: Tensor, reduction: str) -> Tensor:
    check_tensor(label, "input", input)
    check_tensor(label, "target", target)
    check_reduction(label, reduction)
    if not (input.type.is_float and target.type.is_float):
        what = f"{label}: input is {input.type}, target {target.type}"
        raise error(what, "convert them to floating point with .to(...)")
    return input - target


@rounded_once
def mse_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """The squared difference; ``reduction`` is ``"mean"``, ``"sum"`` or ``"none"``."""
    off = _difference("mse_loss", input, target, reduction)
    return reduced(off * off, reduction)


@rounded_once
def l1_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """The absolute difference; ``reduction`` is ``"mean"``, ``"sum"`` or ``"none"``."""
    return reduced(abs(_difference("l1_loss", input, target, reduction)), reduction)


@rounded_once
def smooth_l1_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", beta: float = 1.0
) -> Tensor:
    """Half the squared difference over ``beta`` below ``beta``, the absolute one less half of it.

    Args:
        input: predictions.
        target: what they should be.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        beta: where the square ends; 0 makes it `l1_loss`.
    """
    beta = real("smooth_l1_loss", "beta", beta, 0)
    off = abs(_difference("smooth_l1_loss", input, target, reduction))
    if beta:
        small = off < beta
        near = where(small, off, 0.0)
        off = where(small, near * near * (0.5 / beta), off - 0.5 * beta)
    return reduced(off, reduction)


@rounded_once
def huber_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0
) -> Tensor:
    """Half the squared difference up to ``delta``, linear from there on.

    Args:
        input: predictions.
        target: what they should be.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        delta: where the square ends.
    """
    delta = real("huber_loss", "delta", delta, 0)
    if not delta:
        raise error("huber_loss: delta must be more than 0")
    off = abs(_difference("huber_loss", input, target, reduction))
    small = off <= delta
    near = where(small, off, 0.0)
    return reduced(where(small, near * near * 0.5, (off - 0.5 * delta) * delta), reduction)
