"""All kernel calls of a program as one table, in TVM's calling convention.

In: the calls' entries and operands, then the memory of one call of the program after the other.
Out: `CallTable.run`. Each argument is a ``DLTensor`` whose address stands in the table; `bind`
fills in what comes with the call, and `dispatch.c` is handed the table, so that no interpreter runs
between two kernels.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from bngen.dtypes import DTYPES
from bngen.errors import ToolchainError
from bngen.runtime import toolchain
from bngen.runtime.buffers import Buffer
from bngen.runtime.memory import Arena
from bngen.runtime.native import Entry
from bngen.runtime.steps import Operand

# The records of dlpack.h, c_api.h and dispatch.c.
_TENSOR = np.dtype([
    ("data", "u8"), ("device", "i4"), ("device_id", "i4"), ("ndim", "i4"), ("code", "u1"),
    ("bits", "u1"), ("lanes", "u2"), ("shape", "u8"), ("strides", "u8"), ("byte_offset", "u8"),
])  # fmt: skip
_ANY = np.dtype([("type", "i4"), ("padding", "i4"), ("value", "u8")])
_CALL = np.dtype([("call", "u8"), ("handle", "u8"), ("arguments", "u8"), ("count", "i8")])
_CPU, _INTEGER, _TENSOR_POINTER = 1, 1, 7
DONE, NO_STACK = -1, -2
"""What dispatch.c returns when no call has failed, and where the calling thread has no room for the
tiles of kernels."""


class CallTable:
    """Calls with their arguments.

    Args:
        calls: an entry, its operands and then its numbers each, in execution order.
        fixed: the buffers that never move, by slot; all others come with a call, as the arena does.
        recorded: position of a call that is made with a record of the moment -> its number.
    """

    def __init__(
        self,
        calls: Sequence[tuple[Entry, Sequence[Operand], Sequence[int]]],
        fixed: Mapping[str, Buffer],
        recorded: Mapping[int, int] = MappingProxyType({}),
    ):
        operands = list(dict.fromkeys(o for _, given, _ in calls for o in given))
        self._tensors, self._extents = _tensors(operands)
        rows = list(enumerate(operands))
        self._arena = _Group([(i, o) for i, o in rows if o.slot is None])
        self._open = _Group([(i, o) for i, o in rows if o.slot is not None and o.slot not in fixed])
        held = _Group([(i, o) for i, o in rows if o.slot in fixed])
        held.fill(self._tensors, {slot: there.address for slot, there in fixed.items()})
        self._base: int | None = None
        place = dict(zip(operands, _addresses(self._tensors), strict=True))
        counts = [len(given) + len(numbers) for _, given, numbers in calls]
        self._arguments = np.array(
            [
                argument
                for _, given, numbers in calls
                for argument in (
                    *((_TENSOR_POINTER, 0, place[o]) for o in given),
                    *((_INTEGER, 0, number) for number in numbers),
                )
            ],
            _ANY,
        )
        self._calls = np.zeros(len(calls), _CALL)
        self._calls["call"] = [entry.call for entry, _, _ in calls]
        self._calls["handle"] = [entry.handle for entry, _, _ in calls]
        self._calls["count"] = counts
        firsts = np.cumsum([0, *counts])[:-1]
        self._calls["arguments"] = _addresses(self._arguments, firsts)
        self._owners = [entry.owner for entry, _, _ in calls]
        self._recorded = np.fromiter(recorded, np.intp)
        self._records = np.fromiter(recorded.values(), np.intp)

    def bind(
        self, arena: Arena, slots: Mapping[str, Buffer], records: np.ndarray | None = None
    ) -> None:
        """Fill in where the memory of a call lies.

        Args:
            arena: the call's; what was last filled in stays when it is the same.
            slots: memory by slot; only calls that are not made may lack one.
            records: of the moment, for the calls that are made with one.
        """
        if records is not None:
            self._calls["handle"][self._recorded] = _addresses(records, self._records)
        if arena.address != self._base:
            self._arena.fill(self._tensors, {None: arena.address})
            self._base = arena.address
        self._open.fill(self._tensors, {n: slots[n].address for n in self._open.names(slots)})

    def run(self, start: int, stop: int) -> int:
        """Make calls [start, stop).

        Args:
            start: the first call.
            stop: the call after the last.

        Returns:
            The position of the call that failed, and where the calls ended; `DONE` when none did;
            `NO_STACK` when none was made for want of stack.
        """
        return _dispatch()(self._calls.ctypes.data, start, stop)

    def without_work(self) -> None:
        """Let every kernel return at once: what is left of a run is what bngen itself costs."""
        kernels = np.ones(len(self._calls), bool)
        kernels[self._recorded] = False
        self._calls["call"][kernels] = _idle_entry()


class _Group:
    """Operands whose addresses are filled in together."""

    def __init__(self, operands: Sequence[tuple[int, Operand]]):
        self._names = list(dict.fromkeys(o.slot for _, o in operands))
        number = {name: i for i, name in enumerate(self._names)}
        self._rows = np.array([i for i, _ in operands], np.intp)
        self._slots = np.array([number[o.slot] for _, o in operands], np.intp)
        self._offsets = np.array([o.offset for _, o in operands], np.uint64)

    def names(self, slots: Mapping[str, Buffer]) -> list[str]:
        """The slots of these operands that there are."""
        return [name for name in self._names if name in slots]

    def fill(self, tensors: np.ndarray, bases: Mapping[str | None, int]) -> None:
        """Write where the slots lie; where one is missing, an address that kernels refuse."""
        if not self._names:
            return
        there = np.array([bases.get(n, 0) for n in self._names], np.uint64)[self._slots]
        tensors["data"][self._rows] = np.where(there == 0, there, there + self._offsets)


def _tensors(operands: Sequence[Operand]) -> tuple[np.ndarray, np.ndarray]:
    """A ``DLTensor`` for each operand, without data; and the extents and strides they point to."""
    tensors = np.zeros(len(operands), _TENSOR)
    rows = [DTYPES[o.dtype] for o in operands]
    tensors["device"], tensors["lanes"] = _CPU, 1
    tensors["code"] = [row.code for row in rows]
    tensors["bits"] = [row.bits for row in rows]
    tensors["ndim"] = [len(o.shape) for o in operands]
    numbers: list[int] = []
    firsts: list[int] = []
    for o in operands:
        firsts.append(len(numbers))
        strides = np.cumprod([1, *o.shape[:0:-1]])[::-1] if o.shape else ()
        numbers += [*o.shape, *map(int, strides)]
    extents = np.array(numbers, np.int64)
    tensors["shape"] = _addresses(extents, np.array(firsts, np.int64))
    tensors["strides"] = tensors["shape"] + 8 * tensors["ndim"].astype(np.uint64)
    return tensors, extents


def _addresses(table: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    rows = np.arange(len(table)) if rows is None else rows
    return table.ctypes.data + rows * table.itemsize


# --- making the calls -------------------------------------------------------------------------


@functools.cache
def _library() -> ctypes.CDLL:
    source = Path(__file__).with_name("dispatch.c")
    library = toolchain.shared_library(source, ctypes.CDLL, ("bngen_run", "bngen_idle"))
    library.bngen_run.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    library.bngen_run.restype = ctypes.c_int64
    return library


@functools.cache
def _dispatch() -> Callable[[int, int, int], int]:
    """`dispatch.c`, or where there is no C compiler the same in Python."""
    try:
        return _library().bngen_run
    except ToolchainError:  # The thread pool has said so.
        return run_in_python


_KERNEL = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p
)


def run_in_python(calls: int, start: int, stop: int) -> int:
    """``bngen_run`` of dispatch.c."""
    result = (ctypes.c_uint64 * 2)()
    for i in range(start, stop):
        fields = (ctypes.c_uint64 * 4).from_address(calls + i * _CALL.itemsize)
        call, handle, arguments, count = fields
        if _KERNEL(call)(handle, arguments, count, result):
            return i
    return -1


@_KERNEL
def _idle(handle: int, arguments: int, count: int, result: int) -> int:
    return 0


@_KERNEL
def _decline(handle: int, arguments: int, count: int, result: int) -> int:
    return 1


def declining() -> Entry:
    """An entry that does nothing and says that it has failed."""
    return Entry(ctypes.cast(_decline, ctypes.c_void_p).value or 0, 0, _decline)


def _idle_entry() -> int:
    function = _idle
    try:
        function = _library().bngen_idle
    except ToolchainError:
        pass
    return ctypes.cast(function, ctypes.c_void_p).value or 0
