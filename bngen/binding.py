"""From a planned and compiled graph to what a module runs: operands, results, checks.

In: a graph, its plan, its compiled kernels. Out: a `Built`, plain data that a process can keep for
the next one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from bngen.codegen.compile import CompiledKernel
from bngen.ir.node import Graph, Input, Node
from bngen.ir.types import Value
from bngen.manifest import manifest, memory_report
from bngen.passes.pipeline import Planned
from bngen.passes.prepare import Joint, Prepared
from bngen.plan.calls import BACKWARD, FORWARD, kernels_of
from bngen.plan.kernel import Call, Kernel
from bngen.plan.layout import Blocked, Plain, physical_shape, plain, same_bytes
from bngen.runtime.argspec import ArgSpec
from bngen.runtime.memory import ALIGNMENT
from bngen.runtime.signature import (
    Built,
    CallSpec,
    LabelCheck,
    OutputSpec,
    Signature,
    input_slot,
)
from bngen.runtime.steps import (
    AVERAGE,
    MOMENTS,
    SUM,
    CopyStep,
    KernelStep,
    Operand,
    StartStep,
    Step,
    WaitStep,
)
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
    binding = Binding(joint, planned, compiled)
    cotangents = joint.cotangents or ()
    given = [i for i in graph.inputs if i.kind == "input" and i.value not in cotangents]
    own = len(program.outputs)
    signature = Signature(
        program=program.name,
        arguments=tuple(binding.argument(i) for i in given),
        state=tuple(binding.argument(i) for i in graph.inputs if i.kind != "input"),
        cotangents=tuple(binding.argument(i) for i in graph.inputs if i.value in cotangents),
        outputs=tuple(binding.results[:own]),
        gradients=tuple(binding.results[own:]),
        calls=binding.calls,
        tuple_output=program.tuple_output,
        named_outputs=bool(program.output_names),
        labels=label_checks(program),
        memory=memory_report(graph, planned),
    )
    described = manifest(program.name, planned, compiled, target, fusion, signature)
    return Built(signature, binding.steps, planned.memory.nbytes, described)


class Binding:
    """From values of the graph to operands of steps.

    Attributes:
        results: results of the program, and then its gradients.
        steps: kernels of ``forward``, and what it copies; the same of ``backward``.
        calls: which steps belong to which call.
    """

    def __init__(
        self,
        joint: Joint,
        planned: Planned,
        compiled: Sequence[CompiledKernel],
    ):
        self.joint, self.formats = joint, joint.formats
        self.compiled = {c.kernel.name: c for c in compiled}
        self.graph, self.plan, self.memory = planned.plan.graph, planned.plan, planned.memory
        self.inputs = {i.value: i.name for i in joint.graph.inputs}
        self.updated = {target for target, _ in joint.graph.updates}
        self.written: dict[Value, tuple[str, int]] = {}
        self.results = list(self.place_results())
        self.steps, self.calls = self.bind_steps()

    def place_results(self) -> tuple[OutputSpec, ...]:
        """Slot and offset of each result; ``written`` are those that a kernel writes there itself.

        Small results of a call share a slot, since hundreds of allocations take their time.
        """
        own = len(self.joint.program.outputs)
        names = [*(self.joint.program.output_names or ("",) * own), *self.joint.gradients]
        may_write = self.written_by_kernels()
        shared_bytes = {"out:small": 0, "grad:small": 0}
        specs = []
        for i, (v, name) in enumerate(zip(self.graph.outputs, names, strict=True)):
            slot, offset = f"out:{i}", 0
            if v.type.nbytes <= SMALL:
                slot = "out:small" if i < own else "grad:small"
                offset = shared_bytes[slot]
                shared_bytes[slot] += -(-v.type.nbytes // ALIGNMENT) * ALIGNMENT
            if i in may_write:
                self.written.setdefault(v, (slot, offset))
            memory_format = self.formats.of_output(i)
            specs.append(OutputSpec(name, v.shape, v.dtype, slot, offset, memory_format))
        return tuple(specs)

    def written_by_kernels(self) -> set[int]:
        """Positions of results that a kernel can write straight into the caller's memory.

        Not so what lies in memory of another layout, or together with something else. Nor a
        gradient that ``forward`` computes: its memory comes with ``backward``. Nor what
        ``backward`` reads of the results: callers may change what they were given.
        """
        own = len(self.joint.program.outputs)
        gradients = set(self.graph.outputs[own:])
        early = {v for k in kernels_of(self.plan, FORWARD) for v in k.outputs}
        read_late = {v for k in kernels_of(self.plan, BACKWARD) for v in k.inputs}
        roots = Counter(place.root for place in self.memory.places.values())
        return {
            i
            for i, v in enumerate(self.graph.outputs)
            if self.memory.places[v].root == v
            and v not in self.inputs
            and roots[v] == 1
            and same_bytes(v.type, self.plan.layouts[v], self.declared(i))
            and v not in (read_late | gradients if i < own else early)
        }

    def declared(self, i: int) -> Plain:
        """The layout in which the i-th result is handed out."""
        last = i in self.formats.outputs
        return plain(self.graph.outputs[i].type, channels_last=last)

    def bind_steps(self) -> tuple[tuple[Step, ...], tuple[CallSpec, ...]]:
        """All steps, and the calls that they belong to."""
        own = len(self.joint.program.outputs)
        last = {FORWARD: [*self.result_copies(0, own), *self.update_copies()], BACKWARD: []}
        steps: list[Step] = []
        calls = []
        for call in self.plan.calls:
            start = len(steps)
            due = self.due(call) if call.name == BACKWARD else {}
            self.bind_kernels(call, steps, due)
            steps += last[call.name]
            reads = self.reads(steps[start:]) if call.name == BACKWARD else ()
            calls.append(CallSpec(call.name, start, len(steps), reads))
        return tuple(steps), tuple(calls)

    def bind_kernels(self, call: Call, steps: list[Step], due: Mapping[int, list[int]]) -> None:
        """The steps of a call's kernels; collectives start in their place, and end in another.

        Args:
            call: the call.
            steps: those before it; its own are added.
            due: before which kernel, or the end, which gradients are handed over.
        """
        waits: dict[int, list[int]] = {}
        for wait in self.plan.waits:
            waits.setdefault(wait.before, []).append(wait.kernel)
        started: dict[int, int] = {}
        for i in range(call.start, call.stop + 1):
            for there in waits.get(i, ()):
                if there in started:
                    steps.append(self.wait_step(self.plan.kernels[there], started[there]))
            for result in due.get(i, ()):
                steps += self.result_copies(result, result + 1)
                self.results[result] = replace(self.results[result], done=len(steps))
            if i == call.stop:
                break
            kernel = self.plan.kernels[i]
            if kernel.is_collective:
                started[i] = len(steps)
                steps.append(self.start_step(kernel))
            else:
                steps.append(self.kernel_step(self.compiled[kernel.name]))

    def due(self, call: Call) -> dict[int, list[int]]:
        """Before which kernel each gradient is complete, and touched by none from there on.

        Nor is what it is a gradient of: whoever is given it may change that at once, as optimizers
        do that step in hooks.
        """
        over = {wait.kernel: wait.before - 1 for wait in self.plan.waits}
        places, last = self.memory.places, {}
        for i, kernel in enumerate(self.plan.kernels):
            last |= {places[v].root: i for v in kernel.inputs}
            last |= {places[v].root: over.get(i, i) for v in kernel.outputs}
        inputs = {name: v for v, name in self.inputs.items()}
        found: dict[int, list[int]] = {}
        for i, name in enumerate(self.joint.gradients, start=len(self.joint.program.outputs)):
            touched = (self.graph.outputs[i], inputs[name])
            over_at = max(last.get(places[v].root, -1) for v in touched) + 1
            found.setdefault(max(over_at, call.start), []).append(i)
        return found

    def start_step(self, kernel: Kernel) -> StartStep:
        """The start of a collective."""
        node = kernel.anchor
        combine = MOMENTS if node.row.combine == "moments" else SUM
        if node.attrs.get("average"):
            combine = AVERAGE
        pieces = tuple(p for v in node.operands for p in self.pieces(v))
        count = node.attrs.get("count", 0)
        return StartStep(layer_of(node), node.attrs["group"], combine, count, pieces)

    def wait_step(self, kernel: Kernel, start: int) -> WaitStep:
        """Its end."""
        pieces = tuple(p for v in kernel.anchor.outputs for p in self.pieces(v))
        return WaitStep(layer_of(kernel.anchor), start, pieces)

    def pieces(self, v: Value) -> tuple[Operand, ...]:
        """Where a value's elements lie, in order: those of a vector without its padding."""
        layout = self.plan.layouts[v]
        if not isinstance(layout, Blocked):
            return (self.operand(v, physical_shape(v.type, layout)),)
        whole = self.operand(v, (v.type.size,))
        step = layout.lanes * v.type.element.nbytes
        return tuple(
            replace(whole, offset=whole.offset + block * step, shape=(count,))
            for _, block, count in layout.block_starts()
        )

    def kernel_step(self, c: CompiledKernel) -> KernelStep:
        """The call of a kernel."""
        operands = tuple(self.operand(a.value, a.shape) for a in c.arguments)
        return KernelStep(c.kernel.name, c.code.symbol, operands, c.code.numbers)

    def result_copies(self, start: int, stop: int) -> list[CopyStep]:
        """The results [start, stop) that no kernel writes to where they are handed out."""
        copies = []
        for v, spec in zip(self.graph.outputs[start:stop], self.results[start:stop], strict=True):
            if self.written.get(v) != (spec.slot, spec.offset):
                target = Operand(spec.slot, spec.offset, spec.memory_shape, v.dtype)
                copies.append(CopyStep(v.name, self.operand(v, spec.memory_shape), target))
        return copies

    def update_copies(self) -> list[CopyStep]:
        """Updates that no kernel writes in place."""
        copies = []
        for target, new in self.memory.copies:
            shape = physical_shape(target.type, self.plan.layouts[target])
            source, there = self.operand(new, shape), self.operand(target, shape)
            copies.append(CopyStep(target.name, source, there))
        return copies

    def reads(self, steps: Iterable[Step]) -> tuple[str, ...]:
        """Names of the inputs other than cotangents that steps read."""
        given = set(self.joint.cotangents or ())
        names = {input_slot(n): n for v, n in self.inputs.items() if v not in given}
        slots = {operand.slot for step in steps for operand in step.operands}
        return tuple(name for slot, name in names.items() if slot in slots)

    def operand(self, v: Value, shape: tuple[int, ...]) -> Operand:
        """Where a value lies, in the shape a kernel's signature has."""
        place = self.memory.places[v]
        root = place.root
        if root in self.written:
            slot, offset = self.written[root]
            return Operand(slot, offset + place.offset, shape, v.dtype)
        if root in self.inputs:
            return Operand(input_slot(self.inputs[root]), place.offset, shape, v.dtype)
        return Operand(None, self.memory.arena[root] + place.offset, shape, v.dtype)

    def argument(self, item: Input) -> ArgSpec:
        """What a caller has to give for an input."""
        v, memory_format = item.value, self.formats.of_input(item.name)
        return ArgSpec(item.name, v.shape, v.dtype, v in self.updated, memory_format)


def layer_of(node: Node) -> str:
    """What users call a collective: the layer that it belongs to, if that has a name."""
    return node.out.name.partition(":")[0]


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
        if node.row.class_numbers:
            (labels,) = node.inputs
            source = _before_conversion(labels, producers)
            if source in arguments:
                pending[labels] = len(checks)
                checks.append(LabelCheck(source.name, node.attrs["classes"]))
        elif node.row.relation == "!=" and node.inputs[0] in pending:
            labels, number = node.inputs
            other = producers.get(number)
            if other is not None and other.row.literal:
                ignored[pending.pop(labels)] = int(other.attrs["value"])
    found = [replace(c, ignore=ignored.get(i)) for i, c in enumerate(checks)]
    return tuple(dict.fromkeys(found))


def _before_conversion(v: Value, producers: Mapping[Value, Node]) -> Value:
    while v in producers and _hands_on(producers[v]):
        v = producers[v].inputs[0]
    return v


def _hands_on(node: Node) -> bool:
    """Whether a node's elements are its operand's, perhaps of another type or shape."""
    return node.row.converts or node.row.moves in ("copies", "reshapes")
