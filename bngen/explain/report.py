"""The nouns of an explanation: stages, kernels, refusals, totals.

Nouns only, frozen, of plain data, so that a report can be written as JSON, compared and read back.
Byte counts are those of the layouts in which values lie, padding lanes included; a slice counts as
what it covers. Operations are counted as `bngen.codegen.operations` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

LOAD, ANCHOR, STORE = "load", "anchor", "store"
"""Where an op stands in a kernel: computed as its operand is loaded, around what the loops are, as
its operand is stored."""

_SHOWN_BY_TYPE = frozenset({"cast"})
"""Ops that say more by the type of their result than by their name."""


@dataclass(frozen=True)
class Stage:
    """The program after one pass.

    Attributes:
        name: of the pass; ``traced`` and ``differentiated`` come before all passes.
        ops: number of ops, literal numbers left out.
        counts: op -> how many there are of it.
    """

    name: str
    ops: int
    counts: Mapping[str, int]


@dataclass(frozen=True)
class SubLayer:
    """An op that a kernel holds.

    Attributes:
        op: its name.
        slot: `LOAD`, `ANCHOR` or `STORE`; of a kernel without an anchor all are `STORE`.
        result: the name of its first result.
        layer: the layer of the program that it belongs to.
        line: the user's file and line; empty where nobody knows.
        text: its line of the graph's text form.
        dtype: the element type of that result, as the text form writes it.
    """

    op: str
    slot: str
    result: str
    layer: str
    line: str
    text: str
    dtype: str

    @property
    def label(self) -> str:
        """What it is in a few letters: of a cast, the type that it makes."""
        return f"to {self.dtype}" if self.op in _SHOWN_BY_TYPE else self.op


@dataclass(frozen=True)
class Map:
    """A value that a kernel reads from memory or writes to it.

    Attributes:
        name: of the value.
        type: element type and logical shape.
        layout: how it lies.
        nbytes: bytes of it.
        is_map: whether it is a feature map; else a weight, a vector, a number.
    """

    name: str
    type: str
    layout: str
    nbytes: int
    is_map: bool

    @property
    def dtype(self) -> str:
        """Its element type, as the text form writes it."""
        return self.type.partition("[")[0]


@dataclass(frozen=True)
class Traffic:
    """What goes to and from memory.

    Attributes:
        sweeps_read: feature maps that are read; see `bngen.plan.traffic`.
        sweeps_written: feature maps that are written.
        map_bytes_read: their bytes.
        map_bytes_written: their bytes.
        other_bytes: bytes read and written of everything else.
    """

    sweeps_read: int = 0
    sweeps_written: int = 0
    map_bytes_read: int = 0
    map_bytes_written: int = 0
    other_bytes: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        mine, its = asdict(self), asdict(other)
        return Traffic(**{name: mine[name] + its[name] for name in mine})

    @property
    def map_bytes(self) -> int:
        """Bytes of feature maps, read and written."""
        return self.map_bytes_read + self.map_bytes_written

    @property
    def nbytes(self) -> int:
        """All bytes."""
        return self.map_bytes + self.other_bytes


@dataclass(frozen=True)
class KernelRow:
    """One kernel of the plan.

    What a manifest does not tell is None in a report that was read from one.

    Attributes:
        name: unique; begins with its number in the order of execution.
        call: ``forward`` or ``backward``.
        layer: the layer that it is built around.
        work: what kind of work that is, a word of `bngen.plan.layers`.
        sublayers: the ops it holds, load slots first.
        reads: what it reads from memory.
        writes: what it writes to memory.
        traffic: what that comes to.
        traffic_alone: what its sub-layers would come to if each read its operands from memory and
            wrote its results there. What several kernels compute again counts in each.
        overwritten: bytes of what it writes where something lies that it reads, element by element.
        operations: see `bngen.codegen.operations`.
        strategy: how it is computed: a row of `bngen.codegen.nests`.
        declined: the strategies that were asked before -> why they declined.
        knobs: of the schedule.
        record: file and line of the record that the knobs come from; empty where the strategy chose
            them.
        sources: positions of the kernels that have written what it reads, in order.
        symbol: the name of its code, where that has been compiled.
    """

    name: str
    call: str
    layer: str
    work: str
    sublayers: tuple[SubLayer, ...]
    reads: tuple[Map, ...]
    writes: tuple[Map, ...]
    traffic: Traffic
    traffic_alone: Traffic | None
    operations: int
    strategy: str
    declined: Mapping[str, str]
    knobs: Mapping[str, int]
    record: str | None = ""
    overwritten: int | None = 0
    sources: tuple[int, ...] = ()
    symbol: str = ""

    @property
    def intensity(self) -> float:
        """Operations for each byte that goes to or from memory."""
        return self.operations / max(self.traffic.nbytes, 1)

    def of_slot(self, slot: str) -> tuple[SubLayer, ...]:
        """The sub-layers of a slot."""
        return tuple(s for s in self.sublayers if s.slot == slot)


@dataclass(frozen=True)
class Refused:
    """Pairs of ops that are not in one kernel, for one reason.

    Attributes:
        slot: where they would have met.
        reason: why they do not.
        ops: producer and consumer.
        pairs: of each pair the names of the two values and the user's lines that they stem from,
            empty where nobody knows.
    """

    slot: str
    reason: str
    ops: tuple[str, str]
    pairs: tuple[tuple[str, str, str, str], ...]


@dataclass(frozen=True)
class Total:
    """What the kernels of one call come to.

    Attributes:
        kernels: their number.
        operations: all of theirs.
        traffic: all of theirs.
    """

    kernels: int = 0
    operations: int = 0
    traffic: Traffic = Traffic()

    def __add__(self, other: Total) -> Total:
        return Total(
            self.kernels + other.kernels,
            self.operations + other.operations,
            self.traffic + other.traffic,
        )


@dataclass(frozen=True)
class Report:
    """An explanation of a program.

    Attributes:
        program: its name.
        fusion: the level.
        target: ``cpu``, ``arch`` and other facts of what it is compiled for.
        stages: the program, pass after pass.
        kernels: in the order in which they run.
        refused: what was not fused.
        totals: by call.
        unfused: by call, what the same program comes to at fusion level ``none``.
        memory: bytes by use, see `bngen.manifest`; empty where that has not been planned.
    """

    program: str
    fusion: str
    target: Mapping[str, Any]
    stages: tuple[Stage, ...]
    kernels: tuple[KernelRow, ...]
    refused: tuple[Refused, ...]
    totals: Mapping[str, Total]
    unfused: Mapping[str, Total] = field(default_factory=dict)
    memory: Mapping[str, int] = field(default_factory=dict)

    def map_bytes_by_type(self) -> dict[str, int]:
        """Bytes of feature maps read and written, by the element type that they lie in."""
        found: dict[str, int] = {}
        for m in (m for row in self.kernels for m in (*row.reads, *row.writes) if m.is_map):
            found[m.dtype] = found.get(m.dtype, 0) + m.nbytes
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def data(self) -> dict[str, Any]:
        """The report as JSON takes it; of each kernel its intensity, too."""
        found = {**asdict(self), "map_bytes_by_type": self.map_bytes_by_type()}
        for row, shown in zip(self.kernels, found["kernels"], strict=True):
            shown["intensity"] = row.intensity
        return found


def totals_of(rows: tuple[KernelRow, ...]) -> dict[str, Total]:
    """Totals by call, in the order in which the calls run."""
    found: dict[str, Total] = {}
    for row in rows:
        found[row.call] = found.get(row.call, Total()) + Total(1, row.operations, row.traffic)
    return found
