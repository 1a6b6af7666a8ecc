"""In-place calls become functional ones where nobody can tell the difference.

In: an evaluated graph (see `evaluation`). Out: the same graph, edited.

Before::

    y = relu(b, inplace=True)        b, y are one tensor
    z = iadd(y, x); return cat(y, z)

After::

    y = relu(b); z = add(y, x); return cat(z, z)

What a call in place gives has the type of what it changes: where the functional one has another, as
``add`` of bfloat16 and float32, a conversion follows.

That goes for a view, too, where nobody reads later what it is a view of. A call stays what it is if
it changes one of the graph's inputs, or memory that is read later through another view of it, or
under ``torch.no_grad`` what has a gradient, which passes the change by; or if no functional call
takes the same arguments. PyTorch runs it, and nothing that shares its memory is taken by bngen.
"""

from __future__ import annotations

import itertools
import operator
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx

from bngen.torch_bridge.places import CALLS

_OPERATORS = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


def functionalize(graph: fx.Graph) -> set[fx.Node]:
    """Rewrite in-place calls.

    Returns:
        The nodes whose memory is changed by calls that stay in place.
    """
    aliases = _Aliases(graph)
    kept: set[int] = set()
    for node in list(graph.nodes):
        if not node.meta.get("writes"):
            continue
        call, value = _functional_call(node), None
        if call is not None and _is_private(node, aliases):
            value = _value(node, call)
        if value is not None:
            _rewrite(node, call, value, aliases)
        else:
            kept.update(m for w in node.meta["writes"] if (m := w.meta["memory"]) is not None)
    shared = {n for n in graph.nodes if n.meta.get("memory") in kept}
    return shared | {n for n in graph.nodes if n.meta.get("writes")}


class _Aliases:
    """Which nodes lie in the same memory, in order."""

    def __init__(self, graph: fx.Graph):
        self.order = {n: i for i, n in enumerate(graph.nodes)}
        self._of: dict[int, list[fx.Node]] = defaultdict(list)
        self._fresh = itertools.count(-1, -1)  # addresses are positive
        for node in graph.nodes:
            if (memory := node.meta.get("memory")) is not None:
                self._of[memory].append(node)

    def of(self, node: fx.Node) -> list[fx.Node]:
        """All in the memory of a node, itself included."""
        return self._of[node.meta["memory"]]

    def replace(self, node: fx.Node, new: fx.Node) -> None:
        """Let ``new`` take the place of ``node``, in memory of its own with all that came later."""
        memory, at = next(self._fresh), self.order[node]
        old = self.of(node)
        later = [n for n in old if self.order[n] > at]
        self._of[node.meta["memory"]] = [n for n in old if self.order[n] < at]
        self._of[memory] = [new, *later]
        self.order[new] = at
        new.meta["memory"] = memory
        for n in later:
            n.meta["memory"] = memory


class _Call(NamedTuple):
    """What computes the same as a call in place, and changes nothing."""

    target: Callable[..., Any] | str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def _functional_call(node: fx.Node) -> _Call | None:
    target = _functional_target(node)
    if target is None:
        return None
    args = list(node.args)
    if (at := _position(node)) is not None:
        args[at] = False
    return _Call(target, tuple(args), {k: v for k, v in node.kwargs.items() if k != "inplace"})


def _functional_target(node: fx.Node) -> Callable[..., Any] | str | None:
    if node.target in _OPERATORS:
        return _OPERATORS[node.target]
    if _flag(node):
        return node.target
    if isinstance(node.target, str):
        name = node.target[:-1]
        if node.op not in CALLS or name.startswith("_") or not _means_the_same(node):
            return None
        return name if callable(getattr(torch.Tensor, name, None)) else None
    name = getattr(node.target, "__name__", "")
    if not name.endswith("_") or node.kwargs.get("out") is not None:
        return None
    return getattr(torch, name[:-1], None) or getattr(F, name[:-1], None)


def _means_the_same(node: fx.Node) -> bool:
    """Whether the method without the underscore does.

    ``x.bernoulli()`` takes x itself for the probabilities, and ``x.bernoulli_()`` none of x.
    """
    if node.target != "bernoulli_":
        return True
    given = (*node.args[1:], *node.kwargs.values())
    return len(given) == 1 and isinstance(given[0], int | float)


def _value(node: fx.Node, call: _Call) -> torch.Tensor | None:
    """What a functional call gives, on types; None where it cannot take the place of ``node``."""
    args, kwargs = fx.node.map_arg((call.args, call.kwargs), lambda n: n.meta.get("val"))
    target, theirs, autocast = call.target, node.meta["val"], node.meta["autocast"]
    own = torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None)
    with torch.inference_mode(False), torch.no_grad(), theirs.fake_mode, own:
        try:
            if isinstance(target, str):
                value = getattr(args[0], target)(*args[1:], **kwargs)
            else:
                value = target(*args, **kwargs)
        except (RuntimeError, TypeError, ValueError):  # It has other arguments: nothing is lost.
            return None
    if not isinstance(value, torch.Tensor) or value.shape != theirs.shape:
        return None
    # Of comparisons in place autograd has gradients, which are zero; of others it has none.
    followed = value.dtype == theirs.dtype or value.is_floating_point()
    return value if followed or not node.meta["requires_grad"] else None


def _flag(node: fx.Node) -> bool:
    if "inplace" in node.kwargs:
        return bool(node.kwargs["inplace"])
    at = _position(node)
    return at is not None and bool(node.args[at])


def _position(node: fx.Node) -> int | None:
    """Where among a call's positional arguments ``inplace`` stands."""
    names = getattr(getattr(node.target, "__code__", None), "co_varnames", ())
    at = names.index("inplace") if "inplace" in names else None
    return at if at is not None and at < len(node.args) else None


def _is_private(node: fx.Node, aliases: _Aliases) -> bool:
    """Whether a call changes its first operand alone, and later calls can only see that one.

    All in the same memory must be made in the graph, and be the very same object or read no more.
    """
    target = node.args[0] if node.args else None
    if node.meta["writes"] != (target,) or target.meta["memory"] is None:
        return False
    if not isinstance(node.meta.get("val"), torch.Tensor):
        return False
    if node.meta["requires_grad"] and node.meta["unfollowed"]:
        return False
    at, same = aliases.order[node], node.meta["object"]
    before = [n for n in aliases.of(target) if aliases.order[n] <= at]
    return all(
        n.op in CALLS and (n.meta["object"] == same or all(aliases.order[u] <= at for u in n.users))
        for n in before
    )


def _rewrite(node: fx.Node, call: _Call, value: torch.Tensor, aliases: _Aliases) -> None:
    before = [n for n in aliases.of(node) if aliases.order[n] <= aliases.order[node]]
    made = [_inserted(node, call, value, aliases)]
    if value.dtype != node.meta["val"].dtype:
        kept = _Call("to", (made[0], node.meta["val"].dtype), {})
        made.append(_inserted(node, kept, node.meta["val"], aliases))
    new = made[-1]
    aliases.replace(node, new)
    for alias in before:
        for user in list(alias.users):
            if user not in made and aliases.order[user] >= aliases.order[node]:
                user.replace_input_with(alias, new)
                writes = user.meta.get("writes", ())
                user.meta["writes"] = tuple(new if w is alias else w for w in writes)
    node.graph.erase_node(node)


def _inserted(node: fx.Node, call: _Call, value: torch.Tensor, aliases: _Aliases) -> fx.Node:
    """A call ahead of ``node``, at the same place in the order."""
    graph = node.graph
    with graph.inserting_before(node):
        make = graph.call_method if isinstance(call.target, str) else graph.call_function
        new = make(call.target, call.args, call.kwargs)
    new.meta = {**node.meta, "val": value, "memory": None, "writes": ()}
    aliases.order[new] = aliases.order[node]
    return new
