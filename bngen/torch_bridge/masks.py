"""Dropout's masks, drawn by PyTorch's generator and handed to bngen as an operand.

In: a graph whose calls are functional. Out: the same, with dropout in two calls::

    y = dropout(x, p)    ->    m = keep_mask(shape of x, p); y = drop(x, m, p)

``torch.manual_seed`` then reproduces a run; the bits are not those of eager's dropout, which draws
in another way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import fx


def keep_mask(shape: Sequence[int], p: float) -> torch.Tensor:
    """True where an element is kept, with probability ``1 - p``."""
    return torch.empty(tuple(shape), dtype=torch.bool).bernoulli_(1.0 - p)


def drop(input: torch.Tensor, mask: torch.Tensor, p: float) -> torch.Tensor:
    """``input`` where ``mask`` holds, scaled by ``1 / (1 - p)``; zero elsewhere."""
    scale = 0.0 if p >= 1 else 1.0 / (1.0 - p)
    return torch.where(mask, input * scale, 0.0)


def draw_masks(graph: fx.Graph, apart: set[fx.Node]) -> None:
    """Split dropout in two.

    Args:
        graph: an evaluated graph.
        apart: nodes to leave alone.
    """
    for node in list(graph.nodes):
        if node.target not in (F.dropout, torch.dropout) or node in apart:
            continue
        names = ("input", "p", "training", "inplace")
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        p, training, x = given.get("p", 0.5), given.get("training", True), given["input"]
        if not training or not isinstance(p, float | int) or not 0 < p <= 1 or x in apart:
            continue
        value = x.meta["val"]
        if value.device.type != "cpu" or value.dtype != torch.float32:
            continue
        with graph.inserting_before(node):
            mask = graph.call_function(keep_mask, (tuple(value.shape), p))
            new = graph.call_function(drop, (x, mask, p))
        kept = value.new_empty(value.shape, dtype=torch.bool)
        mask.meta = {**node.meta, "requires_grad": False, "memory": None, "val": kept}
        new.meta = {**node.meta, "memory": None}
        node.replace_all_uses_with(new)
        graph.erase_node(node)
