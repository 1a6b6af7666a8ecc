"""Backwards of nodes of autograd that give first derivatives alone, and say so when asked for more.

In: the ``backward`` of a `torch.autograd.Function`. Out: the same, run outside of autograd and of
Dynamo, whose gradients refuse to be differentiated.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bngen.errors import BngenError

Backward = Callable[..., tuple[Any, ...]]


def first_derivatives(backward: Backward) -> Backward:
    """A ``backward`` whose gradients cannot be differentiated again.

    They depend on all that autograd knows the node to depend on: cotangents, what it has saved,
    arguments that are leaves, and ``ctx.tokens`` (see `tokens`). `once_differentiable` looks at
    cotangents alone, and where those need no gradient drops the arguments' from sums without a
    word; so does autograd where no path leads to the inputs that are asked for.

    A step that is compiled as a whole would have Dynamo trace it, too.
    """

    @torch.compiler.disable
    @functools.wraps(backward)
    def first(ctx: Any, *cotangents: torch.Tensor | None) -> tuple[Any, ...]:
        if any(map(_is_batched, cotangents)):
            raise BngenError(
                "backward takes one gradient at a time, and was given a batch of them by vmap",
                hint="is_grads_batched=False, or vectorize=False",
            )
        if not torch.is_grad_enabled():
            return backward(ctx, *cotangents)
        with torch.no_grad():
            found = backward(ctx, *cotangents)
        there = [gradient for gradient in found if gradient is not None]
        refusing = iter(_Refusing.apply(len(there), *there, *_reached(ctx, cotangents)))
        return tuple(gradient if gradient is None else next(refusing) for gradient in found)

    return first


def _is_batched(tensor: torch.Tensor | None) -> bool:
    kinds = torch._C._functorch
    return tensor is not None and (
        kinds.is_batchedtensor(tensor) or kinds.is_legacy_batchedtensor(tensor)
    )


def tokens(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What autograd follows to where these tensors come from, without keeping what they hold."""
    return [t if t.is_leaf else t.unsqueeze(0)[:0].clone() for t in tensors if t.requires_grad]


def _reached(ctx: Any, cotangents: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
    leaves = (getattr(node, "variable", None) for node, _ in ctx.next_functions)
    found = (*cotangents, *ctx.saved_tensors, *leaves, *getattr(ctx, "tokens", ()))
    # Without any, a gradient would be a constant, which sums drop.
    nothing = torch.empty(0, requires_grad=True)
    return [nothing, *(t for t in found if t is not None and t.requires_grad)]


class _Refusing(torch.autograd.Function):
    """Gradients as they are: so many tensors, the rest being what they depend on."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tensors[:count]

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[Any, ...]:
        raise RuntimeError(
            "trying to differentiate twice a function that was marked with @once_differentiable: "
            "bngen compiles first derivatives"
        )
