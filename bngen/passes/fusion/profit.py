"""Does it *pay* to share a kernel? Counted in sweeps over feature maps, and in ops done again.

In: decisions that are final for all nodes up to the one asked about. Out: the reason why not, or
None. Nothing here is about correctness: any answer gives a right program.

A value that is left virtual is computed again by each kernel that reads it: with ``maps`` feature
maps behind it and ``times`` such kernels that is ``maps * times`` sweeps. Stored, it takes ``maps``
sweeps to read them, one to write it, and ``times`` to read it.
"""

from __future__ import annotations

from collections.abc import Iterable

from bngen.ir.node import Node
from bngen.ir.types import Value
from bngen.passes.fusion.dataflow import is_pointwise, is_small
from bngen.passes.fusion.state import Cut

MOST_OPS = 96
"""Ops from which on a kernel takes no more; what its last op reads may add `MOST_OPS_AGAIN`.

A map written and read again costs little beside so many, and compiling takes more than linear time.
"""

MOST_OPS_AGAIN = 24
"""Ops behind a value that several nodes read, and that each of them would compute again."""

_MANY = 4
"""Where counting ends: so many feature maps or readers never pay, if there are two of the other."""

SWEEPS = "computing it again sweeps more feature maps than storing it"
LONG = f"a kernel of {MOST_OPS} ops takes no more"
AGAIN = f"of a value with several readers at most {MOST_OPS_AGAIN} ops are computed again"


class Costs:
    """What recomputing costs, node by node in the graph's order.

    ``_maps`` holds for each pointwise node that was `settle`d the materialized feature maps it is
    computed from, ``_ops`` the positions of the nodes that this takes; neither beyond what changes
    an answer.
    """

    def __init__(self, cut: Cut):
        self._cut, self._order = cut, cut.flow.order
        self._maps: dict[Node, frozenset[Value]] = {}
        self._ops: dict[Node, frozenset[int]] = {}
        self._loaders = _Loaders(cut)

    def settle(self, node: Node) -> None:
        """Count for a pointwise node, after all that it reads has been decided."""
        maps: frozenset[Value] = frozenset().union(*map(self._maps_of, node.operands))
        self._maps[node] = maps if len(maps) <= _MANY else frozenset(list(maps)[:_MANY])
        ops = frozenset((self._order[node],) if node.operands else ())
        self._ops[node] = ops.union(*map(self.ops_of, node.operands))

    def _is_virtual(self, v: Value) -> bool:
        node = self._cut.flow.producer.get(v)
        return node is not None and v not in self._cut.stored and is_pointwise(node)

    def _maps_of(self, v: Value) -> frozenset[Value]:
        if is_small(v):
            return frozenset()
        return self._maps[self._cut.flow.producer[v]] if self._is_virtual(v) else frozenset((v,))

    def ops_of(self, v: Value) -> frozenset[int]:
        """Positions of the ops that a kernel computes to read ``v``."""
        return self._ops[self._cut.flow.producer[v]] if self._is_virtual(v) else frozenset()

    def claimed(self, nodes: Iterable[Node]) -> None:
        """These nodes write to memory from now on."""
        self._loaders.forget(nodes)

    # --- rules --------------------------------------------------------------------------------

    def too_long(self, node: Node, readers: tuple[Node, ...]) -> str | None:
        """Why a settled node is stored, if that is for the number of ops that lie behind it."""
        ops = self._ops[node]
        if len(readers) > 1 and len(ops) > MOST_OPS_AGAIN:
            return AGAIN
        bodies = [len(ops | draft.held) for draft in self._cut.owners(readers)]
        return LONG if max(bodies, default=0) > MOST_OPS or len(ops) >= MOST_OPS else None

    def too_many_sweeps(self, node: Node) -> str | None:
        """Why a settled node is stored, if that is for the feature maps behind it."""
        maps = len(self._maps[node])
        if maps <= 1:
            return None
        times = self._loaders.count(node)
        return SWEEPS if maps * times > maps + 1 + times else None

    def joining(self, held: frozenset[int], node: Node) -> str | None:
        """Why a kernel that computes the ops ``held`` would rather not compute ``node`` as well."""
        return LONG if len(held | self.taking(node)) > MOST_OPS else None

    def taking(self, node: Node) -> frozenset[int]:
        """Positions of a node and of the ops its operands take, as far as those are settled."""
        virtual = [self._ops.get(n, frozenset()) for n in self._virtual_operands(node)]
        return frozenset((self._order[node],)).union(*virtual)

    def _virtual_operands(self, node: Node) -> list[Node]:
        return [self._cut.flow.producer[v] for v in node.operands if self._is_virtual(v)]


class _Loaders:
    """How many nodes will load a value, looking through pointwise readers that are not stored.

    Counted once for each node and kept until a node downstream is stored.
    """

    def __init__(self, cut: Cut):
        self._cut = cut
        self._known: dict[Node, frozenset[Node]] = {}

    def count(self, node: Node) -> int:
        """Nodes that will load the first result of ``node``; from `_MANY` on no matter how many."""
        work = [node]
        while work:
            missing = [r for r in self._through(work[-1]) if r not in self._known]
            if missing:
                work += missing
            else:
                done = work.pop()
                self._known[done] = self._combined(done)
        return len(self._known[node])

    def _through(self, node: Node) -> list[Node]:
        return [r for r in self._cut.flow.readers(node.out) if self._is_passed(r)]

    def _is_passed(self, reader: Node) -> bool:
        waits = is_pointwise(reader) and reader not in self._cut.written
        return waits and not is_small(reader.out) and bool(self._cut.flow.readers(reader.out))

    def _combined(self, node: Node) -> frozenset[Node]:
        found: set[Node] = set()
        for reader in self._cut.flow.readers(node.out):
            found |= self._known[reader] if self._is_passed(reader) else {reader}
            if len(found) >= _MANY:
                break
        return frozenset(found)

    def forget(self, nodes: Iterable[Node]) -> None:
        """Count anew what lies before nodes that are stored from now on."""
        if not self._known:
            return
        work = list(nodes)
        while work:
            for v in work.pop().operands:
                before = self._cut.flow.producer.get(v)
                if before in self._known:
                    del self._known[before]
                    work.append(before)
