"""What is wanted of values before any of them lies anywhere: seen from who reads them in the end.

In: a graph, the vector width, and which of the users' arrays are channels-last. Out: `Wishes`.
Whoever makes a value can choose where it lies; a wish that is granted there saves a copy. The rules
ask, and may decide otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bngen.ir.node import Graph, Node
from bngen.ir.ops import OPS
from bngen.ir.types import Value
from bngen.passes.layout.cuts import channel_cuts
from bngen.plan.formats import Formats
from bngen.plan.groups import layouts_of_groups
from bngen.plan.layout import Blocked, Plain, plain


@dataclass(frozen=True)
class Wishes:
    """What is wanted of the values of a graph.

    Attributes:
        inputs: the order in which users hand each of them in.
        results: the order in which users get each of them back.
        goals: the order in which plain values are wanted in the end: by users, or by an update
            that is made element by element.
        updating: the values that updates are made from.
        maps: feature maps that are wanted in the layout of groups, see `layouts_of_groups`.
        cuts: the channels at which parts of a map begin, see `channel_cuts`.
        conv_inputs: for each weight, what is convolved with it: its gradient is to lie as it does.
    """

    inputs: Mapping[Value, Plain]
    results: Sequence[Plain]
    goals: Mapping[Value, Plain]
    updating: frozenset[Value]
    maps: Mapping[Value, Blocked]
    cuts: Mapping[Value, tuple[int, ...]]
    conv_inputs: Mapping[Value, Value]


def wishes_of(graph: Graph, lanes: int, formats: Formats) -> Wishes:
    """What is wanted of the values of ``graph``; arguments as for `assign_layouts`."""
    inputs = {
        i.value: plain(i.value.type, channels_last=i.name in formats.inputs) for i in graph.inputs
    }
    results = [
        plain(v.type, channels_last=i in formats.outputs) for i, v in enumerate(graph.outputs)
    ]
    goals, updating = _goals(graph, inputs, results)
    convolutions = (n for n in graph.nodes if n.row.direction == "forward")
    return Wishes(
        inputs,
        results,
        goals,
        frozenset(updating),
        _maps_of_groups(graph, lanes),
        channel_cuts(graph),
        {n.inputs[1]: n.inputs[0] for n in convolutions},
    )


def _goals(
    graph: Graph, inputs: Mapping[Value, Plain], results: Sequence[Plain]
) -> tuple[dict[Value, Plain], set[Value]]:
    """The order of axes in which plain values are wanted in the end, and those of updates.

    Users want their results in it, and an update that is made element by element all that it
    is made from.
    """
    goals: dict[Value, Plain] = {}
    for v, layout in zip(graph.outputs, results, strict=True):
        goals.setdefault(v, layout)
    for target, new in graph.updates:
        goals.setdefault(new, inputs[target])
    updating = {new for _, new in graph.updates}
    for node in reversed(graph.nodes):
        if node.out in goals and OPS[node.op].kind == "pointwise":
            for v in node.operands:
                if v.shape == node.out.shape:
                    goals.setdefault(v, goals[node.out])
                    updating |= {v} if node.out in updating else set()
    return goals, updating


def _maps_of_groups(graph: Graph, lanes: int) -> dict[Value, Blocked]:
    """Feature maps that are wanted in the layout of groups.

    Whoever makes them can choose: else each would be copied once more.
    """
    maps: dict[Value, Blocked] = {}
    for node in reversed(graph.nodes):
        if node.row.direction == "forward":
            if of_groups := maps_of_groups(node, lanes):
                maps.setdefault(node.inputs[0], of_groups[0])
        elif node.row.kind == "pointwise" and node.out in maps:
            same = (v for v in node.operands if v.shape == node.out.shape)
            maps |= {v: maps[node.out] for v in same if v not in maps}
    return maps


def maps_of_groups(node: Node, lanes: int) -> tuple[Blocked, Blocked] | None:
    """Layouts of a grouped convolution's maps; None for a dense one, or a depthwise one."""
    groups = node.attrs["groups"]
    k, per_group = node.attrs["shape"][:2] if node.row.direction == "weight" else (
        node.inputs[1].shape[:2]
    )  # fmt: skip
    if groups == 1 or (per_group == 1 and k == groups):
        return None
    return layouts_of_groups(lanes, groups * per_group, k, groups)
