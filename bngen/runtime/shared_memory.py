"""Ranks of one machine exchange short arrays through memory that they share.

In: a `Communicator`. Out: another one for the same ranks. What is short goes through the memory of
a file that all of them have mapped (`ring`), what is long goes the first one's way; so does
everything where ranks are on several machines, or cannot share memory.

A message over loopback wakes four threads one after the other, about a millisecond on a virtual
machine, and a DenseNet-121 exchanges 243 in a step.
"""

from __future__ import annotations

import contextlib
import functools
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

from bngen.runtime import ring
from bngen.runtime.communicator import Communicator, Far, Work
from bngen.runtime.ring import LOG, MOST_BYTES, NOTHING, PLACES, Ring

FOLDER = Path("/dev/shm")
_NAME = 48
"""Bytes of a file's name."""


def beside(far: Far, timeout: float, *, wanted: bool = True) -> Communicator:
    """The same ranks, with a shorter way for short arrays where all of them are on one machine.

    All ranks call it at the same point; what one of them cannot do, none does.

    Args:
        far: the ranks.
        timeout: seconds that they wait for each other.
        wanted: whether this rank wants it.

    Raises:
        RuntimeError: where ``far`` fails.
    """
    able = wanted and sys.platform == "linux" and ring.library() is not None
    memory = _Memory.made(far.size) if able and far.rank == 0 else None
    try:
        said = (memory.name if memory else "").encode().ljust(_NAME)
        name = bytes(far.gather(np.frombuffer(said, np.uint8).copy()).result()[0]).decode().strip()
        if far.rank and able and name:
            memory = _Memory.opened(name, far.size)
        own = np.array([memory is not None, os.getpid(), _namespace()], "<i8")
        shared, pids, spaces = far.gather(own.view(np.uint8)).result().view("<i8").T
        alive = _alive(pids, far.rank) if shared.all() and len(set(spaces)) == 1 else None
        all_share = far.gather(np.array([alive is not None], np.uint8)).result().all()
    finally:
        if memory and far.rank == 0:
            memory.forget_name()
    if not all_share:
        LOG.info(NOTHING, "not all of them can")
        for file in (alive or {}).values():
            os.close(file)
        return far
    assert memory is not None
    assert alive is not None
    return Shared(far, memory, alive, timeout)


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
        LOG.info(NOTHING, error)
        for file in files.values():
            os.close(file)
        return None
    return files


class _Memory:
    """A file of all ranks, in memory.

    Args:
        file: its descriptor, which is needed no longer than this takes.
        name: of the file.
        size: the number of ranks.

    Attributes:
        content: bytes, which are there as long as this array.
    """

    def __init__(self, file: int, name: str, size: int):
        self.name = name
        self.content = np.frombuffer(mmap.mmap(file, ring.bytes_of(size)), np.uint8)

    @classmethod
    def made(cls, size: int) -> _Memory | None:
        """A new one; None where the system has no room for it."""
        name = f"bngen-{secrets.token_hex(16)}"
        try:
            file = os.open(FOLDER / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            LOG.info(NOTHING, error)
            return None
        try:
            # Room that is only promised ends a process when it is first written to.
            os.posix_fallocate(file, 0, ring.bytes_of(size))
            return cls(file, name, size)
        except OSError as error:
            LOG.info(NOTHING, error)
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
            LOG.info(NOTHING, error)
            return None
        try:
            return cls(file, name, size)
        except (OSError, ValueError) as error:
            LOG.info(NOTHING, error)
            return None
        finally:
            os.close(file)

    def forget_name(self) -> None:
        """Leave nothing behind: who has it open keeps it."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(FOLDER / self.name)


class Shared:
    """A `Communicator` through memory, and beside it the other one.

    Args:
        far: the other one.
        memory: what the ranks share.
        alive: descriptors of the processes of the other ranks.
        timeout: seconds that they wait for each other.

    Attributes:
        ring: their messages.
        address: of it.
    """

    def __init__(self, far: Far, memory: _Memory, alive: dict[int, int], timeout: float):
        self.size, self.rank, self.names = far.size, far.rank, far.names
        self.memory, self.ring = memory, Ring(memory.content, far.size, far.rank)
        self._far, self._timeout, self.address = far, timeout, self.ring.address
        self._ends: dict[int, select.poll] = {}
        for rank, file in alive.items():
            self._ends[rank] = select.poll()
            self._ends[rank].register(file, select.POLLIN)
            weakref.finalize(self, os.close, file)
        self._kept: dict[int, np.ndarray] = {}
        self._failure = ""

    def sum(self, array: np.ndarray) -> Work:
        """Begin to add up an array of all ranks."""
        self._check_there()
        if array.nbytes > MOST_BYTES:
            return self._far.sum(array)
        sent = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return _Sum(self, self._sent(sent), array.dtype, array.shape)

    def gather(self, array: np.ndarray) -> Work:
        """Begin to gather bytes, as many of each rank."""
        self._check_there()
        if array.nbytes > MOST_BYTES:
            return self._far.gather(array)
        return _Gather(self, self._sent(np.ascontiguousarray(array)))

    def started(self, number: int, dtype: np.dtype | None) -> Work:
        """What a compiled step has begun, by the number of its message.

        Args:
            number: of the message.
            dtype: of what is to be added up; None for bytes that are gathered.
        """
        return _Gather(self, number) if dtype is None else _Sum(self, number, dtype, (-1,))

    def leave(self) -> None:
        """Exchange nothing any more, in a process that was forked: ranks are the other one."""
        self._failure = "this process was forked from one of them"
        self.ring.fail()

    def _sent(self, message: np.ndarray) -> int:
        """The number of a message that is sent: one as many behind as are kept has been read."""
        while (number := self.ring.send(message)) < 0:
            last = self.ring.next - PLACES
            if (oldest := self.ring.oldest) <= last:
                self._kept[oldest] = self.received(oldest)
            for rank in self._others():
                self._wait(self.ring.has_read, rank, last + 1)
        return number

    def received(self, number: int) -> np.ndarray:
        """What all ranks have sent at one point: ``[ranks, bytes]``; it is given once.

        Raises:
            RuntimeError: when one of them has ended, takes too long, or sent something else.
        """
        if number in self._kept:
            return self._kept.pop(number)
        self._check_in_step()
        own = self.ring.message(self.rank, number)
        rows = np.empty((self.size, own.size), np.uint8)
        rows[self.rank] = own
        for rank in self._others():
            self._wait(self.ring.has_arrived, rank, number)
            message = self.ring.message(rank, number)
            if message.size != own.size:
                raise self._failed(rank, f"sent {message.size} bytes, not {own.size}")
            rows[rank] = message
        self.ring.take(number)
        return rows

    def _others(self) -> Iterator[int]:
        return (rank for rank in range(self.size) if rank != self.rank)

    def _wait(self, is_so: Callable[..., bool], rank: int, number: int) -> None:
        """Until a rank has come as far as a message.

        Raises:
            RuntimeError: when the rank has ended, or takes longer than all may.
        """
        start, awake = time.monotonic(), True
        while not is_so(rank, number, awake=awake):
            awake = False
            has_ended = bool(self._ends[rank].poll(0))
            # It may have come that far, and ended then.
            if has_ended and not is_so(rank, number, awake=False):
                raise self._failed(rank, "has ended")
            if time.monotonic() - start > self._timeout:
                raise self._failed(rank, f"took longer than {self._timeout:g} s")

    def _failed(self, rank: int, what: str) -> RuntimeError:
        """The error of what fails, after which nobody knows which message of another comes next."""
        self._failure = f"rank {self.names[rank]} {what}"
        self.ring.fail()
        return RuntimeError(self._failure)

    def _check_there(self) -> None:
        self._check_in_step()
        self._far.check()

    def _check_in_step(self) -> None:
        if self._failure:
            what = f"ranks are out of step since {self._failure}, and need a new process group"
            raise RuntimeError(what)


class _Gather:
    """Bytes that all ranks send, under way.

    Args:
        ranks: who sends them.
        number: of the message.
    """

    def __init__(self, ranks: Shared, number: int):
        self._ranks, self._number = ranks, number
        self._rows: np.ndarray | None = None

    def result(self) -> np.ndarray:
        """What they are, when they are there: ``[ranks, bytes]``."""
        if self._rows is None:
            self._rows = self._ranks.received(self._number)
        return self._rows


class _Sum(_Gather):
    """An array that is added up, under way."""

    def __init__(self, ranks: Shared, number: int, dtype: np.dtype, shape: tuple[int, ...]):
        super().__init__(ranks, number)
        self._dtype, self._shape = dtype, shape

    def result(self) -> np.ndarray:
        """The sum, when it is there."""
        # One after the other, as calls do it: every rank gets the same bits.
        total = functools.reduce(np.add, super().result().view(self._dtype))
        return total.reshape(self._shape)
