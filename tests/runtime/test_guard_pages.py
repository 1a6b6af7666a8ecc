"""Kernels touch their operands and nothing else: drawn programs between inaccessible pages.

First that the harness finds what is wrong, each kind of it; then the programs.
"""

from __future__ import annotations

import ctypes
import secrets
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

import bngen as bg
from bngen.runtime import native
from bngen.runtime.dispatch import run_in_python
from bngen.runtime.native import Entry
from tests import guard_pages
from tests.guard_pages import NANS, Block, watching
from tests.guarded import RUNS, guarded
from tests.profiles import some

pytestmark = pytest.mark.skipif(
    not guard_pages.SUPPORTED, reason="faults are read as Linux reports them on x86-64"
)
ROOT = Path(__file__).parents[2]
EXAMPLES = max(1, settings.default.max_examples // 8)
LEVELS = some(("icf", "none", "rcf", "mvf", "bnff"), 1)
"""All of them take minutes; the least and the most have every kind of kernel."""


# --- the harness ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at_end", "offset", "words"),
    [(True, 12, "0 past its end"), (True, 5012, "5000 past its end"),
     (False, -1, "1 before its start"), (False, -4097, "4097 before its start")],
)  # fmt: skip
@pytest.mark.parametrize("writes", [False, True])
def test_a_fault_is_noted_and_survived(at_end, offset, words, writes):
    block = Block("it", 12, NANS, at_end=at_end)
    other = (ctypes.c_uint8 * 1)(7)
    ends = [ctypes.addressof(other), block.address + offset]
    with watching() as faults:
        ctypes.memmove(*(reversed(ends) if writes else ends), 1)
    assert [str(f) for f in faults] == [f"{'writes' if writes else 'reads'} it at byte {words}"]
    assert writes or other[0] == 0xFF
    block.close()


@pytest.mark.parametrize(("at_end", "shift"), [(True, 0), (False, 0), (False, 1)])
def test_blocks_lie_where_they_should(at_end, shift):
    alignment = 1 if shift else 16
    block = Block("it", 5000, NANS, at_end=at_end, alignment=alignment, shift=shift)
    assert block.address % 16 == shift
    assert block.data.size == 5000 and (block.data == 0xFF).all()
    assert not block.overflowed()
    block.data[:] = 0
    assert not block.overflowed()
    end = (ctypes.c_uint8 * 1).from_address(block.address + 5000)
    slack = -(block.address + 5000) % guard_pages.PAGE
    assert slack < 16 if at_end else slack > 16
    if slack:
        end[0] = 1
        assert block.overflowed() == ["writes it at byte 0 past its end"]
    block.close()


def copied(x, y):
    y[:] = x


def past_the_end(x, y):
    y[:] = x
    y[0] = beyond(x, x.size)


def before_the_start(x, y):
    y[:] = x
    y[0] = beyond(x, -1)


def over_the_input(x, y):
    y[:] = x
    x[3] = 5


def not_all(x, y):
    y[1:] = x[1:]


def what_was_there(x, y):
    y[:] = x + y


def beyond(x, i):
    return ctypes.c_float.from_address(x.ctypes.data + 4 * i).value


@pytest.mark.parametrize(
    ("kernel", "words"),
    [(copied, None), (past_the_end, "reads input .* 0 past its end"),
     (before_the_start, "reads input .* before its start"), (over_the_input, "only reads"),
     (not_all, "1 of 25 elements depend"), (what_was_there, "25 of 25 elements depend")],
)  # fmt: skip
def test_what_a_kernel_does_wrong_is_found(kernel, words, monkeypatch):
    graph = bg.trace(lambda x: bg.relu(x), bg.Tensor[5, 5]).graph
    module, executor = guarded(graph, "none", "llvm -mcpu=native")
    monkeypatch.setattr("bngen.runtime.dispatch._dispatch", lambda: run_in_python)
    entry = python_entry(kernel, 25)
    executor._entries = dict.fromkeys(executor._entries, entry)
    for executor.layout in RUNS:
        module(np.ones((5, 5), np.float32))
    if words is None:
        assert not executor.findings
    else:
        pytest.raises(AssertionError, lambda: fail(executor.findings)).match(words)


def fail(findings):
    assert not findings, "\n".join(findings)


def python_entry(kernel, size):
    """A kernel of two operands, written in Python."""

    @ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p
    )
    def call(handle, arguments, count, result):
        cells = (ctypes.c_uint64 * (2 * count)).from_address(arguments)
        places = [ctypes.c_uint64.from_address(tensor).value for tensor in cells[1::2]]
        kernel(*(np.frombuffer((ctypes.c_float * size).from_address(p), np.float32)
                 for p in places))  # fmt: skip
        return 0

    return Entry(native.address(call), 0, call)


# --- drawn programs ---------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_kernels_touch_their_operands_only(level):
    """In a process of its own, which may die: its last words are what it was about to do."""
    number = 0 if settings.default.derandomize else secrets.randbelow(2**32)
    options = ["--examples", str(EXAMPLES), "--seed", str(number)]
    command = [sys.executable, "-m", "tests.guarded_programs", level, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode < 0:
        words = done.stdout.splitlines()[-1:]
        pytest.fail(f"{command} died of signal {-done.returncode} in {words}\n{done.stderr}")
    assert done.returncode == 0, f"{command}\n{done.stderr}"
