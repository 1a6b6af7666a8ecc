"""Collectives of one call: started when what they send is there, over before it is needed.

In: what a program exchanges (`Exchanges.of`), and who carries it: a `Communicator` for each group
of ranks, given by whoever knows one. Out: an `Exchange` for each call, which the steps of the call
use. Here it is said what is sent and what is made of it; how it travels is the communicator's.

Where ranks share memory and have agreed, most of it is done by calls between those of the kernels
(`ring`); what is done here is the rest, and means the same.

Ranks tell each other at the beginning of each ``forward`` what they are going to exchange until the
end of its ``backward``, behind the first kernels; see `agreement`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bngen.errors import CallError
from bngen.moments import merged
from bngen.runtime import ring
from bngen.runtime.agreement import SHOWN, Agreement, Planned, summed_in
from bngen.runtime.communicator import Communicator, Work, waiting_for
from bngen.runtime.signature import BACKWARD, FORWARD, CallSpec
from bngen.runtime.steps import AVERAGE, MOMENTS, StartStep, Step


@dataclass(frozen=True)
class Exchanges:
    """What the calls of a program exchange.

    Attributes:
        program: its name.
        starts: the steps that start something, by their place among all steps.
        planned: what each group of ranks exchanges, in order.
    """

    program: str
    starts: Mapping[int, StartStep]
    planned: Mapping[str, Sequence[Planned]] = field(default_factory=dict)

    @classmethod
    def of(cls, program: str, steps: Sequence[Step], calls: Sequence[CallSpec]) -> Exchanges:
        """Those of a program's steps, which belong to its calls."""
        starts = {i: s for i, s in enumerate(steps) if isinstance(s, StartStep)}
        late = next((call.start for call in calls if call.name == BACKWARD), len(steps))
        groups = len({s.group for s in starts.values()})
        planned: dict[str, list[Planned]] = {}
        for i, s in starts.items():
            each = _planned(s, BACKWARD if i >= late else FORWARD, groups)
            planned.setdefault(s.group, []).append(each)
        return cls(program, starts, planned)

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of ranks that it needs."""
        return tuple(dict.fromkeys(s.group for s in self.starts.values()))

    def begun(self, given: Mapping[str, Communicator], *, agree: bool) -> Exchange | None:
        """That of a call that begins now; None where nothing is exchanged.

        Args:
            given: communicators by group.
            agree: whether the ranks tell each other what they are going to do.

        Raises:
            CallError: for a group that nobody carries anything for.
        """
        if not self.starts:
            return None
        if missing := [group for group in self.groups if group not in given]:
            raise CallError(
                f"{self.program}: exchanges values with other processes, and no process group was "
                f"given for {missing[0]!r}",
                hint="bngen.connect(module, process_group)",
            )
        exchange = Exchange(self, given)
        for group, planned in self.planned.items():
            if agree:
                exchange.tell(group, planned)
            else:
                exchange.open(group)
        return exchange

    @functools.cached_property
    def rows(self) -> Mapping[int, int]:
        """The number of each step's record."""
        return {step: i for i, step in enumerate(self.starts)}

    @functools.cached_property
    def records(self) -> np.ndarray:
        """Records of a call that begins."""
        return ring.collectives(self.starts.values())

    @functools.cached_property
    def through_memory(self) -> Mapping[str, np.ndarray]:
        """By group, the records of what goes through memory where its ranks share some."""
        found = {
            group: [
                self.rows[i] for i, s in self.starts.items()
                if s.group == group and ring.goes_through_memory(s)
            ]
            for group in self.groups
        }  # fmt: skip
        return {group: np.array(rows, np.intp) for group, rows in found.items()}


def _planned(step: StartStep, call: str, groups: int) -> Planned:
    count, dtype = sum(math.prod(o.shape) for o in step.operands), step.operands[0].dtype
    return Planned(call, step.combine, count, dtype, step.name, groups=groups)


class Exchange:
    """The collectives of one call that are under way.

    Attributes:
        records: what calls know of each collective (`ring.COLLECTIVE`).
        followers: by group, the ranks that have no part of the batch and follow the others.
    """

    def __init__(self, exchanges: Exchanges, given: Mapping[str, Communicator]):
        self._of, self._given = exchanges, given
        self._told: dict[str, Agreement] = {}
        self._open: dict[int, Work | np.ndarray] = {}
        self.records = exchanges.records.copy()
        self.followers: dict[str, tuple[int, ...]] = {}

    # --- agreeing -----------------------------------------------------------------------------

    def tell(self, group: str, planned: Sequence[Planned]) -> None:
        """Begin to tell the ranks of a group what this one is going to exchange."""
        if self._given[group].size > 1:
            who = f"{self._of.program}: "
            self._told[group] = Agreement(who, self._given[group], planned)

    def agree(self, group: str) -> None:
        """Wait until all ranks have said that they are going to exchange the same."""
        if group in self._told:
            _, self.followers[group] = self._told.pop(group).settled()
            self.open(group)

    def open(self, group: str) -> None:
        """From now on calls may exchange what ranks of a group do that share memory."""
        rows = self._of.through_memory[group]
        self.records["ring"][rows] = self._given[group].address

    # --- exchanging ---------------------------------------------------------------------------

    def start(self, number: int, arrays: Sequence[np.ndarray]) -> None:
        """Start a collective.

        Args:
            number: the place of its step among all steps.
            arrays: what its step sends; they may change as soon as this returns.
        """
        step = self._of.starts[number]
        carrier = self._given[step.group]
        sent = np.concatenate([a.ravel() for a in arrays])
        if carrier.size == 1:
            self._open[number] = sent
            return
        self.agree(step.group)
        what = f"{SHOWN[step.combine]} of {step.name!r} to begin"
        with waiting_for(what, carrier, f"{self._of.program}: "):
            if step.combine == MOMENTS:
                head = np.array([step.count], "<i8").view(np.uint8)
                self._open[number] = carrier.gather(np.concatenate([head, sent.view(np.uint8)]))
            else:
                wide = sent.astype(summed_in(sent.dtype), copy=False)
                self._open[number] = carrier.sum(wide)

    def finish(self, number: int) -> list[np.ndarray]:
        """Wait for a collective; its results, flat, in order.

        Raises:
            CallError: when it fails, naming it.
        """
        step, work = self._of.starts[number], self._open.pop(number, None)
        dtype = np.dtype(step.operands[0].dtype)
        if work is None:
            work = self._begun_by_a_call(number, None if step.combine == MOMENTS else dtype)
        size = self._given[step.group].size
        if step.combine == MOMENTS:
            return self._moments(step, work, dtype)
        total = work
        if not isinstance(total, np.ndarray):
            total = self._result(work, f"{SHOWN[step.combine]} of {step.name!r}", step.group)
        return [total / dtype.type(size) if step.combine == AVERAGE else total.astype(dtype)]

    def _begun_by_a_call(self, number: int, dtype: np.dtype | None) -> Work:
        record = self.records[self._of.rows[number]]
        message, record["number"] = int(record["number"]), -1
        return self._given[self._of.starts[number].group].started(message, dtype)

    def _moments(
        self, step: StartStep, work: Work | np.ndarray, dtype: np.dtype
    ) -> list[np.ndarray]:
        if isinstance(work, np.ndarray):
            rows, counts = work[None], np.array([step.count])
        else:
            found = self._result(work, f"{SHOWN[MOMENTS]} of {step.name!r}", step.group)
            counts = found[:, :8].copy().view("<i8")[:, 0]
            rows = found[:, 8:].copy().view(dtype)
        with np.errstate(all="ignore"):
            mean, var, total = merged(counts, *np.split(rows, 2, axis=1))
            return [mean.astype(dtype), var.astype(dtype), np.array([total], dtype)]

    def _result(self, work: Work, what: str, group: str) -> np.ndarray:
        with waiting_for(what, self._given[group], f"{self._of.program}: "):
            return work.result()
