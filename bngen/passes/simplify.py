"""Algebra that fusion relies on: common subexpressions, concatenations, statistics, pools.

In and out: graphs of equal meaning. Nothing here knows of kernels.
"""

from __future__ import annotations

from bngen.ir.build import GraphBuilder, prune
from bngen.ir.node import Graph, Node
from bngen.ir.types import Attrs, Value
from bngen.passes.conversions import converted, converts, source_of
from bngen.passes.rewrite import rewrite


def share_common_subexpressions(graph: Graph) -> Graph:
    """Compute equal nodes once.

    Before: ``a = exp(x); b = exp(x); return a + b``. After: ``a = exp(x); return a + a``.
    """
    b = GraphBuilder.rewriting(graph)
    seen: dict[tuple, Node] = {}
    for node in graph.nodes:
        inputs = tuple(v and b.resolve(v) for v in node.inputs)
        key = (node.op, inputs, repr(node.attrs))  # 0.0 equals -0.0, but is another constant.
        if key in seen:
            for old, new in zip(node.outputs, seen[key].outputs, strict=True):
                b.replace(old, new)
        else:
            seen[key] = node
            b.add(node)
    return b.finish()


def emit_slice(b: GraphBuilder, x: Value, axis: int, start: int, stop: int) -> Value:
    """``x[start:stop]`` along an axis, looked up through slices, concatenations, conversions."""
    if (start, stop) == (0, x.shape[axis]):
        return x
    maker, source = b.producer(x), source_of(b, x)
    if source is not None and source.attrs.get("axis") == axis:
        if converts(maker) and source.row.moves in ("cuts", "joins"):
            return converted(b, emit_slice(b, maker.inputs[0], axis, start, stop), x.dtype)
        if source.row.moves == "cuts":
            first = source.attrs["start"]
            return emit_slice(b, source.inputs[0], axis, first + start, first + stop)
        offset = 0
        for part in source.inputs if source.row.moves == "joins" else ():
            extent = part.shape[axis]
            if offset <= start and stop <= offset + extent:
                return emit_slice(b, part, axis, start - offset, stop - offset)
            offset += extent
    return b.emit("slice", x, axis=axis, start=start, stop=stop)


def _forward_slice(b: GraphBuilder, node: Node) -> tuple[Value, ...]:
    return (emit_slice(b, node.inputs[0], *(node.attrs[k] for k in ("axis", "start", "stop"))),)


def forward_slices(graph: Graph) -> Graph:
    """A slice that lies within one part of a concatenation reads that part.

    Before: ``c = cat(a, b); s = slice(c, 0, a.channels)``. After: ``s`` is ``a``.
    """
    return rewrite(graph, {"slice": _forward_slice})


def share_statistics(graph: Graph) -> Graph:
    """ICF: statistics of a concatenation are the concatenated statistics of its parts.

    Before: ``bn_stats(cat(a, b))``. After: ``cat(bn_stats(a), bn_stats(b))``, through nested
    concatenations, so that common subexpressions leave one ``bn_stats`` a feature map; and so what
    all ranks together have of them.
    """
    known: dict[Value, tuple[Value, Value]] = {}
    exchanged: dict[tuple[Value, Value, Attrs], tuple[Value, Value, Value]] = {}

    def stats(b: GraphBuilder, x: Value, node: Node) -> tuple[Value, Value]:
        if x not in known:
            source = source_of(b, x)
            if joins_channels(source):
                parts = [stats(b, b.widened(part), node) for part in source.inputs]
                known[x] = tuple(
                    b.emit("cat", *(p[i] for p in parts), axis=0, loc=node.loc) for i in (0, 1)
                )
            else:
                known[x] = b.emit("bn_stats", x, loc=node.loc)
        return known[x]

    def of_all(b: GraphBuilder, mean: Value, var: Value, node: Node) -> tuple[Value, ...]:
        key = mean, var, node.attrs
        if key not in exchanged:
            made = b.producer(mean), b.producer(var)
            if all(n is not None and n.row.moves == "joins" for n in made):
                pairs = zip(made[0].inputs, made[1].inputs, strict=True)
                parts = [of_all(b, m, v, node) for m, v in pairs]
                joined = [b.emit("cat", *(p[i] for p in parts), axis=0) for i in (0, 1)]
                exchanged[key] = (*joined, parts[0][2])
            else:
                name = node.out.name
                exchanged[key] = b.emit(node.op, mean, var, name=name, loc=node.loc, **node.attrs)
        return exchanged[key]

    return rewrite(
        graph,
        {
            "bn_stats": lambda b, node: stats(b, node.inputs[0], node),
            "bn_all_stats": lambda b, node: of_all(b, *node.inputs, node),
        },
    )


AVERAGES = {"avg_pool2d_grad": "avg_pool2d"}
"""Gradient -> pool, of those that take averages within a channel and as many of each map."""


def pool_before_convolution(graph: Graph) -> Graph:
    """Average before a 1x1 convolution rather than after it: fewer pixels, the same result.

    Before: ``avg_pool2d(conv2d(x, w))``. After: ``conv2d(avg_pool2d(x), w)``. Averaging acts on
    each channel alone and the convolution on each pixel alone, so that they commute; and so do
    the gradients: ``conv2d_grad_input(avg_pool2d_grad(g), w)`` becomes
    ``avg_pool2d_grad(conv2d_grad_input(g, w))``, and ``conv2d_grad_weight(x, avg_pool2d_grad(g))``
    becomes ``conv2d_grad_weight(avg_pool2d(x), g)``. Results that somebody else reads stay.
    """
    consumers, results = graph.consumers(), set(graph.results())

    def forward(b: GraphBuilder, pool: Node) -> tuple[Value, ...] | None:
        conv = source_of(b, pool.inputs[0])
        if conv is None or conv.row.direction != "forward":
            return None
        if not (is_pointwise_convolution(conv) and shrinks(pool.out, conv.out)):
            return None
        if not lone(b, pool.inputs[0]):
            return None
        x, weight = conv.inputs
        pooled = b.emit(pool.op, x, loc=pool.loc, **pool.attrs)
        return (b.emit(conv.op, pooled, weight, loc=conv.loc, **conv.attrs),)

    def lone(b: GraphBuilder, v: Value) -> bool:
        """Whether a value has one reader, and so has what it was converted from."""
        made = b.producer(v)
        alone = v not in results and len(consumers.get(v, ())) == 1
        return alone and (not converts(made) or lone(b, made.inputs[0]))

    def spread(b: GraphBuilder, v: Value) -> Node | None:
        """The pool's gradient that made ``v``, if nothing but such convolutions reads it."""
        node, made = source_of(b, v), b.producer(v)
        if node is None or node.op not in AVERAGES or not shrinks(node.inputs[0], v):
            return None
        readers = consumers.get(v, ())
        alone = v not in results and readers and all(map(is_pointwise_convolution, readers))
        return node if alone and (not converts(made) or lone(b, made.inputs[0])) else None

    def grad_input(b: GraphBuilder, conv: Node) -> tuple[Value, ...] | None:
        grad = spread(b, conv.inputs[0])
        if grad is None:
            return None
        shape = conv.attrs["shape"]
        small = (*shape[:2], *grad.inputs[0].shape[2:])
        dy = converted(b, grad.inputs[0], conv.inputs[0].dtype)
        dx = b.emit(
            conv.op, dy, conv.inputs[1], loc=conv.loc,
            **{**conv.attrs, "shape": small},
        )  # fmt: skip
        return (b.emit(grad.op, dx, loc=grad.loc, **{**grad.attrs, "shape": shape}),)

    def grad_weight(b: GraphBuilder, conv: Node) -> tuple[Value, ...] | None:
        x, dy = conv.inputs
        grad = spread(b, dy)
        if grad is None:
            return None
        attrs = {k: v for k, v in grad.attrs.items() if k != "shape"}
        pooled = b.emit(AVERAGES[grad.op], x, loc=grad.loc, **attrs)
        small = converted(b, grad.inputs[0], dy.dtype)
        return (b.emit(conv.op, pooled, small, loc=conv.loc, **conv.attrs),)

    rules = {
        **dict.fromkeys(AVERAGES.values(), forward),
        "conv2d_grad_input": grad_input, "conv2d_grad_weight": grad_weight,
    }  # fmt: skip
    return prune(rewrite(graph, rules))


def is_pointwise_convolution(node: Node) -> bool:
    """A 1x1 convolution of every pixel, or one of its gradients."""
    direction = node.row.direction
    if not direction:
        return False
    weight = node.out if direction == "weight" else node.inputs[1]
    whole = node.attrs["stride"] == (1, 1) and not any(node.attrs["padding"])
    return weight.shape[2:] == (1, 1) and whole


def shrinks(small: Value, large: Value) -> bool:
    """Whether a pool from ``large`` to ``small`` leaves at most half of the pixels."""
    return 2 * small.type.size <= large.type.size


def joins_channels(node: Node | None) -> bool:
    """Whether a node is a concatenation of feature maps, along their channels."""
    if node is None or node.row.moves != "joins":
        return False
    return node.attrs["axis"] == node.out.type.channel_axis == 1
