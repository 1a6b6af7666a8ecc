"""Collectives of one call: started when what they send is there, over before it is needed.

In: what a program exchanges (`Exchanges.of`), and who carries it: a `Communicator` for each group
of ranks, given by whoever knows one. Out: an `Exchange` for each call, which the steps of the call
use. Here it is said what is sent and what is made of it; how it travels is the communicator's.

Ranks tell each other at the beginning of each ``forward`` what they are going to exchange until the
end of its ``backward``, behind the first kernels; see `agreement`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bngen.errors import CallError
from bngen.moments import merged
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
        if agree:
            for group, planned in self.planned.items():
                exchange.tell(group, planned)
        return exchange


def _planned(step: StartStep, call: str, groups: int) -> Planned:
    count, dtype = sum(math.prod(o.shape) for o in step.operands), step.operands[0].dtype
    return Planned(call, step.combine, count, dtype, step.name, groups=groups)


class Exchange:
    """The collectives of one call that are under way.

    Attributes:
        followers: by group, the ranks that have no part of the batch and follow the others.
    """

    def __init__(self, exchanges: Exchanges, given: Mapping[str, Communicator]):
        self._of, self._given = exchanges, given
        self._told: dict[str, Agreement] = {}
        self._open: dict[int, Work | np.ndarray] = {}
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
        step, work = self._of.starts[number], self._open.pop(number)
        dtype = np.dtype(step.operands[0].dtype)
        size = self._given[step.group].size
        if step.combine == MOMENTS:
            return self._moments(step, work, dtype)
        total = work
        if not isinstance(total, np.ndarray):
            total = self._result(work, f"{SHOWN[step.combine]} of {step.name!r}", step.group)
        return [total / dtype.type(size) if step.combine == AVERAGE else total.astype(dtype)]

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
