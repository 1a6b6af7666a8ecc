"""The order of axes in which users' arrays lie, and the views between it and the logical order.

In: shapes and arrays as users know them, and a memory format (see `bngen.plan.formats`). Out: the
same in *memory order*, the outermost axis first: arrays that are C-contiguous if they lie as is
declared, which is how the runtime holds and passes them. Nothing is copied here.
"""

from __future__ import annotations

import numpy as np

from bngen.options import CHANNELS_LAST

_OUTERMOST_FIRST, _BACK = (0, 2, 3, 1), (0, 3, 1, 2)


def memory_shape(shape: tuple[int, ...], memory_format: str) -> tuple[int, ...]:
    """The extents of an array of a logical shape, outermost first."""
    return tuple(shape[axis] for axis in memory_axes(len(shape), memory_format))


def memory_axes(rank: int, memory_format: str) -> tuple[int, ...]:
    """The logical axes of an array, outermost first."""
    return _OUTERMOST_FIRST if memory_format == CHANNELS_LAST else tuple(range(rank))


def to_memory_order(array: np.ndarray, memory_format: str) -> np.ndarray:
    """A view of an array in logical order; C-contiguous if it is dense in this format.

    As in PyTorch, the steps along axes of one element do not matter to that.
    """
    return array.transpose(_OUTERMOST_FIRST) if memory_format == CHANNELS_LAST else array


def logical_axes(rank: int, memory_format: str) -> tuple[int, ...]:
    """The axes of an array in memory order, as its user knows them."""
    return _BACK if memory_format == CHANNELS_LAST else tuple(range(rank))


def to_logical_order(array: np.ndarray, memory_format: str) -> np.ndarray:
    """A view of an array in memory order, as its user knows it."""
    return array.transpose(_BACK) if memory_format == CHANNELS_LAST else array
