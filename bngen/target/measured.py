"""What this machine's CPU does in a cycle, measured: how many multiply-adds start, and of pairs.

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

from bngen.target import pairs
from bngen.target.cpus import Traits

_LOG = logging.getLogger(__name__)
_STEPS, _RUNS = 1 << 14, 25
"""Terms of the sums of a run, which takes some 20 microseconds; and runs."""

_MEASURED: dict[Traits, Traits] = {}


def corrected(traits: Traits, target: Any) -> Traits:
    """Traits with the number of units that this machine has.

    Args:
        traits: of a CPU that this machine can pass for.
        target: the same on this system as a ``tvm.target.Target``, in which multiply and add are
            one instruction.
    """
    if traits not in _MEASURED:
        _MEASURED[traits] = _corrected(traits, target)
    return _MEASURED[traits]


def _corrected(traits: Traits, target: Any) -> Traits:
    found = round(in_flight(traits, target) / traits.multiply_add_latency)
    units = float(max(1, found))
    if units != traits.multiply_add_units:
        by_name = traits.multiply_add_units
        _LOG.info("%d multiply-adds start in a cycle; by the CPU's name, %d", units, by_name)
        traits = replace(traits, multiply_add_units=units)
    if traits.pairs and traits.pairs.units >= 1:  # What is slow is known by its features.
        found = units_of_pairs(traits, target)
        if found != traits.pairs.units:
            told = found, traits.pairs.units
            _LOG.info("%g products of pairs start in a cycle; by the CPU's name, %g", *told)
            traits = replace(traits, pairs=replace(traits.pairs, units=found))
    return traits


def in_flight(traits: Traits, target: Any) -> float:
    """Multiply-adds that are under way at once, measured in a few milliseconds."""
    lanes, many = traits.vector_bytes // 4, traits.vector_registers - 4
    one, all_of_them = (_sums(n, lanes, target) for n in (1, many))
    return many * _seconds(one, 1, lanes) / _seconds(all_of_them, many, lanes)


def units_of_pairs(traits: Traits, target: Any) -> float:
    """Instructions for pairs of bfloat16 that start in a cycle: a whole number, or a half.

    How long a cycle takes is told by multiply-adds that wait for one another.
    """
    lanes, many = traits.vector_bytes // 4, _PAIRS_AT_ONCE
    cycle = _seconds(_sums(1, lanes, target), 1, lanes) / traits.multiply_add_latency
    rate = many * cycle / _seconds(_sums_of_pairs(many, lanes, target), many, lanes)
    return float(max(1, round(rate))) if rate > _LEAST_OF_ONE else 0.5


_PAIRS_AT_ONCE = 12
"""Sums of pairs side by side: two units times six cycles. Of more, TVM keeps some in memory."""
_LEAST_OF_ONE = 0.7
"""What is measured of one in a cycle, at least; of fewer it does not matter how many."""


def _seconds(function: Any, count: int, lanes: int) -> float:
    """Least time of a function of so many sums, side by side, of vectors."""
    import numpy as np
    import tvm

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


def _sums_of_pairs(count: int, lanes: int, target: Any) -> Any:
    """The same of pairs, as which the bits of the floats are taken."""
    import tvm
    from tvm.script import tirx as T

    vector, words, text = f"float32x{lanes}", f"int32x{lanes}", pairs.functions(lanes)

    @T.prim_func(s_tir=True, private=True)
    def sums(
        x: T.Buffer((_STEPS,), "float32"),
        y: T.Buffer((lanes,), "float32"),
        out: T.Buffer((count, lanes), "float32"),
    ):
        T.attr(T.int32(0), "pragma_import_llvm", text)
        sums = T.alloc_local((count * lanes,), "float32")
        for c in T.unroll(count):
            sums[T.ramp(c * lanes, 1, lanes)] = T.broadcast(T.float32(0), lanes)
        for k in T.serial(_STEPS):
            for c in T.unroll(count):
                sums[T.ramp(c * lanes, 1, lanes)] = T.call_pure_extern(
                    vector,
                    pairs.DOT,
                    sums[T.ramp(c * lanes, 1, lanes)],
                    T.reinterpret(T.broadcast(x[k], lanes), dtype=words),
                    T.reinterpret(y[T.ramp(0, 1, lanes)], dtype=words),
                )
        for c in T.unroll(count):
            out[c, T.ramp(0, 1, lanes)] = sums[T.ramp(c * lanes, 1, lanes)]

    named = {"global_symbol": "main", "tirx.noalias": True}
    module = tvm.IRModule({"main": sums.with_attrs(named)})
    return tvm.compile(module, target=target)["main"]
