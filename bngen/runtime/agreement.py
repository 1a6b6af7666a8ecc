"""Ranks tell each other what they are going to exchange, before they do.

In: what a rank plans to exchange, as `Planned`s. Out: whether all plan the same; what another one
plans, for a rank that has nothing of its own and follows.

A collective that two ranks do not both do would hang, or end a process. So each sends a digest of
its plan; where those differ, all send the plans themselves, and all refuse. A rank with no image of
a batch has no plan. It says so, is sent the plan of the others, and takes part in each collective
with a count or a sum of zero.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, replace

import numpy as np

from bngen.errors import CallError
from bngen.runtime.communicator import Communicator, waiting_for
from bngen.runtime.steps import AVERAGE, MOMENTS, SUM

SHOWN = {
    SUM: "the sum over ranks",
    AVERAGE: "the average over ranks",
    MOMENTS: "the batch statistics of all ranks",
}
_DIGEST, _LENGTH = 16, 8
_HEAD = _DIGEST + _LENGTH + 1
"""Bytes; statistics and sums are never of an odd number, so that none is taken for a head."""
_NOTHING = bytes(_HEAD)
"""The head of a rank that follows."""


@dataclass(frozen=True)
class Planned:
    """A collective that is going to be.

    Attributes:
        call: of the program, ``forward`` or ``backward``.
        combine: see `StartStep`.
        count: elements that each rank sends.
        dtype: their type.
        name: the layer or the value that it is of.
        where: what else ranks have in common that exchange it; "" of compiled programs.
        groups: of how many groups of ranks this rank's program has such plans; others may be in
            more.
    """

    call: str
    combine: str
    count: int
    dtype: str
    name: str
    where: str = ""
    groups: int = field(default=1, compare=False)

    def __str__(self) -> str:
        words = f"{SHOWN[self.combine]} of {self.count} {self.dtype}"
        return f"{words} in {self.call}{self.where and ' ' + self.where} ({self.name or 'a layer'})"

    def answered(self, carrier: Communicator, who: str) -> None:
        """Take part with nothing, and wait until it is over.

        Raises:
            CallError: when it fails, naming it.
        """
        with waiting_for(f"{SHOWN[self.combine]} of {self.name!r}", carrier, who):
            if self.combine == MOMENTS:
                nbytes = 8 + self.count * np.dtype(self.dtype).itemsize
                carrier.gather(np.zeros(nbytes, np.uint8)).result()
            else:
                carrier.sum(np.zeros(self.count, summed_in(np.dtype(self.dtype)))).result()


def summed_in(dtype: np.dtype) -> np.dtype:
    """The type that numbers are added up in: integers wrap, in whatever width they are summed."""
    return np.dtype(np.int64) if dtype.kind in "iu" else dtype


_BETWEEN = "\x1f"


def _said(planned: Sequence[Planned]) -> bytes:
    return "\n".join(_BETWEEN.join(map(str, astuple(p))) for p in planned).encode()


@functools.lru_cache(64)
def _told(planned: tuple[Planned, ...], groups: int) -> tuple[bytes, bytes]:
    """A plan as it is sent, and its head; made once, as a program has the same in each call.

    The digest is of what ranks have to agree in; ``groups`` is that of the plan, which its equality
    leaves out.
    """
    digest = hashlib.sha256(_said([replace(p, groups=1) for p in planned])).digest()[:_DIGEST]
    text = _said(planned)
    return text, digest + len(text).to_bytes(_HEAD - _DIGEST, "little")


def _heard(text: bytes) -> tuple[Planned, ...]:
    rows = [line.split(_BETWEEN) for line in text.decode().rstrip(" ").split("\n")]
    return tuple(
        Planned(call, combine, int(count), dtype, name, where, int(groups))
        for call, combine, count, dtype, name, where, groups in rows
    )


class Agreement:
    """What one rank of several is going to exchange in a call, and hears of the others.

    Args:
        who: begins messages.
        carrier: the ranks.
        planned: what this one plans; nothing where it follows the others.
    """

    def __init__(self, who: str, carrier: Communicator, planned: Sequence[Planned]):
        self._who, self._carrier, self._planned = who, carrier, planned
        self._text, head = b"", _NOTHING
        if planned:
            self._text, head = _told(tuple(planned), planned[0].groups)
        first = f", first {planned[0]}" if planned else ""
        self._what = f"what ranks are going to exchange{first}"
        with waiting_for(self._what, carrier, who):
            self._work = carrier.gather(np.frombuffer(head, np.uint8).copy())

    def settled(self) -> tuple[tuple[Planned, ...], tuple[int, ...]]:
        """Wait until all ranks have said what they plan.

        Returns:
            The plan, and the ranks that follow it.

        Raises:
            CallError: when they plan different things, or none of them anything; or when one has no
                plan that would follow the others in several groups.
        """
        with waiting_for(self._what, self._carrier, self._who):
            heads = self._work.result()
        leads = heads.any(axis=1)
        if not leads.any():
            raise CallError(
                f"{self._who}no rank has an image of this batch, which has no statistics then",
                hint="leave out a batch that is empty on all ranks",
            )
        digests = [bytes(head[:_DIGEST]) for head in heads]
        leader = int(np.argmax(leads))
        followers = tuple(int(rank) for rank in np.flatnonzero(~leads))
        same = len({d for d, lead in zip(digests, leads, strict=True) if lead}) == 1
        if same and not followers:
            return tuple(self._planned), ()
        longest = int(heads[:, _DIGEST : _DIGEST + _LENGTH].copy().view("<u8").max())
        text = np.frombuffer(self._text.ljust(longest), np.uint8).copy()
        what = "what they differ in" if not same else "what a rank without images follows"
        with waiting_for(what, self._carrier, self._who):
            texts = self._carrier.gather(text).result()
        plans = {i: _heard(bytes(texts[i])) for i in range(len(heads)) if leads[i]}
        if not same:
            self._refuse(plans, digests)
        if (count := max(plan[0].groups for plan in plans.values())) > 1:
            what = f"has no image of this batch, and layers meet in {count} process groups"
            raise CallError(
                f"{self._who}rank {self._carrier.names[followers[0]]} {what}",
                hint="share the batch out so that each rank has an image",
            )
        return plans[leader], followers

    def _refuse(self, plans: dict[int, tuple[Planned, ...]], digests: Sequence[bytes]) -> None:
        own = self._carrier.rank if self._carrier.rank in plans else min(plans)
        other = next(i for i in plans if digests[i] != digests[own])
        one, another = (self._carrier.names[i] for i in (own, other))
        raise CallError(
            f"{self._who}rank {one} exchanges {_first_difference(plans[own], plans[other])}",
            hint=f"rank {another} has another model or another part of a batch, or runs in PyTorch",
        )


def _first_difference(own: Sequence[Planned], others: Sequence[Planned]) -> str:
    for mine, theirs in zip(own, others, strict=False):
        if mine != theirs:
            return f"{mine}, where another exchanges {theirs}"
    longer = own if len(own) > len(others) else others
    extra = longer[min(len(own), len(others))]
    return f"{len(own)} values, where another exchanges {len(others)}; one more is {extra}"
