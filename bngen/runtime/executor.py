"""Runs kernels: steps over one arena, with slots for what changes from call to call.

In: steps, entries of their kernels, and the buffers that never move. Out: `Executor.run`. Knows
nothing of graphs; what it is given is data, so that a kept program runs by the same code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bngen.errors import BngenError
from bngen.runtime import native
from bngen.runtime.calls import NO_STACK, CallTable, Operand
from bngen.runtime.memory import Arena
from bngen.runtime.native import Entry


@dataclass(frozen=True)
class Step:
    """One call of a kernel.

    Attributes:
        name: the kernel's, for messages.
        symbol: of its code.
        operands: its arguments, in order.
    """

    name: str
    symbol: str
    operands: tuple[Operand, ...]


class Executor:
    """A bound sequence of steps.

    Args:
        steps: in execution order.
        entries: the code of the steps, by symbol.
        nbytes: size of the arena.
        fixed: external buffers that never move (parameters), by slot: aligned, C-contiguous.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        entries: Mapping[str, Entry],
        nbytes: int,
        fixed: Mapping[str, np.ndarray],
    ):
        self.arena = Arena(nbytes)
        self._steps, self._fixed = tuple(steps), dict(fixed)
        self._calls = CallTable([(entries[s.symbol], s.operands) for s in steps], self._address)

    def _address(self, operand: Operand) -> int | None:
        if operand.slot is None:
            return self.read(operand).ctypes.data
        array = self._fixed.get(operand.slot)
        return None if array is None else array.ctypes.data + operand.offset

    def run(self, slots: Mapping[str, np.ndarray], start: int = 0, stop: int | None = None) -> None:
        """Call steps [start, stop) with this call's buffers.

        Args:
            slots: C-contiguous arrays by slot; only steps that are not called may lack one.
            start: first step.
            stop: the step after the last; all by default.

        Raises:
            BngenError: when a kernel fails, or the thread has too little stack.
        """
        stop = len(self._steps) if stop is None else stop
        failed = self._calls.run(slots, start, stop)
        if failed == NO_STACK:
            raise BngenError(
                "kernels need 512 KiB of stack, and this thread has less",
                hint="raise ulimit -s, or threading.stack_size before it is started",
            )
        if failed >= 0:
            raise BngenError(f"kernel {self._steps[failed].name} failed: {native.raised()}")

    def without_work(self) -> None:
        """Let every kernel return at once, to time what is left of a step. There is no way back."""
        self._calls.without_work()

    def read(self, operand: Operand) -> np.ndarray:
        """A view of an arena operand."""
        return self.arena.view(operand.offset, operand.shape, operand.dtype)


def view(array: np.ndarray, offset: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """``shape`` elements from byte ``offset`` of a C-contiguous array."""
    return np.ndarray(shape, dtype, array, offset)
