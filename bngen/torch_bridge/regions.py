"""The parts of a captured graph that bngen takes: as few and as large as can be.

In: a captured graph and the inputs of a call, whose shapes it is fixed to. Out: a `Plan`: the graph
with each region as one call of a submodule, the regions' programs, and the reason for all that is
left to PyTorch.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch._subclasses import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
from torch.fx.passes.operator_support import OperatorSupportBase

from bngen.errors import SourceLoc
from bngen.ir.node import Graph
from bngen.torch_bridge import masks
from bngen.torch_bridge.functional import functionalize
from bngen.torch_bridge.translate import called, place_of, refusal, trace_region

PREFIX = "bngen_"
FEW_CHANNELS = 16
"""Of a group of a grouped convolution: with fewer, a vector is not filled."""
MAPS = (torch.conv2d, F.batch_norm, F.max_pool2d, F.avg_pool2d)
"""A region without any of these is left to PyTorch: there is nothing to gain."""


@dataclass(frozen=True)
class Left:
    """A call that runs in PyTorch."""

    what: str
    reason: str
    loc: SourceLoc | None


@dataclass(frozen=True)
class Taken:
    """A region.

    Attributes:
        name: of the submodule.
        graph: its program.
        inputs: the nodes that are its arguments, in order.
        outputs: the nodes that are its results, in order.
        calls: how many of the model's calls it holds.
    """

    name: str
    graph: Graph
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    calls: int


@dataclass(frozen=True)
class Regions:
    """A captured graph, cut.

    Attributes:
        module: calls a submodule for each region.
        taken: the regions, in order.
        left: all other calls, in order.
    """

    module: fx.GraphModule
    taken: tuple[Taken, ...]
    left: tuple[Left, ...] = field(default=())


def cut(captured: fx.GraphModule, inputs: Sequence[Any]) -> Regions:
    """Cut a captured graph into regions.

    Args:
        captured: as Dynamo gives it; it is not changed.
        inputs: of a call; sizes, strides and requires_grad are taken from them.
    """
    module = fx.GraphModule(captured, copy.deepcopy(captured.graph))
    _evaluate(module, inputs)
    _draw_masks(module.graph)
    support = _Support(functionalize(module.graph))
    module.recompile()
    partitioner, partitions = _propose(module, support)
    while out_of_order := _mixed(module.graph, partitions):
        support.excluded.update(out_of_order)
        partitioner, partitions = _propose(module, support)
    inside = {n for p in partitions for n in p.nodes}
    left = tuple(
        Left(called(n), support.reasons.get(n) or "nothing around it that pays", place_of(n))
        for n in module.graph.nodes
        if n.op in ("call_function", "call_method", "call_module") and n not in inside
    )
    taken = []
    for number, partition in enumerate(partitions):
        taken.append(_taken(module.graph, f"{PREFIX}{number}", partition))
    fused = partitioner.fuse_partitions(partitions, prefix=PREFIX)
    return Regions(fused, tuple(taken), left)


def _evaluate(module: fx.GraphModule, inputs: Sequence[Any]) -> None:
    """Give every node a fake value; what follows from the sizes alone becomes a constant."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = [
        mode.from_tensor(x, static_shapes=True) if isinstance(x, torch.Tensor) else x
        for x in inputs
    ]
    _Evaluation(module, mode).propagate_dont_convert_inputs(*fakes)
    for node in list(module.graph.nodes):
        value = node.meta.get("val")
        if node.op == "output" or isinstance(value, torch.Tensor) or not _is_constant(value):
            continue
        for user in list(node.users):
            user.args = _substituted(user.args, node, value)
            user.kwargs = _substituted(user.kwargs, node, value)
        if node.op != "placeholder":
            module.graph.erase_node(node)


class _Evaluation(FakeTensorProp):
    """Notes which values require a gradient, too: what is kept of a node's value is detached."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta["requires_grad"] = isinstance(result, torch.Tensor) and result.requires_grad
        return result


def _is_constant(value: Any) -> bool:
    if isinstance(value, torch.Size):
        return True
    return isinstance(value, int | float | bool)


def _substituted(arguments: Any, node: fx.Node, value: Any) -> Any:
    return fx.node.map_arg(arguments, lambda n: value if n is node else n)


def _draw_masks(graph: fx.Graph) -> None:
    """Dropout with a mask of its own: ``dropout(x, p)`` -> ``drop(x, keep_mask(shape, p), p)``."""
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in (F.dropout, torch.dropout):
            continue
        names = ("input", "p", "training", "inplace")
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        p, training = given.get("p", 0.5), given.get("training", True)
        if not training or given.get("inplace") or not isinstance(p, float | int) or p == 0:
            continue
        x = given["input"]
        with graph.inserting_before(node):
            mask = graph.call_function(masks.keep_mask, (tuple(x.meta["val"].shape), p))
            new = graph.call_function(masks.drop, (x, mask, p))
        mask.meta = {**node.meta, "val": torch.empty_like(x.meta["val"], dtype=torch.bool)}
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        graph.erase_node(node)


class _Support(OperatorSupportBase):
    """What bngen takes, asked once a node.

    Attributes:
        reasons: why not, of each node that was asked and is not taken.
        excluded: nodes that are not to be taken, though they could be.
    """

    def __init__(self, shared: set[fx.Node]):
        self._shared = shared
        self._known: dict[fx.Node, str | None] = {}
        self.excluded: set[fx.Node] = set()

    @property
    def reasons(self) -> dict[fx.Node, str]:
        return {n: why for n in self._known if (why := self._why(n)) is not None}

    def is_node_supported(self, submodules: Any, node: fx.Node) -> bool:
        return node.op in ("call_function", "call_method") and self._why(node) is None

    def _why(self, node: fx.Node) -> str | None:
        if node in self.excluded:
            return "its running statistics are also used by another part of the model"
        if node not in self._known:
            self._known[node] = self._asked(node)
        return self._known[node]

    def _asked(self, node: fx.Node) -> str | None:
        if node in self._shared or not self._shared.isdisjoint(node.all_input_nodes):
            return "it shares memory with a tensor that is changed in place"
        return slower(node) or refusal(node)


def slower(node: fx.Node) -> str | None:
    """Why PyTorch is to run a call that bngen could run, too."""
    if node.target in (F.linear, torch.matmul, torch.mm, operator.matmul):
        return "PyTorch's matrix product is faster"
    if node.target is torch.conv2d:
        groups = _groups(node)
        weight = node.args[1].meta["val"] if len(node.args) > 1 else None
        if groups > 1 and weight is not None and weight.shape[1] > 1:
            per_group = min(weight.shape[1], weight.shape[0] // groups)
            if per_group < FEW_CHANNELS:
                return f"PyTorch is faster with {per_group} channels a group"
    return None


def _groups(node: fx.Node) -> int:
    return node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1)


def _propose(module: fx.GraphModule, support: _Support) -> tuple[Any, list[Any]]:
    partitioner = CapabilityBasedPartitioner(module, support, allows_single_node_partition=True)
    proposed = partitioner.propose_partitions()
    return partitioner, [p for p in proposed if any(n.target in MAPS for n in p.nodes)]


def _mixed(graph: fx.Graph, partitions: Sequence[Any]) -> set[fx.Node]:
    """Calls that update an input of the graph which other parts of the cut graph use, too."""
    home = {n: p.id for p in partitions for n in p.nodes}
    found: set[fx.Node] = set()
    for node in graph.nodes:
        for statistic in _updated(node):
            others = {home.get(u) for u in statistic.users}
            if node in home and others != {home[node]}:
                found.update(u for u in statistic.users if u in home)
    return found


def _updated(node: fx.Node) -> list[fx.Node]:
    """The running statistics that a call updates."""
    if node.target is not F.batch_norm:
        return []
    names = ("input", "running_mean", "running_var", "weight", "bias", "training")
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    if not given.get("training"):
        return []
    return [s for s in (given.get("running_mean"), given.get("running_var")) if s is not None]


def _taken(graph: fx.Graph, name: str, partition: Any) -> Taken:
    nodes = [n for n in graph.nodes if n in partition.nodes]
    inside = set(nodes)
    inputs = list(dict.fromkeys(i for n in nodes for i in n.all_input_nodes if i not in inside))
    outputs = [n for n in nodes if any(u not in inside for u in n.users)]
    program = trace_region(nodes, inputs, outputs, name)
    return Taken(
        name,
        program,
        tuple(inputs),
        tuple(outputs),
        len(nodes),
    )
