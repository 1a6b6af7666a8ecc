"""Memory that a call reads or writes: where it lies, and who keeps it.

In: an array, or a tensor and how an array over it is made. Out: a `Buffer`, which kernels find by
its address. A training step has hundreds of tensors: an array over each, which is then asked where
it lies, would take longer than some networks' kernels. So arrays are made for whoever reads one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


class Buffer:
    """C-contiguous memory.

    Args:
        address: of its first byte.
        owner: keeps the memory alive.
        make: makes the array over it, of its owner.
    """

    __slots__ = ("_make", "address", "owner")

    def __init__(self, address: int, owner: Any, make: Callable[[Any], np.ndarray]):
        self.address, self.owner, self._make = address, owner, make

    @property
    def array(self) -> np.ndarray:
        """An array over it."""
        return self._make(self.owner)


def buffer(array: np.ndarray) -> Buffer:
    """The memory of a C-contiguous array."""
    return Buffer(array.ctypes.data, array, _itself)


def _itself(array: np.ndarray) -> np.ndarray:
    return array
