"""Aligned memory: fresh arrays for results, and the arena that kernels exchange values in.

In: sizes. Out: NumPy arrays on aligned addresses. Where each value lies in the arena is decided
elsewhere; this module only hands out views.
"""

from __future__ import annotations

import math
import mmap

import numpy as np

from bngen.arrays import numpy_dtype
from bngen.errors import BngenError

#: What TVM assumes of a buffer unless its declaration says less: one cache line, one zmm register.
ALIGNMENT = 64
#: The narrowest vector: a channel block of a narrower target starts on such a boundary.
MINIMUM_ALIGNMENT = 16
HUGE_PAGE = 2 << 20


def empty_aligned(shape: tuple[int, ...], dtype: str, align: int = ALIGNMENT) -> np.ndarray:
    """A fresh uninitialized array whose first element lies on a multiple of `align` bytes.

    Raises:
        BngenError: if the system does not give that much memory.
    """
    kind = numpy_dtype(dtype)
    nbytes = math.prod(shape) * kind.itemsize
    try:
        raw = np.empty(nbytes + align, np.uint8)
    except (MemoryError, OverflowError, ValueError) as error:
        raise _too_much(nbytes, error) from None
    return np.ndarray(shape, kind, raw, -raw.ctypes.data % align)


class Arena:
    """One allocation that lives as long as it or a view of it does; zero when new.

    Attributes:
        nbytes: usable size.
        address: of its first byte.
    """

    def __init__(self, nbytes: int, *, huge_pages: bool = True):
        """Allocates; the memory becomes resident when it is first written to.

        Args:
            nbytes: bytes wanted.
            huge_pages: ask for 2 MB pages where the system has them: sweeping feature maps through
                4 kB pages misses the TLB, and a fresh arena faults once for each page.

        Raises:
            BngenError: if the system does not give that much memory.
        """
        self.nbytes = nbytes
        huge = huge_pages and nbytes >= HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE")
        boundary = HUGE_PAGE if huge else ALIGNMENT
        try:
            # Private: shared anonymous memory is a file to the kernel and rarely gets huge pages.
            area = mmap.mmap(
                -1, max(nbytes, 1) + boundary, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            )
        except (OSError, OverflowError, ValueError) as error:
            raise _too_much(nbytes, error) from None
        if huge:
            _advise_huge_pages(area)
        whole = np.frombuffer(area, np.uint8)
        start = -whole.ctypes.data % boundary
        self.address = whole.ctypes.data + start
        self._bytes = whole[start : start + nbytes]

    def copy_from(self, other: Arena) -> None:
        """Take over the bytes of another of the same size."""
        np.copyto(self._bytes, other._bytes)

    def view(self, offset: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """The array of that shape and type at `offset` bytes; it keeps the arena alive.

        Raises:
            ValueError: if it would lie outside the arena, or off its alignment.
        """
        kind = numpy_dtype(dtype)
        end = offset + math.prod(shape) * kind.itemsize
        if not 0 <= offset <= end <= self.nbytes:
            raise ValueError(f"bytes {offset} to {end} are not in an arena of {self.nbytes}")
        if offset % MINIMUM_ALIGNMENT:
            raise ValueError(f"offset {offset} is no multiple of {MINIMUM_ALIGNMENT}")
        return self._bytes[offset:end].view(kind).reshape(shape)


def _too_much(nbytes: int, error: Exception) -> BngenError:
    what = f"cannot allocate {nbytes / 2**30:.2f} GiB: {error}"
    return BngenError(what, hint="use a smaller batch")


def _advise_huge_pages(area: mmap.mmap) -> None:
    try:
        area.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        pass  # A kernel built without them; the arena works all the same.
