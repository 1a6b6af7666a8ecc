"""Which kernel has to wait for which, kept up to date while kernels grow.

In: the edges of a graph, and the groups of nodes that become one kernel, one after the other. Out:
whether a node has to wait for another. No kernel may wait for itself.

Nodes have *ranks* that increase along every edge; those of one kernel share a rank. What a node
leads to is looked for only up to the rank of the node that is asked about, and a new kernel changes
only ranks between those of its members, so that the work depends on how far apart they are and not
on how large the network is. The method is that of Pearce and Kelly, "A dynamic topological sort
algorithm for directed acyclic graphs" (ACM J. Exp. Algorithmics 11, 2006), with groups.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

Edges = Sequence[Sequence[int]]


class Precedence:
    """Ranks of the nodes of a graph, by position.

    Args:
        successors: for each node those that read it; all come after it.
        predecessors: the same edges the other way.
    """

    def __init__(self, successors: Edges, predecessors: Edges):
        self._successors, self._predecessors = successors, predecessors
        self._rank = list(range(len(successors)))
        self._group: dict[int, tuple[int, ...]] = {}

    def after(self, node: int) -> Downstream:
        """What has to wait for ``node``, as things are."""
        return Downstream(self, node)

    def group(self, node: int) -> tuple[int, ...]:
        """The nodes that run together with ``node``, itself included."""
        return self._group.get(node) or (node,)

    def join(self, members: Sequence[int]) -> None:
        """Make one kernel of nodes that belong to none; none of them waits for another's reader."""
        if len(members) < 2:
            return
        ranks = sorted(self._rank[m] for m in members)
        behind = self._closure(members, self._successors, ranks[0], ranks[-1])
        ahead = self._closure(members, self._predecessors, ranks[0], ranks[-1])
        if not behind.keys().isdisjoint(ahead):
            raise AssertionError("a kernel would wait for itself")
        pool = sorted({*ranks, *behind, *ahead})
        moved = [
            *zip(sorted(ahead), pool, strict=False),
            *zip(sorted(behind, reverse=True), reversed(pool), strict=False),
        ]
        for old, new in moved:
            for node in ahead.get(old) or behind[old]:
                self._rank[node] = new
        for member in members:
            self._rank[member] = pool[len(ahead)]
            self._group[member] = tuple(members)

    def _closure(
        self, members: Sequence[int], edges: Edges, low: int, high: int
    ) -> dict[int, tuple[int, ...]]:
        """Kernels that ``members`` lead to along edges, by rank, as far as these bounds."""
        found: dict[int, tuple[int, ...]] = {}
        own, work = set(members), list(members)
        while work:
            for node in edges[work.pop()]:
                rank = self._rank[node]
                if low <= rank <= high and rank not in found and node not in own:
                    found[rank] = self.group(node)
                    work += found[rank]
        return found


class Downstream:
    """What has to wait for a node; explored in the order of ranks, as far as it is asked about."""

    def __init__(self, precedence: Precedence, first: int):
        self._of = precedence
        self._found = {first}
        self._open: list[tuple[int, int]] = []
        self._expand(first)

    def __contains__(self, node: int) -> bool:
        rank = self._of._rank
        while self._open and self._open[0][0] <= rank[node]:
            self._expand(heapq.heappop(self._open)[1])
        return node in self._found

    def _expand(self, node: int) -> None:
        for mate in self._of.group(node):
            self._found.add(mate)
            for later in self._of._successors[mate]:
                if later not in self._found:
                    self._found.add(later)
                    heapq.heappush(self._open, (self._of._rank[later], later))
