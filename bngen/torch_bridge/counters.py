"""Counters of batches, one of each batch normalization: counted together.

In: a graph with the calls that PyTorch runs. Out: the same, with one call for all counters that
nobody reads. Each by itself costs a step of a small network as much as one of its kernels.
"""

from __future__ import annotations

import torch
from torch import fx

from bngen.torch_bridge.places import CALLS


def is_counter(node: fx.Node) -> bool:
    """Whether a buffer is one number of an integer type, as batch normalizations have."""
    value = node.meta["val"]
    return node.op not in CALLS and not value.ndim and not value.dtype.is_floating_point


def count_together(graph: fx.Graph) -> None:
    """Replace ``counter.add_(1)`` of counters that are only counted by one call for all."""
    alone: dict[int, list[fx.Node]] = {}
    for node in graph.nodes:
        if _counts(node) and all(map(_counts, node.args[0].users)):
            alone.setdefault(node.args[1], []).append(node)
    for number, nodes in alone.items():
        if len(nodes) > 1:
            with graph.inserting_before(nodes[0]):
                counters = [node.args[0] for node in nodes]
                graph.call_function(torch._foreach_add_, (counters, number))
            for node in nodes:
                graph.erase_node(node)


def _counts(node: fx.Node) -> bool:
    if (node.op, node.target) != ("call_method", "add_") or node.kwargs or node.users:
        return False
    counter, number = node.args
    return type(number) is int and isinstance(counter, fx.Node) and is_counter(counter)
