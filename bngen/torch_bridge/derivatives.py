"""Backwards of nodes of autograd that give first derivatives alone, and say so when asked for more.

In: the ``backward`` of a `torch.autograd.Function`. Out: the same, run outside of autograd and of
Dynamo, whose gradients refuse to be differentiated.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

Backward = Callable[..., tuple[Any, ...]]


def first_derivatives(backward: Backward) -> Backward:
    """A ``backward`` whose gradients cannot be differentiated again.

    They depend on the node's arguments in any case. `once_differentiable` looks at cotangents
    alone, and where those need no gradient drops the arguments' from sums without a word.

    A step that is compiled as a whole would have Dynamo trace it, too.
    """

    @torch.compiler.disable
    @functools.wraps(backward)
    def first(ctx: Any, *cotangents: torch.Tensor | None) -> tuple[Any, ...]:
        if not torch.is_grad_enabled():
            return backward(ctx, *cotangents)
        with torch.no_grad():
            found = backward(ctx, *cotangents)
        there = [gradient for gradient in found if gradient is not None]
        refusing = iter(_Refusing.apply(torch.empty(0, requires_grad=True), *there))
        return tuple(gradient if gradient is None else next(refusing) for gradient in found)

    return first


class _Refusing(torch.autograd.Function):
    """Gradients as they are."""

    @staticmethod
    def forward(ctx: Any, leaf: torch.Tensor, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return gradients

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[Any, ...]:
        raise RuntimeError(
            "trying to differentiate twice a function that was marked with @once_differentiable: "
            "bngen compiles first derivatives"
        )
