"""Collectives of one call: started when what they send is there, over before it is needed.

In: what a program exchanges (`Exchanges.of`), and who carries it: a `Communicator` for each group
of ranks, given by whoever knows one. Out: an `Exchange` for each call, which the steps of the call
use. Here it is said what is sent and what is made of it; how it travels is the communicator's.

A collective that two ranks do not both do would hang, or end a process: so ranks tell each other at
the beginning of each ``forward`` what they are going to exchange until the end of its ``backward``,
behind the first kernels. Whoever does something else is refused by all of them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from bngen.errors import CallError
from bngen.moments import merged
from bngen.runtime.steps import AVERAGE, MOMENTS, SUM, StartStep, Step, WaitStep

_WHAT = {
    SUM: "the sum over ranks",
    AVERAGE: "the average over ranks",
    MOMENTS: "the batch statistics of all ranks",
}


class Work(Protocol):
    """Something under way."""

    def result(self) -> np.ndarray:
        """What it gives, when it is over.

        Raises:
            RuntimeError: when it fails, or takes longer than the group of ranks allows.
        """


class Communicator(Protocol):
    """Ranks that exchange arrays; all of them make the same calls in the same order.

    Attributes:
        size: the number of ranks.
        rank: which of them this process is.
    """

    size: int
    rank: int

    def sum(self, array: np.ndarray) -> Work:
        """Begin to add up an array of all ranks, which is this work's from now on."""

    def gather(self, array: np.ndarray) -> Work:
        """Begin to gather bytes, as many of each rank: ``[ranks, bytes]``."""


@dataclass(frozen=True)
class Alone:
    """One rank alone, which has nobody to exchange anything with."""

    size: int = 1
    rank: int = 0

    def sum(self, array: np.ndarray) -> Work:
        """Never asked for."""
        raise AssertionError("one rank alone exchanges nothing")

    gather = sum


@dataclass(frozen=True)
class Exchanges:
    """What the calls of a program exchange.

    Attributes:
        program: its name.
        starts: the steps that start something, by their place among all steps.
    """

    program: str
    starts: Mapping[int, StartStep]
    _said: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, program: str, steps: Sequence[Step]) -> Exchanges:
        """Those of a program's steps."""
        starts = {i: s for i, s in enumerate(steps) if isinstance(s, StartStep)}
        found = cls(program, starts)
        for group in found.groups:
            lines = [_described(s) for s in starts.values() if s.group == group]
            found._said[group] = "\n".join(lines).encode()
        return found

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
            for group, said in self._said.items():
                exchange.tell(group, said)
        return exchange


def _described(step: StartStep) -> str:
    count, dtype = _elements(step), step.operands[0].dtype
    return f"{_WHAT[step.combine]} of {count} {dtype} ({step.name})"


def _elements(step: StartStep | WaitStep) -> int:
    return sum(math.prod(operand.shape) for operand in step.operands)


_DIGEST, _HEAD = 16, 24


class Exchange:
    """The collectives of one call that are under way."""

    def __init__(self, exchanges: Exchanges, given: Mapping[str, Communicator]):
        self._of, self._given = exchanges, given
        self._told: dict[str, tuple[bytes, Work]] = {}
        self._open: dict[int, Work | np.ndarray] = {}

    # --- agreeing -----------------------------------------------------------------------------

    def tell(self, group: str, said: bytes) -> None:
        """Begin to tell the ranks of a group what this one is going to exchange."""
        if self._given[group].size > 1:
            # But for names, which come from the program's text.
            plain = b"\n".join(line.partition(b" (")[0] for line in said.split(b"\n"))
            head = hashlib.sha256(plain).digest()[:_DIGEST] + len(said).to_bytes(8, "little")
            work = self._given[group].gather(np.frombuffer(head, np.uint8).copy())
            self._told[group] = said, work

    def agree(self, group: str) -> None:
        """Wait until all ranks have said that they are going to exchange the same."""
        if group not in self._told:
            return
        said, work = self._told.pop(group)
        heads = self._result(work, "what ranks are going to exchange", group)
        digests = heads[:, :_DIGEST]
        if (digests == digests[0]).all():
            return
        longest = int(heads[:, _DIGEST:].copy().view("<u8").max())
        text = np.frombuffer(said.ljust(longest), np.uint8).copy()
        texts = self._result(self._given[group].gather(text), "what they differ in", group)
        lines = [bytes(t).decode().rstrip().split("\n") for t in texts]
        own = self._given[group].rank
        other = next(i for i, d in enumerate(digests) if (d != digests[own]).any())
        raise CallError(
            f"{self._of.program}: rank {own} exchanges "
            f"{_first_difference(lines[own], lines[other])}",
            hint=f"rank {other} has another model or another part of a batch, or runs in PyTorch",
        )

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
        try:
            if step.combine == MOMENTS:
                head = np.array([step.count], "<i8").view(np.uint8)
                self._open[number] = carrier.gather(np.concatenate([head, sent.view(np.uint8)]))
            else:
                # Integers wrap, in whatever width they are summed.
                wide = sent.astype(np.int64) if sent.dtype.kind in "iu" else sent
                self._open[number] = carrier.sum(wide)
        except RuntimeError as error:
            what = f"{_WHAT[step.combine]} of {step.name!r} to begin"
            raise failed(f"{self._of.program}: ", what, carrier, error) from None

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
            total = self._result(work, f"{_WHAT[step.combine]} of {step.name!r}", step.group)
        return [total / dtype.type(size) if step.combine == AVERAGE else total.astype(dtype)]

    def _moments(
        self, step: StartStep, work: Work | np.ndarray, dtype: np.dtype
    ) -> list[np.ndarray]:
        if isinstance(work, np.ndarray):
            rows, counts = work[None], np.array([step.count])
        else:
            found = self._result(work, f"{_WHAT[MOMENTS]} of {step.name!r}", step.group)
            counts = found[:, :8].copy().view("<i8")[:, 0]
            rows = found[:, 8:].copy().view(dtype)
        with np.errstate(all="ignore"):
            mean, var, total = merged(counts, *np.split(rows, 2, axis=1))
            return [mean.astype(dtype), var.astype(dtype), np.array([total], dtype)]

    def _result(self, work: Work, what: str, group: str) -> np.ndarray:
        try:
            return work.result()
        except RuntimeError as error:
            carrier = self._given[group]
            raise failed(f"{self._of.program}: ", what, carrier, error) from None


def failed(who: str, what: str, carrier: Communicator, error: Exception) -> CallError:
    """The error of a rank whose collective has failed.

    Args:
        who: begins the message.
        what: was waited for.
        carrier: the ranks.
        error: of who carries.
    """
    said = " ".join(str(error).split()) or type(error).__name__
    if said.startswith("["):  # where in its source
        said = said.partition("] ")[2]
    return CallError(
        f"{who}rank {carrier.rank} of {carrier.size} waited for {what}, and it failed: "
        f"{said.partition('. ')[0]:.200}",
        hint="another rank has ended, hangs or does something else: see what it says",
    )


def _first_difference(own: Sequence[str], others: Sequence[str]) -> str:
    for mine, theirs in zip(own, others, strict=False):
        if mine.partition(" (")[0] != theirs.partition(" (")[0]:
            return f"{mine}, where another exchanges {theirs}"
    longer = own if len(own) > len(others) else others
    extra = longer[min(len(own), len(others))]
    return f"{len(own)} values, where another exchanges {len(others)}; one more is {extra}"
