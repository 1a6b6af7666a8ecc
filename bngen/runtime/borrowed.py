"""What ``backward`` reads of the arguments of ``forward``: borrowed, or a call's own.

In: an argument as the caller gave it, and the array that kernels read. Out: whether the two are the
same memory, and a `Loan` where PyTorch tells whether it was changed since.

PyTorch counts the changes of a tensor's memory, so a tensor is read where it lies, wherever that is
by then, and one that was changed in place is refused, as PyTorch's own ``backward`` does. NumPy
counts nothing: what lies in memory of NumPy's, or of a tensor that shares it with NumPy, has to be
copied.
"""

from __future__ import annotations

import functools
import numbers
import sys
from typing import Any, NamedTuple

import numpy as np

from bngen.errors import CallError
from bngen.runtime.buffers import Buffer
from bngen.runtime.overlap import lying
from bngen.runtime.tensors import is_torch


class Loan(NamedTuple):
    """A tensor's memory, while a call waits for its ``backward``.

    Attributes:
        name: of the argument.
        tensor: over the caller's memory, with the caller's count of changes.
        address: where its elements lie.
        version: PyTorch's count of its changes.
    """

    name: str
    tensor: Any
    address: int
    version: int

    def renewed(self) -> Loan:
        """The same after ``forward`` has written to other arguments, perhaps beside it."""
        version = self.tensor._version
        return self if version == self.version else self._replace(version=version)

    def check(self, program: str) -> None:
        """Refuse to read what is no longer what ``forward`` read.

        Raises:
            CallError: for a tensor that was changed, or has no memory now.
        """
        if self.tensor._version != self.version:
            raise CallError(
                f"{program}: argument {self.name!r}, which backward reads, was modified by an "
                f"inplace operation after the forward call: it is at version "
                f"{self.tensor._version}, expected version {self.version}",
                hint="call forward again, or pass a .clone()",
            )
        if self.tensor.untyped_storage().nbytes() < self.tensor.nbytes:
            raise CallError(
                f"{program}: argument {self.name!r}, which backward reads, has given up its memory",
                hint="call forward again",
            )

    def has_moved(self) -> bool:
        """Whether its memory was made anew since, as that of gathered shards is."""
        return self.tensor.data_ptr() != self.address

    def anew(self, before: Buffer) -> Buffer:
        """What kernels read of it now.

        Args:
            before: what they have read.
        """
        array = before.array  # over memory that is no more, for its form
        interface = {
            "version": 3, "data": (self.tensor.data_ptr(), False), "typestr": array.dtype.str,
            "shape": array.shape,
        }  # fmt: skip
        make = functools.partial(lying, interface=interface, kind=array.dtype)
        return Buffer(self.tensor.data_ptr(), self.tensor, make)


def borrow(name: str, value: Any, there: Buffer) -> Loan | None:
    """A loan of an argument; None where its changes would go unnoticed.

    That is so in inference mode, and where something that PyTorch does not know shares the memory:
    such storage cannot be resized.

    Args:
        name: of the argument.
        value: as the caller gave it.
        there: what kernels read.
    """
    if not is_torch(value):
        return None
    with sys.modules["torch"]._C.DisableTorchFunctionSubclass():
        tensor = value.detach()
    if tensor.is_inference() or not tensor.untyped_storage().resizable():
        return None
    address = tensor.data_ptr()
    return Loan(name, tensor, address, tensor._version) if address == there.address else None


def is_own(value: Any, there: Buffer) -> bool:
    """Whether kernels read a copy made for this call: no memory that the caller has."""
    if isinstance(value, np.ndarray):
        return not np.may_share_memory(value, there.array)
    if is_torch(value):
        return value.data_ptr() != there.address
    return isinstance(value, list | tuple | numbers.Number)
