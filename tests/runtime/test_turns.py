"""Several threads, calls within calls, forks: a right result or a `CallError`, nothing else."""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import bngen as bg
from bngen.errors import CallError
from tests.oracle import assert_few_ulps

N = 4


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.fixture(scope="module")
def squares():
    """x -> sum(w * x * x), with its gradient 2 * w * x."""

    def f(x):
        w = bg.parameter("w", (N, 3, 8, 8))
        return (x * x * w).sum()

    ones = np.ones((N, 3, 8, 8), np.float32)
    return bg.build(bg.trace(f, bg.Tensor[N, 3, 8, 8]), grad=True).load_state_dict({"w": ones})


@pytest.fixture(scope="module")
def counter():
    """A state that every call moves on by one, in two places that must stay equal."""

    def f(x):
        a, b = bg.buffer("a", (64, 8)), bg.buffer("b", (64, 8))
        bg.update(a, a + 1.0)
        bg.update(b, b + 1.0)
        return (a - b).sum() + x.sum()

    return bg.build(bg.trace(f, bg.Tensor[2])).init(0)


def in_threads(work, count=4):
    """Each result of ``work(thread number)``."""
    start = threading.Barrier(count)

    def run(i):
        start.wait(timeout=20)
        return work(i)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


# --- threads ----------------------------------------------------------------------------------


def test_a_module_called_from_four_threads(squares):
    inputs = [normal(N, 3, 8, 8, seed=i) for i in range(4)]
    expected = [squares(x) for x in inputs]
    assert len({float(e) for e in expected}) == 4

    def work(i):
        return [float(squares(inputs[i])) for _ in range(200)]

    for results, right in zip(in_threads(work), expected, strict=True):
        assert set(results) == {float(right)}


def test_a_backward_whose_forward_was_overtaken(squares):
    """Each thread's last call is its own, and waits in memory of its own."""
    inputs = [normal(N, 3, 8, 8, seed=i) for i in range(4)]

    def work(i):
        for _ in range(100):
            squares(inputs[i])
            np.testing.assert_array_equal(squares.backward()["x"], 2 * inputs[i])

    in_threads(work)
    x, other = inputs[:2]
    squares(x)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: squares.last_call).result() is None
        with pytest.raises(CallError, match="needs a forward call first, in the same thread"):
            pool.submit(squares.backward).result()
        pool.submit(squares, other).result()
        np.testing.assert_array_equal(squares.backward()["x"], 2 * x)
        np.testing.assert_array_equal(pool.submit(squares.backward).result()["x"], 2 * other)
    squares(x)
    np.testing.assert_array_equal(squares.backward()["x"], 2 * x)


@pytest.fixture(scope="module")
def drawn():
    """A network whose results depend on no state that a call changes."""

    def net(x):
        y = bg.relu(bg.layers.batch_norm(bg.layers.conv2d(x, "conv", 8, 3, padding=1), "norm"))
        y = bg.sigmoid(bg.layers.conv2d(y, "last", 4, 1))
        return y, y.mean((2, 3))

    return bg.build(bg.trace(net, bg.Tensor[N, 3, 8, 8]), grad=True).init(0)


def test_calls_of_several_threads_that_wait_together(drawn):
    """Several calls of each thread, their backwards in any order, other threads' calls, too."""
    images = [normal(N, 3, 8, 8, seed=i) for i in range(6)]
    seeds = normal(N, 4, 8, 8, seed=7), normal(N, 4, seed=8)

    def alone(x):
        result = drawn(x)
        return [*result, *drawn.backward(*seeds).values()]

    expected = [[a.tobytes() for a in alone(x)] for x in images]
    handed: list[tuple[int, Any, Any]] = []

    def work(i):
        rng = random.Random(i)
        for turn in range(25):
            chosen = [rng.randrange(6) for _ in range(1 + i % 3)]
            waiting = [(c, *drawn.record(images[c])) for c in chosen]
            if turn % 5 == 0:
                handed.append(waiting.pop())
            if turn % 5 == 2 and handed:
                waiting.append(handed.pop())
            if turn % 7 == 3:
                drawn.record(images[0])[1].release()
                cycle = [drawn.record(images[0])[1]]
                cycle.append(cycle)
                del cycle
                gc.collect()
            rng.shuffle(waiting)
            for c, result, call in waiting:
                found = [*result, *drawn.backward(*seeds, call=call).values()]
                assert [a.tobytes() for a in found] == expected[c]

    in_threads(work)
    for c, result, call in handed:
        found = [*result, *drawn.backward(*seeds, call=call).values()]
        assert [a.tobytes() for a in found] == expected[c]


def test_one_call_that_two_threads_want(squares):
    """One of them gets the gradient, the other an error; a release beside it spoils nothing."""
    x = normal(N, 3, 8, 8)
    for act in (lambda call: squares.backward(call=call), lambda call: call.release()):
        for _ in range(30):
            call = squares.record(x)[1]

            def take(i, call=call, act=act):
                try:
                    return act(call) if i else squares.backward(call=call)
                except CallError as error:
                    assert "this call" in str(error)

            found = [f for f in in_threads(take, 2) if f is not None]
            assert len(found) <= 1
            for gradients in found:
                np.testing.assert_array_equal(gradients["x"], 2 * x)
            assert not call.pending


def test_a_state_is_read_and_written_between_calls_only(counter):
    x = np.zeros(2, np.float32)
    counter.init(0)
    stop = threading.Event()

    def read():
        seen = []
        while not stop.is_set():
            state = counter.state_dict()
            assert (state["a"] == state["b"]).all() and (state["a"] == state["a"][0, 0]).all()
            seen.append(state["a"][0, 0])
        return seen

    with ThreadPoolExecutor(2) as pool:
        reader = pool.submit(read)
        try:
            for _ in range(300):
                assert counter(x) == 0
        finally:
            stop.set()
        seen = reader.result()
    assert seen == sorted(seen) and counter.state_dict()["a"][0, 0] == 300

    def work(i):
        for _ in range(50):
            if i == 0:
                counter.load_state_dict(counter.state_dict())
            elif i == 1:
                counter.init(0)
            else:
                assert counter(x) == 0

    in_threads(work)


def test_different_modules_at_once():
    def program(i):
        return bg.trace(lambda x: bg.relu(x * float(i + 1)).sum((2, 3)), bg.Tensor[N, 8, 9, 9])

    modules = [bg.build(program(i), threads=i + 1) for i in range(4)]
    x = normal(N, 8, 9, 9)
    expected = [m(x) for m in modules]

    def work(i):
        return all((modules[i](x) == expected[i]).all() for _ in range(50))

    assert all(in_threads(work))


def test_modules_built_at_once():
    stack = threading.stack_size()

    def work(i):
        program = bg.trace(lambda x: bg.sigmoid(x * float(i)).sum(0), bg.Tensor[N, 8])
        return bg.build(program)(np.ones((N, 8), np.float32))[0]

    expected = [N / (1 + np.exp(-i)) for i in range(4)]
    assert_few_ulps(in_threads(work), np.float32(expected))
    assert threading.stack_size() == stack


# --- calls within calls -----------------------------------------------------------------------


class Calling:
    """An argument that does something while it is looked at, as a signal handler would."""

    def __init__(self, act):
        self.act, self.seen = act, []

    dtype = np.dtype("float32")

    def __array__(self, dtype=None, copy=None):
        try:
            self.act()
        except CallError as error:
            self.seen.append(str(error))
        return np.ones((N, 3, 8, 8), np.float32)


@pytest.mark.parametrize(
    "method",
    [
        lambda m: m(np.ones((N, 3, 8, 8), np.float32)), lambda m: m.backward(),
        lambda m: m.state_dict(), lambda m: m.init(1), lambda m: m.load_state_dict(W),
        lambda m: m.record(np.ones((N, 3, 8, 8), np.float32)),
    ],
)  # fmt: skip
def test_a_call_within_a_call_is_refused(squares, method):
    squares.load_state_dict(W)
    argument = Calling(lambda: method(squares))
    assert squares(argument) == N * 3 * 8 * 8
    (told,) = argument.seen
    assert "was called from within another call of the same module" in told
    assert squares(np.ones((N, 3, 8, 8), np.float32)) == N * 3 * 8 * 8


W = {"w": np.ones((N, 3, 8, 8), np.float32)}


def test_signal_handlers_may_call_a_module_or_are_refused(squares):
    x = normal(N, 3, 8, 8)
    right, seen = float(squares(x)), []

    def handler(signum, frame):
        try:
            seen.append(float(squares(x)))
        except CallError:
            seen.append(None)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 2e-4, 2e-4)
        results = [float(squares(x)) for _ in range(500)]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert set(results) == {right}
    assert seen and set(seen) <= {right, None}


def test_an_exception_in_a_call_leaves_the_module_free(squares):
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        squares(Calling(fail))
    assert in_threads(lambda i: float(squares(np.ones((N, 3, 8, 8), np.float32))), 2)


# --- forks ------------------------------------------------------------------------------------


def child(work):
    """The exit status of ``work()`` in a forked child; a hang ends with a signal."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(20)
            status = 0 if work() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
def test_a_child_forked_while_another_thread_is_at_work(squares, counter):
    inside, go_on = threading.Event(), threading.Event()

    def wait():
        inside.set()
        assert go_on.wait(timeout=20)

    x = np.ones((N, 3, 8, 8), np.float32)

    def in_child():
        told = []
        for use in (lambda: squares(x), squares.state_dict, squares.backward):
            try:
                use()
            except CallError as error:
                told.append(str(error))
        half = ["forked in the middle of a call" in text for text in told[:2]]
        squares.load_state_dict(W)
        return half == [True] * 2 and len(told) == 3 and squares(x) == N * 3 * 8 * 8

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(squares, Calling(wait))
        try:
            assert inside.wait(timeout=20)
            assert child(in_child) == 0
            assert child(lambda: counter.init(0)(np.zeros(2, np.float32)) == 0) == 0
        finally:
            go_on.set()
        assert future.result() == N * 3 * 8 * 8


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
def test_a_child_forked_between_calls_goes_on_with_the_call(squares):
    x = normal(N, 3, 8, 8)
    squares(x)
    assert child(lambda: (squares.backward()["x"] == 2 * x).all() and squares(x) == squares(x)) == 0
    np.testing.assert_array_equal(squares.backward()["x"], 2 * x)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
def test_a_child_has_all_calls_that_waited(squares):
    """Another thread's, too, if somebody holds it; its frames are the child's own."""
    inputs = [normal(N, 3, 8, 8, seed=i) for i in range(3)]
    calls = [squares.record(x)[1] for x in inputs]
    with ThreadPoolExecutor(1) as pool:
        x = normal(N, 3, 8, 8, seed=5)
        other = pool.submit(lambda: squares.record(x)[1]).result()
        pool.submit(squares, x).result()  # nobody holds this one but a thread that the child lacks

        def in_child():
            found = [squares.backward(call=call)["x"] for call in (*calls, other)]
            gc.collect()
            squares(x)
            found.append(squares.backward()["x"])
            return all((g == 2 * a).all() for g, a in zip(found, [*inputs, x, x], strict=True))

        assert child(in_child) == 0
        for call, a in zip((*calls, other), [*inputs, x], strict=True):
            np.testing.assert_array_equal(squares.backward(call=call)["x"], 2 * a)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
def test_a_child_forked_from_within_a_call_ends_that_call(squares):
    squares.load_state_dict(W)
    codes = []

    def fork():
        codes.append(os.fork())

    result = squares(Calling(fork))
    (pid,) = codes
    if pid == 0:
        os._exit(0 if result == N * 3 * 8 * 8 and squares(np.ones_like(W["w"])) == result else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert result == N * 3 * 8 * 8
