"""Gradients kept from being too large, as in ``torch.nn.utils``."""

from __future__ import annotations

from collections.abc import Mapping

from bngen.dtypes import EXACT
from bngen.lang.activations import clamp
from bngen.lang.pointwise import where
from bngen.lang.reductions import vector_norm
from bngen.lang.tensor import Tensor
from bngen.lang.trace import error
from bngen.lang.traced import check_tensor
from bngen.lang.types import kind_of, real


def clip_grad_norm(
    grads: Mapping[str, Tensor], max_norm: float | Tensor, norm_type: float = 2.0
) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients scaled so that the norm of all of them together is at most ``max_norm``.

    Args:
        grads: gradients by name, as `value_and_grad` gives them.
        max_norm: the largest norm there is to be.
        norm_type: 2, 1 or infinity.

    Returns:
        Gradients by name, and their norm as it was, a float32 without axes.
    """
    _check("clip_grad_norm", grads)
    order = real("clip_grad_norm", "norm_type", norm_type, 1)
    if not isinstance(max_norm, Tensor):
        max_norm = real("clip_grad_norm", "max_norm", max_norm, 0)
    total: Tensor | None = None
    for g in grads.values():
        # By rows first, which are many: a fold to one number has no loop to share among threads.
        rows = vector_norm(g, order, tuple(range(1, g.ndim))) if g.ndim > 1 else g
        norm = vector_norm(rows, order).to(EXACT)
        total = norm if total is None else _together(total, norm, order)
    total = total.float()
    scale = clamp(max_norm / (total + 1e-6), max=1.0)
    return {name: g * scale for name, g in grads.items()}, total


def _together(a: Tensor, b: Tensor, order: float) -> Tensor:
    """The norm of what two norms are of."""
    if order == 2:
        return (a * a + b * b).sqrt()
    return a + b if order == 1 else where(a > b, a, b)


def clip_grad_value(grads: Mapping[str, Tensor], clip_value: float) -> dict[str, Tensor]:
    """Gradients whose elements are brought between ``-clip_value`` and ``clip_value``.

    Args:
        grads: gradients by name, as `value_and_grad` gives them.
        clip_value: the largest absolute value there is to be.
    """
    _check("clip_grad_value", grads)
    most = real("clip_grad_value", "clip_value", clip_value, 0)
    return {name: clamp(g, -most, most) for name, g in grads.items()}


def _check(label: str, grads: Mapping[str, Tensor]) -> None:
    if not isinstance(grads, Mapping) or not grads:
        what = f"{label}: grads must be a dict of gradients, got {kind_of(grads)}"
        raise error(what, "pass what bg.grad or bg.value_and_grad gives")
    for name, g in grads.items():
        if not check_tensor(label, f"gradient {name!r}", g).type.is_float:
            raise error(f"{label}: gradient {name!r} is {g.type}")
