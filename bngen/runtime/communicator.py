"""Who carries what ranks exchange, as the runtime sees them.

In: nothing; a `Communicator` for each group of ranks is given by whoever knows one. Out: what it
has to do, and the error of a rank for which it fails.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bngen.errors import CallError


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
        names: their numbers among all processes there are, by which users know them.
        address: of their `ring.Ring`, by which calls exchange without an interpreter; 0 where they
            share no memory.
    """

    size: int
    rank: int
    names: Sequence[int]
    address: int

    def sum(self, array: np.ndarray) -> Work:
        """Begin to add up an array of all ranks, which is this work's from now on."""

    def gather(self, array: np.ndarray) -> Work:
        """Begin to gather bytes, as many of each rank: ``[ranks, bytes]``."""

    def started(self, number: int, dtype: np.dtype | None) -> Work:
        """What a call has begun by itself.

        Args:
            number: of its message in the ring.
            dtype: of what is to be added up; None for bytes that are gathered.
        """


class Far(Communicator):
    """Ranks without memory in common."""

    address = 0

    def check(self) -> None:
        """Raise where the ranks are there no more."""

    def started(self, number: int, dtype: np.dtype | None) -> Work:
        """Never asked for."""
        raise AssertionError("calls begin nothing between ranks that share no memory")


@dataclass(frozen=True)
class Alone(Far):
    """One rank alone, which has nobody to exchange anything with."""

    size: int = 1
    rank: int = 0
    names: Sequence[int] = (0,)

    def sum(self, array: np.ndarray) -> Work:
        """Never asked for."""
        raise AssertionError("one rank alone exchanges nothing")

    gather = sum


@contextlib.contextmanager
def waiting_for(what: str, carrier: Communicator, who: str = "") -> Iterator[None]:
    """What a rank begins or waits for; when that fails, the error names it.

    Args:
        what: as the message is to call it.
        carrier: the ranks.
        who: begins the message.

    Raises:
        CallError: in the place of what the carrier raises.
    """
    try:
        yield
    except RuntimeError as error:
        said = " ".join(str(error).split()) or type(error).__name__
        if said.startswith("["):  # where in its source
            said = said.partition("] ")[2]
        raise CallError(
            f"{who}{_named(carrier)} waited for {what}, and it failed: "
            f"{said.partition('. ')[0]:.200}",
            hint="another rank has ended, hangs or does something else: see what it says",
        ) from None


def _named(carrier: Communicator) -> str:
    """This rank among those that it is of."""
    names = tuple(carrier.names)
    whole = names == tuple(range(carrier.size))
    among = f"of {carrier.size}" if whole else f"(of ranks {', '.join(map(str, names))})"
    return f"rank {names[carrier.rank]} {among}"
