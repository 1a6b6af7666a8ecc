"""What a program declares of an argument: the runtime's row for each.

In: a name, a shape, an element type, and how the array lies. Out: the same as NumPy sees it. What
is made of a caller's value by it is `arguments`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from bngen.options import CONTIGUOUS
from bngen.runtime.formats import memory_shape


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
        return np.dtype(self.dtype)
