"""The kernels of a plan as rows of a report.

In: a plan, the machine, the records of tuned knobs. Out: a `KernelRow` each, in the order in which
they run. The strategy is asked for as the compiler asks: nothing is lowered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import replace
from typing import Any

from bngen.codegen.nests import choose
from bngen.codegen.operations import operations
from bngen.codegen.signature import overwritten, signature
from bngen.explain import moved
from bngen.explain.report import ANCHOR, LOAD, STORE, KernelRow, Refused, SubLayer
from bngen.ir.node import Node
from bngen.ir.types import Value
from bngen.manifest import described_refusals
from bngen.passes.prepare import Prepared
from bngen.plan.kernel import Kernel, KernelPlan
from bngen.plan.layers import layer_of_kernel, layers_of_plan, work_of_kernel
from bngen.plan.sources import sources_of
from bngen.plan.traffic import feature_maps
from bngen.scheduling.knobs import Knobs
from bngen.target.machine import Machine

COLLECTIVE = "collective"
"""What stands in the place of a strategy where values are exchanged between processes."""

Tuned = Callable[[str, str, Mapping[str, int]], tuple[Knobs, str] | None]
"""(kind of a strategy, signature of a kernel) -> knobs of a record and where it stands, if any."""


def rows(
    prepared: Prepared, machine: Machine, tuned: Tuned, names: Mapping[str, str]
) -> tuple[KernelRow, ...]:
    """A row for each kernel of a plan.

    Args:
        prepared: the plan.
        machine: what strategies and knobs are chosen for.
        tuned: the records.
        names: see `bngen.plan.layers.layers_of`.
    """
    plan, joint, places = prepared.planned.plan, prepared.joint, prepared.planned.memory.places
    maps = feature_maps(plan.graph)
    layers = layers_of_plan(plan, joint.gradients, maps, names)
    sources = sources_of(plan)
    calls = (call.name for call in plan.calls for _ in range(call.start, call.stop))
    parts = zip(plan.kernels, calls, sources, strict=True)
    found = []
    for kernel, call, before in parts:
        row = _row(kernel, plan, maps, layers, call, before, machine, tuned)
        again = {o - len(kernel.inputs) for _, o in overwritten(kernel, places)}
        nbytes = sum(plan.nbytes(kernel.outputs[o]) for o in again)
        found.append(replace(row, overwritten=nbytes))
    return tuple(found)


def _row(
    kernel: Kernel,
    plan: KernelPlan,
    maps: Set[Value],
    layers: Mapping[Node, str],
    call: str,
    sources: tuple[int, ...],
    machine: Machine,
    tuned: Tuned,
) -> KernelRow:
    decided = _decided(kernel, plan, machine, tuned)
    reads, writes = (
        tuple(moved.described_map(v, plan, maps) for v in dict.fromkeys(values))
        for values in (kernel.inputs, kernel.outputs)
    )
    return KernelRow(
        name=kernel.name,
        call=call,
        layer=layer_of_kernel(kernel, layers),
        work=work_of_kernel(kernel),
        sublayers=tuple(sublayers(kernel, layers)),
        reads=reads,
        writes=writes,
        traffic=moved.traffic(reads, writes),
        traffic_alone=moved.traffic_alone(kernel, plan, maps),
        sources=sources,
        **decided,
    )


def _decided(kernel: Kernel, plan: KernelPlan, machine: Machine, tuned: Tuned) -> dict[str, Any]:
    """How a kernel is computed; a collective, which is none, has nothing to decide."""
    if kernel.is_collective:
        return {
            "operations": 0, "strategy": COLLECTIVE, "declined": {}, "knobs": {}, "record": "",
        }  # fmt: skip
    choice = choose(kernel, plan.layouts, machine)
    found = tuned(choice.strategy.kind, signature(kernel, plan), choice.facts.extents())
    knobs = choice.knobs(machine, found[0] if found else None)
    return {
        "operations": operations(kernel, choice.strategy),
        "strategy": choice.strategy.kind,
        "declined": dict(choice.declined),
        "knobs": dict(knobs),
        "record": found[1] if found and dict(found[0]) == dict(knobs) else "",
    }


def sublayers(kernel: Kernel, layers: Mapping[Node, str]) -> Iterator[SubLayer]:
    """What a kernel holds, load slots first."""
    anchor = (kernel.anchor,) if kernel.anchor else ()
    own = layer_of_kernel(kernel, layers)
    for slot, nodes in ((LOAD, kernel.load), (ANCHOR, anchor), (STORE, kernel.store)):
        for node in nodes:
            line = str(node.loc) if node.loc else ""
            layer = own if node.row.literal else layers[node]  # a number is everybody's
            yield SubLayer(
                node.op, slot, node.out.name, layer, line, str(node), node.out.type.element.short
            )


def refused(plan: KernelPlan) -> tuple[Refused, ...]:
    """What was not fused, and why."""
    return tuple(
        Refused(
            group["slot"],
            group["reason"],
            tuple(group["ops"]),
            tuple(tuple(word or "" for word in pair) for pair in group["pairs"]),
        )
        for group in described_refusals(plan)
    )
