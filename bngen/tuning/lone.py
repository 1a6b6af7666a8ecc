"""A kernel by itself: on buffers of its own, to be run, timed and compared.

In: a `CompiledKernel`. Out: a `LoneKernel`. The bench times it beside the rivals, the tuner beside
the same kernel with other knobs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np

from bngen.arrays import letter_of
from bngen.codegen.compile import CompiledKernel, load
from bngen.runtime import threads as thread_pool
from bngen.runtime.executor import Executor, Memory
from bngen.runtime.memory import ALIGNMENT, Arena
from bngen.runtime.steps import KernelStep, Operand

_SHORTEST = 2e-3
"""Seconds that one measurement lasts at least: shorter ones measure the clock."""


class LoneKernel:
    """A compiled kernel on an arena of its own, which holds its operands and nothing else."""

    def __init__(self, compiled: CompiledKernel, threads: int = 0, seed: int = 0):
        """Bind the kernel and fill its inputs."""
        operands, offset = [], 0
        for a in compiled.arguments:
            operands.append(Operand(None, offset, a.shape, a.value.dtype))
            nbytes = math.prod(a.shape) * a.value.type.element.nbytes
            offset += -(-nbytes // ALIGNMENT) * ALIGNMENT
        code = compiled.code
        step = KernelStep(compiled.kernel.name, code.symbol, tuple(operands), code.numbers)
        self._executor = Executor([step], load([code]), {})
        self._memory = Memory(Arena(offset), {})
        self._threads = threads
        inputs = len(compiled.kernel.inputs)
        self._outputs = operands[inputs:]
        rng = np.random.default_rng(seed)
        for operand in operands[:inputs]:
            fill(self._memory.array(operand), rng)

    def run(self, times: int = 1) -> None:
        """Call the kernel."""
        with thread_pool.using(self._threads):
            for _ in range(times):
                self._executor.run(self._memory)

    def results(self) -> list[np.ndarray]:
        """Run once; copies of what it writes."""
        for operand in self._outputs:
            self._memory.array(operand).fill(0)  # lanes that nobody writes are equal, then
        self.run()
        return [self._memory.array(o).copy() for o in self._outputs]

    def seconds(self) -> float:
        """Time of one call, measured over several."""
        return timed(self.run)


def fill(array: np.ndarray, rng: np.random.Generator) -> None:
    """Numbers that any kernel can take: maps of both signs, the rest (variances) positive.

    Integers (class numbers, winning taps of a pool) are zero.
    """
    if array.dtype == bool:
        array[...] = rng.random(array.shape) < 0.5
    elif letter_of(array.dtype) == "f":
        low = -1.0 if array.ndim >= 4 else 0.1
        array[...] = rng.uniform(low, 1.0, array.shape)
    else:
        array.fill(0)


def timed(run: Callable[[int], None], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call: as many calls in a row as last long enough to be measured."""
    times = 1
    while True:
        start = clock()
        run(times)
        elapsed = clock() - start
        if elapsed >= _SHORTEST:
            return elapsed / times
        times = max(2 * times, math.ceil(1.2 * times * _SHORTEST / max(elapsed, 1e-7)))
