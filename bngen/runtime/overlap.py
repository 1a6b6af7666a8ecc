"""Whether memory that a program updates is also the memory of another argument, or of itself twice.

In: arguments as their callers lay them out, before anything is copied. Out: a `CallError`, or
nothing. A kernel that reads and writes one array under two names, and a copy that is written back
over another's update, would both lose values without a word.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from bngen.errors import CallError

_MAX_WORK = 1 << 12
"""Steps after which NumPy gives up on two arrays whose elements interleave: some microseconds."""


class Declared(Protocol):
    """What is asked of the declaration of an argument, such as an `ArgSpec`."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def inplace(self) -> bool:
        """Whether the program writes a new value into it."""

    @property
    def numpy_dtype(self) -> np.dtype:
        """Its element type."""


class _Lying:
    """What NumPy needs to know of a tensor's memory to make an array of it, which keeps its owner.

    `Tensor.numpy` does the same, but marks the memory as NumPy's, too: it can never be resized
    again, nor be told from memory that was NumPy's from the start.
    """

    def __init__(self, owner: Any, interface: dict[str, Any]):
        self._owner, self.__array_interface__ = owner, interface


def lying(owner: Any, interface: dict[str, Any], kind: np.dtype) -> np.ndarray:
    """The array over a tensor's memory.

    Args:
        owner: the tensor or its storage, which the array keeps alive.
        interface: how its elements lie, in NumPy's array interface.
        kind: their type; that of ml_dtypes has no letter of its own in an interface.
    """
    array = np.asarray(_Lying(owner, interface))
    return array if array.dtype is kind else array.view(kind)


def array_over(tensor: Any, kind: np.dtype) -> np.ndarray:
    """The array over a tensor's memory, of whatever strides; ``kind`` as in `lying`."""
    interface = {
        "version": 3, "data": (tensor.data_ptr(), False), "typestr": kind.str,
        "shape": tuple(tensor.shape), "strides": tuple(s * kind.itemsize for s in tensor.stride()),
    }  # fmt: skip
    return lying(tensor, interface, kind)


def memory_of(value: Any, spec: Declared) -> np.ndarray | None:
    """An array over the memory of an argument, whatever its strides.

    Args:
        value: an argument that `arguments.prepare` has accepted.
        spec: what the program declares of it.

    Returns:
        None for what has no memory that could be updated: lists and numbers.
    """
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "data_ptr"):
        return array_over(value, spec.numpy_dtype)
    return None if isinstance(value, list | tuple | numbers.Number) else np.asarray(value)


def check_overlap(program: str, specs: Sequence[Declared], values: Sequence[Any]) -> None:
    """Refuse memory that is updated and passed under another name, too.

    Raises:
        CallError: names both arguments.
    """
    spans = []
    for spec, value in zip(specs, values, strict=True):
        array = memory_of(value, spec)
        if array is not None and array.size:
            low, high = span_of(array)
            spans.append((low, high, spec, array))
    spans.sort(key=lambda span: span[:2])
    reaching: list[tuple[int, int, Declared, np.ndarray]] = []
    for span in spans:
        low, _, spec, array = span
        reaching = [other for other in reaching if other[1] > low]
        for _, _, other, there in reaching:
            if (spec.inplace or other.inplace) and _shared(array, there):
                updated = spec if spec.inplace else other
                raise CallError(
                    f"{program}: arguments {other.name!r} and {spec.name!r} share memory, and "
                    f"{updated.name!r} is updated in place",
                    hint="pass a copy of one of them",
                )
        reaching.append(span)


def are_apart(spans: Sequence[tuple[int, int]]) -> bool:
    """Whether no two of them share an address: then no two arguments share memory.

    Args:
        spans: see `span_of`.
    """
    lows, highs = np.array(sorted(spans), np.uint64).reshape(-1, 2).T
    return not (np.maximum.accumulate(highs)[:-1] > lows[1:]).any()


def overlaps_itself(array: np.ndarray) -> bool:
    """Whether two elements may lie in one place; some arrays whose axes interleave count, too."""
    reach = array.itemsize
    axes = ((abs(step), extent) for step, extent in zip(array.strides, array.shape, strict=True))
    for step, extent in sorted(axis for axis in axes if axis[1] > 1):
        if step < reach:
            return True
        reach += step * (extent - 1)
    return False


def span_of(array: np.ndarray) -> tuple[int, int]:
    """Addresses of the first byte of any element, and after the last."""
    if array.flags.c_contiguous:
        return array.ctypes.data, array.ctypes.data + array.nbytes
    ends = [step * (extent - 1) for step, extent in zip(array.strides, array.shape, strict=True)]
    start = array.ctypes.data
    low, high = sum(e for e in ends if e < 0), sum(e for e in ends if e > 0)
    return start + low, start + high + array.itemsize


def _shared(a: np.ndarray, b: np.ndarray) -> bool:
    try:
        return np.shares_memory(a, b, max_work=_MAX_WORK)
    except np.exceptions.TooHardError:
        return True
