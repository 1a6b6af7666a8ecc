"""Runs steps over the memory of one call.

In: steps, entries of their kernels, and the buffers that never move. Out: `Executor.run`, which is
given the memory that a call has to itself. Knows nothing of graphs; what it is given is data, so
that a kept program runs by the same code.

Consecutive calls are one `Action`, handed to `dispatch` as a whole: kernels, and collectives, which
may decline (`ring`) and are then done here. A copy is an action of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np

from bngen.errors import BngenError
from bngen.runtime import native, ring
from bngen.runtime.buffers import Buffer, buffer
from bngen.runtime.dispatch import DONE, NO_STACK, CallTable
from bngen.runtime.exchange import Exchange
from bngen.runtime.memory import Arena
from bngen.runtime.native import Entry
from bngen.runtime.steps import CopyStep, KernelStep, Operand, StartStep, Step, WaitStep

Note = Callable[[int, float, float], None]
"""(position of a step, began, ended), in seconds of `time.perf_counter`."""


@dataclass(frozen=True)
class Memory:
    """What the steps of one call read and write.

    Attributes:
        arena: what operands without a slot lie in.
        slots: memory by slot; only steps that are not run may lack one.
        exchange: its collectives; None where it has none.
    """

    arena: Arena
    slots: dict[str, Buffer]
    exchange: Exchange | None = None

    def array(self, operand: Operand) -> np.ndarray:
        """A view of what an operand names."""
        if operand.slot is None:
            return self.arena.view(operand.offset, operand.shape, operand.dtype)
        return view(self.slots[operand.slot].array, operand.offset, operand.shape, operand.dtype)


class Action(Protocol):
    """What an executor does at a time."""

    def run(self, memory: Memory) -> None:
        """Do it, in the memory of a call.

        Raises:
            BngenError: when it fails.
        """


class Executor:
    """A bound sequence of steps; one call at a time.

    Args:
        steps: in execution order.
        entries: the code of the kernels, by symbol.
        fixed: buffers that never move (parameters), by slot: aligned, C-contiguous.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        entries: Mapping[str, Entry],
        fixed: Mapping[str, np.ndarray],
    ):
        self._steps = tuple(steps)
        self._fixed = {slot: buffer(array) for slot, array in fixed.items()}
        self._table = _table(self._steps, entries, self._fixed)
        self._actions: dict[tuple[int, int], tuple[Action, ...]] = {}
        self._note: Note | None = None

    def run(self, memory: Memory, start: int = 0, stop: int | None = None) -> None:
        """Do steps [start, stop).

        Args:
            memory: of the call.
            start: first step.
            stop: the step after the last; all by default.

        Raises:
            BngenError: when a kernel fails, or the thread has too little stack.
        """
        span = start, len(self._steps) if stop is None else stop
        if span not in self._actions:
            self._actions[span] = tuple(self._actions_of(*span))
        records = memory.exchange.records if memory.exchange else None
        self._table.bind(memory.arena, memory.slots, records)
        if self._note is None:
            for action in self._actions[span]:
                action.run(memory)
            return
        for i, action in enumerate(self._actions[span], start=span[0]):
            began = time.perf_counter()
            action.run(memory)
            self._note(i, began, time.perf_counter())

    def _actions_of(self, start: int, stop: int) -> Iterator[Action]:
        first = sum(isinstance(s, _CALLED) for s in self._steps[:start])
        for called, group in groupby(
            range(start, stop), lambda i: isinstance(self._steps[i], _CALLED)
        ):
            numbers = tuple(group)
            if not called:
                yield from (_Copy(self._steps[i], self._fixed) for i in numbers)
                continue
            # Those that are watched run each by itself.
            for part in [(n,) for n in numbers] if self._note else [numbers]:
                yield _Calls(self._table, first, tuple(self._otherwise(i) for i in part))
                first += len(part)

    def _otherwise(self, number: int) -> _Start | _Wait | str:
        """What is done when the call of a step fails; of a kernel its name alone."""
        match self._steps[number]:
            case StartStep() as step:
                return _Start(step, number, self._fixed)
            case WaitStep() as step:
                return _Wait(step, self._fixed)
            case step:
                return step.name

    def watch(self, note: Note | None) -> None:
        """Run steps one by one, and tell of each; None runs them together again.

        Args:
            note: called after each step with its position, and when it began and ended.
        """
        self._note = note
        self._actions.clear()

    def without_work(self) -> None:
        """Let every kernel return at once, to time what is left of a step. There is no way back."""
        self._table.without_work()


_CALLED = (KernelStep, StartStep, WaitStep)
"""Steps that the table calls."""


def _table(
    steps: Sequence[Step], entries: Mapping[str, Entry], fixed: Mapping[str, Buffer]
) -> CallTable:
    """The calls of all steps but copies, in order."""
    calls, rows, begun = [], {}, {}
    exchanging = any(isinstance(s, StartStep) for s in steps)
    start, finish = ring.entries() if exchanging else (None, None)
    for i, step in enumerate(steps):
        match step:
            case KernelStep():
                calls.append((entries[step.symbol], step.operands, step.numbers))
            case StartStep():
                begun[i] = rows[len(calls)] = len(begun)
                calls.append((start, step.operands, ()))
            case WaitStep():
                rows[len(calls)] = begun[step.start]
                calls.append((finish, step.operands, ()))
    return CallTable(calls, fixed, rows)


@dataclass(frozen=True)
class _Calls:
    """Consecutive calls, by their place in the table, and what is done where one of them fails."""

    table: CallTable
    first: int
    otherwise: tuple[_Start | _Wait | str, ...]

    def run(self, memory: Memory) -> None:
        at, stop = self.first, self.first + len(self.otherwise)
        while at < stop and (failed := self.table.run(at, stop)) != DONE:
            if failed == NO_STACK:
                raise BngenError(
                    "kernels need 512 KiB of stack, and this thread has less",
                    hint="raise ulimit -s, or threading.stack_size before it is started",
                )
            otherwise = self.otherwise[failed - self.first]
            if isinstance(otherwise, str):
                raise BngenError(f"kernel {otherwise} failed: {native.raised()}")
            otherwise.run(memory)
            at = failed + 1


@dataclass(frozen=True)
class _Copy:
    """A copy, perhaps of what never moves, or there."""

    step: CopyStep
    fixed: Mapping[str, Buffer]

    def run(self, memory: Memory) -> None:
        target, source = (
            _array(o, memory, self.fixed) for o in (self.step.target, self.step.source)
        )
        np.copyto(target, source)


@dataclass(frozen=True)
class _Start:
    """The start of a collective."""

    step: StartStep
    number: int
    fixed: Mapping[str, Buffer]

    def run(self, memory: Memory) -> None:
        sent = [_array(operand, memory, self.fixed) for operand in self.step.operands]
        memory.exchange.start(self.number, sent)


@dataclass(frozen=True)
class _Wait:
    """Its end."""

    step: WaitStep
    fixed: Mapping[str, Buffer]

    def run(self, memory: Memory) -> None:
        found, first = np.concatenate(memory.exchange.finish(self.step.start)), 0
        for operand in self.step.operands:
            there = _array(operand, memory, self.fixed)
            np.copyto(there, found[first : first + there.size].reshape(there.shape))
            first += there.size


def _array(operand: Operand, memory: Memory, fixed: Mapping[str, Buffer]) -> np.ndarray:
    if operand.slot in fixed:
        return Memory(memory.arena, fixed).array(operand)
    return memory.array(operand)


def view(array: np.ndarray, offset: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """``shape`` elements from byte ``offset`` of a C-contiguous array."""
    return np.ndarray(shape, dtype, array, offset)
