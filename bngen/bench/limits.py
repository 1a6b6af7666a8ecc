"""What this machine can do at best, measured: multiply-adds and copies, on all threads.

In: a target. Out: ``gflops`` and ``gbytes`` (1e9 a second). The peak comes from the same compiler
and target as the kernels, so that it is the limit of code that bngen could generate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from bngen.runtime import threads as thread_pool
from bngen.runtime.memory import ALIGNMENT, Arena
from bngen.target.parse import Target

CHAINS = 12
"""Independent sums a thread: two units times four or five cycles of latency, and some to spare."""

STEPS = 200_000
COPY_BYTES = 512 << 20
"""Well beyond the share of a last-level cache that a virtual machine sees."""

_ROUNDS = 7


def measure_limits(target: Target, threads: int | None = None) -> dict[str, Any]:
    """Peak and bandwidth, the best of a few rounds each: a limit is what can be reached.

    Args:
        target: lanes and instructions.
        threads: how many; those of a module when missing.
    """
    thread_pool.install()
    count = threads or thread_pool.num_threads()
    with thread_pool.using(threads or 0):
        return {
            "gflops": _best(multiply_adds(target, count)),
            "gbytes": _best(copies(target, count)),
            "threads": count,
        }


def highest(limits: dict[str, Any], others: Mapping[str, Any]) -> None:
    """Raise limits to those of another measurement where these are higher."""
    for name in ("gflops", "gbytes"):
        limits[name] = max(limits[name], others[name])


def _best(work: tuple[Callable[[], None], float]) -> float:
    run, amount = work
    run()
    times = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return amount / min(times) / 1e9


def multiply_adds(target: Target, threads: int) -> tuple[Callable[[], None], float]:
    """A call that does nothing but multiply-adds in registers, and how many operations it does."""
    import tvm
    from tvm.script import tirx as T

    lanes = target.machine.lanes("float32")
    width = CHAINS * lanes

    half = T.float32(0.5)

    @T.prim_func(s_tir=True, private=True)
    def peak(start: T.Buffer((lanes,), "float32"), out: T.Buffer((threads, width), "float32")):
        for t in T.parallel(threads):
            sums = T.alloc_local((width,), "float32")
            for c in T.unroll(CHAINS):
                for v in T.vectorized(lanes):
                    sums[c * lanes + v] = start[v]
            for _ in T.serial(STEPS):
                for c in T.unroll(CHAINS):
                    for v in T.vectorized(lanes):
                        # Constants stay in registers; an operand in memory would be read again.
                        sums[c * lanes + v] = sums[c * lanes + v] * half + half
            for c in T.unroll(CHAINS):
                for v in T.vectorized(lanes):
                    out[t, c * lanes + v] = sums[c * lanes + v]

    function = _compiled(tvm, target, peak)
    arena = Arena(ALIGNMENT + 4 * threads * CHAINS * lanes)
    arena.view(0, (lanes,), "float32").fill(0.5)
    start = _tensor(arena, 0, (lanes,))
    out = _tensor(arena, ALIGNMENT, (threads, width))
    return lambda: function(start, out), 2.0 * threads * STEPS * width


def copies(target: Target, threads: int) -> tuple[Callable[[], None], float]:
    """A call that copies a large array, and how many bytes it reads and writes."""
    import tvm
    from tvm.script import tirx as T

    lanes = target.machine.lanes("float32")
    rows = COPY_BYTES // (4 * lanes * threads)

    @T.prim_func(s_tir=True, private=True)
    def copy(
        source: T.Buffer((threads, rows, lanes), "float32"),
        out: T.Buffer((threads, rows, lanes), "float32"),
    ):
        for t in T.parallel(threads):
            for i in T.serial(rows):
                for v in T.vectorized(lanes):
                    out[t, i, v] = source[t, i, v]

    function = _compiled(tvm, target, copy)
    shape = (threads, rows, lanes)
    nbytes = 4 * threads * rows * lanes
    # An arena has the huge pages that feature maps have.
    arena = Arena(2 * nbytes)
    arena.view(0, (2 * nbytes,), "uint8").fill(0)
    source, out = _tensor(arena, 0, shape), _tensor(arena, nbytes, shape)
    return lambda: function(source, out), 2.0 * nbytes


def _compiled(tvm: Any, target: Target, function: Any) -> Callable[..., None]:
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    with target.tvm():
        return tvm.compile(module, target=target.tvm())["main"]


def _tensor(arena: Arena, offset: int, shape: tuple[int, ...]) -> Any:
    """A tensor in the arena, as TVM's functions take it."""
    import tvm

    return tvm.runtime.from_dlpack(arena.view(offset, shape, "float32"))
