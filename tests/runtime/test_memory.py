"""Aligned arrays and the arena."""

import gc

import numpy as np
import pytest

from bngen.errors import BngenError
from bngen.runtime.memory import ALIGNMENT, Arena, empty_aligned


@pytest.mark.parametrize("align", [16, 64, 4096])
@pytest.mark.parametrize("dtype", ["float32", "uint8", "bool"])
def test_fresh_arrays_are_aligned_and_their_own(dtype, align):
    arrays = [empty_aligned((3, 5), dtype, align) for _ in range(5)]
    assert all(a.ctypes.data % align == 0 for a in arrays)
    assert all(a.shape == (3, 5) and a.dtype == dtype and a.flags.c_contiguous for a in arrays)
    assert all(a.flags.writeable for a in arrays)
    assert not any(np.shares_memory(a, b) for a in arrays for b in arrays if a is not b)


def test_scalars_have_room_too():
    assert empty_aligned((), "int64").shape == ()


@pytest.mark.parametrize("huge_pages", [False, True])
def test_views_of_an_arena(huge_pages):
    arena = Arena(5 << 20, huge_pages=huge_pages)
    assert arena.nbytes == 5 << 20
    first = arena.view(0, (16, 4), "float32")
    second = arena.view(256, (8,), "int64")
    assert first.ctypes.data % (2 << 20 if huge_pages else ALIGNMENT) == 0
    assert second.ctypes.data == first.ctypes.data + 256
    assert not first.any() and not second.any()
    first[...] = 1
    assert not second.any()
    assert np.shares_memory(arena.view(64, (4,), "float32"), first)
    last = arena.view((5 << 20) - 64, (16,), "float32")
    last[-1] = 3


def test_views_outlive_the_arena():
    arena = Arena(1 << 20)
    view = arena.view(0, (1 << 18,), "float32")
    del arena
    gc.collect()
    view[...] = 2
    assert view.sum() == 2 * (1 << 18)


@pytest.mark.parametrize(
    "offset, shape", [(-64, (4,)), (1024, (1,)), (960, (17,)), (4, (1,)), (0, (257,))]
)
def test_views_that_do_not_fit_are_refused(offset, shape):
    with pytest.raises(ValueError, match="arena|multiple"):
        Arena(1024).view(offset, shape, "float32")


def test_an_empty_arena():
    assert Arena(0).view(0, (0,), "float32").size == 0


@pytest.mark.parametrize("nbytes", [1 << 60, 1 << 70])
def test_too_much_memory_is_one_line(nbytes):
    with pytest.raises(BngenError, match="cannot allocate .* GiB: .*smaller batch"):
        Arena(nbytes)
