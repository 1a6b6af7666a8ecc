"""Which layer of the program an op belongs to, and what kind of work it is.

In: a planned graph. Out: tables. An op belongs to the layer whose parameters it reads, by their
names (``features.norm0`` of ``features.norm0.weight``); one that makes a gradient of a parameter
belongs to the parameter's. What is no feature map belongs to the layer that reads it first. What is
left has no parameters: it goes by its own name, after the layer that it reads from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from types import MappingProxyType

from bngen.ir.node import Graph, Node
from bngen.ir.ops import ACTIVATIONS, BATCH_NORM, BATCH_NORM_GRAD, CONTRACT, WINDOW
from bngen.ir.types import Value
from bngen.plan.kernel import Kernel, KernelPlan

CONV, BN, RELU, SUM, POOL, COPY, OTHER = "CONV", "BN", "ReLU", "sum", "pool", "copy", "other"
WORKS = (CONV, BN, RELU, SUM, POOL, COPY, OTHER)
"""Kinds of work, in the order in which tables show them; CONV holds linear layers, too."""

_FAMILIES = (
    (CONTRACT, CONV), (BATCH_NORM, BN), (BATCH_NORM_GRAD, BN), (WINDOW, POOL), (ACTIVATIONS, RELU),
)  # fmt: skip
_BY_OP = {row.name: work for family, work in _FAMILIES for row in family} | {
    # What the gradient of a rectifier is made of, and of its kin.
    **dict.fromkeys(("maximum", "where", "less", "less_equal", "greater", "greater_equal"), RELU),
    **dict.fromkeys(("add", "sub"), SUM),
}
_BY_KIND = {"copy": COPY, "view": COPY}


def work_of(node: Node) -> str:
    """The kind of work that an op is."""
    return _BY_OP.get(node.op) or _BY_KIND.get(node.row.kind, OTHER)


def work_of_kernel(kernel: Kernel) -> str:
    """That of the op a kernel is built around; without one, the first kind of `WORKS` it holds."""
    if kernel.anchor is not None:
        return work_of(kernel.anchor)
    held = {work_of(n) for n in kernel.nodes if n.row.sublayer}
    return next((work for work in WORKS if work in held), OTHER)


def layers_of(
    graph: Graph,
    gradients: Mapping[Value, str],
    maps: Set[Value],
    names: Mapping[str, str],
) -> dict[Node, str]:
    """The layer of each op.

    Args:
        graph: the planned graph.
        gradients: results that are gradients of parameters -> the parameter's name.
        maps: its feature maps.
        names: inputs that are parameters somewhere else -> what they are called there.
    """
    state = {
        i.value: names.get(i.name, i.name)
        for i in graph.inputs
        if i.kind != "input" or i.name in names
    }
    gradients = {v: names.get(name, name) for v, name in gradients.items()}
    own = {v: _layer(name) for v, name in (*state.items(), *gradients.items())}
    own |= {new: _layer(state[old]) for old, new in graph.updates if old in state}
    found: dict[Node, str] = {}
    packed = dict(own)
    for node in graph.nodes:
        layer = next((own[v] for v in node.outputs if v in own), None)
        # A weight's copy is the weight; a sum of two gradients is neither's.
        layer = layer or next((packed[v] for v in node.operands if v in packed), None)
        if layer:
            found[node] = layer
            if all(v in packed for v in node.operands):
                packed.update((v, layer) for v in node.outputs)
    _hand_up(graph, found, maps)
    _hand_down(graph, found)
    return found


def layers_of_plan(
    plan: KernelPlan,
    gradients: Sequence[str],
    maps: Set[Value],
    names: Mapping[str, str] = MappingProxyType({}),
) -> dict[Node, str]:
    """The layer of each op of a plan.

    Args:
        plan: the plan.
        gradients: the parameters whose gradients are the last results, in order.
        maps: its feature maps.
        names: see `layers_of`.
    """
    outputs = plan.graph.outputs[-len(gradients) :] if gradients else ()
    return layers_of(plan.graph, dict(zip(outputs, gradients, strict=True)), maps, names)


def _layer(parameter: str) -> str:
    """``features.norm0`` of ``features.norm0.weight``; a name of one word is its own layer."""
    return parameter.rpartition(".")[0] or parameter


def _hand_up(graph: Graph, found: dict[Node, str], maps: Set[Value]) -> None:
    """Give what makes no map (statistics, gradients of weights) the layer of what reads it."""
    reader: dict[Value, str] = {}
    for node in reversed(graph.nodes):
        if node not in found and maps.isdisjoint(node.outputs):
            layer = next((reader[v] for v in node.outputs if v in reader), None)
            if layer:
                found[node] = layer
        if node in found:
            reader.update((v, found[node]) for v in node.operands)


def _hand_down(graph: Graph, found: dict[Node, str]) -> None:
    """Name the ops without a layer after the layer that they read from."""
    made_by: dict[Value, str] = {}
    for node in graph.nodes:
        if node not in found:
            before = next((made_by[v] for v in node.operands if v in made_by), "")
            before = before.partition(" ")[0]
            found[node] = f"{before} {node.op}".strip()
        made_by.update((v, found[node]) for v in node.outputs)


def layer_of_kernel(kernel: Kernel, layers: Mapping[Node, str]) -> str:
    """The layer that a kernel is built around: that of its anchor, else of its last result."""
    return layers[kernel.anchor or kernel.nodes[-1]]
