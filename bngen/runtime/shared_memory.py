"""Ranks of one machine exchange short arrays through memory that they share.

In: a `Communicator`. Out: another one for the same ranks. What is short goes through the memory of
a file that all of them have mapped, what is long goes the first one's way; so does everything where
ranks are on several machines, or cannot share memory.

A message over loopback wakes four threads one after the other, about a millisecond on a virtual
machine, and a DenseNet-121 exchanges 243 in a step. Here a rank writes its part, raises a counter,
and looks at the counters of the others when it needs theirs (`shared_memory.c`)::

    rank 0   counters   message 0 | 1 | .. | 7      where message 8 takes the place of 0
    rank 1   counters   message 0 | 1 | .. | 7
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import mmap
import os
import secrets
import select
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from bngen.errors import ToolchainError
from bngen.runtime import toolchain
from bngen.runtime.communicator import Communicator, Work

_LOG = logging.getLogger(__name__)

FOLDER = Path("/dev/shm")
_PLACES, _PLACE = 8, 1 << 16
"""Messages of a rank that are kept, and bytes of one; a head says how many of those count."""
_HEAD = 8
MOST_BYTES = _PLACE - _HEAD
"""Of a message that goes through memory."""
_LINE, _COUNTERS = 64, 128
"""Bytes of a counter; of both of a rank: how many messages it has written, and has read."""
_EAGER, _PATIENT = 20_000, 2_000_000
"""Nanoseconds that a rank looks without pause, and until it sleeps."""
_TICK = 0.1
"""Seconds after which one that sleeps looks whether the other one still lives."""
_NAME = 48
"""Bytes of a file's name."""
_NOTHING = "ranks exchange nothing through memory: %s"


def beside(far: Communicator, timeout: float, *, wanted: bool = True) -> Communicator:
    """The same ranks, with a shorter way for short arrays where all of them are on one machine.

    All ranks call it at the same point; what one of them cannot do, none does.

    Args:
        far: the ranks.
        timeout: seconds that they wait for each other.
        wanted: whether this rank wants it.

    Raises:
        RuntimeError: where ``far`` fails.
    """
    library = _library() if wanted and sys.platform == "linux" else None
    memory = _Memory.made(far.size) if library and far.rank == 0 else None
    try:
        said = (memory.name if memory else "").encode().ljust(_NAME)
        name = bytes(far.gather(np.frombuffer(said, np.uint8).copy()).result()[0]).decode().strip()
        if far.rank and library and name:
            memory = _Memory.opened(name, far.size)
        own = np.array([memory is not None, os.getpid(), _namespace()], "<i8")
        shared, pids, spaces = far.gather(own.view(np.uint8)).result().view("<i8").T
        alive = _alive(pids, far.rank) if shared.all() and len(set(spaces)) == 1 else None
        all_share = far.gather(np.array([alive is not None], np.uint8)).result().all()
    finally:
        if memory and far.rank == 0:
            memory.forget_name()
    if not all_share:
        _LOG.info(_NOTHING, "not all of them can")
        for file in (alive or {}).values():
            os.close(file)
        return far
    assert library is not None
    assert memory is not None
    assert alive is not None
    return Shared(far, memory, library, alive, timeout)


def _namespace() -> int:
    """Which processes a process number is one of; -1 where the system does not say."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return -1


def _alive(pids: Sequence[int], own: int) -> dict[int, int] | None:
    """Descriptors of the processes of the other ranks; None where the system has none to give."""
    files: dict[int, int] = {}
    try:
        for rank, pid in enumerate(pids):
            if rank != own:
                files[rank] = os.pidfd_open(int(pid))
    except OSError as error:
        _LOG.info(_NOTHING, error)
        for file in files.values():
            os.close(file)
        return None
    return files


def _library() -> ctypes.CDLL | None:
    """`shared_memory.c`; None without a C compiler."""
    names = ("bngen_shared_raise", "bngen_shared_wait")
    try:
        library = toolchain.shared_library(Path(__file__).with_suffix(".c"), ctypes.CDLL, names)
    except ToolchainError as error:
        _LOG.info(_NOTHING, error)
        return None
    library.bngen_shared_raise.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    library.bngen_shared_raise.restype = None
    library.bngen_shared_wait.argtypes = [ctypes.c_void_p, ctypes.c_uint32, *3 * [ctypes.c_int64]]
    return library


class _Memory:
    """A file of all ranks, in memory.

    Args:
        file: its descriptor, which is needed no longer than this takes.
        name: of the file.
        size: the number of ranks.
    """

    def __init__(self, file: int, name: str, size: int):
        whole = np.frombuffer(mmap.mmap(file, _bytes_of(size)), np.uint8)
        self.name = name
        self._address, self._places = whole.ctypes.data, whole[size * _COUNTERS :]

    @classmethod
    def made(cls, size: int) -> _Memory | None:
        """A new one; None where the system has no room for it."""
        name = f"bngen-{secrets.token_hex(16)}"
        try:
            file = os.open(FOLDER / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            _LOG.info(_NOTHING, error)
            return None
        try:
            # Room that is only promised ends a process when it is first written to.
            os.posix_fallocate(file, 0, _bytes_of(size))
            return cls(file, name, size)
        except OSError as error:
            _LOG.info(_NOTHING, error)
            os.unlink(FOLDER / name)
            return None
        finally:
            os.close(file)

    @classmethod
    def opened(cls, name: str, size: int) -> _Memory | None:
        """That of another rank; None where it is not on this machine."""
        try:
            file = os.open(FOLDER / name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            _LOG.info(_NOTHING, error)
            return None
        try:
            return cls(file, name, size)
        except (OSError, ValueError) as error:
            _LOG.info(_NOTHING, error)
            return None
        finally:
            os.close(file)

    def forget_name(self) -> None:
        """Leave nothing behind: who has it open keeps it."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(FOLDER / self.name)

    def written(self, rank: int) -> int:
        """Address of the counter of messages that a rank has written."""
        return self._address + rank * _COUNTERS

    def read(self, rank: int) -> int:
        """Address of the counter of messages of all others that a rank has read."""
        return self.written(rank) + _LINE

    def place(self, rank: int, number: int) -> np.ndarray:
        """Where a rank's message of a number is."""
        start = (rank * _PLACES + number % _PLACES) * _PLACE
        return self._places[start : start + _PLACE]


def _bytes_of(size: int) -> int:
    return size * (_COUNTERS + _PLACES * _PLACE)


class Shared:
    """A `Communicator` through memory, and beside it the other one.

    Args:
        far: the other one.
        memory: what the ranks share.
        library: `shared_memory.c`.
        alive: descriptors of the processes of the other ranks.
        timeout: seconds that they wait for each other.
    """

    def __init__(
        self,
        far: Communicator,
        memory: _Memory,
        library: ctypes.CDLL,
        alive: dict[int, int],
        timeout: float,
    ):
        self.size, self.rank, self.names = far.size, far.rank, far.names
        self._far, self.memory, self._library = far, memory, library
        self._timeout = timeout
        self._ends: dict[int, select.poll] = {}
        for rank, file in alive.items():
            self._ends[rank] = select.poll()
            self._ends[rank].register(file, select.POLLIN)
            weakref.finalize(self, os.close, file)
        self._written = 0
        self._pending: list[_Message] = []
        self._failure = ""

    def sum(self, array: np.ndarray) -> Work:
        """Begin to add up an array of all ranks."""
        self._check_in_step()
        if array.nbytes > MOST_BYTES:
            return self._far.sum(array)

        def added(rows: np.ndarray) -> np.ndarray:
            # In the order of ranks: every one of them gets the same bits.
            return np.add.reduce(rows.view(array.dtype), axis=0).reshape(array.shape)

        return self._sent(np.ascontiguousarray(array).reshape(-1).view(np.uint8), added)

    def gather(self, array: np.ndarray) -> Work:
        """Begin to gather bytes, as many of each rank."""
        self._check_in_step()
        if array.nbytes > MOST_BYTES:
            return self._far.gather(array)
        return self._sent(array, lambda rows: rows)

    def _sent(self, sent: np.ndarray, finish: Callable[[np.ndarray], np.ndarray]) -> Work:
        """Write a message; one that is as many behind as are kept has been read by then."""
        number = self._written
        if len(self._pending) == _PLACES:
            self.receive(self._pending[0])
        if number >= _PLACES:
            for rank in self._others():
                self._wait(self.memory.read(rank), number - _PLACES + 1, rank)
        place = self.memory.place(self.rank, number)
        place[:_HEAD].view("<i8")[0] = sent.size
        place[_HEAD : _HEAD + sent.size] = sent
        self._written = number + 1
        self._raise(self.memory.written(self.rank), self._written)
        message = _Message(self, number, sent.size, finish)
        self._pending.append(message)
        return message

    def receive(self, last: _Message) -> None:
        """Read messages of the others, in order, until one of them is read."""
        self._check_in_step()
        while self._pending and self._pending[0].number <= last.number:
            message = self._pending[0]
            rows = np.empty((self.size, message.nbytes), np.uint8)
            for rank in (self.rank, *self._others()):
                self._wait(self.memory.written(rank), message.number + 1, rank)
                place = self.memory.place(rank, message.number)
                if (nbytes := int(place[:_HEAD].view("<i8")[0])) != message.nbytes:
                    raise self._failed(rank, f"sent {nbytes} bytes, not {message.nbytes}")
                rows[rank] = place[_HEAD : _HEAD + message.nbytes]
            message.rows = rows
            self._pending.pop(0)
            self._raise(self.memory.read(self.rank), message.number + 1)

    def _others(self) -> Iterator[int]:
        return (rank for rank in range(self.size) if rank != self.rank)

    def _raise(self, counter: int, value: int) -> None:
        self._library.bngen_shared_raise(counter, value & 0xFFFFFFFF)

    def _wait(self, counter: int, wanted: int, rank: int) -> None:
        """Until a rank's counter is as high.

        Raises:
            RuntimeError: when the rank has ended, or takes longer than all may.
        """
        start, most, patience = time.monotonic(), int(_TICK * 1e9), (_EAGER, _PATIENT)
        wanted &= 0xFFFFFFFF
        while not self._library.bngen_shared_wait(counter, wanted, *patience, most):
            patience = 0, 0
            has_ended = bool(self._ends[rank].poll(0))
            # It may have come that far, and ended then.
            if has_ended and not self._library.bngen_shared_wait(counter, wanted, 0, 0, 0):
                raise self._failed(rank, "has ended")
            if time.monotonic() - start > self._timeout:
                raise self._failed(rank, f"took longer than {self._timeout:g} s")

    def _failed(self, rank: int, what: str) -> RuntimeError:
        """The error of what fails, after which nobody knows which message of another comes next."""
        self._failure = f"rank {self.names[rank]} {what}"
        return RuntimeError(self._failure)

    def _check_in_step(self) -> None:
        if self._failure:
            what = f"ranks are out of step since {self._failure}, and need a new process group"
            raise RuntimeError(what)


class _Message:
    """What all ranks say at one point, under way.

    Attributes:
        number: how many there were before.
        nbytes: that each rank sends.
        rows: what they sent, once it is here: ``[ranks, bytes]``.
    """

    def __init__(
        self, ranks: Shared, number: int, nbytes: int, finish: Callable[[np.ndarray], np.ndarray]
    ):
        self.number, self.nbytes = number, nbytes
        self.rows: np.ndarray | None = None
        self._ranks, self._finish = ranks, finish

    def result(self) -> np.ndarray:
        """What is made of it, when it is there."""
        if self.rows is None:
            self._ranks.receive(self)
        assert self.rows is not None
        return self._finish(self.rows)
