"""Calls that bngen takes, gathered to regions; no region waits for what waits for it.

In: an evaluated graph, and which of its calls can be taken. Out: every call's level, and the
regions.

Levels alternate: PyTorch runs its calls of level 0, bngen its regions of level 0, PyTorch its calls
of level 1, and so on. A call is at the first level that what it waits for allows. A region holds
calls of one level that hang together.

A result of the model that autograd follows ends its region: the caller may ask for its gradient,
or hook it, and so what is computed of it has to be another node of autograd's than the result.

What waits for what is more than data: a call that changes memory waits for those that read it
before, and is waited for by those that read it later; calls of which bngen does not know what they
do keep their order, and so do all calls of PyTorch around one that switches gradients or autocast.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable

import torch
import torch.nn.functional as F
from torch import fx

from bngen.torch_bridge.evaluation import is_certain, statistics, switches_mode
from bngen.torch_bridge.places import CALLS
from bngen.torch_bridge.support import is_known
from bngen.torch_bridge.sync_batch_norm import sync_batch_norm

MAPS = (torch.conv2d, F.batch_norm, sync_batch_norm, F.max_pool2d, F.avg_pool2d)
"""A region without any of these is left to PyTorch: there is nothing to gain."""

Edges = dict[fx.Node, list[fx.Node]]


class Partition:
    """A graph's calls by level.

    Attributes:
        level: of each node.
        regions: the calls of each region, in order.
    """

    def __init__(self, graph: fx.Graph, taken: Collection[fx.Node]):
        self._graph, self._edges = graph, order_of_effects(graph, taken)
        taken = set(taken)
        self._ends = _followed_results(graph)
        while True:
            self.level = self._levels(taken)
            self.regions = self._gathered(taken)
            left = [n for r in self.regions for n in (*_too_small(r), *_aliases(r))]
            if not left:
                break
            taken -= set(left)

    def _levels(self, taken: set[fx.Node]) -> dict[fx.Node, int]:
        level: dict[fx.Node, int] = {}
        for node in self._graph.nodes:
            found = 0
            for p in node.all_input_nodes:
                ends = p in self._ends and node.meta.get("requires_grad", False)
                found = max(found, level[p] + (p in taken and (ends or node not in taken)))
            for p in self._edges.get(node, ()):  # a region says nothing of the order inside it
                found = max(found, level[p] + (p in taken))
            level[node] = found
        return level

    def _gathered(self, taken: set[fx.Node]) -> list[list[fx.Node]]:
        """Calls of one level that hang together."""
        root: dict[fx.Node, fx.Node] = {}

        def find(n: fx.Node) -> fx.Node:
            while root[n] is not n:
                root[n] = root[root[n]]
                n = root[n]
            return n

        for node in self._graph.nodes:
            if node not in taken:
                continue
            root[node] = node
            for p in node.all_input_nodes:
                if p in taken and self.level[p] == self.level[node]:
                    root[find(node)] = find(p)
        regions: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        for node in root:
            regions[find(node)].append(node)
        return list(regions.values())


def _followed_results(graph: fx.Graph) -> set[fx.Node]:
    results = graph.output_node().all_input_nodes
    return {n for n in results if n.meta.get("requires_grad")}


def _too_small(region: list[fx.Node]) -> Iterable[fx.Node]:
    return () if any(n.target in MAPS for n in region) else region


def _aliases(region: list[fx.Node]) -> list[fx.Node]:
    """Views that leave a region while what they view is seen outside, too.

    A region's results are tensors of their own; that such two share memory would be lost.
    """
    inside = set(region)
    seen = [n for n in region if any(u not in inside for u in n.users)]
    seen += {i for n in region for i in n.all_input_nodes if i not in inside}
    count: dict[int, int] = defaultdict(int)
    for n in seen:
        count[n.meta.get("memory")] += 1
    found = []
    for n in region:
        memory = n.meta.get("memory")
        views = any(i.meta.get("memory") == memory for i in n.all_input_nodes)
        if memory is not None and n in seen and views and count[memory] > 1:
            found.append(n)
    return found


def order_of_effects(graph: fx.Graph, taken: Collection[fx.Node]) -> Edges:
    """What waits for what, besides data: node -> the nodes that come before it."""
    edges: Edges = defaultdict(list)
    _by_memory(graph, edges)
    uncertain = switch = None
    since: list[fx.Node] = []
    for node in graph.nodes:
        if node.op not in CALLS or node in taken:
            continue
        if switch is not None:
            edges[node].append(switch)
        if switches_mode(node):
            edges[node] += since
            switch, since = node, []
        since.append(node)
        if not is_certain(node, is_known):
            if uncertain is not None:
                edges[node].append(uncertain)
            uncertain = node
    return edges


def _by_memory(graph: fx.Graph, edges: Edges) -> None:
    """Whoever changes memory waits for its readers so far, and the later ones wait for him."""
    writes = {n: {w.meta["memory"] for w in (*n.meta.get("writes", ()), *statistics(n))}
              for n in graph.nodes}  # fmt: skip
    changed = set().union(*writes.values()) - {None}
    writer: dict[int, fx.Node] = {}
    readers: dict[int, list[fx.Node]] = defaultdict(list)
    for node in graph.nodes:
        touched = {i.meta.get("memory") for i in node.all_input_nodes} & changed
        for memory in touched:
            if memory in writer:
                edges[node].append(writer[memory])
            if memory in writes[node]:
                edges[node] += readers.pop(memory, ())
                writer[memory] = node
            else:
                readers[memory].append(node)
