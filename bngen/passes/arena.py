"""The arena: one block of memory, parts of which are given away for a time.

In: sizes and the first and last kernel that needs them. Out: offsets. Nothing here knows of values.
"""

from __future__ import annotations

import numpy as np


class Arena:
    """Parts of the arena that have been given away, by first byte, and the time for which."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._rows = np.empty((4, 0), np.int64)  # first byte, end, first kernel, last kernel

    def add(self, nbytes: int, begin: int, end: int) -> int:
        """Give away the lowest bytes that are free from kernel ``begin`` to kernel ``end``.

        Returns:
            The first of them.
        """
        starts, stops, first, last = self._rows
        alive = (first <= end) & (begin <= last)
        low = starts[alive]
        # What is free below each part, if all parts before it are to stay where they are.
        free_from = np.maximum.accumulate(np.append(0, stops[alive]))
        fitting = np.flatnonzero(low >= free_from[:-1] + nbytes)
        at = int(free_from[fitting[0] if len(fitting) else -1])
        where = np.searchsorted(starts, at)
        self._rows = np.insert(self._rows, where, (at, at + nbytes, begin, end), axis=1)
        self.nbytes = max(self.nbytes, at + nbytes)
        return at
