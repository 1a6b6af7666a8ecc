"""`shared_memory.c` in Python: what a rank knows of the memory of all, and its collectives' calls.

In: memory that the ranks of one machine have mapped. Out: a `Ring`, which sends messages and reads
those of the others; and `entries`, by which the collectives of a compiled step are called like its
kernels, without an interpreter.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from bngen.dtypes import DTYPES
from bngen.errors import ToolchainError
from bngen.runtime import native, toolchain
from bngen.runtime.dispatch import declining
from bngen.runtime.native import Entry
from bngen.runtime.steps import COMBINED, MOMENTS, StartStep

LOG = logging.getLogger(__name__)
NOTHING = "ranks exchange nothing through memory: %s"

PLACES, _PLACE, _HEAD, _COUNTERS = 8, 1 << 16, 8, 128
"""Messages of a rank that are kept; bytes of one, of its head, and of a rank's counters."""
MOST_BYTES = _PLACE - _HEAD
"""Of a message that goes through memory."""
_TICK = 0.1
"""Seconds after which a rank that waits looks whether the other one still lives."""

COLLECTIVE = np.dtype([(name, "i8") for name in ("ring", "number", "combine", "itemsize", "count")])
"""A collective of a call: the ring's address, 0 where it does not go through memory; the number of
its message while that is under way, else -1; and what it is."""


def bytes_of(size: int) -> int:
    """Bytes of memory that so many ranks share."""
    return size * (_COUNTERS + PLACES * _PLACE)


class _State(ctypes.Structure):
    """``Ring`` of the C file."""

    _fields_ = (
        ("memory", ctypes.c_void_p), ("size", ctypes.c_int64), ("rank", ctypes.c_int64),
        ("written", ctypes.c_int64), ("taken", ctypes.c_int64), ("later", ctypes.c_uint64),
        ("waited", ctypes.c_int64), ("tick", ctypes.c_int64), ("failed", ctypes.c_int64),
    )  # fmt: skip


class Ring:
    """The messages of all ranks, as one of them sees them.

    Args:
        memory: that all share, zeros at first.
        size: the number of ranks.
        rank: which of them this process is.

    Attributes:
        address: of what the C file knows of it.
    """

    def __init__(self, memory: np.ndarray, size: int, rank: int):
        found = library()
        assert found is not None
        self._library, self._memory = found, memory
        self._state = _State(memory.ctypes.data, size, rank, tick=int(_TICK * 1e9))
        self.address = ctypes.addressof(self._state)

    @property
    def oldest(self) -> int:
        """The first message that this rank has not read."""
        return self._state.taken

    @property
    def next(self) -> int:
        """The message that it sends next."""
        return self._state.written

    @property
    def waited(self) -> float:
        """Seconds that it has waited for the others."""
        return self._state.waited / 1e9

    def fail(self) -> None:
        """Let no collective go through it any more."""
        self._state.failed = 1

    def send(self, message: np.ndarray) -> int:
        """The number of a message of bytes that was sent; -1 while there is no place for it."""
        return self._library.bngen_ring_send(self.address, message.ctypes.data, message.size)

    def has_arrived(self, rank: int, number: int, *, awake: bool) -> bool:
        """Whether another rank's message is there, or comes within a tick."""
        return bool(self._library.bngen_ring_arrived(self.address, rank, number, awake))

    def has_read(self, rank: int, number: int, *, awake: bool) -> bool:
        """Whether another rank has read all messages before one, or does within a tick."""
        return bool(self._library.bngen_ring_read(self.address, rank, number, awake))

    def message(self, rank: int, number: int) -> np.ndarray:
        """A rank's message, which is there; it lies in the memory."""
        place = self._library.bngen_ring_place(self.address, rank, number)
        length = ctypes.c_int64.from_address(place).value
        # Of a rank that is out of step this may be anything.
        length = min(max(length, 0), MOST_BYTES)
        return np.ctypeslib.as_array((ctypes.c_uint8 * length).from_address(place + _HEAD))

    def take(self, number: int) -> None:
        """Give up the places of a message that was read."""
        self._library.bngen_ring_take(self.address, number)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The C file; None without a C compiler."""
    try:
        found = toolchain.shared_library(
            Path(__file__).with_name("shared_memory.c"), ctypes.CDLL, tuple(_ARGUMENTS)
        )
    except ToolchainError as error:
        LOG.info(NOTHING, error)
        return None
    for name, (result, *arguments) in _ARGUMENTS.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found


_ADDRESS, _NUMBER, _FLAG = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_ARGUMENTS = {
    "bngen_ring_send": (_NUMBER, _ADDRESS, _ADDRESS, _NUMBER),
    "bngen_ring_arrived": (_FLAG, _ADDRESS, _NUMBER, _NUMBER, _FLAG),
    "bngen_ring_read": (_FLAG, _ADDRESS, _NUMBER, _NUMBER, _FLAG),
    "bngen_ring_place": (_ADDRESS, _ADDRESS, _NUMBER, _NUMBER),
    "bngen_ring_take": (None, _ADDRESS, _NUMBER),
    "bngen_collective_start": (_FLAG, _ADDRESS, _ADDRESS, ctypes.c_int32, _ADDRESS),
    "bngen_collective_finish": (_FLAG, _ADDRESS, _ADDRESS, ctypes.c_int32, _ADDRESS),
}


# --- the collectives of a step ----------------------------------------------------------------


def entries() -> tuple[Entry, Entry]:
    """What starts a collective and what finishes it, to be called with a row of `COLLECTIVE`.

    Either declines what it cannot do, or what takes long: that is not done then.
    """
    if found := library():
        names = ("bngen_collective_start", "bngen_collective_finish")
        start, finish = (Entry(native.address(getattr(found, n)), 0, found) for n in names)
        return start, finish
    return declining(), declining()


def collectives(steps: Iterable[StartStep]) -> np.ndarray:
    """A row of `COLLECTIVE` for each step, none of them under way nor through memory yet."""
    rows = [(0, -1, COMBINED.index(s.combine), _itemsize(s), s.count) for s in steps]
    return np.array(rows, COLLECTIVE)


def goes_through_memory(step: StartStep) -> bool:
    """Whether a compiled step can exchange it by itself, where ranks share memory."""
    row = DTYPES[step.operands[0].dtype]
    count = sum(math.prod(o.shape) for o in step.operands)
    nbytes = count * row.nbytes + 8 * (step.combine == MOMENTS)
    return row.is_float and not row.stored_only and nbytes <= MOST_BYTES


def _itemsize(step: StartStep) -> int:
    return DTYPES[step.operands[0].dtype].nbytes
