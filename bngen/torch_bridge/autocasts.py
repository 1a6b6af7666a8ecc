"""``torch.autocast`` spelled out: what it casts, calls of the graph cast.

In: an evaluated graph whose calls are functional where they can be. Out: the same, edited::

    y = conv2d(x, w)                ->    x1 = x.to(bfloat16); w1 = w.to(bfloat16)
                                          y = conv2d(x1, w1)

Which calls autocast takes in which type is PyTorch's to say, and it is asked: a call is made on
types alone, with and without autocast, and the casts of its operands that only the first has made
are autocast's. Casts that it makes twice are made once, as its own cache does: once where autograd
follows them, and once where it does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from bngen.torch_bridge.evaluation import switches_mode, tensors_of, unlogged
from bngen.torch_bridge.places import CALLS, METHOD, MODULE
from bngen.torch_bridge.support import kind_of

Casts = tuple[torch.dtype | None, ...]


def spell_out(graph: fx.Graph) -> None:
    """Insert the casts that autocast makes.

    Args:
        graph: an evaluated graph.
    """
    changed = {w.meta["memory"] for n in graph.nodes for w in n.meta.get("writes", ())}
    tried: dict[Any, Casts] = {}
    made: dict[tuple[fx.Node, torch.dtype, bool], fx.Node] = {}
    for node in list(graph.nodes):
        if node.meta.get("autocast") is None or not _is_castable(node):
            continue
        key = node.meta["autocast"], kind_of(node)
        if key not in tried:
            tried[key] = _casts(node)
        for operand, dtype in zip(list(node.all_input_nodes), tried[key], strict=True):
            if dtype is None:
                continue
            like = operand, dtype, node.meta["unfollowed"]
            cast = made.get(like)
            if cast is None:
                cast = _cast(node, operand, dtype)
                if operand.meta.get("memory") not in changed:
                    made[like] = cast
            node.replace_input_with(operand, cast)


def _is_castable(node: fx.Node) -> bool:
    if node.op not in CALLS or node.op == MODULE or switches_mode(node) or node.meta.get("writes"):
        return False
    # What has graphs of its own, as a custom function has, casts in them.
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return False
    return any(t.is_floating_point() for t in tensors_of(node.meta.get("val")))


def _casts(node: fx.Node) -> Casts:
    """For each operand of a call the type that autocast casts it to, or None."""
    operands = node.all_input_nodes
    values = [i.meta.get("val") for i in operands]
    modes = {t.fake_mode for v in values for t in tensors_of(v) if isinstance(t, FakeTensor)}
    if len(modes) != 1:
        return (None,) * len(operands)
    with modes.pop(), torch.no_grad():
        # Of leaves autocast may have a copy from before.
        given = {i: _detached(v) for i, v in zip(operands, values, strict=True)}
        with torch.autocast("cpu", enabled=False):
            own = _made(node, given)
        with torch.autocast("cpu", node.meta["autocast"]):
            made = _made(node, given)
    return tuple(None if made.get(i) is own.get(i) else made[i] for i in operands)


def _made(node: fx.Node, given: Mapping[fx.Node, Any]) -> dict[fx.Node, torch.dtype]:
    """The casts of its operands that a call makes until it ends or is refused."""
    with unlogged(), _Watch(given) as watch:
        try:
            _call(node, given)
        except (RuntimeError, TypeError, ValueError):
            pass  # Without autocast, operands of two types.
    return watch.casts


def _detached(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(map(_detached, value))
    return value.detach() if isinstance(value, torch.Tensor) else value


class _Watch(TorchDispatchMode):
    """Notes casts of operands."""

    def __init__(self, given: Mapping[fx.Node, Any]):
        super().__init__()
        self._operands = {id(value): node for node, value in given.items()}
        self.casts: dict[fx.Node, torch.dtype] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        kwargs = kwargs or {}
        if function is torch.ops.aten._to_copy.default and id(args[0]) in self._operands:
            self.casts[self._operands[id(args[0])]] = kwargs.get("dtype", args[0].dtype)
        return function(*args, **kwargs)


def _call(node: fx.Node, given: Mapping[fx.Node, Any]) -> Any:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), given.__getitem__)
    if node.op == METHOD:
        return getattr(args[0], node.target)(*args[1:], **kwargs)
    return node.target(*args, **kwargs)


def _cast(node: fx.Node, operand: fx.Node, dtype: torch.dtype) -> fx.Node:
    with node.graph.inserting_before(node):
        cast = node.graph.call_method("to", (operand, dtype))
    value = operand.meta["val"]
    with value.fake_mode, torch.no_grad():
        new = value.detach().to(dtype)
    followed = bool(operand.meta.get("requires_grad")) and not node.meta["unfollowed"]
    cast.meta = {
        "val": new.requires_grad_(followed), "requires_grad": followed, "writes": (),
        "memory": None, "object": id(new), "unfollowed": node.meta["unfollowed"],
        "stack_trace": node.meta.get("stack_trace"),
    }  # fmt: skip
    return cast
