"""The table of calls: what kernels are handed, in what order, and what happens when one fails."""

import ctypes
import threading

import numpy as np
import pytest

from bngen.errors import BngenError
from bngen.runtime import dispatch as dispatching
from bngen.runtime import native
from bngen.runtime.buffers import buffer
from bngen.runtime.dispatch import CallTable
from bngen.runtime.executor import Executor, Memory
from bngen.runtime.memory import Arena
from bngen.runtime.native import Entry
from bngen.runtime.steps import CopyStep, KernelStep, Operand

KERNEL = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p
)


class DLTensor(ctypes.Structure):
    """dlpack.h, written out a second time."""

    _fields_ = (
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64),
    )  # fmt: skip


class Argument(ctypes.Structure):
    """TVMFFIAny of c_api.h."""

    _fields_ = (
        ("type", ctypes.c_int32), ("padding", ctypes.c_int32), ("tensor", ctypes.POINTER(DLTensor)),
    )  # fmt: skip


class Recorder:
    """Kernels that note what they are called with."""

    def __init__(self, failing=()):
        self.seen, self.failing, self.kept = [], failing, []

    def entry(self, number):
        def kernel(handle, arguments, count, result):
            given = ctypes.cast(arguments, ctypes.POINTER(Argument))
            tensors = [described(given[i]) for i in range(count)]
            self.seen.append((number, handle, tensors))
            if number in self.failing:
                native.ffi().TVMFFIErrorSetRaisedFromCStr(b"ValueError", b"no luck")
                return -1
            return 0

        self.kept.append(KERNEL(kernel))
        return Entry(native.address(self.kept[-1]), 100 + number, self.kept[-1])


def described(argument):
    if argument.type == 1:  # kTVMFFIInt
        return ctypes.cast(argument.tensor, ctypes.c_void_p).value or 0
    assert argument.type == 7  # kTVMFFIDLTensorPtr
    t = argument.tensor.contents
    assert (t.device_type, t.device_id, t.lanes, t.byte_offset) == (1, 0, 1, 0)
    shape, strides = ([p[i] for i in range(t.ndim)] for p in (t.shape, t.strides))
    return t.data or 0, t.code, t.bits, shape, strides


@pytest.fixture(params=["in C", "in Python"], autouse=True)
def dispatch(request, monkeypatch):
    if request.param == "in Python":
        monkeypatch.setattr(dispatching, "_dispatch", lambda: dispatching.run_in_python)


IMAGE = Operand("in:x", 64, (2, 3, 4), "float32")
LABELS = Operand("in:labels", 0, (5,), "int64")
WEIGHT = Operand("in:w", 16, (3, 2), "float64")
SCALAR = Operand("out:0", 0, (), "bool")
EMPTY = Operand("out:1", 0, (0, 2), "uint8")


HELD = np.zeros(8, np.float64)
NOTHING = Memory(Arena(0), {})


def table(recorder, given, numbers=()):
    return CallTable(
        [(recorder.entry(i), operands, numbers) for i, operands in enumerate(given)],
        {"in:w": buffer(HELD)},
    )


def run(some, slots, start, stop):
    some.bind(NOTHING.arena, {slot: buffer(array) for slot, array in slots.items()})
    return some.run(start, stop)


def test_kernels_see_the_tensors_they_were_promised():
    recorder = Recorder()
    slots = {
        "in:x": np.zeros(200, np.float32), "in:labels": np.zeros(5, np.int64),
        "out:0": np.zeros((), bool), "out:1": np.zeros((0, 2), np.uint8),
    }  # fmt: skip
    given = [(IMAGE, LABELS, WEIGHT), (), (WEIGHT, SCALAR, EMPTY, IMAGE)]
    assert run(table(recorder, given), slots, 0, 3) == -1

    def at(slot, offset=0):
        return slots[slot].ctypes.data + offset

    image = (at("in:x", 64), 2, 32, [2, 3, 4], [12, 4, 1])
    labels = (at("in:labels"), 0, 64, [5], [1])
    weight = (HELD.ctypes.data + 16, 2, 64, [3, 2], [2, 1])
    scalar, empty = (at("out:0"), 6, 8, [], []), (at("out:1"), 1, 8, [0, 2], [2, 1])
    assert recorder.seen == [
        (0, 100, [image, labels, weight]), (1, 101, []), (2, 102, [weight, scalar, empty, image]),
    ]  # fmt: skip


def test_numbers_follow_on_the_tensors():
    recorder = Recorder()
    run(table(recorder, [(WEIGHT,), ()], numbers=(3, 0, 2**40)), {}, 0, 2)
    assert [seen[2][-3:] for seen in recorder.seen] == [[3, 0, 2**40]] * 2


def test_a_run_takes_the_buffers_it_is_given_and_forgets_those_before():
    recorder = Recorder()
    calls_of_x = table(recorder, [(LABELS,)])
    for labels in (np.arange(5), np.arange(5)):
        run(calls_of_x, {"in:labels": labels}, 0, 1)
        assert recorder.seen[-1][2][0][0] == labels.ctypes.data
    run(calls_of_x, {}, 0, 1)
    assert recorder.seen[-1][2][0][0] == 0  # what kernels refuse, and no stale address


def test_only_the_calls_of_the_range_are_made():
    recorder = Recorder()
    some = table(recorder, [(WEIGHT,)] * 5)
    run(some, {}, 1, 3)
    run(some, {}, 2, 2)
    assert [number for number, *_ in recorder.seen] == [1, 2]


def test_a_failure_ends_the_run_and_is_told():
    recorder = Recorder(failing={1})
    steps = [KernelStep(f"k{i}", f"s{i}", ()) for i in range(3)]
    executor = Executor(steps, {f"s{i}": recorder.entry(i) for i in range(3)}, {})
    with pytest.raises(BngenError, match=r"^kernel k1 failed: no luck$"):
        executor.run(NOTHING)
    assert [number for number, *_ in recorder.seen] == [0, 1]
    recorder.failing = ()
    executor.run(NOTHING)  # it stays usable
    assert native.raised() == "no message"


def test_without_work_no_kernel_is_called():
    recorder = Recorder()
    some = table(recorder, [(WEIGHT,)] * 5)
    some.without_work()
    assert run(some, {}, 0, 5) == -1
    assert not recorder.seen


def test_no_calls_at_all():
    assert run(table(Recorder(), []), {}, 0, 0) == -1


def test_what_never_moves_is_bound_once_and_the_arena_with_each_call():
    recorder = Recorder()
    operands = (WEIGHT, Operand(None, 128, (4,), "float32"))
    executor = Executor([KernelStep("k", "s", operands)], {"s": recorder.entry(0)}, {"in:w": HELD})
    first, second = (Memory(Arena(256), {}) for _ in range(2))
    for memory in (first, second, second, first):
        executor.run(memory)
        _, _, (fixed, scratch) = recorder.seen[-1]
        assert fixed[0] == HELD.ctypes.data + 16
        assert scratch[0] == memory.array(operands[1]).ctypes.data == memory.arena.address + 128


def test_steps_that_are_no_kernels_run_in_their_turn():
    recorder = Recorder()
    x, z = (Operand(slot, 8, (2, 3), "float32") for slot in ("in:x", "out:0"))
    y = Operand(None, 16, (2, 3), "float32")
    steps = [
        CopyStep("first", x, y),
        KernelStep("k0", "s0", ()),
        KernelStep("k1", "s1", ()),
        CopyStep("second", y, z),
        KernelStep("k2", "s2", ()),
        CopyStep("third", z, x),
    ]
    entries = {f"s{i}": recorder.entry(i) for i in range(3)}
    executor = Executor(steps, entries, {})
    given = np.arange(8, dtype=np.float32)
    found = np.zeros(8, np.float32)
    memory = Memory(Arena(64), {"in:x": buffer(given), "out:0": buffer(found)})
    executor.run(memory)
    assert [number for number, *_ in recorder.seen] == [0, 1, 2]
    np.testing.assert_array_equal(found, [0, 0, *range(2, 8)])
    executor.run(memory, 2, 5)  # a part: a kernel, a copy, a kernel
    assert [number for number, *_ in recorder.seen] == [0, 1, 2, 1, 2]
    given[2:] = 0
    executor.run(memory, 5, 6)
    np.testing.assert_array_equal(given, [0, 1, *range(2, 8)])


def test_a_thread_with_little_stack_makes_no_call(request):
    if "in Python" in request.node.name:
        pytest.skip("without a C compiler nobody looks")
    recorder = Recorder()
    executor = Executor([KernelStep("k", "s", ())], {"s": recorder.entry(0)}, {})
    told = []

    def run():
        try:
            executor.run(NOTHING)
        except BngenError as error:
            told.append(str(error))

    for size in (128 << 10, 4 << 20):
        before = threading.stack_size(size)
        try:
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
        finally:
            threading.stack_size(before)
    assert told == [
        "kernels need 512 KiB of stack, and this thread has less (raise ulimit -s, or "
        "threading.stack_size before it is started)"
    ]
    assert len(recorder.seen) == 1
