"""Which calls bngen takes, and of the others why not.

In: an evaluated graph whose calls are functional where they can be. Out: a reason for each call
that PyTorch runs. Calls of one kind, on operands of the same types, are tried once.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from bngen.torch_bridge import masks
from bngen.torch_bridge.counters import is_counter
from bngen.torch_bridge.element_types import UnsupportedError
from bngen.torch_bridge.places import CALLS
from bngen.torch_bridge.translate import refusal
from bngen.torch_bridge.vocabulary import translation

WRITES = "it changes a tensor in place that others read"
COUNTS = "it counts batches, which costs nothing"
SHARES = "it shares memory with a tensor that is changed in place"
VIEW = "a view of an input, which costs nothing"
COPY = "a copy of an input, which may be changed before backward"
RANDOM = "PyTorch's generator draws random numbers"
PART = "a part of what PyTorch computes"


def reasons(graph: fx.Graph, shared: set[fx.Node]) -> dict[fx.Node, str]:
    """Why PyTorch runs what it has to.

    Args:
        graph: the graph.
        shared: nodes whose memory is changed by calls that stay in place.
    """
    inputs = {n.meta["memory"] for n in graph.nodes if n.op not in CALLS and n.users}
    inputs.discard(None)
    tried: dict[Any, str | None] = {}
    found: dict[fx.Node, str] = {}
    for node in graph.nodes:
        if node.op not in CALLS:
            continue
        if node.meta.get("writes"):
            why: str | None = COUNTS if all(map(is_counter, node.meta["writes"])) else WRITES
        elif node in shared or not shared.isdisjoint(node.all_input_nodes):
            why = SHARES
        elif node.meta.get("memory") in inputs:
            why = VIEW
        elif _copies(node) and node.all_input_nodes[0].meta.get("memory") in inputs:
            why = COPY
        elif node.target is operator.getitem and node.args[0] in found:
            why = PART
        elif node.target in (masks.keep_mask, *masks.DRAWS):
            why = RANDOM
        else:
            why = _tried(node, tried)
        if why is not None:
            found[node] = why
    return found | _halves(graph, found)


def _copies(node: fx.Node) -> bool:
    flags = [a for a in node.args if isinstance(a, bool)]  # of "to": non_blocking, copy
    asked = node.kwargs.get("copy") or (node.target == "to" and flags[1:] == [True])
    return node.target in ("clone", torch.clone) or bool(asked)


def _tried(node: fx.Node, tried: dict[Any, str | None]) -> str | None:
    key = kind_of(node)
    if key not in tried:
        tried[key] = refusal(node)
    return tried[key]


def kind_of(node: fx.Node) -> Any:
    """All that the types of a call depend on; its operands are told apart by their place."""
    number: dict[fx.Node, int] = {}

    def described(n: fx.Node) -> Any:
        return ("operand", number.setdefault(n, len(number)))

    arguments = fx.node.map_arg((node.args, node.kwargs), described)
    return node.op, node.target, repr(arguments), _type(node), tuple(map(_type, number))


def _type(node: fx.Node) -> str:
    value = node.meta.get("val")
    parts = value if isinstance(value, tuple | list) else (value,)
    return repr([(type(p), p.shape, p.dtype, p.device, p.layout)
                 if isinstance(p, torch.Tensor) else p for p in parts])  # fmt: skip


def _halves(graph: fx.Graph, found: dict[fx.Node, str]) -> dict[fx.Node, str]:
    """Calls with several results of which PyTorch needs the tuple, and the parts of those."""
    more: dict[fx.Node, str] = {}
    for node in graph.nodes:
        if node in found or not isinstance(node.meta.get("val"), tuple | list):
            continue
        if any(u.target is not operator.getitem or u in found for u in node.users):
            more |= {node: PART, **{u: PART for u in node.users if u.op in CALLS}}
    return more


def is_known(node: fx.Node) -> bool:
    """Whether bngen's table has the call, and it does nothing but give its result."""
    try:
        translation(node)
    except UnsupportedError:
        return False
    return not masks.may_draw(node)
