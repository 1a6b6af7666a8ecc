"""Functions that are methods of tensors, too, where `torch.Tensor` has them: ``x.flip(2)``.

In: nothing. Out: `METHODS`, which each trace is given, so that `bngen.lang.tensor`, on which all
these functions build, need not know them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bngen.lang import activations, places, pointwise, reductions, shapes, windows
from bngen.lang.pointwise import Operand
from bngen.lang.tensor import Tensor


def _where(input: Tensor, condition: Tensor, other: Operand) -> Tensor:
    """``input`` where ``condition`` holds, ``other`` elsewhere."""
    return pointwise.where(condition, input, other)


_SAME_NAME = {
    activations: "clamp clamp_max clamp_min hardshrink prelu",
    places: "flip repeat roll",
    pointwise: (
        "add addcdiv addcmul bitwise_and bitwise_not bitwise_or bitwise_xor ceil cos div erf expm1 "
        "floor fmod greater greater_equal isfinite isinf isnan less less_equal log1p logical_and "
        "logical_not logical_or logical_xor maximum minimum mul neg not_equal reciprocal round "
        "sign sin square sub"
    ),
    reductions: "amin argmax argmin log_softmax logsumexp min norm prod softmax std var",
    shapes: (
        "chunk expand movedim narrow permute split squeeze swapaxes swapdims t transpose unbind "
        "unflatten unsqueeze"
    ),
    windows: "matmul",
}

METHODS: Mapping[str, Callable[..., Any]] = {
    **{name: getattr(m, name) for m, names in _SAME_NAME.items() for name in names.split()},
    "eq": pointwise.equal,
    "ge": pointwise.greater_equal,
    "gt": pointwise.greater,
    "le": pointwise.less_equal,
    "lt": pointwise.less,
    "ne": pointwise.not_equal,
    "where": _where,
}
"""Name -> function, whose first argument is the tensor. Not ``equal``, which is a bool there."""
