"""Tensors that 32-bit loops cannot count are refused before anything is compiled."""

import threading

import numpy as np
import pytest

import bngen as bg
from bngen.codegen.compile import MOST_ELEMENTS
from bngen.runtime.memory import Arena, empty_aligned
from tests.oracle import assert_few_ulps

HALF = 2**30
TOO_LARGE = {
    "elementwise": (lambda x: x + 1.0, bg.Tensor[2, HALF]),
    "in 64 bits": (lambda x: x + 1.0, bg.Tensor[2**31, 2**29]),
    "bytes": (lambda x: x + x, bg.Tensor[2, HALF, bg.uint8]),
    "reduction": (lambda x: x.sum(), bg.Tensor[2, HALF]),
    "never stored": (lambda x, y: (x * y).sum(), bg.Tensor[2**16, 1], bg.Tensor[1, 2**15]),
    "outer product": (bg.matmul, bg.Tensor[2**16, 2], bg.Tensor[2, 2**15]),
    "concatenation": (lambda x: bg.cat([x, x]) + 1.0, bg.Tensor[HALF]),
    "slice": (lambda x: x[1] * 2.0, bg.Tensor[2, HALF]),
    "convolution": (bg.conv2d, bg.Tensor[2, 1, 2**12, 2**12], bg.Tensor[128, 1, 1, 1]),
    "only with its padding": (bg.conv2d, bg.Tensor[3, 1, 2**12, 2**12], bg.Tensor[41, 1, 1, 1]),
    "parameter": (lambda x: x + bg.parameter("w", (2**20, 2**12)).sum(), bg.Tensor[3]),
    "class numbers": (bg.cross_entropy, bg.Tensor[2**16, 2**15], bg.Tensor[2**16, bg.int64]),
}


@pytest.mark.parametrize("kind", TOO_LARGE)
@pytest.mark.parametrize("fusion", ["none", "icf"])
def test_a_tensor_too_large_is_refused_at_the_users_line(kind, fusion):
    op, *types = TOO_LARGE[kind]
    program = bg.trace(lambda *xs: op(*xs), *types)
    with pytest.raises(bg.ProgramError, match=f"kernels count to {MOST_ELEMENTS}") as caught:
        bg.bundle(program, target="llvm -mcpu=x86-64-v4", fusion=fusion)
    assert caught.value.loc is not None and caught.value.loc.file == __file__


def test_padding_decides_where_a_vector_is_wider():
    """41 channels are 44 in blocks of 4, 48 in blocks of 16."""
    pixels = 2**12 * 2**12 - 2**8
    assert 41 * 3 * pixels < MOST_ELEMENTS < 48 * 3 * pixels


def test_a_type_larger_than_any_memory():
    for shape in ((2**70,), (2**40, 2**40), (2**61,)):
        with pytest.raises(bg.ProgramError, match="is too large: it takes 2"):
            _ = bg.Tensor[shape]


def test_memory_that_nobody_has():
    for allocate in (
        lambda: empty_aligned((2**50,), "float64"),
        lambda: empty_aligned((2**62,), "float64"),
        lambda: Arena(2**62),
        lambda: Arena(2**70),
    ):
        with pytest.raises(bg.BngenError, match="cannot allocate .*use a smaller batch"):
            allocate()
    program = bg.trace(lambda x: (bg.parameter("w", 2**58), x + 1.0)[1], bg.Tensor[3])
    with pytest.raises(bg.BngenError, match="cannot allocate"):
        bg.build(program)


def test_just_below_is_planned():
    """Not run: it would need 4 GiB."""
    x = bg.Tensor[MOST_ELEMENTS, bg.uint8]
    module = bg.build(bg.trace(lambda x: x.to(bg.bool_), x))
    assert module.manifest()["signature"]["outputs"][0]["shape"] == [MOST_ELEMENTS]
    with pytest.raises(bg.CallError, match="has shape"):
        module(np.zeros(3, np.uint8))


# --- the compiler's own threads -----------------------------------------------------------------


def test_where_no_thread_starts_the_caller_compiles(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        module = bg.build(bg.trace(lambda x: bg.relu(x) + x.sum(), bg.Tensor[64]))
    assert (module(np.ones(64, np.float32)) == 65).all()


def test_compiling_does_not_depend_on_the_threads_stack_of_the_process():
    before = threading.stack_size(32 << 10)
    try:
        module = bg.build(bg.trace(lambda x: bg.softmax(x, 1), bg.Tensor[64, 8]))
        assert threading.stack_size() == 32 << 10
    finally:
        threading.stack_size(before)
    assert_few_ulps(module(np.ones((64, 8), np.float32)), np.full((64, 8), 0.125, np.float32))
