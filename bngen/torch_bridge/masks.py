"""Random masks, drawn by PyTorch's generator and handed to bngen as operands.

In: a graph whose calls are functional. Out: the same, with dropout in two calls, and with tensors
that are made in the likeness of another made by themselves, so that no mask waits for feature maps:

    y = dropout(x, p)              ->    m = keep_mask(sizes of x, p); y = drop(x, m, p)
    m = x.new_empty(sizes)         ->    m = empty(sizes); m = m.bernoulli(p)
    m = m.bernoulli_(p)

Masks are drawn in the program's order, and each in the memory order that eager's has: for one seed
they are eager's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from bngen.torch_bridge.element_types import UnsupportedError, type_of
from bngen.torch_bridge.places import FUNCTION

DROPOUTS: dict[Any, tuple[int, ...] | None] = {
    F.dropout: None,
    torch.dropout: None,
    F.dropout1d: (3,),
    F.dropout2d: (3, 4),
    F.dropout3d: (5,),
    torch.feature_dropout: (2, 3, 4, 5),
}
"""Of those that drop whole channels, ranks that are taken; to others PyTorch adds an axis first."""


DRAWS = (
    torch.bernoulli, "bernoulli", torch.rand, torch.randn, torch.rand_like, torch.randn_like,
)  # fmt: skip
"""Other calls that draw random numbers."""

ALPHA_DROPOUTS = (
    F.alpha_dropout, torch.alpha_dropout, F.feature_alpha_dropout, torch.feature_alpha_dropout,
)  # fmt: skip
"""Those whose masks PyTorch draws by itself."""


def may_draw(node: fx.Node) -> bool:
    """Whether PyTorch may draw random numbers where it runs a call that bngen has without."""
    return node.target in DROPOUTS or node.target in (*ALPHA_DROPOUTS, F.rrelu, torch.rrelu)


def keep_mask(shape: Sequence[int], stride: Sequence[int], p: float) -> torch.Tensor:
    """True where something is kept, with probability ``1 - p``."""
    return torch.empty_strided(tuple(shape), tuple(stride), dtype=torch.bool).bernoulli_(1.0 - p)


def drop(input: torch.Tensor, mask: torch.Tensor, p: float) -> torch.Tensor:
    """``input * mask / (1 - p)``."""
    return input * mask.to(input.dtype).div_(1.0 - p)


def draw_masks(graph: fx.Graph, apart: set[fx.Node]) -> None:
    """Split dropout in two, and let no tensor wait for one that it has only its type from.

    Args:
        graph: an evaluated graph.
        apart: nodes whose memory is changed in place, to leave alone.
    """
    for node in list(graph.nodes):
        if node.target in DROPOUTS and node not in apart:
            _split(node, apart)
        elif node.target in _LIKE:
            _make_by_itself(node)


def _split(node: fx.Node, apart: set[fx.Node]) -> None:
    ranks = DROPOUTS[node.target]
    names = ("input", "p", "train" if isinstance(node.target, _BUILT_IN) else "training")
    given = {"p": 0.5, names[2]: True, **dict(zip(names, node.args, strict=False)), **node.kwargs}
    x, p, training = (given[name] for name in names)
    if training is not True or not isinstance(p, float | int) or not 0 < p < 1 or x in apart:
        return
    value = x.meta["val"]
    try:
        taken = type_of(value).is_float and (ranks is None or value.ndim in ranks)
    except UnsupportedError:
        return
    if not taken:
        return
    with value.fake_mode:
        kept = torch.empty_like(value, dtype=torch.bool)
        if ranks:
            kept = kept.new_empty((*value.shape[:2], *(1,) * (value.ndim - 2)))
    with node.graph.inserting_before(node):
        mask = node.graph.call_function(keep_mask, (tuple(kept.shape), kept.stride(), p))
        new = node.graph.call_function(drop, (x, mask, p))
    mask.meta = {**node.meta, "requires_grad": False, "memory": None, "val": kept}
    new.meta = {**node.meta, "memory": None}
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)


_BUILT_IN = type(torch.dropout)

_LIKE: dict[Any, Callable[..., torch.Tensor]] = {
    "new_empty": torch.empty, "new_zeros": torch.zeros, "new_ones": torch.ones,
    "new_full": torch.full,
    torch.empty_like: torch.empty, torch.zeros_like: torch.zeros, torch.ones_like: torch.ones,
    torch.full_like: torch.full, torch.rand_like: torch.rand, torch.randn_like: torch.randn,
}  # fmt: skip
"""What has nothing but sizes and type of its first argument; the same from sizes."""


def _make_by_itself(node: fx.Node) -> None:
    value = node.meta["val"]
    if value.layout != torch.strided or not value.is_contiguous() or value.requires_grad:
        return
    fill: tuple[Any, ...] = ()
    if node.target in ("new_full", torch.full_like):
        at = 2 if isinstance(node.target, str) else 1
        fill = (node.args[at] if len(node.args) > at else node.kwargs["fill_value"],)
    if any(isinstance(a, fx.Node) for a in fill):
        return
    node.op, node.target = FUNCTION, _LIKE[node.target]
    node.args = (tuple(value.shape), *fill)
    node.kwargs = {"dtype": value.dtype, "device": value.device}
