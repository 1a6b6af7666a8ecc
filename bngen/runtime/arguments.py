"""Users' arrays as compiled kernels take them, and results as users expect them.

In: NumPy arrays, PyTorch tensors, lists and numbers, and what the program declares (`ArgSpec`).
Out: C-contiguous buffers in memory order (see `runtime.formats`) that share the caller's memory
wherever a kernel can use it as it lies: dense in the declared memory format, aligned, in native
byte order. Everything else is copied, and copied back for arguments that the program updates in
place. A wrong dtype, shape or device is a `CallError`, since converting it silently would hide a
mistake, and kernels themselves check nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bngen.arrays import letter_of
from bngen.errors import CallError
from bngen.runtime.argspec import ArgSpec
from bngen.runtime.buffers import Buffer, buffer
from bngen.runtime.formats import to_logical_order, to_memory_order
from bngen.runtime.memory import ALIGNMENT, empty_aligned
from bngen.runtime.overlap import are_apart, check_overlap, memory_of, overlaps_itself, span_of
from bngen.runtime.tensors import (
    Seen,
    WriteBack,
    as_tensor,
    is_torch,
    is_usable,
    prepare_tensor,
    written,
)
from bngen.runtime.unusable import Unusable, declared, numpy_name, wrong_dtype, wrong_shape


class Arguments:
    """The arguments of one of a module's calls.

    Args:
        program: the program's name, for messages.
        specs: what the program declares, in order.
        alignment: bytes to which kernels rely on arguments being aligned; see `prepare`.
    """

    def __init__(self, program: str, specs: Sequence[ArgSpec], alignment: int = ALIGNMENT):
        self._program, self._specs, self._alignment = program, tuple(specs), alignment
        self._seen = Seen(len(self._specs))
        self._updates = any(spec.inplace for spec in specs)
        self._apart: list[tuple[int, int]] = []

    def prepared(self, values: Iterable[object]) -> tuple[list[Buffer], list[WriteBack]]:
        """All arguments of a call.

        Args:
            values: what the caller gave, one for each declaration.

        Returns:
            The memory to pass, and functions to call once the kernels have run.

        Raises:
            CallError: for an argument that cannot be used, or memory that is both updated in place
                and passed as another argument.
        """
        values = list(values)
        buffers, write_backs, spans, updated = [], [], [], []
        for number, (spec, value) in enumerate(zip(self._specs, values, strict=True)):
            place = self._seen.again(number, value)
            if place is None:
                found, write_back = self._looked_over(number, value)
                spans += self._span(value, spec)
                write_backs += [write_back] if write_back is not None else []
            else:
                found = place.buffer(value)
                spans.append(place.span)
                updated += [value] if spec.inplace else []
            buffers.append(found)
        if self._updates and spans != self._apart:
            if are_apart(spans):
                self._apart = spans
            else:
                check_overlap(self._program, self._specs, values)
        return buffers, [*write_backs, *([written(updated)] if updated else ())]

    def _looked_over(self, number: int, value: Any) -> tuple[Buffer, WriteBack | None]:
        array, write_back = prepare(value, self._specs[number], self._alignment, self._program)
        found = buffer(array)
        if is_torch(value) and value.data_ptr() == found.address:
            self._seen.note(number, value, array, found.address)
        return found, write_back

    def _span(self, value: Any, spec: ArgSpec) -> list[tuple[int, int]]:
        """Where the caller's memory lies, which may be another than the kernels'."""
        there = memory_of(value, spec) if self._updates else None
        return [] if there is None or not there.size else [span_of(there)]


def prepare(
    value: object, spec: ArgSpec, alignment: int = ALIGNMENT, program: str = "program"
) -> tuple[np.ndarray, WriteBack | None]:
    """One argument as a C-contiguous array in memory order.

    Args:
        value: what the caller gave.
        spec: what the program declares.
        alignment: bytes to which kernels rely on the argument being aligned. NumPy promises 16 and
            never gives 64 by chance, so with 64 every NumPy array is copied; kernels whose
            parameters are declared with the size of an element take them all as they are.
        program: the program's name, for messages.

    Returns:
        The array, which keeps the memory alive, and for an in-place argument that had to be
        copied a function that writes the new value back.

    Raises:
        CallError: if the argument cannot be used.
    """
    try:
        if isinstance(value, np.ndarray):
            return _prepare_numpy(value, spec, alignment)
        if is_torch(value):
            return prepare_tensor(value, spec, alignment)
        return _prepare_other(value, spec, alignment)
    except Unusable as unusable:
        message = f"{program}: argument {spec.name!r} {unusable.what}"
        raise CallError(message, hint=unusable.hint) from None


def deliver(array: np.ndarray, as_torch: bool) -> Any:
    """A result in the caller's own kind; the tensor shares the array's memory.

    Args:
        array: the result, in memory that nobody else is going to write to.
        as_torch: whether the caller passed tensors (`is_torch`).

    Returns:
        The array, or a PyTorch tensor.
    """
    return as_tensor(array) if as_torch else array


# --- NumPy ------------------------------------------------------------------------------------


def _prepare_numpy(
    array: np.ndarray, spec: ArgSpec, alignment: int
) -> tuple[np.ndarray, WriteBack | None]:
    if array.dtype != spec.numpy_dtype and array.dtype.newbyteorder("=") != spec.numpy_dtype:
        raise wrong_dtype(array.dtype.name, spec.dtype, f".astype({numpy_name(spec)})")
    if array.shape != spec.shape:
        raise wrong_shape(array.shape, spec.shape)
    if isinstance(array, np.ma.MaskedArray):
        raise Unusable("is masked, and kernels would read what the mask hides", "call .filled(0)")
    ordered = to_memory_order(np.asarray(array), spec.memory_format)
    if is_usable(ordered, alignment) and (array.flags.writeable or not spec.inplace):
        return ordered, None
    if not spec.inplace:
        return _copy(array, spec, alignment), None
    if not array.flags.writeable:
        raise Unusable("is updated in place, but it is read-only", "pass a copy: .copy()")
    if overlaps_itself(array):
        what = "is updated in place, but its elements share memory"
        raise Unusable(what, "pass a copy: .copy()")
    scratch = _copy(array, spec, alignment)
    return scratch, functools.partial(
        np.copyto, array, to_logical_order(scratch, spec.memory_format)
    )


def _copy(array: np.ndarray, spec: ArgSpec, alignment: int) -> np.ndarray:
    scratch = empty_aligned(spec.memory_shape, spec.dtype, max(alignment, ALIGNMENT))
    np.copyto(scratch, to_memory_order(array, spec.memory_format))
    return scratch


# --- lists, numbers, other libraries' arrays --------------------------------------------------


def _prepare_other(
    value: object, spec: ArgSpec, alignment: int
) -> tuple[np.ndarray, WriteBack | None]:
    if spec.inplace:
        raise Unusable(
            f"is updated in place, which a {type(value).__name__} cannot be", "pass a NumPy array"
        )
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise Unusable(f"cannot become an array: {error}", "pass a NumPy array") from None
    if letter_of(array.dtype) not in "biuf":
        raise Unusable(
            f"is a {type(value).__name__}, expected {declared(spec)}", "pass a NumPy array"
        )
    if hasattr(value, "dtype") and array.ndim:
        return _prepare_numpy(array, spec, alignment)
    # Python's own numbers have no width that could be wrong.
    if array.shape != spec.shape:
        raise wrong_shape(array.shape, spec.shape)
    return _converted(array, spec, alignment), None


def _converted(array: np.ndarray, spec: ArgSpec, alignment: int) -> np.ndarray:
    """Plain numbers in the declared type, if it can hold them."""
    wanted = spec.numpy_dtype
    array = to_memory_order(array, spec.memory_format)
    scratch = empty_aligned(spec.memory_shape, spec.dtype, max(alignment, ALIGNMENT))
    integers = array.dtype.kind in "iu" and wanted.kind in "iu"
    if not integers and not np.can_cast(array.dtype, wanted, "same_kind"):
        raise wrong_dtype(array.dtype.name, spec.dtype, f"np.asarray(x, {numpy_name(spec)})")
    with np.errstate(over="ignore"):
        np.copyto(scratch, array, casting="unsafe")
    too_large = letter_of(wanted) == "f" and (np.isinf(scratch) & np.isfinite(array)).any()
    if too_large or (integers and not np.array_equal(scratch, array)):
        raise Unusable(f"holds numbers that {spec.dtype} cannot hold", "check its values")
    return scratch
