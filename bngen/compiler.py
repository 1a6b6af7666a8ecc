"""THE driver: a program in, a module out, each stage's input and output named.

======================= ==================================== ===================================
stage                   in                                   out
======================= ==================================== ===================================
lang                    Python function                      `Graph` of coarse ops
passes.autodiff         `Graph`                              joint `Graph` (with ``grad=True``)
passes.pipeline         `Graph`, fusion level, lanes         `KernelPlan`, `MemoryPlan`
lower, scheduling       `Kernel`, target, knobs              scheduled TIR
backend                 scheduled TIR                        functions
runtime                 functions, places                    `Module`
======================= ==================================== ===================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bngen.backend.kernels import CompiledKernel, Progress, compile_plan
from bngen.errors import BngenError
from bngen.ir.build import GraphBuilder
from bngen.ir.layout import PLAIN, same_bytes
from bngen.ir.node import Graph, Input, Node, Value
from bngen.lang.init import fill
from bngen.options import environment
from bngen.passes.autodiff import differentiate
from bngen.passes.fusion import LEVELS, late_nodes
from bngen.passes.pipeline import Dump, Planned, plan_program
from bngen.runtime import threads as thread_pool
from bngen.runtime.arguments import ArgSpec
from bngen.runtime.executor import Executor, Operand, Step
from bngen.runtime.module import LabelCheck, Module, OutputSpec, Signature
from bngen.scheduling import records
from bngen.target import Target

FUSION_LEVELS = tuple(LEVELS)
"""Names for ``fusion=``; cumulative in this order."""


def build(
    program: Any,
    *,
    target: Any = "llvm -mcpu=native",
    fusion: str = "icf",
    threads: int | None = None,
    grad: bool = False,
    wrt: Sequence[str] | None = None,
    schedules: Any = None,
    progress: Progress | None = None,
    dump: Dump | None = None,
) -> Module:
    """Compile a program.

    Args:
        program: a `bngen.program`, or its graph.
        target: what to compile for: ``"llvm -mcpu=native"``, a dict, JSON or a `Target`.
        fusion: one of `FUSION_LEVELS`.
        threads: threads of a call; all CPUs of the process by default.
        grad: also compile the gradient; the module then has ``backward``.
        wrt: names of the inputs to differentiate with respect to; by default every floating-point
            argument and parameter.
        schedules: folder with schedule records to look in first; BNGEN_SCHEDULES by default.
        progress: called after each kernel with (done, total, name).
        dump: called after each pass with its name and the graph.

    Returns:
        The module.

    Raises:
        BngenError: for a program, target or option that cannot be compiled.
    """
    if fusion not in LEVELS:
        raise BngenError(f"unknown fusion level {fusion!r}", hint=f"one of {', '.join(LEVELS)}")
    if threads is not None:
        thread_pool.checked_count(threads)
    graph = program.graph if hasattr(program, "graph") else program
    machine = Target.parse(target)
    tuned = records.find(machine, schedules or environment("schedules"))
    joint, planned, cotangents, unaligned = prepare(graph, machine.lanes, fusion, grad, wrt, dump)
    late = [i.value for i in joint.inputs if i.name in cotangents]
    arguments = [i for i in joint.inputs if i.kind == "input" and i.name not in cotangents]
    # Before any code is loaded: what is loaded keeps the pool that it finds.
    thread_pool.install()
    compiled = compile_plan(
        planned.plan,
        machine,
        unaligned=unaligned,
        places=planned.memory.places,
        knobs=tuned.lookup,
        progress=progress,
    )
    binding = Binding(joint, planned, compiled, len(graph.outputs), frozenset(late))
    signature = Signature(
        program=graph.name,
        arguments=tuple(binding.argument(i) for i in arguments),
        state=tuple(binding.argument(i) for i in joint.inputs if i.kind != "input"),
        cotangents=tuple(binding.argument(i) for i in joint.inputs if i.name in cotangents),
        outputs=tuple(binding.output(i) for i in range(len(graph.outputs))),
        gradients=tuple(binding.output(i) for i in range(len(graph.outputs), len(joint.outputs))),
        update_copies=binding.update_copies(),
        forward_steps=binding.forward_steps,
        tuple_output=graph.tuple_output,
        named_outputs=bool(graph.output_names),
        labels=label_checks(graph),
        initialize=_initializer(joint.inputs),
        memory=memory_report(joint, planned, binding.forward_steps),
    )
    steps = binding.steps()

    def executor(state: Mapping[str, np.ndarray]) -> Executor:
        return Executor(steps, planned.memory.nbytes, state)

    return Module(
        signature,
        executor,
        describe=lambda: manifest(graph, planned, compiled, machine, fusion, signature),
        texts=lambda kind: emit(compiled, kind),
        objects=lambda folder: write_objects(compiled, folder),
        num_threads=threads,
    )


class Prepared(NamedTuple):
    """A program before code is generated.

    Attributes:
        graph: the program, with its gradient if asked for.
        planned: kernels, layouts and places.
        cotangents: names of the inputs that ``backward`` is given.
        unaligned: values in users' memory, which starts anywhere.
    """

    graph: Graph
    planned: Planned
    cotangents: frozenset[str]
    unaligned: frozenset[Value]


def prepare(
    graph: Graph,
    lanes: int,
    fusion: str = "icf",
    grad: bool = False,
    wrt: Sequence[str] | None = None,
    dump: Dump | None = None,
) -> Prepared:
    """Differentiate and plan; arguments as for `build`, which goes on from here."""
    cotangents: frozenset[str] = frozenset()
    joint = graph
    if grad:
        joint = differentiate(graph, wrt, cotangents="inputs")
        cotangents = frozenset(i.name for i in joint.inputs) - {i.name for i in graph.inputs}
    late = [i.value for i in joint.inputs if i.name in cotangents]
    joint = keep_old_values(joint, late)
    planned = plan_program(joint, fusion, lanes, late=late, dump=dump)
    users = {i.value for i in joint.inputs if i.kind == "input"}
    unaligned = frozenset(v for v, p in planned.memory.places.items() if p.root in users)
    return Prepared(joint, planned, cotangents, unaligned)


def _initializer(inputs: Sequence[Input]):
    table = {i.name: i for i in inputs}
    return lambda name, rng: fill(table[name], rng)


class Binding:
    """From values of the graph to operands of the executor."""

    def __init__(
        self,
        graph: Graph,
        planned: Planned,
        compiled: Sequence[CompiledKernel],
        own_outputs: int,
        late: frozenset[Value],
    ):
        self.graph, self.plan, self.memory = planned.plan.graph, planned.plan, planned.memory
        labels = graph.output_names or ("",) * len(graph.outputs)
        # What `backward` returns goes by the input's name alone.
        self.names = [
            n if i < own_outputs else n.removeprefix("grad:") for i, n in enumerate(labels)
        ]
        self.compiled = compiled
        self.inputs = {i.value: i.name for i in graph.inputs}
        self.updated = {target for target, _ in graph.updates}
        self.forward_steps = self.count_forward_steps(late)
        self.direct = self.direct_outputs(own_outputs)

    def direct_outputs(self, own_outputs: int) -> dict[Value, str]:
        """Results that a kernel writes straight into the caller's fresh memory.

        Not so a gradient that ``forward`` happens to compute: its memory comes with ``backward``.
        """
        direct: dict[Value, str] = {}
        early = {v for c in self.compiled[: self.forward_steps] for v in c.kernel.outputs}
        roots = [p.root for p in self.memory.places.values()]
        for i, v in enumerate(self.graph.outputs):
            place = self.memory.places[v]
            shared = roots.count(v) > 1
            plain = same_bytes(v.type, self.plan.layouts[v], PLAIN)
            if i >= own_outputs and v in early:
                continue
            if place.root == v and v not in self.inputs and plain and not shared:
                direct.setdefault(v, f"out:{i}")
        return direct

    def operand(self, v: Value, shape: tuple[int, ...]) -> Operand:
        """Where a value lies, in the shape a kernel's signature has."""
        place = self.memory.places[v]
        root = place.root
        if root in self.direct:
            return Operand(self.direct[root], place.offset, shape, v.dtype)
        if root in self.inputs:
            return Operand(f"in:{self.inputs[root]}", place.offset, shape, v.dtype)
        return Operand(None, self.memory.arena[root] + place.offset, shape, v.dtype)

    def steps(self) -> list[Step]:
        """The calls, in order."""
        return [
            Step(
                c.kernel.name,
                c.code.entry,
                tuple(self.operand(a.value, a.shape) for a in c.arguments),
            )
            for c in self.compiled
        ]

    def argument(self, item: Input) -> ArgSpec:
        """What a caller has to give for an input."""
        return ArgSpec(item.name, item.value.shape, item.value.dtype, item.value in self.updated)

    def output(self, i: int) -> OutputSpec:
        """Where the i-th result is found."""
        v, name = self.graph.outputs[i], self.names[i]
        if self.direct.get(v) == f"out:{i}":
            return OutputSpec(name, v.shape, v.dtype, slot=f"out:{i}")
        if v in self.direct:
            return OutputSpec(name, v.shape, v.dtype, slot=self.direct[v])
        if v in self.inputs:
            return OutputSpec(name, v.shape, v.dtype, source=self.inputs[v])
        return OutputSpec(name, v.shape, v.dtype, operand=self.operand(v, v.shape))

    def update_copies(self) -> tuple[tuple[str, Operand], ...]:
        """Updates that no kernel writes in place: input, and where its new value lies."""
        return tuple(
            (self.inputs[target], self.operand(new, new.shape))
            for target, new in self.memory.copies
        )

    def count_forward_steps(self, late: frozenset[Value]) -> int:
        """Steps before the first that needs a gradient of an output."""
        nodes = late_nodes(self.graph, late)
        for i, c in enumerate(self.compiled):
            if any(n in nodes for n in c.kernel.nodes):
                return i
        return len(self.compiled)


def keep_old_values(graph: Graph, late: Sequence[Value] = ()) -> Graph:
    """Let whoever still needs an updated input once the update is made read a copy of it.

    An update is made when ``forward`` ends. The old value is needed after that by ``backward``
    (a dropout mask drawn again from a step counter), by a call that returns it, and by an update
    of another input with it.

    Args:
        graph: a program, or a differentiated one.
        late: inputs that only ``backward`` is given.
    """
    targets = {target for target, _ in graph.updates}
    needed = targets & {*graph.outputs, *(new for target, new in graph.updates if new != target)}
    needed |= targets & _read_by(graph, late_nodes(graph, frozenset(late)))
    if not needed:
        return graph
    b = GraphBuilder.rewriting(graph)
    for target in graph.input_values():
        if target in needed:
            b.replace(target, b.emit("copy", target))
    for node in graph.nodes:
        b.add(node)
    # What is written stays the input itself: only readers look at the copy.
    updates = [(target, b.resolve(new)) for target, new in graph.updates]
    return replace(b.finish(), updates=tuple(updates))


def _read_by(graph: Graph, goals: frozenset[Node]) -> set[Value]:
    """The values that any of the nodes depends on."""
    found: set[Value] = set()
    for node in reversed(graph.nodes):
        if node in goals or not found.isdisjoint(node.outputs):
            found.update(node.operands)
    return found


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
    graph: Graph,
    planned: Planned,
    compiled: Sequence[CompiledKernel],
    target: Target,
    fusion: str,
    signature: Signature,
) -> dict[str, Any]:
    """What was built, as data: the contents of manifest.json."""
    plan = planned.plan
    return {
        "program": graph.name,
        "target": {"text": str(target), "cpu": target.cpu, "lanes": target.lanes,
                   "arch": target.arch, "features": list(target.required_features())},
        "fusion": fusion,
        "signature": {
            "arguments": [_described(s) for s in signature.arguments],
            "state": [_described(s) for s in signature.state],
            "outputs": [
                {"name": s.name, "shape": list(s.shape), "dtype": s.dtype}
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
            "updated": spec.inplace}  # fmt: skip


def _placed(v: Value, plan: Any) -> dict[str, str]:
    return {"name": v.name, "type": str(v.type), "layout": str(plan.layouts[v])}


def emit(compiled: Sequence[CompiledKernel], kind: str) -> dict[str, str]:
    """Texts of the distinct kernels: ``tir``, ``ll`` or ``asm``."""
    codes = {c.code.symbol: c.code for c in compiled}
    if kind == "tir":
        return {name: code.module.script() for name, code in codes.items()}
    suffix = {"ll": "ll", "asm": "s"}[kind]
    return {name: code.library.mod.inspect_source(suffix) for name, code in codes.items()}


def write_objects(compiled: Sequence[CompiledKernel], folder: Path) -> None:
    """One object file for each distinct kernel, named by its symbol."""
    for symbol, code in {c.code.symbol: c.code for c in compiled}.items():
        code.library.mod.write_to_file(str(folder / f"{symbol}.o"), "o")
