"""Fusion: which sub-layer joins which convolution, found by dataflow.

In: a graph after fission and layout. Out: a `KernelPlan`.

The question is only which values are *materialized*, and by whom. Every kernel is built around an
anchor (a convolution, a pool, a reduction, a copy, or a pointwise result that has to be stored).
Its **store slot** takes what can be computed from the anchor's result the moment it is written:
pointwise ops, partial sums over ``n h w``. A pointwise value that nobody stores is *virtual*: its
readers recompute it in their **load slots**.

::

    before                                        after (BNFF)
    z = conv2d(x, w)                              kernel: conv2d, bn_partial_stats -> z, s, m2
    s, m2 = bn_partial_stats(z)                   kernel: bn_merge_stats           -> mean, var
    mean, var = bn_merge_stats(s, m2)             kernel: bn_normalize, relu, conv2d -> z2
    y = relu(bn_normalize(z, mean, var, ...))     (y is virtual: no memory)
    z2 = conv2d(y, w2)

No op is named here: what may join is a property of its kind (see `bngen.ir.ops`). A value is left
virtual when recomputing it moves fewer feature maps through memory than storing it would.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bngen.ir.node import Graph, Node
from bngen.ir.ops import OPS
from bngen.ir.types import Value
from bngen.plan.calls import Call, backward_kernels, divided, nodes_given
from bngen.plan.kernel import Kernel, KernelPlan, Refusal
from bngen.plan.layout import Blocked, Layout, Plain


@dataclass(frozen=True)
class FusionLevel:
    """Which of the paper's restructurings are on; each level holds the ones before it.

    Attributes:
        name: as in ``fusion=``.
        load: pointwise ops join the loads of the convolution that follows (RCF).
        one_sweep: mean and variance in one reduction (MVF).
        channel: sub-layers with batch statistics join loads and stores (BNFF).
        across: the same across concatenations, residual sums and pools (ICF).
    """

    name: str
    load: bool = False
    one_sweep: bool = False
    channel: bool = False
    across: bool = False


LEVELS: dict[str, FusionLevel] = {
    level.name: level
    for level in (
        FusionLevel("none"),
        FusionLevel("rcf", True),
        FusionLevel("mvf", True, True),
        FusionLevel("bnff", True, True, True),
        FusionLevel("icf", True, True, True, True),
    )
}


def is_small(v: Value) -> bool:
    """A value without pixels: a scalar, a vector, or ``[1,C,1,1]``."""
    return len(v.shape) < 2 or (len(v.shape) == 4 and v.type.size == v.shape[1])


def is_partial_reduction(node: Node) -> bool:
    """A reduction that a store loop can hold: over the pixels of each group of rows."""
    return node.row.is_partial


def moves_no_data(node: Node, layouts: dict[Value, Layout], inputs: frozenset[Value]) -> bool:
    """Whether a reshape or slice is only an offset into its operand's memory."""
    x = node.inputs[0]
    if node.op == "reshape":
        return isinstance(layouts[x], Plain) == isinstance(layouts[node.out], Plain)
    if node.op != "slice" or x in inputs:
        return False
    layout = layouts[x]
    along = node.attrs["axis"] == (0 if len(x.shape) == 1 else 1)
    if not isinstance(layout, Blocked) or not along:
        return False
    return layout.slice(node.attrs["start"], node.attrs["stop"]) is not None


def fuse(
    graph: Graph,
    layouts: dict[Value, Layout],
    level: FusionLevel,
    late: frozenset[Value] | None = None,
) -> KernelPlan:
    """Cut a graph into kernels.

    Args:
        graph: after `assign_layouts`; with ``level.across``, after `place_concatenations`.
        layouts: layout of every value.
        level: what may be joined.
        late: inputs that come with a second call; no kernel of the first may need them. None where
            there is no such call.
    """
    return _Fusion(graph, layouts, level, late).plan()


class _Fusion:
    """The decisions under way.

    ``kernel_of`` maps every node that writes to memory to its kernel's number; ``stored`` holds the
    materialized values, ``virtual`` nodes that live inside kernels only. ``successors`` and
    ``mates`` (of the same kernel) are lists of nodes by position in the graph.
    """

    def __init__(
        self,
        graph: Graph,
        layouts: dict[Value, Layout],
        level: FusionLevel,
        late: frozenset[Value] | None,
    ):
        self.graph, self.layouts, self.level = graph, layouts, level
        self.producer = graph.producers()
        self.consumers = graph.consumers()
        self.order = {n: i for i, n in enumerate(graph.nodes)}
        self.successors = [
            [self.order[r] for v in n.outputs for r in self.consumers.get(v, ())]
            for n in graph.nodes
        ]
        self.mates: dict[int, list[int]] = {}
        self.results = set(graph.results())
        self.inputs = frozenset(graph.input_values())
        self.stored: set[Value] = set(self.inputs)
        self.kernel_of: dict[Node, int] = {}
        self.virtual: set[Node] = set()
        self.members: list[list[Node]] = []
        self.anchors: list[Node] = []
        self.refused: list[Refusal] = []
        self.views = {n for n in graph.nodes if self.is_view(n)}
        self.cotangents = late
        self.late = nodes_given(graph, late or ())

    def plan(self) -> KernelPlan:
        """Anchors first, in order, each with its store slot; then what is left over."""
        pointwise = []
        for node in self.graph.nodes:
            if node in self.views:
                continue
            if OPS[node.op].kind == "pointwise":
                pointwise.append(node)
            elif node not in self.kernel_of:
                self.open_kernel(node)
        for node in pointwise:
            taken = node in self.kernel_of or node in self.virtual
            if not taken and not self.may_be_virtual(node):
                self.open_kernel(node)
        kernels, calls = self.ordered([self.close_kernel(i) for i in range(len(self.anchors))])
        views = tuple(n for n in self.graph.nodes if n in self.views)
        refused = tuple(self.refused)
        return KernelPlan(self.graph, kernels, views, dict(self.layouts), refused, calls)

    # --- properties ---------------------------------------------------------------------------

    def is_view(self, node: Node) -> bool:
        if OPS[node.op].kind != "view":
            return False
        if node.op == "cat":
            return self.level.across and is_placed(node, self.graph, self.layouts)
        return moves_no_data(node, self.layouts, self.inputs)

    def refuse(self, a: Node, b: Node, why: str) -> bool:
        self.refused.append(Refusal(a.out.name, b.out.name, why))
        return False

    # --- virtual values -----------------------------------------------------------------------

    def is_free(self, node: Node) -> bool:
        """Pointwise results that never deserve memory: masks, constants, identities."""
        out = node.out
        identity = node.op in ("stop_gradient", "broadcast_to")
        return out.dtype == "bool" or not node.operands or identity

    def may_be_virtual(self, node: Node) -> bool:
        """Whether every reader recomputes this pointwise value rather than load it."""
        if len(node.outputs) > 1 or any(v in self.results for v in node.outputs):
            return False
        readers = self.consumers.get(node.out, ())
        if not readers:
            return True
        if any(r in self.views for r in readers):
            return False
        if self.is_free(node):
            return True
        if is_small(node.out) or not self.level.load:
            return False
        return all(self.may_load(node, r) for r in readers) and self.recomputing_pays(node, readers)

    def may_load(self, node: Node, reader: Node) -> bool:
        """Whether the switches allow ``reader`` to recompute ``node`` as it loads."""
        kind = OPS[reader.op].kind
        if self.level.across:
            return True
        if kind not in ("contract", "pointwise") and not is_partial_reduction(reader):
            return self.refuse(node, reader, f"{reader.op} loads stored values below icf")
        if OPS[node.op].channel and not self.level.channel:
            return self.refuse(node, reader, "batch statistics join loads from bnff on")
        if self.is_residual(node) or (kind == "pointwise" and self.is_residual(reader)):
            return self.refuse(node, reader, "sums of feature maps are joined from icf on")
        return True

    def is_residual(self, node: Node) -> bool:
        """A pointwise op over two feature maps, other than a gradient and its deferred half."""
        maps = [v for v in node.operands if not is_small(v) and v.dtype != "bool"]
        deferred = any(self.producer[v].op == "bn_grad_affine" for v in maps if v in self.producer)
        return len(set(maps)) > 1 and not deferred

    def leaves(self, v: Value) -> set[Value]:
        """Materialized feature maps that recomputing ``v`` reads."""
        found: set[Value] = set()
        seen, work = {v}, [v]
        while work:
            u = work.pop()
            if is_small(u):
                continue
            node = self.producer.get(u)
            if node is None or u in self.stored or OPS[node.op].kind != "pointwise":
                found.add(u)
                continue
            work += [w for w in node.operands if w not in seen]
            seen.update(node.operands)
        return found

    def recomputing_pays(self, node: Node, readers: tuple[Node, ...]) -> bool:
        """Sweeps over feature maps: read the leaves per reader, or store once and read that."""
        reads = len(self.leaves(node.out))
        if reads <= 1:
            return True
        times = len(self.ultimate_readers(node))
        if times * reads < reads + 2 + times:
            return True
        return self.refuse(
            node, readers[0], f"{times} readers of {reads} feature maps cost more than storing one"
        )

    def ultimate_readers(self, node: Node) -> set[Node]:
        """Nodes that will load ``node``, looking through pointwise readers that are not stored."""
        found: set[Node] = set()
        seen, work = {node}, [node]
        while work:
            for r in self.consumers.get(work.pop().out, ()):
                pointwise = OPS[r.op].kind == "pointwise"
                through = pointwise and r not in self.kernel_of and not is_small(r.out)
                if not (through and self.consumers.get(r.out)):
                    found.add(r)
                elif r not in seen:
                    seen.add(r)
                    work.append(r)
        return found

    # --- store slots --------------------------------------------------------------------------

    def open_kernel(self, anchor: Node) -> None:
        """Make a kernel of ``anchor`` and of what its store slot takes."""
        number = len(self.anchors)
        self.anchors.append(anchor)
        self.members.append([anchor])
        self.kernel_of[anchor] = number
        self.mates[self.order[anchor]] = [self.order[anchor]]
        joined = self.store_slot(anchor) if self.takes_store_slot(anchor) else []
        inside = [anchor, *joined]
        self.assign(number, anchor, inside)

    def takes_store_slot(self, anchor: Node) -> bool:
        row = OPS[anchor.op]
        if is_small(anchor.out) and len(anchor.out.shape) == 1:
            return row.kind != "copy"
        if row.kind == "contract":
            return self.level.channel and anchor.op != "conv2d_grad_weight"
        return self.level.across and row.kind in ("window", "pointwise")

    def store_slot(self, anchor: Node) -> list[Node]:
        """Every node that can be computed as the anchor's result is written, in graph order."""
        inside = set(anchor.outputs)
        later: set[int] | None = None
        joined: list[Node] = []
        for node in self.candidates(anchor):
            if inside.isdisjoint(node.operands):
                continue
            if not self.fits_domain(node, anchor):
                continue
            outside = [v for v in node.operands if v not in inside and v in self.producer]
            if outside and later is None:
                later = self.descendants(anchor)
            if any(self.order[self.producer[v]] in later for v in outside):
                continue
            joined.append(node)
            if OPS[node.op].kind == "pointwise":
                inside.update(node.outputs)
        return joined

    def candidates(self, anchor: Node) -> Iterable[Node]:
        """Unassigned nodes downstream of the anchor through pointwise ops, in graph order."""
        found: set[Node] = set()
        work = [r for v in anchor.outputs for r in self.consumers.get(v, ())]
        while work:
            node = work.pop()
            kind = OPS[node.op].kind
            if node in found or node in self.kernel_of:
                continue
            if node in self.virtual or node in self.views:
                continue
            if node in self.late and anchor not in self.late:
                continue
            if kind == "pointwise" or is_partial_reduction(node):
                found.add(node)
                if kind == "pointwise":
                    work += [r for v in node.outputs for r in self.consumers.get(v, ())]
        return sorted(found, key=self.order.__getitem__)

    def fits_domain(self, node: Node, anchor: Node) -> bool:
        """Whether the node's loop runs over exactly the anchor's result."""
        domain, layout = anchor.out.shape, self.layouts[anchor.out]
        if is_partial_reduction(node):
            return node.inputs[0].shape == domain and self.layouts[node.inputs[0]] == layout
        if not self.level.across and self.is_residual(node):
            return self.refuse(anchor, node, "sums of feature maps are joined from icf on")
        return all(v.shape == domain and self.layouts[v] == layout for v in node.outputs)

    def descendants(self, anchor: Node) -> set[int]:
        """What cannot run before ``anchor``'s kernel has, given the kernels made so far.

        By position in the graph: hashing nodes would take most of a large network's planning time.
        """
        first = self.order[anchor]
        found, work = {first}, [first]
        while work:
            i = work.pop()
            kernel = self.mates.get(i, (i,))
            found.update(kernel)
            for mate in kernel:
                for later in self.successors[mate]:
                    if later not in found:
                        found.add(later)
                        work.append(later)
        return found

    def assign(self, number: int, anchor: Node, inside: list[Node]) -> None:
        """Decide which results of the kernel go to memory and claim the nodes that are needed."""
        group = set(inside)
        written = [
            v
            for n in inside
            for v in n.outputs
            if v in self.results
            or any(r not in group for r in self.consumers.get(v, ()))
            or (is_partial_reduction(n))
        ]
        keep = set(written)
        for v in reversed(written):
            node = self.producer[v]
            if node is not anchor and self.recomputable(v, keep - {v}, group):
                keep.discard(v)
        if not keep:
            keep = {anchor.out}
        needed = self.slice_of(keep, group | {anchor})
        for node in sorted(needed, key=self.order.__getitem__):
            if any(v in keep for v in node.outputs) or node is anchor:
                self.kernel_of[node] = number
                if node is not anchor:
                    self.members[number].append(node)
                    mates = self.mates[self.order[anchor]]
                    mates.append(self.order[node])
                    self.mates[self.order[node]] = mates
            else:
                # Inside the kernel, and recomputed by readers elsewhere if there are any.
                self.virtual.add(node)
        self.stored |= keep

    def recomputable(self, v: Value, kept: set[Value], group: set[Node]) -> bool:
        """Whether readers outside can compute ``v`` from the other stored results."""
        node = self.producer[v]
        if OPS[node.op].kind != "pointwise" or len(node.outputs) > 1 or v in self.results:
            return False
        readers = [r for r in self.consumers.get(v, ()) if r not in group]
        if is_small(v) or not self.level.load or any(r in self.views for r in readers):
            return False
        if not all(self.may_load(node, r) for r in readers):
            return False
        leaves = self.leaves_within(v, kept, group)
        return leaves is not None and len(leaves) <= 2

    def leaves_within(self, v: Value, kept: set[Value], group: set[Node]) -> set[Value] | None:
        """Stored feature maps from which ``v`` can be recomputed; None if it needs another."""
        found: set[Value] = set()
        seen, work = {v}, [v]
        while work:
            u = work.pop()
            node = self.producer.get(u)
            if u in kept or node is None or node not in group:
                found |= set() if is_small(u) else {u}
                continue
            if OPS[node.op].kind != "pointwise":
                return None
            work += [w for w in node.operands if w not in seen]
            seen.update(node.operands)
        return found

    def slice_of(self, values: set[Value], group: set[Node]) -> set[Node]:
        """The nodes of ``group`` that ``values`` depend on."""
        needed: set[Node] = set()
        work = [self.producer[v] for v in values]
        while work:
            node = work.pop()
            if node in needed or node not in group:
                continue
            needed.add(node)
            work += [self.producer[v] for v in node.operands if v in self.producer]
        return needed

    # --- kernels ------------------------------------------------------------------------------

    def close_kernel(self, number: int) -> Kernel:
        """Gather the body: everything between memory and the kernel's results."""
        anchor = self.anchors[number]
        outputs = [v for n in self.members[number] for v in n.outputs if v in self.stored]
        outputs.sort(key=lambda v: self.order[self.producer[v]])
        own = set(outputs)
        body, inputs = self.body(number, own)
        after = self.dependents(anchor, body)
        load = tuple(n for n in body if n is not anchor and n not in after)
        store = tuple(n for n in body if n in after)
        is_pointwise = OPS[anchor.op].kind == "pointwise"
        if is_pointwise:
            load, store = (), tuple(n for n in body)
        return Kernel(
            kernel_name(number, [*load, anchor, *store] if not is_pointwise else list(store)),
            None if is_pointwise else anchor,
            load, store, tuple(inputs), tuple(outputs),
        )  # fmt: skip

    def body(self, number: int, own: set[Value]) -> tuple[list[Node], list[Value]]:
        nodes: set[Node] = set()
        inputs: dict[Value, None] = {}
        # Depth first, operands in order: inputs come in the order of their first use.
        work: list[Value | Node] = list(reversed(self.members[number]))
        while work:
            v = work.pop()
            node = v if isinstance(v, Node) else self.producer.get(v)
            stored = isinstance(v, Value) and v in self.stored and v not in own
            if node is None or stored or node in self.views:
                inputs.setdefault(v)
            elif node not in nodes:
                nodes.add(node)
                work += reversed(node.operands)
        return sorted(nodes, key=self.order.__getitem__), list(inputs)

    def dependents(self, anchor: Node, body: list[Node]) -> set[Node]:
        """Nodes of the body that read the anchor's result, directly or not."""
        tainted, found = set(anchor.outputs), set()
        for node in body:
            if node is not anchor and not tainted.isdisjoint(node.operands):
                found.add(node)
                tainted.update(node.outputs)
        return found

    def ordered(self, kernels: list[Kernel]) -> tuple[tuple[Kernel, ...], tuple[Call, ...]]:
        """Execution order: call after call, dependencies first, otherwise as the graph has them."""
        import heapq

        writer = {v: i for i, k in enumerate(kernels) for v in k.outputs}
        needs = [
            {writer[s] for v in k.inputs for s in self.sources(v) if s in writer} - {i}
            for i, k in enumerate(kernels)
        ]
        waiting = [len(n) for n in needs]
        readers: list[list[int]] = [[] for _ in kernels]
        for i, n in enumerate(needs):
            for j in n:
                readers[j].append(i)
        second = backward_kernels(self.graph, kernels, readers, self.cotangents or ())
        rank = [
            (i in second, min(self.order[n] for n in self.members[i])) for i in range(len(kernels))
        ]
        ready = [(rank[i], i) for i, count in enumerate(waiting) if not count]
        heapq.heapify(ready)
        done: list[Kernel] = []
        while ready:
            _, i = heapq.heappop(ready)
            done.append(kernels[i])
            for j in readers[i]:
                waiting[j] -= 1
                if not waiting[j]:
                    heapq.heappush(ready, (rank[j], j))
        if len(done) != len(kernels):
            stuck = [k.name for i, k in enumerate(kernels) if waiting[i]]
            raise AssertionError(f"kernels wait for one another: {stuck[:4]}")
        return tuple(done), divided(len(done), None if self.cotangents is None else len(second))

    def sources(self, v: Value) -> set[Value]:
        """The written values whose memory a value, perhaps a view, reads."""
        node = self.producer.get(v)
        if node is None or node not in self.views:
            return {v}
        return set().union(*(self.sources(u) for u in node.operands))


def kernel_name(number: int, nodes: list[Node]) -> str:
    """A symbol that tells the sub-layers a kernel holds."""
    parts: list[str] = []
    for node in nodes:
        if node.op not in ("constant", "broadcast_to") and (not parts or parts[-1] != node.op):
            parts.append(node.op)
    text = "_".join(parts)
    return f"k{number:03d}_{text[:80].rstrip('_')}"


# --- concatenations without copies ----------------------------------------------------------------


def is_placed(cat: Node, graph: Graph, layouts: dict[Value, Layout]) -> bool:
    """Whether all parts of a concatenation were made to lie in its memory."""
    axis = 0 if len(cat.out.shape) == 1 else 1
    return cat.attrs["axis"] == axis and isinstance(layouts[cat.out], Blocked)


def place_concatenations(
    graph: Graph, layouts: dict[Value, Layout]
) -> tuple[Graph, dict[Value, Layout]]:
    """ICF: let producers write into slices of a concatenation's memory.

    Before: ``c = cat(a, b)``. After: the same where ``a`` and ``b`` can lie inside ``c``;
    ``c = cat(copy(a), b)`` where ``a`` is an input, a view, or lies in another concatenation.
    Later, larger concatenations choose first, so that nested ones end up inside them.
    """
    from bngen.ir.build import GraphBuilder

    producers = graph.producers()
    taken: set[Value] = set()
    copied: dict[Node, tuple[int, ...]] = {}
    for node in reversed(graph.nodes):
        if node.op != "cat" or not is_placed(node, graph, layouts):
            continue
        bad = []
        for i, v in enumerate(node.inputs):
            source = producers.get(v)
            view = source is not None and OPS[source.op].kind == "view" and source.op != "cat"
            exact = isinstance(layouts[v], Blocked)
            free = source is not None and not view and exact
            if not free or v in taken:
                bad.append(i)
            else:
                taken.add(v)
        if bad:
            copied[node] = tuple(bad)
    if not copied:
        return graph, layouts
    b = GraphBuilder.rewriting(graph)
    table = dict(layouts)
    for node in graph.nodes:
        operands = list(node.inputs)
        for i in copied.get(node, ()):
            v = b.resolve(operands[i])
            copy = b.emit("copy", v)
            cut = layouts[node.out].slice(*_span(node, i))
            table[copy] = cut[0]
            operands[i] = copy
        b.add(node.with_inputs(operands))
    return b.finish(), table


def _span(cat: Node, i: int) -> tuple[int, int]:
    """Channels of a concatenation that its i-th operand fills."""
    axis = cat.attrs["axis"]
    start = sum(v.shape[axis] for v in cat.inputs[:i])
    return start, start + cat.inputs[i].shape[axis]
