"""From a planned and compiled graph to what a module runs: operands, results, checks, reports.

In: a graph, its plan, its compiled kernels. Out: a `Built`, plain data that a process can keep for
the next one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bngen.codegen.compile import CompiledKernel
from bngen.ir.node import Graph, Input, Node, Value
from bngen.passes.fusion.cut import late_nodes
from bngen.passes.pipeline import Planned
from bngen.passes.prepare import Joint, Prepared
from bngen.plan.layout import plain, same_bytes
from bngen.runtime.arguments import ArgSpec
from bngen.runtime.calls import Operand
from bngen.runtime.executor import Step
from bngen.runtime.memory import ALIGNMENT
from bngen.runtime.signature import Built, LabelCheck, OutputSpec, Signature
from bngen.target.parse import Target

SMALL = 1 << 14
"""Bytes up to which a result shares memory with others of its call: one kept keeps them all."""


def bind(
    prepared: Prepared, compiled: Sequence[CompiledKernel], target: Target, fusion: str
) -> Built:
    """What a module runs.

    Args:
        prepared: a planned program.
        compiled: the kernels of the plan.
        target: what they were compiled for.
        fusion: the level, for the manifest.
    """
    joint, planned, _ = prepared
    graph, program = joint.graph, joint.program
    own = len(program.outputs)
    binding = Binding(joint, planned, compiled)
    given = [i for i in graph.inputs if i.kind == "input" and i.name not in joint.cotangents]
    signature = Signature(
        program=program.name,
        arguments=tuple(binding.argument(i) for i in given),
        state=tuple(binding.argument(i) for i in graph.inputs if i.kind != "input"),
        cotangents=tuple(binding.argument(i) for i in graph.inputs if i.name in joint.cotangents),
        outputs=tuple(binding.output(i) for i in range(own)),
        gradients=tuple(binding.output(i) for i in range(own, len(graph.outputs))),
        update_copies=binding.update_copies(),
        forward_steps=binding.forward_steps,
        tuple_output=program.tuple_output,
        named_outputs=bool(program.output_names),
        labels=label_checks(program),
        memory=memory_report(graph, planned, binding.forward_steps),
    )
    described = manifest(program.name, planned, compiled, target, fusion, signature)
    return Built(signature, binding.steps(), planned.memory.nbytes, described)


class Binding:
    """From values of the graph to operands of the executor."""

    def __init__(
        self,
        joint: Joint,
        planned: Planned,
        compiled: Sequence[CompiledKernel],
    ):
        graph, own_outputs = joint.graph, len(joint.program.outputs)
        self.formats = joint.formats
        self.graph, self.plan, self.memory = planned.plan.graph, planned.plan, planned.memory
        labels = graph.output_names or ("",) * len(graph.outputs)
        # What `backward` returns goes by the input's name alone.
        self.names = [
            n if i < own_outputs else n.removeprefix("grad:") for i, n in enumerate(labels)
        ]
        self.compiled = compiled
        self.inputs = {i.value: i.name for i in graph.inputs}
        self.updated = {target for target, _ in graph.updates}
        self.forward_steps = self.count_forward_steps(joint.late)
        self.direct = self.direct_outputs(own_outputs)

    def direct_outputs(self, own_outputs: int) -> dict[Value, tuple[str, int]]:
        """Results that a kernel writes straight into the caller's fresh memory: slot and offset.

        Not so a gradient that ``forward`` happens to compute: its memory comes with ``backward``.
        Nor what ``backward`` reads: callers may change what they were given.
        Small results of a call share a slot, since hundreds of allocations take their time.
        """
        direct: dict[Value, tuple[str, int]] = {}
        shared_bytes = {"out:small": 0, "grad:small": 0}
        early = {v for c in self.compiled[: self.forward_steps] for v in c.kernel.outputs}
        read_late = {v for c in self.compiled[self.forward_steps :] for v in c.kernel.inputs}
        roots = [p.root for p in self.memory.places.values()]
        for i, v in enumerate(self.graph.outputs):
            place = self.memory.places[v]
            shared = roots.count(v) > 1
            declared = plain(v.type, channels_last=i in self.formats.outputs)
            as_wanted = same_bytes(v.type, self.plan.layouts[v], declared)
            if (i >= own_outputs and v in early) or (i < own_outputs and v in read_late):
                continue
            if place.root != v or v in self.inputs or not as_wanted or shared or v in direct:
                continue
            slot = "out:small" if i < own_outputs else "grad:small"
            if v.type.nbytes > SMALL:
                direct[v] = (f"out:{i}", 0)
            else:
                direct[v] = (slot, shared_bytes[slot])
                shared_bytes[slot] += -(-v.type.nbytes // ALIGNMENT) * ALIGNMENT
        return direct

    def operand(self, v: Value, shape: tuple[int, ...]) -> Operand:
        """Where a value lies, in the shape a kernel's signature has."""
        place = self.memory.places[v]
        root = place.root
        if root in self.direct:
            slot, offset = self.direct[root]
            return Operand(slot, offset + place.offset, shape, v.dtype)
        if root in self.inputs:
            return Operand(f"in:{self.inputs[root]}", place.offset, shape, v.dtype)
        return Operand(None, self.memory.arena[root] + place.offset, shape, v.dtype)

    def steps(self) -> tuple[Step, ...]:
        """The calls, in order."""
        return tuple(
            Step(
                c.kernel.name,
                c.code.symbol,
                tuple(self.operand(a.value, a.shape) for a in c.arguments),
            )
            for c in self.compiled
        )

    def argument(self, item: Input) -> ArgSpec:
        """What a caller has to give for an input."""
        v, memory_format = item.value, self.formats.of_input(item.name)
        return ArgSpec(item.name, v.shape, v.dtype, v in self.updated, memory_format)

    def output(self, i: int) -> OutputSpec:
        """Where the i-th result is found."""
        v = self.graph.outputs[i]
        spec = OutputSpec(self.names[i], v.shape, v.dtype, memory_format=self.formats.of_output(i))
        if v in self.direct:
            slot, offset = self.direct[v]
            return replace(spec, slot=slot, offset=offset)
        if v in self.inputs:
            return replace(spec, source=self.inputs[v])
        return replace(spec, operand=self.operand(v, spec.memory_shape))

    def update_copies(self) -> tuple[tuple[str, Operand], ...]:
        """Updates that no kernel writes in place: input, and where its new value lies."""
        inputs = {i.value: i for i in self.graph.inputs}
        return tuple(
            (self.inputs[target], self.operand(new, self.argument(inputs[target]).memory_shape))
            for target, new in self.memory.copies
        )

    def count_forward_steps(self, late: frozenset[Value]) -> int:
        """Steps before the first that needs a gradient of an output."""
        nodes = late_nodes(self.graph, late)
        for i, c in enumerate(self.compiled):
            if any(n in nodes for n in c.kernel.nodes):
                return i
        return len(self.compiled)


def label_checks(graph: Graph) -> tuple[LabelCheck, ...]:
    """The arguments that hold class numbers: those that a ``one_hot`` reads, perhaps converted.

    Labels that a cross-entropy ignores it compares with its ``ignore_index`` after the one_hot.
    """
    arguments = {i.value for i in graph.inputs if i.kind == "input"}
    producers = graph.producers()
    pending: dict[Value, int] = {}
    checks: list[LabelCheck] = []
    ignored: dict[int, int] = {}
    for node in graph.nodes:
        if node.op not in ("one_hot", "not_equal"):
            continue
        labels = node.inputs[0]
        if node.op == "one_hot":
            source = _before_conversion(labels, producers)
            if source in arguments:
                pending[labels] = len(checks)
                checks.append(LabelCheck(source.name, node.attrs["classes"]))
        elif labels in pending:
            other = producers.get(node.inputs[1])
            if other is not None and other.op == "constant":
                ignored[pending.pop(labels)] = int(other.attrs["value"])
    found = [replace(c, ignore=ignored.get(i)) for i, c in enumerate(checks)]
    return tuple(dict.fromkeys(found))


def _before_conversion(v: Value, producers: Mapping[Value, Node]) -> Value:
    while v in producers and producers[v].op in ("cast", "reshape", "copy"):
        v = producers[v].inputs[0]
    return v


def memory_report(graph: Graph, planned: Planned, forward_steps: int) -> dict[str, int]:
    """Bytes by use, over the life of a module.

    ``parameters`` are parameters and buffers; ``saved`` is what ``forward`` writes to the arena
    and ``backward`` reads; ``scratch`` is the rest of the arena; ``peak`` is all of these together
    with the results of ``forward`` and ``backward``, which belong to the caller. Where gradients
    are part of the program itself, nothing outlives a call and all of the arena is scratch.
    """
    parameters = sum(i.value.type.nbytes for i in graph.inputs if i.kind != "input")
    results = sum(v.type.nbytes for v in dict.fromkeys(graph.outputs))
    saved = _saved_bytes(planned, forward_steps)
    arena = planned.memory.nbytes
    return {
        "parameters": parameters,
        "saved": saved,
        "scratch": arena - saved,
        "arena": arena,
        "peak": parameters + arena + results,
    }


def _saved_bytes(planned: Planned, forward_steps: int) -> int:
    """Bytes of the arena's buffers that the forward steps write and later ones read."""
    places, kernels = planned.memory.places, planned.plan.kernels
    written = {places[v].root for k in kernels[:forward_steps] for v in k.outputs}
    read = {places[v].root for k in kernels[forward_steps:] for v in k.inputs}
    saved = written & read & planned.memory.arena.keys()
    return sum(planned.plan.nbytes(root) for root in saved)


def manifest(
    program: str,
    planned: Planned,
    compiled: Sequence[CompiledKernel],
    target: Target,
    fusion: str,
    signature: Signature,
) -> dict[str, Any]:
    """What was built, as data: the contents of manifest.json."""
    plan = planned.plan
    return {
        "program": program,
        "target": target.compiled_for().described(),
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
            "before": sum(1 for n in plan.graph.nodes if n.op != "constant"),
            "after": len(plan.kernels),
            "distinct": len({c.code.symbol for c in compiled}),
        },
        "memory": dict(signature.memory),
        "kernels": [
            {
                "name": c.kernel.name,
                "symbol": c.code.symbol,
                "sublayers": list(c.kernel.sublayers),
                "rule": c.code.rule,
                "knobs": dict(c.code.knobs),
                "inputs": [_placed(v, plan) for v in c.kernel.inputs],
                "outputs": [_placed(v, plan) for v in c.kernel.outputs],
            }
            for c in compiled
        ],
    }  # fmt: skip


def _described(spec: ArgSpec) -> dict[str, Any]:
    return {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype,
            "memory_format": spec.memory_format, "updated": spec.inplace}  # fmt: skip


def _placed(v: Value, plan: Any) -> dict[str, str]:
    return {"name": v.name, "type": str(v.type), "layout": str(plan.layouts[v])}
