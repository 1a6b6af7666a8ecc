"""Who compiles kernels: threads of this process or, of many kernels on many CPUs, processes.

In: units of tasks by key. Out: their code, as it is ready. Lowering and scheduling are Python,
which the threads of a process run one at a time, and half of the work: a fourth thread would gain
nothing. On two CPUs threads do as well: processes take 8 s more, for their beginning and for
messages. A process begins while a program is planned, and ends when it has had nothing to do for a
while.

Processes are a gain alone. Where none can be started, or one ends, or fails, what it had to do is
done here, and fails here if it must.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from bngen.codegen.code import Code, Task, compiled

LEAST = 40
"""Distinct kernels from which on processes pay; they take some five seconds of one."""
FEWEST = 4
"""Processes from which on they should be faster than threads: a prediction, two are not."""
MOST = 32
"""Processes; each takes some 500 MB."""
_IDLE = 60
"""Seconds after which a process ends that nothing is asked of."""
_WATCH = 1
"""Seconds between two looks at the parent."""
_STACK = 64 << 20
"""Bytes of address space for LLVM's recursions; what is not touched is no memory."""

_LOG = logging.getLogger(__name__)
K = TypeVar("K", bound=Hashable)
_starting = threading.Lock()


def codes(
    units: Mapping[K, Sequence[Task]], jobs: int, *, here: bool = False
) -> Generator[tuple[K, list[Code]]]:
    """The code of each unit's tasks, as it is ready.

    Args:
        units: what there is to compile, by any key; what takes longest had better come first.
        jobs: processes, or threads, that share it.
        here: whether this process shall compile all of it, so that TVM's forms are there, too.
    """
    pool = None if here or sum(map(len, units.values())) < LEAST else processes(jobs)
    stop = threading.Event()
    in_thread = functools.partial(compiled, stop=stop)
    with _without_collections(), ThreadPoolExecutor(jobs) as threads:
        futures = {
            _submitted(pool, _remote, unit) if pool else _submitted(threads, in_thread, unit): key
            for key, unit in units.items()
        }
        try:
            for future in as_completed(futures):
                key = futures[future]
                if pool and (error := future.exception()):
                    _LOG.info("kernels are compiled in this process: %r", error)
                    future = _submitted(threads, in_thread, units[key])
                yield key, future.result()
        except BaseException:
            stop.set()
            for future in futures:
                future.cancel()
            raise


# --- threads ----------------------------------------------------------------------------------


def _submitted(
    pool: Executor, work: Callable[[Sequence[Task]], list[Code]], unit: Sequence[Task]
) -> Future[list[Code]]:
    """A unit in a pool; where the system starts nobody for it, done by this thread at once.

    A thread that is started for it has the stack that LLVM's recursions need, whatever ulimit says.
    """
    with _starting:
        before = threading.stack_size(_STACK)
        try:
            return pool.submit(work, unit)
        except (RuntimeError, OSError):
            done: Future[list[Code]] = Future()
        finally:
            threading.stack_size(before)
    done.set_result(compiled(unit))
    return done


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Pause the garbage collector: it walks all graphs again for each few kernels, 7 % of the time.

    Nothing that compiling makes waits for it: what refers to itself is small.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


# --- processes --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Processes:
    """Processes that a process has started."""

    owner: int
    count: int
    executor: Any


_running: list[_Processes] = []


def processes(jobs: int) -> Executor | None:
    """As many processes, which begin at once unless they have; None where there are to be none."""
    count = min(jobs, MOST)
    if count < FEWEST:
        return None
    with _starting:
        for found in _running:
            # A process that was forked has none of its own.
            if (found.owner, found.count) == (os.getpid(), count) and not _is_over(found.executor):
                return found.executor
        _running.clear()
        try:
            executor = _started(count)
        except (ImportError, OSError, RuntimeError) as error:
            _LOG.info("kernels are compiled in this process: %s", error)
            return None
        _running.append(_Processes(os.getpid(), count, executor))
        return executor


def _started(count: int) -> Executor:
    from loky import ProcessPoolExecutor

    executor = ProcessPoolExecutor(count, timeout=_IDLE, initializer=_begin)
    executor.submit(os.getpid)  # all of them begin with the first thing that is asked of one
    return executor


def _is_over(executor: Any) -> bool:
    return bool(executor._flags.broken or executor._flags.shutdown)


_thread: list[Executor] = []


def _begin() -> None:
    """What a process does first: it loads the compiler, and leaves interrupts to its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    gc.disable()
    import bngen.codegen.pipeline  # noqa: F401  (loads TVM)

    threading.stack_size(_STACK)
    _thread.append(ThreadPoolExecutor(1))


def _end_with(parent: int) -> None:
    """End this process when its parent has, however that ended."""
    while os.getppid() == parent:
        time.sleep(_WATCH)
    os._exit(1)


def _remote(unit: Sequence[Task]) -> list[Code]:
    """A unit in such a process."""
    return [replace(code, kept=None) for code in _thread[0].submit(compiled, unit).result()]
