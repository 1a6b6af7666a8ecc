"""In-place calls become functional ones where nobody can tell the difference.

In: an evaluated graph (see `evaluation`). Out: the same graph, edited.

Before::

    y = relu(b, inplace=True)        b, y are one tensor
    z = iadd(y, x); return cat(y, z)

After::

    y = relu(b); z = add(y, x); return cat(z, z)

That goes for a view, too, where nobody reads later what it is a view of. A call stays what it is if
it changes one of the graph's inputs, or memory that is read later through another view of it, or
under ``torch.no_grad`` what has a gradient, which passes the change by: PyTorch runs it, and
nothing that shares its memory is taken by bngen.
"""

from __future__ import annotations

import itertools
import operator
from collections import defaultdict
from collections.abc import Callable
from typing import Any

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
        function = _functional_target(node)
        if function is not None and _is_private(node, aliases):
            _rewrite(node, function, aliases)
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


def _functional_target(node: fx.Node) -> Callable[..., Any] | str | None:
    """What computes the same and changes nothing."""
    if node.target in _OPERATORS:
        return _OPERATORS[node.target]
    if _flag(node):
        return node.target
    if isinstance(node.target, str):
        name = node.target[:-1]
        known = node.op in CALLS and not name.startswith("_") and hasattr(torch.Tensor, name)
        return name if known else None
    name = getattr(node.target, "__name__", "")
    if not name.endswith("_") or node.kwargs.get("out") is not None:
        return None
    return getattr(torch, name[:-1], None) or getattr(F, name[:-1], None)


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
    result = node.meta["val"]
    if not isinstance(result, torch.Tensor) or result.dtype != target.meta["val"].dtype:
        return False
    if node.meta["requires_grad"] and node.meta["unfollowed"]:
        return False
    at, same = aliases.order[node], node.meta["object"]
    before = [n for n in aliases.of(target) if aliases.order[n] <= at]
    return all(
        n.op in CALLS and (n.meta["object"] == same or all(aliases.order[u] <= at for u in n.users))
        for n in before
    )


def _rewrite(node: fx.Node, function: Callable[..., Any] | str, aliases: _Aliases) -> None:
    kwargs = {k: v for k, v in node.kwargs.items() if k != "inplace"}
    args = list(node.args)
    if (at := _position(node)) is not None:
        args[at] = False
    before = [n for n in aliases.of(node) if aliases.order[n] <= aliases.order[node]]
    with node.graph.inserting_before(node):
        make = node.graph.call_method if isinstance(function, str) else node.graph.call_function
        new = make(function, tuple(args), kwargs)
    new.meta = {**node.meta, "writes": ()}
    aliases.replace(node, new)
    for alias in before:
        for user in list(alias.users):
            if user is not new and aliases.order[user] >= aliases.order[node]:
                user.replace_input_with(alias, new)
                writes = user.meta.get("writes", ())
                user.meta["writes"] = tuple(new if w is alias else w for w in writes)
    node.graph.erase_node(node)
