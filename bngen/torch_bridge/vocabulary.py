"""PyTorch's calls in the words of bngen's language.

In: a node of a captured graph. Out: a function of bngen's language that takes PyTorch's arguments
(`translation`). bngen's language has PyTorch's names and arguments, so most calls are answered by
`ops.SPELLINGS`; `OWN` has the rest.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from bngen.lang import (
    activations,
    emission,
    image_norms,
    loss,
    normalization,
    places,
    pointwise,
    reductions,
    regression,
    shapes,
    tensor,
    windows,
    windows1d,
)
from bngen.lang.tensor import Tensor
from bngen.torch_bridge import masks
from bngen.torch_bridge.composed import COMPOSED
from bngen.torch_bridge.element_types import UnsupportedError, dtype_of
from bngen.torch_bridge.ops import Spelling, spelling_of
from bngen.torch_bridge.places import CALLS, called
from bngen.torch_bridge.sync_batch_norm import sync_batch_norm


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, **given: bool) -> Tensor:
    if not given.get("train", training) or p == 0:
        return input
    if p == 1:
        return input * 0.0
    raise UnsupportedError("dropout whose mask is not drawn by PyTorch's generator")


def _alpha_dropout(input: Tensor, p: float = 0.5, training: bool = False, **given: bool) -> Tensor:
    if given.get("train", training) and p != 0:
        raise UnsupportedError("alpha dropout in training")
    return input


def _masked(input: Tensor, mask: Tensor, p: float) -> Tensor:
    """Dropout with a mask that PyTorch has drawn; see `masks.drop`."""
    kept, dropped = (emission.constant(v, input.dtype) for v in (1.0 / (1.0 - p), 0.0))
    return input * pointwise.where(mask, kept, dropped)


def _same(input: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return input


def _getitem(value: Any, index: Any) -> Any:
    if isinstance(value, Tensor) and _holds_tensor(index):
        raise UnsupportedError("indexing by a tensor")
    return value[index]


def _holds_tensor(index: Any) -> bool:
    items = index if isinstance(index, tuple | list) else (index,)
    return any(isinstance(i, Tensor | list) for i in items)


# --- the table --------------------------------------------------------------------------------

OWN: dict[Any, Callable[..., Any]] = {
    masks.drop: _masked,
    sync_batch_norm: normalization.batch_norm,
    **dict.fromkeys(masks.DROPOUTS, _dropout),
    **dict.fromkeys(masks.ALPHA_DROPOUTS, _alpha_dropout),
    operator.getitem: _getitem,
    "contiguous": _same,
    "clone": _same,
    **COMPOSED,
}
"""Calls that the language has other words for than `ops.SPELLINGS` can tell."""


def translation(node: fx.Node) -> Callable[..., Any]:
    """What takes PyTorch's arguments and gives bngen's tensors.

    Raises:
        UnsupportedError: where there is nothing.
    """
    if node.op in CALLS:
        if node.target in OWN:
            return OWN[node.target]
        if spelling := spelling_of(node.target):
            return functools.partial(_spelled, spelling, node.target)
    raise UnsupportedError(f"bngen has no {called(node)}")


def _spelled(spelling: Spelling, target: Any, *args: Any, **kwargs: Any) -> Any:
    """Call the language's function of a spelling with PyTorch's arguments."""
    function = _function(spelling.language)
    given = dict(kwargs)
    names = _parameters(target) or _parameters(function)
    if len(args) > len(names):
        return function(*args, **kwargs)  # its own *args, as of Tensor.view
    given |= dict(zip(names, args, strict=False))
    first = names[0] if args else "input"
    if "dtype" in spelling.only and isinstance(given.get("dtype"), torch.dtype) and first in given:
        given[first] = given[first].to(dtype_of(given.pop("dtype")))  # which PyTorch does first
    if refused := spelling.refusal(given):
        raise UnsupportedError(refused)
    own = {n: v for n, v in given.items() if n not in spelling.only}
    names = _parameters(function)
    in_order = [own.pop(n) for n in list(names)[: len(args)] if n in own] if args else []
    if spelling.language in _OF_IMAGES and in_order and in_order[0].ndim == 3:
        batch = shapes.unsqueeze(in_order[0], 0)
        return shapes.squeeze(function(batch, *in_order[1:], **own), 0)
    return function(*in_order, **own)


_OF_IMAGES = {
    "conv2d", "conv_transpose2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
}  # fmt: skip
"""What PyTorch has of one image without a batch, too."""


_LANGUAGE = (
    pointwise, activations, normalization, image_norms, windows, reductions, shapes, places, loss,
    regression, tensor, windows1d,
)  # fmt: skip


@functools.cache
def _function(name: str) -> Callable[..., Any]:
    """A function of the language, or a method: ``relu``, ``Tensor.to``."""
    first, *rest = name.split(".")
    home = next(module for module in _LANGUAGE if hasattr(module, first))
    return functools.reduce(getattr, rest, getattr(home, first))


@functools.cache
def _parameters(function: Any) -> tuple[str, ...]:
    """Names of a Python function's parameters; none of a built-in one's."""
    code = getattr(inspect.unwrap(function) if callable(function) else None, "__code__", None)
    return () if code is None else code.co_varnames[: code.co_argcount]
