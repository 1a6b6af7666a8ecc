"""Runs kernels: steps over one arena, with slots for what changes from call to call.

In: entries of kernels and where each of their arguments lies (`Operand`). Out: `Executor.run`.
Knows nothing of graphs; what it is given is data, so that a saved library runs by the same code.

All calls of a program are one table, made once: each argument is a ``DLTensor`` whose address is in
the table, and a run fills in where the slots lie and hands the table to `dispatch.c`.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bngen.errors import BngenError, ToolchainError
from bngen.runtime import native, toolchain
from bngen.runtime.memory import Arena
from bngen.runtime.native import Entry

# The records of dlpack.h, c_api.h and dispatch.c.
_TENSOR = np.dtype([
    ("data", "u8"), ("device", "i4"), ("device_id", "i4"), ("ndim", "i4"), ("code", "u1"),
    ("bits", "u1"), ("lanes", "u2"), ("shape", "u8"), ("strides", "u8"), ("byte_offset", "u8"),
])  # fmt: skip
_ANY = np.dtype([("type", "i4"), ("padding", "i4"), ("value", "u8")])
_CALL = np.dtype([("call", "u8"), ("handle", "u8"), ("arguments", "u8"), ("count", "i8")])
_CPU, _TENSOR_POINTER = 1, 7
_TYPE_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}


@dataclass(frozen=True)
class Operand:
    """Where an argument of a kernel lies.

    Attributes:
        slot: name of the external buffer it is in; None for the arena.
        offset: bytes into the arena or the slot.
        shape: the shape the kernel's signature has.
        dtype: element type.
    """

    slot: str | None
    offset: int
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Step:
    """One call of a kernel."""

    name: str
    entry: Entry
    operands: tuple[Operand, ...]


class Executor:
    """A bound sequence of steps.

    Args:
        steps: in execution order.
        nbytes: size of the arena.
        fixed: external buffers that never move (parameters), by slot: aligned, C-contiguous.
    """

    def __init__(self, steps: Sequence[Step], nbytes: int, fixed: Mapping[str, np.ndarray]):
        self.arena = Arena(nbytes)
        self._steps, self._fixed = tuple(steps), dict(fixed)
        operands = dict.fromkeys(o for step in steps for o in step.operands)
        self._tensors, self._extents = _tensors(list(operands))
        self._tensors["data"] = [self._address(o) for o in operands]
        self._open = _OpenSlots(
            [(i, o) for i, o in enumerate(operands) if o.slot not in {None, *self._fixed}]
        )
        place = dict(zip(operands, _addresses(self._tensors), strict=True))
        self._arguments = np.zeros(sum(len(s.operands) for s in steps), _ANY)
        self._arguments["type"] = _TENSOR_POINTER
        self._arguments["value"] = [place[o] for s in steps for o in s.operands]
        self._calls = np.zeros(len(steps), _CALL)
        self._calls["call"] = [s.entry.call for s in steps]
        self._calls["handle"] = [s.entry.handle for s in steps]
        self._calls["count"] = counts = [len(s.operands) for s in steps]
        firsts = np.cumsum([0, *counts[:-1]]) if counts else []
        self._calls["arguments"] = _addresses(self._arguments, firsts)

    def _address(self, operand: Operand) -> int:
        """Where an operand starts; 0 for one that comes with a call."""
        if operand.slot is None:
            return self.arena.view(operand.offset, operand.shape, operand.dtype).ctypes.data
        array = self._fixed.get(operand.slot)
        return 0 if array is None else array.ctypes.data + operand.offset

    def run(self, slots: Mapping[str, np.ndarray], start: int = 0, stop: int | None = None) -> None:
        """Call steps [start, stop) with this call's buffers.

        Args:
            slots: C-contiguous arrays by slot; only steps that are not called may lack one.
            start: first step.
            stop: the step after the last; all by default.

        Raises:
            BngenError: when a kernel fails.
        """
        if self._open:
            self._open.fill(self._tensors, slots)
        stop = len(self._steps) if stop is None else stop
        failed = _run_calls()(self._calls.ctypes.data, start, stop)
        if failed >= 0:
            raise BngenError(f"kernel {self._steps[failed].name} failed: {native.raised()}")

    def read(self, operand: Operand) -> np.ndarray:
        """A view of an arena operand."""
        return self.arena.view(operand.offset, operand.shape, operand.dtype)


class _OpenSlots:
    """The operands whose memory comes with a call."""

    def __init__(self, operands: Sequence[tuple[int, Operand]]):
        self._names = list(dict.fromkeys(o.slot for _, o in operands))
        self._rows = np.array([i for i, _ in operands], np.intp)
        self._slots = np.array([self._names.index(o.slot) for _, o in operands], np.intp)
        self._offsets = np.array([o.offset for _, o in operands], np.uint64)

    def __bool__(self) -> bool:
        return bool(self._names)

    def fill(self, tensors: np.ndarray, slots: Mapping[str, np.ndarray]) -> None:
        """Write where the slots lie; where one is missing, an address that kernels refuse."""
        bases = [slots[n].ctypes.data if n in slots else 0 for n in self._names]
        there = np.array(bases, np.uint64)[self._slots]
        tensors["data"][self._rows] = np.where(there == 0, there, there + self._offsets)


def _tensors(operands: Sequence[Operand]) -> tuple[np.ndarray, np.ndarray]:
    """A ``DLTensor`` for each operand, without data; and the extents and strides they point to."""
    tensors = np.zeros(len(operands), _TENSOR)
    kinds = [np.dtype(o.dtype) for o in operands]
    tensors["device"], tensors["lanes"] = _CPU, 1
    tensors["code"] = [_TYPE_CODES[k.kind] for k in kinds]
    tensors["bits"] = [8 * k.itemsize for k in kinds]
    tensors["ndim"] = [len(o.shape) for o in operands]
    numbers: list[int] = []
    firsts: list[int] = []
    for o in operands:
        firsts.append(len(numbers))
        steps = np.cumprod([1, *o.shape[:0:-1]])[::-1] if o.shape else ()
        numbers += [*o.shape, *map(int, steps)]
    extents = np.array(numbers, np.int64)
    tensors["shape"] = _addresses(extents, np.array(firsts, np.int64))
    tensors["strides"] = tensors["shape"] + 8 * tensors["ndim"].astype(np.uint64)
    return tensors, extents


def _addresses(table: np.ndarray, rows: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
    rows = np.arange(len(table)) if rows is None else np.asarray(rows, np.int64)
    return table.ctypes.data + rows * table.itemsize


@functools.cache
def _dispatch() -> ctypes.CDLL:
    library = ctypes.CDLL(str(toolchain.shared_library(Path(__file__).with_name("dispatch.c"))))
    library.bngen_run.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    library.bngen_run.restype = ctypes.c_int64
    return library


@functools.cache
def _run_calls() -> Callable[[int, int, int], int]:
    """`dispatch.c`, or where there is no C compiler the same in Python."""
    try:
        return _dispatch().bngen_run
    except ToolchainError:  # The thread pool has said so.
        return _run_in_python


def _run_in_python(calls: int, start: int, stop: int) -> int:
    """``bngen_run`` of dispatch.c."""
    kind = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 2, ctypes.c_int32, ctypes.c_void_p)
    result = (ctypes.c_uint64 * 2)()
    for i in range(start, stop):
        call, handle, arguments, count = (
            ctypes.c_uint64.from_address(calls + i * _CALL.itemsize + 8 * j).value for j in range(4)
        )
        if kind(call)(handle, arguments, count, result):
            return i
    return -1


def view(array: np.ndarray, offset: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """``shape`` elements from byte ``offset`` of a C-contiguous array."""
    if not offset and array.shape == shape:
        return array
    flat = array.reshape(-1).view(np.uint8)
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return flat[offset : offset + count].view(dtype).reshape(shape)
