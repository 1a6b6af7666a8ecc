"""In-place calls become functional ones where nobody can tell the difference.

In: a captured graph whose nodes carry fake values (``meta["val"]``). Out: the same graph, edited.

Before::

    y = relu(b, inplace=True)        b, y are one tensor
    z = iadd(y, x); return cat(y, z)

After::

    y = relu(b); z = add(y, x); return cat(z, z)

A call that changes one of the graph's inputs, or a tensor of which a view is read later, stays what
it is: PyTorch runs it, and nothing that shares its memory is taken by bngen (`shared`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

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
    shared: set[fx.Node] = set()
    for node in list(graph.nodes):
        if not is_inplace(node):
            continue
        target = node.args[0]
        aliases = _aliases(graph, target, node)
        if isinstance(target, fx.Node) and _may_be_functional(node, aliases):
            _rewrite(node, aliases)
        else:
            shared |= aliases | {node}
    return shared


def is_inplace(node: fx.Node) -> bool:
    """Whether a call changes its first operand, running statistics aside."""
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__") or name == "__setitem__"
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", "")
    underscored = name.endswith("_") and not name.endswith("__") and not name.startswith("_")
    return (
        node.target in _OPERATORS
        or node.target in (operator.setitem, operator.ipow, operator.ifloordiv, operator.imod)
        or bool(_flag(node))
        or underscored
    )


def _flag(node: fx.Node) -> Any:
    if "inplace" in node.kwargs:
        return node.kwargs["inplace"]
    # Positional flags of torch.nn.functional: the last argument, by the function's signature.
    names = getattr(getattr(node.target, "__code__", None), "co_varnames", ())
    if "inplace" in names and names.index("inplace") < len(node.args):
        return node.args[names.index("inplace")]
    return False


def _functional_target(node: fx.Node) -> Callable[..., Any] | str | None:
    if node.target in _OPERATORS:
        return _OPERATORS[node.target]
    if _flag(node):
        return node.target
    if node.op == "call_method" and hasattr(torch.Tensor, str(node.target)[:-1]):
        return str(node.target)[:-1]
    name = getattr(node.target, "__name__", "")[:-1]
    return getattr(torch, name, None) if name else None


def _storage(node: fx.Node) -> int | None:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    try:
        return value.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # a tensor without a storage, as sparse ones are
        return None


def _aliases(graph: fx.Graph, target: Any, until: fx.Node) -> set[fx.Node]:
    """The nodes before ``until`` whose values lie in the memory of ``target``."""
    if not isinstance(target, fx.Node):
        return set()
    storage, found = _storage(target), {target}
    for node in graph.nodes:
        if node is until:
            break
        if storage is not None and _storage(node) == storage:
            found.add(node)
    return found


def _may_be_functional(node: fx.Node, aliases: set[fx.Node]) -> bool:
    """Whether all that shares the memory is the very same tensor, made in the graph."""
    target, result = node.args[0].meta["val"], node.meta["val"]
    if _functional_target(node) is None or not isinstance(result, torch.Tensor):
        return False
    if (result.shape, result.dtype) != (target.shape, target.dtype):
        return False
    same = all(
        a.op in ("call_function", "call_method")
        and (a.meta["val"].shape, a.meta["val"].stride()) == (target.shape, target.stride())
        and a.meta["val"].storage_offset() == target.storage_offset()
        for a in aliases
    )
    return same


def _rewrite(node: fx.Node, aliases: set[fx.Node]) -> None:
    graph = node.graph
    function = _functional_target(node)
    kwargs = {k: v for k, v in node.kwargs.items() if k != "inplace"}
    names = getattr(getattr(node.target, "__code__", None), "co_varnames", ())
    args = list(node.args)
    if "inplace" in names and names.index("inplace") < len(args):
        args[names.index("inplace")] = False
    with graph.inserting_before(node):
        method = isinstance(function, str)
        make = graph.call_method if method else graph.call_function
        new = make(function, tuple(args), kwargs)
    new.meta = dict(node.meta)
    # A value of its own: what shares memory with the old one is not what the new one shares.
    new.meta["val"] = node.meta["val"].clone()
    order = {n: i for i, n in enumerate(graph.nodes)}
    for alias in (*aliases, node):
        for user in list(alias.users):
            if user is not new and user is not node and order[user] > order[node]:
                user.replace_input_with(alias, new)
    graph.erase_node(node)
