"""Memory between inaccessible pages, and what touched them.

In: sizes, places, a poison. Out: `Block`s, whose bytes are the only ones in reach, and a `Fault`
for each access beyond them. A fault does not end the process: inside `watching`, the page that was
touched is filled with poison and opened, and the access is made again. So one run finds every
fault, each by name and distance. An access that is near no block ends the process as always.

For Linux on x86-64: the handler reads ``siginfo_t`` and ``ucontext_t``.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import platform
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

SUPPORTED = sys.platform == "linux" and platform.machine() == "x86_64"
PAGE = mmap.PAGESIZE
REACH = 16 << 20
"""Inaccessible bytes on either side: address space, not memory."""
_PATTERN = 1 << 16
_MOST_FAULTS = 10_000
_PROT_NONE, _PROT_READ_WRITE = 0, mmap.PROT_READ | mmap.PROT_WRITE
_FAILED = ctypes.c_void_p(-1).value


@dataclass(frozen=True)
class Poison:
    """What memory holds before it is written to.

    Attributes:
        name: for messages.
        pattern: `_PATTERN` bytes, repeated as often as need be.
    """

    name: str
    pattern: np.ndarray

    def bytes(self, count: int) -> np.ndarray:
        """So many of them."""
        return np.resize(self.pattern, count)


NANS = Poison("NaN", np.full(_PATTERN, 0xFF, np.uint8))
"""Every float is NaN, every integer is -1."""
NOISE = Poison("noise", np.random.default_rng(20).integers(0, 256, _PATTERN, np.uint8))
"""Every float is another number, and some are infinite or NaN."""


@dataclass(frozen=True)
class Fault:
    """An access outside a block.

    Attributes:
        label: of the block.
        offset: bytes from the block's start.
        nbytes: of the block.
        writes: whether the access was a write.
    """

    label: str
    offset: int
    nbytes: int
    writes: bool

    def __str__(self) -> str:
        beyond = self.offset - self.nbytes
        where = f"{beyond} past its end" if beyond >= 0 else f"{-self.offset} before its start"
        return f"{'writes' if self.writes else 'reads'} {self.label} at byte {where}"


class Block:
    """``nbytes`` bytes as near to an inaccessible page as their alignment lets them.

    The rest of the accessible pages is slack; it and the bytes themselves hold poison at first.

    Args:
        label: what to call it in messages.
        nbytes: its size.
        poison: what it and the slack hold.
        at_end: whether it lies before an inaccessible page, or after one.
        alignment: its address is a multiple of this.
        shift: bytes between the inaccessible page and a block after it.

    Attributes:
        address: of its first byte.
        data: its bytes.
    """

    def __init__(
        self,
        label: str,
        nbytes: int,
        poison: Poison,
        *,
        at_end: bool,
        alignment: int = 1,
        shift: int = 0,
    ):
        body = -(-(nbytes + shift or 1) // PAGE) * PAGE
        self.label, self.nbytes, self._poison = label, nbytes, poison
        self._size = REACH + body + REACH
        self._base = _LIBC.mmap(None, self._size, _PROT_NONE, _FLAGS, -1, 0)
        if self._base == _FAILED:
            raise MemoryError(f"cannot reserve {self._size} bytes for {label}")
        low = self._base + REACH
        _protect(low, body, _PROT_READ_WRITE)
        self._start = (body - nbytes) // alignment * alignment if at_end else shift
        self._memory = _bytes_at(low, body)
        self._memory[:] = self._filled = poison.bytes(body)
        self.address = low + self._start
        self.data = self._memory[self._start : self._start + nbytes]
        _live[self._base] = self

    def overflowed(self) -> list[str]:
        """What was written to the slack, in words."""
        changed = np.flatnonzero(self._memory != self._filled) - self._start
        outside = changed[(changed < 0) | (changed >= self.nbytes)]
        faults = (Fault(self.label, int(at), self.nbytes, writes=True) for at in outside[:1])
        return [str(f) for f in faults]

    def holds(self, address: int) -> bool:
        """Whether an address lies in the block or near it."""
        return self._base <= address < self._base + self._size

    def open(self, address: int) -> None:
        """Make a page accessible; what is read there is poison."""
        page = address // PAGE * PAGE
        _protect(page, PAGE, _PROT_READ_WRITE)
        _bytes_at(page, PAGE)[:] = self._poison.bytes(PAGE)

    def close(self) -> None:
        """Give the memory back; nobody may use `data` any more."""
        if _live.pop(self._base, None):
            _LIBC.munmap(self._base, self._size)


_live: dict[int, Block] = {}
_faults: list[Fault] = []


@contextlib.contextmanager
def watching() -> Iterator[list[Fault]]:
    """Gather the faults of a block of code, in all threads, instead of dying of the first."""
    _faults.clear()
    before = _Action()
    action = _Action(ctypes.cast(_on_fault, ctypes.c_void_p), flags=_SA_SIGINFO)
    _LIBC.sigaction(signal.SIGSEGV, ctypes.byref(action), ctypes.byref(before))
    try:
        yield _faults
    finally:
        _LIBC.sigaction(signal.SIGSEGV, ctypes.byref(before), None)


# --- the system -------------------------------------------------------------------------------

_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
_SA_SIGINFO = 4
_SI_ADDR = 16
_REG_ERR = 40 + 19 * 8
"""Bytes into ``ucontext_t``: the page fault's error code, whose bit 1 says that it was a write."""


class _Action(ctypes.Structure):
    """``struct sigaction``."""

    _fields_ = (
        ("handler", ctypes.c_void_p), ("mask", ctypes.c_uint64 * 16), ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )  # fmt: skip

    def __init__(self, handler: ctypes.c_void_p | None = None, flags: int = 0):
        super().__init__(handler=handler, flags=flags)


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
def _on_fault(number: int, info: int, context: int) -> None:
    """On the thread that has faulted, whichever that is; kernels run without Python's lock."""
    address = ctypes.c_uint64.from_address(info + _SI_ADDR).value
    block = next((b for b in _live.values() if b.holds(address)), None)
    if block is None or len(_faults) >= _MOST_FAULTS:
        _LIBC.signal(number, None)  # The access is made again, and ends the process.
        return
    writes = bool(ctypes.c_uint64.from_address(context + _REG_ERR).value & 2)
    _faults.append(Fault(block.label, address - block.address, block.nbytes, writes))
    block.open(address)


def _protect(address: int, nbytes: int, protection: int) -> None:
    if _LIBC.mprotect(address, nbytes, protection):
        raise OSError(ctypes.get_errno(), "mprotect")


def _bytes_at(address: int, count: int) -> np.ndarray:
    return np.frombuffer((ctypes.c_uint8 * count).from_address(address), np.uint8)


_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
)  # fmt: skip
_LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_LIBC.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_LIBC.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
_LIBC.sigaction.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
