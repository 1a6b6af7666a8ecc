"""The parts of a captured graph that bngen takes: as few and as large as can be.

In: a captured graph and the inputs of a call, whose shapes it is fixed to. Out: `Regions`: the
graph with each region as one call of a submodule, the regions' programs, and the reason for all
that is left to PyTorch.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from bngen.errors import BngenError, SourceLoc
from bngen.ir.node import Graph
from bngen.torch_bridge.autocasts import spell_out
from bngen.torch_bridge.counters import count_together
from bngen.torch_bridge.evaluation import UnknownUntilRunError, evaluate
from bngen.torch_bridge.functional import functionalize
from bngen.torch_bridge.masks import draw_masks
from bngen.torch_bridge.partition import Partition
from bngen.torch_bridge.places import CALLS, called, place_of
from bngen.torch_bridge.support import COUNTS, reasons
from bngen.torch_bridge.sync_batch_norm import layers_of, name_layers
from bngen.torch_bridge.translate import trace_region

PREFIX = "bngen_"
TOO_SMALL = "nothing around it that pays"


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
        reached: of each result, by number the arguments that its gradient flows to.
        calls: how many of the model's calls it holds.
        loc: the model's line of the first of them.
        layers: its synchronized layers: the name of the process group, the name, and by number the
            arguments that are running statistics.
    """

    name: str
    graph: Graph
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    reached: tuple[frozenset[int], ...]
    calls: int
    loc: SourceLoc | None
    layers: tuple[tuple[str, str, tuple[int, ...]], ...] = ()


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

    Raises:
        BngenError: when something goes wrong inside bngen; it names the call and its line.
    """
    module = fx.GraphModule(captured, copy.deepcopy(captured.graph))
    try:
        evaluate(module, inputs)
    except UnknownUntilRunError as error:
        calls = [n for n in captured.graph.nodes if n.op in CALLS]
        return Regions(captured, (), tuple(_left(n, str(error)) for n in calls))
    graph = module.graph
    name_layers(graph)
    shared = functionalize(graph)
    spell_out(graph)
    draw_masks(graph, shared)
    why = reasons(graph, shared)
    can = [n for n in graph.nodes if n.op in CALLS and n not in why]
    partition = Partition(graph, can)
    inside = {n for region in partition.regions for n in region}
    left = [n for n in graph.nodes if n.op in CALLS and n not in inside]
    taken = [_taken(f"{PREFIX}{i}", region) for i, region in enumerate(partition.regions)]
    for t in taken:  # to be replaced by what is built
        module.add_submodule(t.name, torch.nn.Module())
    return Regions(
        fx.GraphModule(module, _assembled(graph, partition, taken)),
        tuple(taken),
        tuple(_left(n, why.get(n, TOO_SMALL)) for n in left),
    )


def _left(node: fx.Node, reason: str) -> Left:
    # Of counters nobody wants to know each place.
    return Left(called(node), reason, None if reason == COUNTS else place_of(node))


def _taken(name: str, nodes: Sequence[fx.Node]) -> Taken:
    inside = set(nodes)
    inputs = tuple(dict.fromkeys(i for n in nodes for i in n.all_input_nodes if i not in inside))
    outputs = tuple(n for n in nodes if any(u not in inside for u in n.users))
    try:
        program = trace_region(nodes, inputs, outputs, name)
    except BngenError:
        raise
    except Exception as error:
        what = f"a region of {len(nodes)} calls: {type(error).__name__}: {error}"
        raise BngenError(what, loc=place_of(nodes[0])) from error
    reached = _reached(nodes, inputs, outputs)
    loc = next(filter(None, map(place_of, nodes)), None)
    return Taken(name, program, inputs, outputs, reached, len(nodes), loc, layers_of(nodes, inputs))


def _reached(
    nodes: Sequence[fx.Node], inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]
) -> tuple[frozenset[int], ...]:
    """Of each result, the arguments that autograd would follow it to."""
    reach = {n: {i} if n.meta["requires_grad"] else set() for i, n in enumerate(inputs)}
    for node in nodes:
        through = node.all_input_nodes if node.meta["requires_grad"] else ()
        reach[node] = set().union(*(reach[i] for i in through))
    return tuple(frozenset(reach[n]) for n in outputs)


def _assembled(graph: fx.Graph, partition: Partition, taken: Sequence[Taken]) -> fx.Graph:
    """The graph with its regions as calls, level after level."""
    new, env = fx.Graph(), {}
    level = partition.level
    inside = {n for region in partition.regions for n in region}
    output = graph.output_node()
    others = [n for n in graph.nodes if n not in inside and n is not output]
    # Arguments keep their order, ahead of all calls.
    for node in (n for n in others if n.op not in CALLS):
        env[node] = new.node_copy(node, env.__getitem__)
    calls = [n for n in others if n.op in CALLS]
    steps: list[tuple[int, int, Any]] = [(level[n], 0, n) for n in calls]
    steps += [(level[r[0]], 1, t) for r, t in zip(partition.regions, taken, strict=True)]
    for _, _, step in sorted(steps, key=lambda s: s[:2]):
        if isinstance(step, Taken):
            result = new.call_module(step.name, tuple(env[i] for i in step.inputs))
            for i, node in enumerate(step.outputs):
                env[node] = new.call_function(operator.getitem, (result, i))
        else:
            env[step] = new.node_copy(step, env.__getitem__)
    new.node_copy(output, env.__getitem__)
    count_together(new)
    return new
