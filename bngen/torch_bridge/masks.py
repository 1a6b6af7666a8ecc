"""Dropout's masks, drawn by PyTorch's generator and handed to bngen as an operand.

In: a shape and a probability. Out: a bool tensor. ``torch.manual_seed`` then reproduces a run; the
bits are not those of eager's dropout, which draws in another order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def keep_mask(shape: Sequence[int], p: float) -> torch.Tensor:
    """True where an element is kept, with probability ``1 - p``."""
    return torch.empty(tuple(shape), dtype=torch.bool).bernoulli_(1.0 - p)


def drop(input: torch.Tensor, mask: torch.Tensor, p: float) -> torch.Tensor:
    """``input`` where ``mask`` holds, scaled by ``1 / (1 - p)``; zero elsewhere."""
    scale = 0.0 if p >= 1 else 1.0 / (1.0 - p)
    return torch.where(mask, input * scale, 0.0)
