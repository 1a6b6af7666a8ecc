"""A program's report: planned as `bngen.build` plans it, and explained.

In: a program, a target, a level. Out: an `Explained`: the `Report`, and the graphs of all stages as
text. Planning takes a few seconds for a network of a hundred layers; nothing is compiled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from bngen.errors import BngenError
from bngen.explain import kernels
from bngen.explain.report import KernelRow, Report, Stage, totals_of
from bngen.ir.node import Graph
from bngen.lang.program import graph_of
from bngen.manifest import memory_report
from bngen.options import environment
from bngen.passes.fusion.levels import LEVELS
from bngen.passes.prepare import Joint, Prepared, join_gradient, prepare
from bngen.plan.formats import declared_formats
from bngen.scheduling.knobs import Knobs
from bngen.target.parse import Target
from bngen.tuning import records

BASELINE = "none"
"""The fusion level that the others are compared with."""


@dataclass(frozen=True)
class Explained:
    """A program, explained.

    Attributes:
        report: the explanation.
        graphs: stage -> the program then, as text with the user's lines.
        before: the kernels of the same program at level `BASELINE`.
    """

    report: Report
    graphs: Mapping[str, str] = field(default_factory=dict)
    before: tuple[KernelRow, ...] = ()

    def with_symbols(self, symbols: Mapping[str, str]) -> Explained:
        """The same, once kernels have been compiled: by name, that of each one's code."""
        kernels = tuple(replace(k, symbol=symbols.get(k.name, "")) for k in self.report.kernels)
        return replace(self, report=replace(self.report, kernels=kernels))


def explained(
    program: Any,
    target: Target,
    *,
    fusion: str = "icf",
    grad: bool = False,
    wrt: Sequence[str] | None = None,
    memory_format: Any = None,
    schedules: Any = None,
    names: Mapping[str, str] = MappingProxyType({}),
) -> Explained:
    """Explain a program.

    Args:
        program: a `bngen.program`, or its graph.
        target: what it would be compiled for.
        fusion: the level.
        grad: whether its gradient is compiled with it.
        wrt: names of the inputs to differentiate with respect to; see `bngen.compiler.bundle`.
        memory_format: how arrays lie; see `bngen.compiler.bundle`.
        schedules: folder of records to look in first; BNGEN_SCHEDULES by default.
        names: inputs that are parameters somewhere else -> what they are called there.

    Raises:
        BngenError: for a program that cannot be planned.
    """
    check_fusion(fusion)
    graph = graph_of(program, "explain")
    formats = declared_formats(graph, memory_format)
    seen = [("traced", graph)]
    joint = Joint(graph, graph, formats=formats)
    if grad:
        joint = join_gradient(graph, wrt, formats)
        seen.append(("differentiated", joint.graph))
    lanes = target.channel_block
    tuned = Tuned(target, schedules or environment("schedules"))
    prepared = prepare(
        joint, lanes, fusion, lambda name, g: seen.append((name, g)), pairs=target.pairs
    )
    rows = kernels.rows(prepared, target.machine, tuned, names)
    before = rows
    if fusion != BASELINE:
        unfused = prepare(joint, lanes, BASELINE, pairs=target.pairs)
        before = kernels.rows(unfused, target.machine, tuned, names)
    report = report_of(graph.name, fusion, target, prepared, rows, seen, before)
    return Explained(report, {_numbered(i, n): _text(g) for i, (n, g) in enumerate(seen)}, before)


def check_fusion(level: str) -> None:
    """Raise `BngenError` for what is no fusion level."""
    if level not in LEVELS:
        raise BngenError(f"unknown fusion level {level!r}", hint=f"one of {', '.join(LEVELS)}")


def report_of(
    name: str,
    fusion: str,
    target: Target,
    prepared: Prepared,
    rows: tuple[KernelRow, ...],
    seen: Sequence[tuple[str, Graph]],
    before: tuple[KernelRow, ...],
) -> Report:
    """What has been decided, put together."""
    machine = target.machine
    return Report(
        program=name,
        fusion=fusion,
        target={
            "cpu": target.cpu, "arch": target.compiled_for().arch, "channel_block":
            target.channel_block, "threads": machine.threads, "l2": machine.l2, "l3": machine.l3,
        },
        stages=tuple(_stage(stage, g) for stage, g in seen),
        kernels=rows,
        refused=kernels.refused(prepared.planned.plan),
        totals=totals_of(rows),
        unfused=totals_of(before),
        memory=memory_report(prepared.joint.graph, prepared.planned),
    )  # fmt: skip


def _stage(name: str, graph: Graph) -> Stage:
    counts = Counter(n.op for n in graph.nodes if not n.row.literal)
    return Stage(name, counts.total(), dict(sorted(counts.items())))


def _text(graph: Graph) -> str:
    return graph.text(locations=True)


def _numbered(number: int, name: str) -> str:
    """Stages in order when their names are sorted; some passes run more than once."""
    return f"{number:02d}-{name}"


class Tuned:
    """The records for a target, with the place of each; see `kernels.Tuned`."""

    def __init__(self, target: Target, folder: Any = None):
        self._records = records.find(target, folder)
        self._places = records.places(target, folder)

    def __call__(
        self, kind: str, signature: str, extents: Mapping[str, int]
    ) -> tuple[Knobs, str] | None:
        """Knobs of a kernel's record, and file and line of it."""
        knobs = self._records.lookup(kind, signature, extents)
        if knobs is None:
            return None
        return knobs, str(self._places[records.digest(kind, signature)])
