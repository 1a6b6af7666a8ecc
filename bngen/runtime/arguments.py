"""Users' arrays as compiled kernels take them, and results as users expect them.

In: NumPy arrays, PyTorch tensors, lists and numbers, and what the program declares (`ArgSpec`).
Out: C-contiguous NumPy arrays in memory order (see `runtime.formats`) that share the caller's
memory wherever a kernel can use it as it lies: dense in the declared memory format, aligned, in
native byte order. Everything else is copied, and copied back for arguments that the program updates
in place. A wrong dtype, shape or device is a `CallError`, since
converting it silently would hide a mistake, and kernels themselves check nothing.

PyTorch is never imported here: an array can only be a tensor if somebody has imported it already.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bngen.arrays import letter_of, numpy_dtype
from bngen.dtypes import DTYPES
from bngen.errors import CallError
from bngen.options import CONTIGUOUS
from bngen.runtime.formats import memory_axes, memory_shape, to_logical_order, to_memory_order
from bngen.runtime.memory import ALIGNMENT, empty_aligned
from bngen.runtime.overlap import check_overlap, memory_of, overlaps_itself

WriteBack = Callable[[], object]


@dataclass(frozen=True)
class ArgSpec:
    """What a program says of one argument.

    Attributes:
        name: its name.
        shape: its shape, exactly.
        dtype: its element type, by NumPy's name.
        inplace: whether the program writes a new value into it.
        memory_format: how kernels expect it to lie.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    inplace: bool = False
    memory_format: str = CONTIGUOUS

    @functools.cached_property
    def memory_shape(self) -> tuple[int, ...]:
        """Its extents in memory order."""
        return memory_shape(self.shape, self.memory_format)

    @functools.cached_property
    def numpy_dtype(self) -> np.dtype:
        """The element type for NumPy, in native byte order."""
        return numpy_dtype(self.dtype)


def prepare_all(
    program: str, specs: Sequence[ArgSpec], values: Iterable[object], alignment: int = ALIGNMENT
) -> tuple[list[np.ndarray], list[WriteBack]]:
    """All arguments of a call, in the order of `specs`.

    Args:
        program: the program's name, for messages.
        specs: what the program declares.
        values: what the caller gave, as many.
        alignment: bytes to which kernels rely on arguments being aligned; see `prepare`.

    Returns:
        The arrays to pass, and functions to call once the kernels have run.

    Raises:
        CallError: for an argument that cannot be used, or memory that is both updated in place and
            passed as another argument.
    """
    values = list(values)
    arrays, write_backs = [], []
    for spec, value in zip(specs, values, strict=True):
        array, write_back = prepare(value, spec, alignment, program)
        arrays.append(array)
        if write_back is not None:
            write_backs.append(write_back)
    if any(spec.inplace for spec in specs):
        check_overlap(program, specs, values)
    return arrays, write_backs


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
    torch = sys.modules.get("torch")
    try:
        if isinstance(value, np.ndarray):
            return _prepare_numpy(value, spec, alignment)
        if torch is not None and isinstance(value, torch.Tensor):
            return _prepare_torch(value, spec, alignment, torch)
        return _prepare_other(value, spec, alignment)
    except _Unusable as unusable:
        message = f"{program}: argument {spec.name!r} {unusable.what}"
        raise CallError(message, hint=unusable.hint) from None


def is_torch(value: object) -> bool:
    """Whether `value` is a PyTorch tensor; does not import PyTorch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def deliver(array: np.ndarray, as_torch: bool) -> Any:
    """A result in the caller's own kind; the tensor shares the array's memory.

    Args:
        array: the result, in memory that nobody else is going to write to.
        as_torch: whether the caller passed tensors (`is_torch`).

    Returns:
        The array, or a PyTorch tensor.
    """
    return _as_tensor(array, sys.modules["torch"]) if as_torch else array


def array_of(tensor: Any) -> np.ndarray:
    """A tensor's numbers as an array, over its memory where NumPy can have that.

    Raises:
        TypeError, RuntimeError: for a tensor of which there is no array.
    """
    torch, plain = sys.modules["torch"], tensor.detach().cpu()
    row = DTYPES.get(str(tensor.dtype).removeprefix("torch."))
    if row is None or not row.stored_only:
        return plain.numpy()
    bits = plain.contiguous().view(getattr(torch, f"int{row.bits}"))
    return bits.numpy().view(numpy_dtype(row.name))


def _as_tensor(array: np.ndarray, torch: Any) -> Any:
    """A tensor over an array's memory; where NumPy has no type of that name, over its bits."""
    row = DTYPES[array.dtype.name]
    if not row.stored_only:
        return torch.from_dlpack(array)
    bits = torch.from_dlpack(array.view(f"i{row.nbytes}"))
    return bits.view(getattr(torch, row.torch))


class _Unusable(Exception):
    """Why an argument cannot be used, and what to try; `prepare` adds which argument it is."""

    def __init__(self, what: str, hint: str):
        super().__init__(what)
        self.what, self.hint = what, hint


# --- NumPy ------------------------------------------------------------------------------------


def _prepare_numpy(
    array: np.ndarray, spec: ArgSpec, alignment: int
) -> tuple[np.ndarray, WriteBack | None]:
    if array.dtype != spec.numpy_dtype and array.dtype.newbyteorder("=") != spec.numpy_dtype:
        raise _wrong_dtype(array.dtype.name, spec.dtype, f".astype({_numpy_name(spec)})")
    if array.shape != spec.shape:
        raise _wrong_shape(array.shape, spec.shape)
    if isinstance(array, np.ma.MaskedArray):
        raise _Unusable("is masked, and kernels would read what the mask hides", "call .filled(0)")
    ordered = to_memory_order(np.asarray(array), spec.memory_format)
    if _usable(ordered, alignment) and (array.flags.writeable or not spec.inplace):
        return ordered, None
    if not spec.inplace:
        return _copy(array, spec, alignment), None
    if not array.flags.writeable:
        raise _Unusable("is updated in place, but it is read-only", "pass a copy: .copy()")
    if overlaps_itself(array):
        what = "is updated in place, but its elements share memory"
        raise _Unusable(what, "pass a copy: .copy()")
    scratch = _copy(array, spec, alignment)
    return scratch, functools.partial(
        np.copyto, array, to_logical_order(scratch, spec.memory_format)
    )


def _usable(ordered: np.ndarray, alignment: int) -> bool:
    """Whether a kernel can use the memory as it lies."""
    whole = ordered.flags.c_contiguous and ordered.dtype.isnative
    return whole and ordered.ctypes.data % alignment == 0


def _copy(array: np.ndarray, spec: ArgSpec, alignment: int) -> np.ndarray:
    scratch = empty_aligned(spec.memory_shape, spec.dtype, max(alignment, ALIGNMENT))
    np.copyto(scratch, to_memory_order(array, spec.memory_format))
    return scratch


# --- PyTorch ----------------------------------------------------------------------------------


def _prepare_torch(
    tensor: Any, spec: ArgSpec, alignment: int, torch: Any
) -> tuple[np.ndarray, WriteBack | None]:
    _check_tensor(tensor, spec, torch)
    with torch._C.DisableTorchFunctionSubclass():
        detached = tensor.detach()
        # What lies there negated, by a bit alone, has to be made first.
        there = None
        if not detached.is_neg():
            there = to_memory_order(memory_of(detached, spec), spec.memory_format)
        shared = there is not None and _usable(there, alignment)
        if not spec.inplace:
            return (there if shared else _dense(detached, spec, torch)), None
        if not shared and overlaps_itself(memory_of(tensor, spec)):
            raise _Unusable(
                "is updated in place, but its elements share memory", "call .contiguous()"
            )
        if shared:
            return there, functools.partial(_write_tensor, tensor, None, torch)
        scratch = _dense(detached, spec, torch)
        new = to_logical_order(scratch, spec.memory_format)
        return scratch, functools.partial(_write_tensor, tensor, new, torch)


def _dense(tensor: Any, spec: ArgSpec, torch: Any) -> np.ndarray:
    """A copy in memory order; PyTorch's memory lies on 64 bytes, always."""
    ordered = tensor.permute(memory_axes(tensor.ndim, spec.memory_format))
    return memory_of(torch.empty(spec.memory_shape, dtype=tensor.dtype).copy_(ordered), spec)


def _write_tensor(tensor: Any, new: np.ndarray | None, torch: Any) -> None:
    """Give a tensor its new value, unless it has it, and tell autograd that it has another."""
    with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
        if new is not None:
            tensor.detach().copy_(_as_tensor(new, torch))
        elif not tensor.is_inference():
            torch.autograd.graph.increment_version(tensor)


def _check_tensor(tensor: Any, spec: ArgSpec, torch: Any) -> None:
    """Refuse a tensor that is no dense one in this process's memory, or of another type."""
    kind = type(tensor)
    if tensor.is_nested:
        raise _Unusable("is a nested tensor, expected a dense one", "call .to_padded_tensor(0.0)")
    if tensor.device.type != "cpu":
        raise _Unusable(
            f"is on {tensor.device}, but bngen's code runs on the CPU", "move it: .cpu()"
        )
    if tensor.layout is not torch.strided:
        raise _Unusable(f"has layout {tensor.layout}, expected a dense tensor", "call .to_dense()")
    if tensor.dtype is not getattr(torch, spec.dtype, None):
        name = str(tensor.dtype).removeprefix("torch.")
        raise _wrong_dtype(name, spec.dtype, f".to(torch.{spec.dtype})")
    if tuple(tensor.shape) != spec.shape:
        raise _wrong_shape(tuple(tensor.shape), spec.shape)
    if kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__ or not _stored(tensor):
        raise _Unusable(f"is a {kind.__name__} without memory of its own", "pass a plain tensor")
    if tensor.requires_grad and torch.is_grad_enabled():
        raise _Unusable(
            "requires grad, but autograd does not see through a bngen module: its results would "
            "come back detached",
            "pass .detach(), or call it under torch.no_grad(); gradients are mod.backward's, with "
            "bngen.build(..., grad=True)",
        )


def _stored(tensor: Any) -> bool:
    """Whether all elements are there: not inside ``torch.func``, nor where storage was given up."""
    steps = zip(tensor.stride(), tensor.shape, strict=True)
    last = tensor.storage_offset() + sum(step * (extent - 1) for step, extent in steps)
    try:
        return tensor.untyped_storage().nbytes() >= (last + 1) * tensor.element_size()
    except (RuntimeError, NotImplementedError):
        return False


# --- lists, numbers, other libraries' arrays --------------------------------------------------


def _prepare_other(
    value: object, spec: ArgSpec, alignment: int
) -> tuple[np.ndarray, WriteBack | None]:
    if spec.inplace:
        raise _Unusable(
            f"is updated in place, which a {type(value).__name__} cannot be", "pass a NumPy array"
        )
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise _Unusable(f"cannot become an array: {error}", "pass a NumPy array") from None
    if letter_of(array.dtype) not in "biuf":
        raise _Unusable(
            f"is a {type(value).__name__}, expected {_type(spec)}", "pass a NumPy array"
        )
    if hasattr(value, "dtype") and array.ndim:
        return _prepare_numpy(array, spec, alignment)
    # Python's own numbers have no width that could be wrong.
    if array.shape != spec.shape:
        raise _wrong_shape(array.shape, spec.shape)
    return _converted(array, spec, alignment), None


def _converted(array: np.ndarray, spec: ArgSpec, alignment: int) -> np.ndarray:
    """Plain numbers in the declared type, if it can hold them."""
    wanted = spec.numpy_dtype
    array = to_memory_order(array, spec.memory_format)
    scratch = empty_aligned(spec.memory_shape, spec.dtype, max(alignment, ALIGNMENT))
    integers = array.dtype.kind in "iu" and wanted.kind in "iu"
    if not integers and not np.can_cast(array.dtype, wanted, "same_kind"):
        raise _wrong_dtype(array.dtype.name, spec.dtype, f"np.asarray(x, {_numpy_name(spec)})")
    with np.errstate(over="ignore"):
        np.copyto(scratch, array, casting="unsafe")
    too_large = letter_of(wanted) == "f" and (np.isinf(scratch) & np.isfinite(array)).any()
    if too_large or (integers and not np.array_equal(scratch, array)):
        raise _Unusable(f"holds numbers that {spec.dtype} cannot hold", "check its values")
    return scratch


# --- messages ---------------------------------------------------------------------------------


def _type(spec: ArgSpec) -> str:
    return f"{spec.dtype}{list(spec.shape)}"


def _numpy_name(spec: ArgSpec) -> str:
    """How Python calls the type of elements."""
    return f"{'np' if hasattr(np, spec.dtype) else 'ml_dtypes'}.{spec.dtype}"


def _wrong_dtype(got: str, expected: str, how: str) -> _Unusable:
    return _Unusable(f"is {got}, expected {expected}", f"convert it: {how}")


def _wrong_shape(got: tuple[int, ...], expected: tuple[int, ...]) -> _Unusable:
    what = f"has shape {got}, expected {expected}"
    if len(got) != len(expected):
        what = f"has rank {len(got)}, shape {got}; expected rank {len(expected)}, shape {expected}"
    return _Unusable(what, _shape_hint(got, expected))


def _shape_hint(got: tuple[int, ...], expected: tuple[int, ...]) -> str:
    if len(got) == len(expected) == 4 and got == (expected[0], *expected[2:], expected[1]):
        return "the order is N, C, H, W: transpose it by (0, 3, 1, 2)"
    if len(got) == len(expected) and got[1:] == expected[1:]:
        return f"a program is built for one size: build it with {got[0]} in place of {expected[0]}"
    if np.prod(got) == np.prod(expected):
        return "reshape it"
    return "a program is built for one shape"
