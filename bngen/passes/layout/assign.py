"""The walk that lays out a graph: each node by the rule of its op, in execution order.

In and out: see the package's text.
"""

from __future__ import annotations

from collections.abc import Callable

from bngen.ir.node import Graph, Node
from bngen.ir.types import Value
from bngen.passes.layout.convolutions import conv2d, conv2d_grad_input, conv2d_grad_weight
from bngen.passes.layout.pointwise import pointwise
from bngen.passes.layout.reductions import collective, contract, reduce, window
from bngen.passes.layout.state import Laid, Ruling
from bngen.passes.layout.views import cat, copy, reshape, slice
from bngen.passes.layout.wishes import wishes_of
from bngen.plan.formats import C_ORDER, Formats
from bngen.plan.layout import Layout

Rule = Callable[[Laid, Node], Ruling]

RULES: dict[str, Rule] = {
    "conv2d": conv2d,
    "conv2d_grad_input": conv2d_grad_input,
    "conv2d_grad_weight": conv2d_grad_weight,
    "cat": cat,
    "slice": slice,
    "reshape": reshape,
    "copy": copy,
}
"""Of ops whose kind does not say where their channels go."""

RULES_OF_KINDS: dict[str, Rule] = {
    "pointwise": pointwise,
    "reduce": reduce,
    "window": window,
    "collective": collective,
    "contract": contract,
}
"""Of all others."""


def assign_layouts(
    graph: Graph, lanes: int, formats: Formats = C_ORDER, *, pairs: str = ""
) -> tuple[Graph, dict[Value, Layout]]:
    """Choose a layout for every value; see the package's text.

    Args:
        graph: after fission.
        lanes: float32 elements of a vector register.
        formats: the users' arrays that are channels-last.
        pairs: which convolutions of bfloat16 multiply pairs of channels, see `Target.pairs`.
    """
    wishes = wishes_of(graph, lanes, formats)
    laid = Laid(graph, lanes, pairs, wishes)
    for node in graph.nodes:
        node = node.with_inputs(v and laid.b.resolve(v) for v in node.inputs)
        rule = RULES.get(node.op) or RULES_OF_KINDS[node.row.kind]
        laid.add(node, rule(laid, node))
    wanted = zip(graph.outputs, wishes.results, strict=True)
    outputs = [laid.want(v, layout) for v, layout in wanted]
    updates = [(old, laid.want(new, laid.of[old])) for old, new in graph.updates]
    return laid.b.finish(outputs, updates=updates), laid.of
