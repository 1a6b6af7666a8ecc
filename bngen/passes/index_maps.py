"""Index maps that need not be: joined with each other, and with what reads or makes them.

In and out: graphs of equal meaning. Nothing here knows of kernels; what is left of index maps is
computed by who reads them, where fusion finds that it pays.

======================================= ========================================================
before                                  after
======================================= ========================================================
conv2d(gather(x)), of zeros around x    conv2d(x) with more padding; its weight's gradient, too
gather(conv2d_grad_input(dy, w)), a cut conv2d_grad_input(dy, w) of a smaller shape
rearrange(reshape(x)), and the reverse  rearrange(x)
slice(rearrange(x))                     gather(rearrange(x)): no view, which needs memory
add(cat(a, 0), cat(0, b))               cat(a, b): the gradient of a map that was cut in parts
======================================= ========================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bngen.ir.build import GraphBuilder, prune
from bngen.ir.node import Graph, Node
from bngen.ir.ops.gather import Piece, flattened, pieces_of
from bngen.ir.types import TensorType, Value
from bngen.passes.conversions import converted, narrows, source_of, widens
from bngen.passes.rewrite import rewrite


def join_index_maps(graph: Graph) -> Graph:
    """Rewrite by the module's table."""
    cuts = _cuts_of_gradients(graph)
    consumers, results = graph.consumers(), set(graph.results())
    lone = {n.out for n in graph.nodes for v in n.operands
            if len(consumers[v]) == 1 and v not in results}  # fmt: skip

    def gathered(b: GraphBuilder, node: Node) -> tuple[Value, ...] | None:
        return _cut_gradient(b, node) if node.out in cuts else None

    def reshaped(b: GraphBuilder, node: Node) -> tuple[Value, ...] | None:
        source = b.producer(node.inputs[0])
        joins = source is not None and "order" in source.attrs and node.out in lone
        return _rearranged(b, node) if joins else None

    rules = {
        "conv2d": _padded_convolution,
        "conv2d_grad_weight": _padded_convolution,
        "gather": gathered,
        "rearrange": _rearranged,
        "reshape": reshaped,
        "slice": _cut_index_map,
        "add": _sum_of_parts,
    }
    return prune(rewrite(graph, rules))


# --- padding --------------------------------------------------------------------------------------


def _margins(node: Node | None) -> tuple[int, int] | None:
    """Zeros before and after all of the operand, along h or w; None where it is anything else."""
    if node is None or not node.row.gathers or "pieces" not in node.attrs:
        return None
    pieces = pieces_of(node.attrs)
    inner = [i for i, p in enumerate(pieces) if not p.is_filled]
    whole = Piece(node.inputs[0].shape[node.attrs["axis"]], 0, 1)
    spatial = len(node.out.shape) == 4 and node.attrs["axis"] >= 2
    if len(inner) != 1 or pieces[inner[0]] != whole or node.attrs["fill"] != 0 or not spatial:
        return None
    before, after = pieces[: inner[0]], pieces[inner[0] + 1 :]
    return sum(p.count for p in before), sum(p.count for p in after)


def _wider(padding: Sequence[int], axis: int, more: tuple[int, int]) -> tuple[int, ...]:
    sides = list(padding)
    at = 2 * (axis - 2)
    sides[at] += more[0]
    sides[at + 1] += more[1]
    return tuple(sides)


def _padded_convolution(b: GraphBuilder, node: Node) -> tuple[Value, ...] | None:
    x, padding = node.inputs[0], node.attrs["padding"]
    while (margins := _margins(source := b.producer(x))) is not None:
        padding = _wider(padding, source.attrs["axis"], margins)
        x = source.inputs[0]
    if x is node.inputs[0]:
        return None
    return (b.emit(node.op, x, node.inputs[1], loc=node.loc, **{**node.attrs, "padding": padding}),)


def _is_cut(node: Node) -> bool:
    """Whether a node leaves out rows or columns at the ends, and nothing else."""
    if not node.row.gathers or "pieces" not in node.attrs or len(node.out.shape) != 4:
        return False
    pieces = pieces_of(node.attrs)
    return node.attrs["axis"] >= 2 and len(pieces) == 1 and pieces[0].step == 1


def _cuts_of_gradients(graph: Graph) -> set[Value]:
    """What is left of a convolution's gradient that nobody reads whole."""
    producers, consumers, results = graph.producers(), graph.consumers(), set(graph.results())
    found: set[Value] = set()
    for node in graph.nodes:
        if not _is_cut(node):
            continue
        (x,) = node.inputs
        made = producers.get(x)
        if made is not None and narrows(made) and len(consumers[x]) == 1 and x not in results:
            x = made.inputs[0]
            made = producers.get(x)
        gradient = made is not None and (made.row.direction == "input" or x in found)
        if gradient and len(consumers[x]) == 1 and x not in results:
            found.add(node.out)
    return found


def _cut_gradient(b: GraphBuilder, node: Node) -> tuple[Value, ...] | None:
    """The gradient of an operand whose padding the convolution makes itself."""
    gradient, axis = source_of(b, node.inputs[0]), node.attrs["axis"]
    (piece,) = pieces_of(node.attrs)
    after = node.inputs[0].shape[axis] - piece.start - piece.count
    attrs = {
        **gradient.attrs,
        "shape": node.out.shape,
        "padding": _wider(gradient.attrs["padding"], axis, (piece.start, after)),
    }
    cut = b.emit(gradient.op, *gradient.inputs, loc=gradient.loc, **attrs)
    return (converted(b, cut, node.out.dtype),)


# --- orders of axes -------------------------------------------------------------------------------


class _Order(NamedTuple):
    """A tensor of ``split`` whose axes are put in an order."""

    split: list[int]
    order: list[int]


def _common(a: Sequence[int], b: Sequence[int]) -> list[tuple[int, int, int]] | None:
    """Factors that make up both: (whose part it is in a, in b, extent), outermost first."""
    found: list[tuple[int, int, int]] = []
    i, j = len(a) - 1, len(b) - 1
    left, right = 1, 1
    while True:
        while left == 1 and i >= 0:
            left, i = a[i], i - 1
        while right == 1 and j >= 0:
            right, j = b[j], j - 1
        if left == 1 and right == 1:
            return found[::-1]
        part = min(left, right)
        if part == 1 or left % part or right % part:
            return None
        found.append((i + 1, j + 1, part))
        left, right = left // part, right // part


def _order_of(node: Node) -> _Order | None:
    """A node as an order of factors; None for one that is none."""
    if "order" in node.attrs:
        return _Order(list(node.attrs["split"]), list(node.attrs["order"]))
    if node.row.moves != "reshapes":
        return None
    common = _common(node.inputs[0].shape, node.out.shape)
    if common is None:
        return None
    return _Order([e for _, _, e in common], list(range(len(common))))


def _composed(first: _Order, second: _Order) -> _Order | None:
    """One after the other."""
    moved = [first.split[i] for i in first.order]
    common = _common(moved, second.split)
    if common is None:
        return None
    # The parts that each factor of the first, in its own order, is cut into.
    parts: dict[int, list[int]] = {i: [] for i in range(len(first.split))}
    for k, (i, _, _) in enumerate(common):
        parts[first.order[i]].append(k)
    split = [k for i in range(len(first.split)) for k in parts[i]]
    place = {k: at for at, k in enumerate(split)}
    wholes: dict[int, list[int]] = {j: [] for j in range(len(second.split))}
    for k, (_, j, _) in enumerate(common):
        wholes[j].append(k)
    order = [place[k] for j in second.order for k in wholes[j]]
    return _Order([common[k][2] for k in split], order)


def _rearranged(b: GraphBuilder, node: Node) -> tuple[Value, ...] | None:
    """A node that follows a reshape or another order becomes one order of what lies before."""
    source = b.producer(node.inputs[0])
    first, second = source and _order_of(source), _order_of(node)
    both = first and second and _composed(first, second)
    if not both:
        return None
    (x,), shape = source.inputs, node.out.shape
    if both.order == sorted(both.order):
        return (x if x.shape == shape else b.emit("reshape", x, shape=shape, loc=node.loc),)
    return (
        b.emit("rearrange", x, split=both.split, order=both.order, shape=shape, loc=node.loc),
    )  # fmt: skip


def _cut_index_map(b: GraphBuilder, node: Node) -> tuple[Value, ...] | None:
    source = b.producer(node.inputs[0])
    if source is None or not source.row.gathers:
        return None
    start, stop = node.attrs["start"], node.attrs["stop"]
    pieces = flattened([Piece(stop - start, start, 1)])
    axis = node.attrs["axis"]
    fill = 0.0 if node.out.type.is_float else 0
    return (b.emit("gather", node.inputs[0], axis=axis, pieces=pieces, fill=fill, loc=node.loc),)


# --- parts of a map -------------------------------------------------------------------------------


def _sum_of_parts(b: GraphBuilder, node: Node) -> tuple[Value, ...] | None:
    """The sum of two concatenations, of which at each place one is zeros."""
    made = [b.producer(v) for v in node.inputs]
    stored = all(m is not None and widens(m) for m in made)
    parts = [_parts_of(b, m.inputs[0]) for m in made] if stored else (
        [_parts_of(b, v) for v in node.inputs]
    )  # fmt: skip
    if None in parts or node.inputs[0].shape != node.inputs[1].shape:
        return None
    (axis, here), (other, there) = parts
    ordered = sorted([*here, *there], key=lambda part: part[0])
    apart = all(a[0] + a[1].shape[axis] <= c[0] for a, c in zip(ordered, ordered[1:], strict=False))
    if axis != other or not apart:
        return None
    shape, end, joined = node.out.shape, 0, []
    for start, v in [*ordered, (shape[axis], None)]:
        if start > end:
            zeros = (*shape[:axis], start - end, *shape[axis + 1 :])
            joined.append(b.zeros(TensorType(zeros, (here or there)[0][1].dtype)))
        if v is not None:
            joined.append(v)
            end = start + v.shape[axis]
    return (b.widened(b.emit("cat", *joined, axis=axis, loc=node.loc)),)


def _parts_of(b: GraphBuilder, v: Value) -> tuple[int, list[tuple[int, Value]]] | None:
    """The axis of a concatenation with zeros, and where what else it joins starts."""
    node = b.producer(v)
    if node is None or node.row.moves != "joins":
        return None
    axis, start, found = node.attrs["axis"], 0, []
    for part in node.inputs:
        if not _is_zero(b, part):
            found.append((start, part))
        start += part.shape[axis]
    return (axis, found) if len(found) < len(node.inputs) else None


def _is_zero(b: GraphBuilder, v: Value) -> bool:
    node = b.producer(v)
    if node is not None and node.row.identity and node.inputs[0] is not None:
        return _is_zero(b, node.inputs[0])
    return node is not None and node.row.literal and node.attrs["value"] == 0
