"""PyTorch's tensors as compiled kernels take them.

In: a tensor, and what the program declares of it. Out: a C-contiguous NumPy array in memory order
over the tensor's own memory wherever a kernel can use it as it lies, else a copy. PyTorch is never
imported here: a value can only be a tensor if somebody has imported it already.

A training step has hundreds of tensors that lie where they lay in the step before. `Seen` knows
them by their `_look`: what was once found usable is looked over in a microsecond.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bngen.arrays import numpy_dtype
from bngen.dtypes import DTYPES, DType
from bngen.options import CONTIGUOUS
from bngen.runtime.argspec import ArgSpec
from bngen.runtime.buffers import Buffer
from bngen.runtime.formats import (
    logical_axes,
    memory_axes,
    to_logical_order,
    to_memory_order,
)
from bngen.runtime.overlap import array_over, lying, memory_of, overlaps_itself
from bngen.runtime.unusable import Unusable, wrong_dtype, wrong_shape

WriteBack = Callable[[], object]


def is_torch(value: object) -> bool:
    """Whether `value` is a PyTorch tensor; does not import PyTorch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


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


def as_tensor(array: np.ndarray) -> Any:
    """A tensor over an array's memory; where PyTorch cannot be told its type, over its bits."""
    torch, row = sys.modules["torch"], _row(array.dtype)
    if not row.stored_only:
        return _over(array)
    return _over(array.view(f"i{row.nbytes}")).view(getattr(torch, row.torch))


def empty_tensor(shape: tuple[int, ...], dtype: str) -> Buffer:
    """A fresh uninitialized tensor, which owns the buffer; it lies on 64 bytes, as all do."""
    torch, row = sys.modules["torch"], DTYPES[dtype]
    tensor = torch.empty(shape, dtype=getattr(torch, row.torch), device="cpu")
    return Buffer(tensor.data_ptr(), tensor, functools.partial(array_over, kind=numpy_dtype(dtype)))


def in_logical_order(tensor: Any, memory_format: str) -> Any:
    """A tensor in memory order, as its user knows it; one that nobody else holds."""
    if memory_format != CONTIGUOUS:
        tensor = tensor.permute(logical_axes(tensor.ndim, memory_format))
    return tensor.detach()


@functools.cache
def _row(dtype: np.dtype) -> DType:
    """NumPy makes a type's name anew whenever it is asked, which takes microseconds."""
    return DTYPES[dtype.name]


def _over(array: np.ndarray) -> Any:
    # Of `torch.from_numpy` PyTorch would know that the memory is NumPy's; see `borrowed`.
    return sys.modules["torch"].utils.dlpack.from_dlpack(array.__dlpack__())


@dataclass(frozen=True)
class Place:
    """Where a usable tensor lay; not the tensor itself, whose memory it does not keep.

    Attributes:
        look: what decided that it was usable; see `_look`.
        interface: of its array, in memory order.
        kind: its elements' type.
        span: addresses of its first byte, and after its last.
    """

    look: tuple[Any, ...]
    interface: dict[str, Any]
    kind: np.dtype
    span: tuple[int, int]

    def buffer(self, tensor: Any) -> Buffer:
        """The memory of a tensor that lies here."""
        return Buffer(self.span[0], tensor.untyped_storage(), self._array)

    def _array(self, owner: Any) -> np.ndarray:
        return lying(owner, self.interface, self.kind)


class Seen:
    """The last usable tensor of each argument of a call: where it lay.

    Args:
        count: how many arguments there are.
    """

    def __init__(self, count: int):
        self._places: list[Place | None] = [None] * count

    def again(self, number: int, value: Any) -> Place | None:
        """The place of the last usable tensor, if this one looks the same.

        Args:
            number: of the argument.
            value: its value, which may be no tensor.
        """
        place = self._places[number]
        return place if place is not None and _look(value) == place.look else None

    def note(self, number: int, tensor: Any, array: np.ndarray, address: int) -> None:
        """A tensor was found usable.

        Args:
            number: of the argument.
            tensor: its value.
            array: its memory, as kernels take it.
            address: where that begins.
        """
        look = _look(tensor)
        if look is not None:
            interface = dict(array.__array_interface__)
            span = address, address + array.nbytes
            self._places[number] = Place(look, interface, array.dtype, span)


def _look(tensor: Any) -> tuple[Any, ...] | None:
    """All that decides whether and how kernels read a tensor; None for what is no plain one."""
    torch = sys.modules["torch"]
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return None
    if tensor.requires_grad and torch.is_grad_enabled():
        return None
    try:
        return (
            tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.is_neg(),
            tensor.storage_offset(), tensor.untyped_storage().nbytes(),
        )  # fmt: skip
    except (RuntimeError, NotImplementedError):  # Sparse, or inside torch.func.
        return None


def prepare_tensor(
    tensor: Any, spec: ArgSpec, alignment: int
) -> tuple[np.ndarray, WriteBack | None]:
    """One tensor as a C-contiguous array in memory order.

    Args:
        tensor: what the caller gave.
        spec: what the program declares.
        alignment: bytes; see `arguments.prepare`.

    Returns:
        The array, and for an argument that is updated in place what to call once kernels have run.

    Raises:
        Unusable: if it cannot be used.
    """
    torch = sys.modules["torch"]
    _check(tensor, spec, torch)
    with torch._C.DisableTorchFunctionSubclass():
        detached = tensor.detach()
        # What lies there negated, by a bit alone, has to be made first.
        if not detached.is_neg():
            there = to_memory_order(memory_of(detached, spec), spec.memory_format)
            if is_usable(there, alignment):
                return there, written([tensor]) if spec.inplace else None
        if not spec.inplace:
            return _dense(detached, spec, torch), None
        if overlaps_itself(memory_of(tensor, spec)):
            raise Unusable(
                "is updated in place, but its elements share memory", "call .contiguous()"
            )
        scratch = _dense(detached, spec, torch)
        new = to_logical_order(scratch, spec.memory_format)
        return scratch, functools.partial(_write, tensor, new)


def is_usable(ordered: np.ndarray, alignment: int) -> bool:
    """Whether a kernel can use an array in memory order as it lies."""
    whole = ordered.flags.c_contiguous and ordered.dtype.isnative
    return whole and (alignment == 1 or ordered.ctypes.data % alignment == 0)


def written(tensors: Iterable[Any]) -> WriteBack:
    """What tells autograd that kernels have written to the memory of tensors."""
    return functools.partial(_count, tuple(tensors))


def _count(tensors: tuple[Any, ...]) -> None:
    torch = sys.modules["torch"]
    with torch._C.DisableTorchFunctionSubclass():
        counted = [t for t in tensors if not t.is_inference()]
        torch.autograd.graph.increment_version(counted)


def _write(tensor: Any, new: np.ndarray) -> None:
    torch = sys.modules["torch"]
    with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
        tensor.detach().copy_(as_tensor(new))


def _dense(tensor: Any, spec: ArgSpec, torch: Any) -> np.ndarray:
    """A copy in memory order; PyTorch's memory lies on 64 bytes, always."""
    ordered = tensor.permute(memory_axes(tensor.ndim, spec.memory_format))
    return memory_of(torch.empty(spec.memory_shape, dtype=tensor.dtype).copy_(ordered), spec)


def _check(tensor: Any, spec: ArgSpec, torch: Any) -> None:
    """Refuse a tensor that is no dense one in this process's memory, or of another type."""
    kind = type(tensor)
    if tensor.is_nested:
        raise Unusable("is a nested tensor, expected a dense one", "call .to_padded_tensor(0.0)")
    if tensor.device.type != "cpu":
        raise Unusable(
            f"is on {tensor.device}, but bngen's code runs on the CPU", "move it: .cpu()"
        )
    if tensor.layout is not torch.strided:
        raise Unusable(f"has layout {tensor.layout}, expected a dense tensor", "call .to_dense()")
    if tensor.dtype is not getattr(torch, spec.dtype, None):
        name = str(tensor.dtype).removeprefix("torch.")
        raise wrong_dtype(name, spec.dtype, f".to(torch.{spec.dtype})")
    if tuple(tensor.shape) != spec.shape:
        raise wrong_shape(tuple(tensor.shape), spec.shape)
    if kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__ or not _stored(tensor):
        raise Unusable(f"is a {kind.__name__} without memory of its own", "pass a plain tensor")
    if tensor.requires_grad and torch.is_grad_enabled():
        raise Unusable(
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
