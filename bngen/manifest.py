"""What is told of a build: the manifest, and the bytes by use.

In: a plan, its compiled kernels, what a module runs. Out: plain data, the contents of
``manifest.json`` and of `Module.memory`. Nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from bngen.codegen.compile import CompiledKernel
from bngen.codegen.nests import BY_KIND
from bngen.codegen.object_files import imports_of
from bngen.codegen.operations import operations
from bngen.ir.node import Graph, Node
from bngen.ir.types import Value
from bngen.passes.pipeline import Planned
from bngen.plan.calls import BACKWARD, FORWARD, collectives_of, kernels_of
from bngen.plan.kernel import Kernel, KernelPlan
from bngen.plan.layers import layer_of_kernel, layers_of_plan, work_of_kernel
from bngen.plan.sources import sources_of
from bngen.plan.traffic import feature_maps
from bngen.runtime.argspec import ArgSpec
from bngen.runtime.signature import Signature
from bngen.target.parse import Target


def memory_report(graph: Graph, planned: Planned) -> dict[str, int]:
    """Bytes by use, over the life of a module.

    ``parameters`` are parameters and buffers; ``saved`` is what ``forward`` writes to the arena
    and ``backward`` reads; ``scratch`` is the rest of the arena; ``peak`` is all of these together
    with the results of ``forward`` and ``backward``, which belong to the caller. Where gradients
    are part of the program itself, nothing outlives a call and all of the arena is scratch.
    """
    parameters = sum(i.value.type.nbytes for i in graph.inputs if i.kind != "input")
    results = sum(v.type.nbytes for v in dict.fromkeys(graph.outputs))
    saved = _saved_bytes(planned)
    arena = planned.memory.nbytes
    return {
        "parameters": parameters,
        "saved": saved,
        "scratch": arena - saved,
        "arena": arena,
        "peak": parameters + arena + results,
    }


def _saved_bytes(planned: Planned) -> int:
    """Bytes of the arena's buffers that kernels of ``forward`` write and later ones read."""
    plan, places = planned.plan, planned.memory.places
    written = {places[v].root for k in kernels_of(plan, FORWARD) for v in k.outputs}
    read = {places[v].root for k in kernels_of(plan, BACKWARD) for v in k.inputs}
    saved = written & read & planned.memory.arena.keys()
    return sum(plan.nbytes(root) for root in saved)


def manifest(
    program: str,
    planned: Planned,
    compiled: Sequence[CompiledKernel],
    target: Target,
    fusion: str,
    signature: Signature,
) -> dict[str, Any]:
    """What was built, as data: the contents of manifest.json.

    Of a kernel ``slots`` says how many of its sub-layers are in load slots, and whether the next
    one is what it is built around; ``ops`` are these sub-layers, each with its result, its layer
    and the user's line; ``sources`` are positions of the kernels that write what it reads;
    ``operations`` are counted as `bngen.codegen.operations` says; ``symbol`` is a function that
    kernels share which differ in the ``numbers`` that it takes after its tensors.
    """
    plan = planned.plan
    maps = feature_maps(plan.graph)
    layers = layers_of_plan(plan, [s.name for s in signature.gradients], maps)
    waited = {k.name: s for k, s in zip(plan.kernels, sources_of(plan), strict=True)}
    computed = [i for i, k in enumerate(plan.kernels) if not k.is_collective]
    position = {i: at for at, i in enumerate(computed)}
    calls = (
        call.name
        for call in plan.calls
        for kernel in plan.kernels[call.start : call.stop]
        if not kernel.is_collective
    )
    imports = imports_of({c.code.symbol: c.code.machine_code for c in compiled}.values())
    return {
        "program": program,
        "target": target.compiled_for(tiles=any(c.code.in_tiles for c in compiled)).described(),
        "fusion": fusion,
        "signature": {
            "arguments": [_described(s) for s in signature.arguments],
            "state": [_described(s) for s in signature.state],
            "outputs": [
                {"name": s.name, "shape": list(s.shape), "dtype": s.dtype,
                 "memory_format": s.memory_format}
                for s in signature.outputs
            ],
            "gradients": [s.name for s in signature.gradients],
        },
        "counts": {
            "before": sum(1 for n in plan.graph.nodes if not n.row.literal),
            "after": len(plan.computed),
            "collectives": {call.name: len(collectives_of(plan, call.name)) for call in plan.calls},
            "distinct": len({c.code.symbol for c in compiled}),
        },
        "memory": dict(signature.memory),
        "imports": {"functions": list(imports.functions), "pointers": list(imports.pointers)},
        "kernels": [
            {
                "name": c.kernel.name,
                "symbol": c.code.symbol,
                "numbers": list(c.code.numbers),
                "call": call,
                "layer": layer_of_kernel(c.kernel, layers),
                "work": work_of_kernel(c.kernel),
                "sublayers": list(c.kernel.sublayers),
                "slots": [len(c.kernel.load), int(c.kernel.anchor is not None)],
                "ops": [_told(n, c.kernel, layers) for n in c.kernel.nodes],
                "sources": [position[s] for s in waited[c.kernel.name] if s in position],
                "rule": c.code.rule,
                "knobs": dict(c.code.knobs),
                "declined": dict(c.code.declined),
                "operations": operations(c.kernel, BY_KIND[c.code.rule]),
                "inputs": [_placed(v, plan, maps) for v in c.kernel.inputs],
                "outputs": [_placed(v, plan, maps) for v in c.kernel.outputs],
            }
            for c, call in zip(compiled, calls, strict=True)
        ],
        "collectives": [
            {
                "name": k.name,
                "group": k.anchor.attrs["group"],
                "inputs": [_placed(v, plan, maps) for v in k.inputs],
                "outputs": [_placed(v, plan, maps) for v in k.outputs],
                "over_before": plan.kernels[w.before].name if w.before < len(plan.kernels) else "",
            }
            for w in plan.waits
            for k in (plan.kernels[w.kernel],)
        ],
        "refused": described_refusals(plan),
    }  # fmt: skip


def described_refusals(plan: KernelPlan) -> list[dict[str, Any]]:
    """Pairs of ops that are not in one kernel, those with one reason and the same ops together.

    Of each pair the names of the values and, where known, the lines that they stem from.
    """
    ops = {v.name: n.op for v, n in plan.graph.producers().items()}
    groups: dict[tuple[str, ...], list[list[str | None]]] = {}
    for r in plan.refused:
        pair = [r.producer, r.consumer, *(loc and str(loc) for loc in r.lines)]
        key = (r.slot, r.reason, ops[r.producer], ops[r.consumer])
        groups.setdefault(key, []).append(pair)
    return [
        {"slot": slot, "reason": reason, "ops": [producer, consumer], "pairs": pairs}
        for (slot, reason, producer, consumer), pairs in groups.items()
    ]


def _described(spec: ArgSpec) -> dict[str, Any]:
    return {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype,
            "memory_format": spec.memory_format, "updated": spec.inplace}  # fmt: skip


def _told(node: Node, kernel: Kernel, layers: Mapping[Node, str]) -> dict[str, str]:
    """An op that a kernel holds; a number is everybody's, and has the layer of its kernel."""
    return {
        "result": node.out.name,
        "dtype": node.out.type.element.short,
        "layer": layer_of_kernel(kernel, layers) if node.row.literal else layers[node],
        "line": str(node.loc or ""),
        "text": str(node),
    }


def _placed(v: Value, plan: KernelPlan, maps: Set[Value]) -> dict[str, Any]:
    return {"name": v.name, "type": str(v.type), "layout": str(plan.layouts[v]),
            "bytes": plan.nbytes(v), "map": v in maps}  # fmt: skip
