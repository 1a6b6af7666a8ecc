"""What this machine's CPU does in a cycle, measured: how many multiply-adds start.

In: traits by name and features. Out: the same, corrected. A hypervisor may call a CPU by another's
name, and Xeons with one unit of 512 bits have the names of those with two.

Sums that each wait for the one before tell how long a multiply-add takes, and as many independent
sums as registers hold how many are under way in that time: the quotient needs no clock rate, and
the least of many short runs no quiet machine.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Any

from bngen.target.cpus import Traits

_LOG = logging.getLogger(__name__)
_STEPS, _RUNS = 1 << 14, 25
"""Terms of the sums of a run, which takes some 20 microseconds; and runs."""

_MEASURED: dict[Traits, float] = {}


def corrected(traits: Traits, target: Any) -> Traits:
    """Traits with the number of units that this machine has.

    Args:
        traits: of a CPU that this machine can pass for.
        target: the same on this system as a ``tvm.target.Target``, in which multiply and add are
            one instruction.
    """
    if traits not in _MEASURED:
        _MEASURED[traits] = in_flight(traits, target)
    units = max(1, round(_MEASURED[traits] / traits.multiply_add_latency))
    if units != traits.multiply_add_units:
        by_name = traits.multiply_add_units
        _LOG.info("%d multiply-adds start in a cycle; by the CPU's name, %d", units, by_name)
    return replace(traits, multiply_add_units=units)


def in_flight(traits: Traits, target: Any) -> float:
    """Multiply-adds that are under way at once, measured in a few milliseconds."""
    lanes, many = traits.vector_bytes // 4, traits.vector_registers - 4
    return many * _seconds(1, lanes, target) / _seconds(many, lanes, target)


def _seconds(count: int, lanes: int, target: Any) -> float:
    """Least time of so many sums, side by side, of vectors."""
    import numpy as np
    import tvm

    function = _sums(count, lanes, target)
    shapes = (_STEPS,), (lanes,), (count, lanes)
    operands = [tvm.runtime.tensor(np.ones(shape, np.float32)) for shape in shapes]
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        function(*operands)
        times.append(time.perf_counter() - start)
    return min(times)


def _sums(count: int, lanes: int, target: Any) -> Any:
    import tvm
    from tvm import s_tir, te

    x, y = te.placeholder((_STEPS,), name="x"), te.placeholder((lanes,), name="y")
    k = te.reduce_axis((0, _STEPS), name="k")
    out = te.compute((count, lanes), lambda i, lane: te.sum(x[k] * y[lane], k), name="out")
    sch = s_tir.Schedule(te.create_prim_func([x, y, out]))
    sums = sch.get_sblock("out")
    sch.cache_write(sums, 0, "local")
    i, lane, k = sch.get_loops(sums)
    sch.reorder(k, i, lane)
    sch.unroll(i)
    sch.vectorize(lane)
    sch.decompose_reduction(sums, k)
    return tvm.compile(sch.mod, target=target)["main"]
