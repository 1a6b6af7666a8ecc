"""The thread pool: who runs which task, how many threads, one OpenMP runtime, forks, fallbacks."""

import collections
import ctypes
import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from bngen.errors import BngenError, UsageError
from bngen.runtime import host, threads

# Tasks come from threads that Python does not know: CFUNCTYPE takes the GIL for each.
TASK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class GroupEnv(ctypes.Structure):
    _fields_ = (("sync_handle", ctypes.c_void_p), ("num_task", ctypes.c_int32))


@pytest.fixture(scope="module")
def pool():
    pytest.importorskip("tvm_ffi")
    assert threads.install().startswith("openmp ("), "the tests need a C compiler"
    return threads._installed()


@pytest.fixture
def library(pool):
    """The launch functions, called as kernels call them: without the GIL."""
    return ctypes.CDLL(pool._library._name, handle=pool._library._handle)


def launch(library, num_task=0, body=lambda task, env: 0):
    """Runs a parallel loop; returns its status and, per task, (tasks in all, thread)."""
    seen = {}

    def run(task, env, _):
        group = GroupEnv.from_address(env)
        assert task not in seen, "every task runs once"
        seen[task] = (group.num_task, threading.get_ident())
        return body(task, env)

    task = TASK(run)
    return library.TVMBackendParallelLaunch(task, None, num_task), seen


def shares(count):
    """Into how many tasks an open-ended loop is cut."""
    return 1 if count == 1 else count * (4 if count > 8 else 16)


def meeting(count):
    """A task's body that waits, once on each thread, until ``count`` threads have come."""
    barrier, known = threading.Barrier(count, timeout=20), set()

    def body(task, env):
        if threading.get_ident() not in known:
            known.add(threading.get_ident())
            barrier.wait()
        return 0

    return body


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_an_open_ended_loop_is_shared_by_all_threads(library, count):
    with threads.using(count):
        assert threads.num_threads() == count
        status, seen = launch(library, 0, meeting(count))
    assert status == 0
    assert sorted(seen) == list(range(shares(count)))
    assert {num_task for num_task, _ in seen.values()} == {shares(count)}
    by_thread = collections.Counter(thread for _, thread in seen.values())
    assert len(by_thread) == count and threading.get_ident() in by_thread


@pytest.mark.parametrize("slow", [0, shares(2) // 2])
def test_what_a_thread_kept_waiting_has_not_begun_is_done_by_others(library, slow):
    rest_is_done, done = threading.Event(), []

    def body(task, env):
        if task == slow:
            return 0 if rest_is_done.wait(timeout=20) else 1
        done.append(task)
        if len(done) == shares(2) - 1:
            rest_is_done.set()
        return 0

    with threads.using(2):
        status, seen = launch(library, 0, body)
    assert status == 0 and len(seen) == shares(2)


@pytest.mark.parametrize("num_task, count", [(7, 2), (2, 3), (5, 1)])
def test_a_fixed_number_of_tasks_is_shared_out(library, num_task, count):
    with threads.using(count):
        status, seen = launch(library, num_task)
    assert status == 0
    assert sorted(seen) == list(range(num_task))
    assert {n for n, _ in seen.values()} == {num_task}
    assert len({thread for _, thread in seen.values()}) <= min(num_task, count)


def test_the_same_thread_gets_the_same_tasks_every_time(library):
    with threads.using(2):
        runs = [launch(library, 5)[1] for _ in range(3)]
    for seen in runs:
        mine = {task for task, (_, thread) in seen.items() if thread == threading.get_ident()}
        assert mine == {0, 2, 4}


def test_nested_loops_run_where_they_are_met(library):
    inner = collections.defaultdict(list)

    def body(task, env):
        status, seen = launch(library, 3)
        inner[task] = [(n, thread == threading.get_ident()) for n, thread in seen.values()]
        return status

    with threads.using(2):
        status, seen = launch(library, 0, body)
    assert status == 0
    assert dict(inner) == {task: [(3, True)] * 3 for task in seen}


def test_several_python_threads_at_once(library):
    results = {}

    def caller(count):
        with threads.using(count):
            for _ in range(20):
                status, seen = launch(library)
                assert status == 0 and sorted(seen) == list(range(shares(count)))
        results[count] = threads.num_threads()

    default = threads.num_threads()
    callers = [threading.Thread(target=caller, args=(n,)) for n in (1, 2, 3)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(timeout=60)
    assert results == {1: default, 2: default, 3: default}


@pytest.mark.parametrize("here", [True, False])
def test_a_failing_task_fails_the_loop(library, here):
    ffi = threads._installed()._ffi
    error = ctypes.c_void_p()
    ffi.TVMFFIErrorMoveFromRaised(ctypes.byref(error))
    caller, meet = threading.get_ident(), meeting(2)

    def body(task, env):
        return meet(task, env) or int((threading.get_ident() == caller) == here)

    with threads.using(2):
        assert launch(library, 0, body)[0] == -1
    ffi.TVMFFIErrorMoveFromRaised(ctypes.byref(error))
    # A task on this very thread raises for itself; one elsewhere needs us to say so here.
    assert bool(error.value) != here
    if error.value:
        ffi.TVMFFIObjectDecRef(error)
    assert launch(library)[0] == 0, "the pool stays usable"


def test_barrier(library):
    order = []

    def body(task, env):
        order.append("before")
        status = library.TVMBackendParallelBarrier(task, ctypes.c_void_p(env))
        order.append("after")
        return status

    with threads.using(3):
        assert launch(library, 3, body)[0] == 0
        assert order == ["before"] * 3 + ["after"] * 3
        assert launch(library, 0, body)[0] == -1, "shares have no threads of their own"
    with threads.using(1):
        assert launch(library, 0, body)[0] == 0
        assert launch(library, 3, body)[0] == -1, "one thread cannot wait for itself"


def test_using_nests_and_survives_exceptions(pool):
    default = threads.num_threads()
    with threads.using(3):
        with threads.using(0):
            assert threads.num_threads() == default
        assert threads.num_threads() == 3
        with pytest.raises(ZeroDivisionError), threads.using(2):
            raise ZeroDivisionError
        assert threads.num_threads() == 3
    assert threads.num_threads() == default


def test_set_num_threads_changes_the_default_for_every_thread(pool):
    default = threads.num_threads()
    try:
        threads.set_num_threads(3)
        seen = []
        thread = threading.Thread(target=lambda: seen.append(threads.num_threads()))
        thread.start()
        thread.join()
        assert seen == [3] and threads.num_threads() == 3
    finally:
        threads.set_num_threads(default)


@pytest.mark.parametrize("count", [0, -1, 1.5, "2", None, True, 10**9])
def test_bad_counts_are_refused(count):
    with pytest.raises(BngenError, match="give a whole number, 1 to 4096"):
        threads.checked_count(count)


def test_default_number_of_threads(monkeypatch, caplog):
    monkeypatch.delenv("BNGEN_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads.default_threads() == host.cpu_count()
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert threads.default_threads() == 3
    for passed_over in ("nonsense", "1000000", "9" * 30, "-3", "0", "²", "1e3"):
        monkeypatch.setenv("OMP_NUM_THREADS", passed_over)
        with caplog.at_level("WARNING", logger="bngen.runtime.threads"):
            assert threads.default_threads() == host.cpu_count()
        assert f"OMP_NUM_THREADS={passed_over} is passed over" in caplog.text
        caplog.clear()
    monkeypatch.setenv("BNGEN_NUM_THREADS", "5")
    assert threads.default_threads() == 5
    for bad in ("zero", "0", "-2", "1.5"):
        monkeypatch.setenv("BNGEN_NUM_THREADS", bad)
        with pytest.raises(UsageError, match=f"BNGEN_NUM_THREADS={bad} must be a whole number"):
            threads.default_threads()


def test_processes_of_torchrun_share_the_cpus(monkeypatch):
    monkeypatch.delenv("BNGEN_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(host, "cpu_count", lambda: 13)
    everyones = {0: {0, 1}, os.getppid(): {0, 1}}
    monkeypatch.setattr(os, "sched_getaffinity", everyones.__getitem__)
    assert threads.default_threads() == 1
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    for count, share in (("1", 1), ("3", 4), ("13", 1), ("50", 1), ("many", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", count)
        assert threads.default_threads() == share
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    everyones[0] = {0}  # somebody has bound this one to CPUs of its own
    assert threads.default_threads() == 1
    everyones[0] = {0, 1}
    for name, share in (("OMP_NUM_THREADS", 2), ("BNGEN_NUM_THREADS", 5)):
        monkeypatch.setenv(name, str(share))
        assert threads.default_threads() == share


def test_a_forked_child_computes_on_one_thread_and_does_not_hang(library):
    with threads.using(2):
        assert len(launch(library)[1]) == shares(2)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        with threads.using(2):
            status, seen = launch(library)
        os._exit(0 if (status, len(seen), threads.num_threads()) == (0, 1, 1) else 1)
    assert os.waitpid(child, 0)[1] == 0


# --- in a process of its own ------------------------------------------------------------------

KERNEL = """
    import os, sys
    import numpy as np
    from bngen.runtime import threads

    def tasks():
        return len(os.listdir("/proc/self/task"))

    def mapped(stem):
        lines = open("/proc/self/maps").read().splitlines()
        paths = {os.path.realpath(line.split()[-1]) for line in lines if stem in line}
        return {path for path in paths if os.path.basename(path).startswith(stem)}

    def run_kernel():
        import tvm, tvm_ffi
        from tvm import te
        threads.install()
        a = te.placeholder((64, 64), name="a")
        b = te.compute((64, 64), lambda i, j: a[i, j] * 2 + 1, name="b")
        schedule = tvm.s_tir.Schedule(te.create_prim_func([a, b]))
        schedule.parallel(schedule.get_loops(schedule.get_sblock("b"))[0])
        function = tvm.compile(schedule.mod, target="llvm")["main"]
        x = np.arange(4096, dtype="float32").reshape(64, 64)
        y = np.zeros_like(x)
        function(tvm_ffi.from_dlpack(x), tvm_ffi.from_dlpack(y))
        np.testing.assert_array_equal(y, x * 2 + 1)
"""


def run_alone(code, **env):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KERNEL) + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**os.environ, "BNGEN_NUM_THREADS": "3", **env},
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("first", ["torch", "bngen"])
def test_one_pool_is_shared_with_pytorch(first):
    pytest.importorskip("torch")
    run_alone(
        f"""
        if {first == "torch"}:
            import torch
        name = threads.install()
        run_kernel()
        import torch
        torch.set_num_threads(3)
        before = tasks()
        for _ in range(3):
            torch.relu(torch.ones(1 << 20)).sum()
            run_kernel()
        assert tasks() == before, "PyTorch must find our threads, and we its"
        assert mapped("libgomp") == {{name[len("openmp ("):-1]}}, (name, mapped("libgomp"))
        assert threads._installed()._library.bngen_ever_parallel()
        """
    )


def test_without_pytorch_the_systems_openmp_serves():
    run_alone(
        """
        sys.modules["torch"] = None  # As if it were not installed.
        assert threads.install().startswith("openmp (")
        run_kernel()
        assert threads._installed()._library.bngen_ever_parallel()
        """
    )


def test_without_a_compiler_tvms_own_pool_serves():
    done = run_alone(
        """
        assert threads.install() == threads.install() == "tvm"
        run_kernel()
        import tvm
        assert threads.num_threads() == tvm.runtime.num_threads() == 3
        with threads.using(2):
            assert threads.num_threads() == 2
            run_kernel()
        assert threads.num_threads() == 3
        threads.set_num_threads(1)
        assert threads.num_threads() == 1
        run_kernel()
        """,
        CC="/nowhere/cc",
    )
    (line,) = done.stderr.splitlines()
    assert line.startswith("kernels run on TVM's thread pool") and "install gcc" in line


LOOP = """
    import collections, ctypes, threading
    task = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)

    def loop(count):
        seen = collections.Counter()
        @task
        def body(number, env, data):
            seen[number] += 1
            return 0
        library = ctypes.CDLL(threads._installed()._library._name)
        with threads.using(count):
            assert library.TVMBackendParallelLaunch(body, None, 0) == 0
        assert set(seen.values()) == {1}
        return len(seen)
"""


@pytest.mark.parametrize(
    ("env", "tasks", "said"),
    [
        ({"OMP_STACKSIZE": "16k"}, 1, "kernels run on 1 thread here: threads have less than 512"),
        ({"OMP_STACKSIZE": "100000G"}, 1, "kernels run on 1 thread here: the system starts no"),
        ({"OMP_STACKSIZE": "1M"}, 3 * 16, ""),
        ({"OMP_STACKSIZE": "nonsense"}, 3 * 16, ""),
        ({"OMP_THREAD_LIMIT": "1"}, 16, ""),
        ({"BNGEN_NUM_THREADS": "", "OMP_NUM_THREADS": "1000000"}, None, "is passed over"),
        ({"BNGEN_NUM_THREADS": "", "OMP_NUM_THREADS": "3,2"}, 3 * 16, ""),
    ],
    ids=str,
)
def test_what_the_environment_says_of_threads(env, tasks, said):
    """OpenMP's own runtime would end the process, and a kernel would leave a stack too small."""
    done = run_alone(
        LOOP
        + f"""
    threads.install()
    for _ in range(3):
        found = loop(0)
        assert {tasks} in (None, found), found
        """,
        **env,
    )
    lines = [line for line in done.stderr.splitlines() if "libgomp" not in line and line]
    assert len(lines) == bool(said), done.stderr
    assert said in done.stderr


def test_a_team_of_many_threads_needs_no_more_stack_than_one_of_few():
    run_alone(
        LOOP
        + """
    threads.install()
    threading.stack_size(1 << 19)
    counts = []
    thread = threading.Thread(target=lambda: counts.append(loop(200)))
    thread.start()
    thread.join()
    assert counts == [800], counts
        """
    )


def test_a_limit_of_threads_is_found_before_it_is_met():
    """Address space stands in for a limit of threads, which does not hold for the superuser."""
    done = run_alone(
        LOOP
        + """
    import resource
    threads.install()
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20), resource.RLIM_INFINITY))
    assert 4 <= loop(1000) < 4000
    assert loop(2) == 32
        """,
        OMP_STACKSIZE="16M",
    )
    assert "the system starts no more" in done.stderr and done.stderr.count("\n") == 1
