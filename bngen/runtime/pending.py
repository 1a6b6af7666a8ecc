"""Calls that wait for their ``backward``: handles, and the memory that each has to itself.

In: the arguments of each ``forward``. Out: a `Call`, with all that its ``backward`` reads besides
parameters: an arena that no other call writes to, and arguments, borrowed or copied. Whoever drops
or releases a call gives its memory back to the module's pool; the next ``forward`` takes it from
there, so that steps in steady state touch no fresh pages.

Memory changes hands by single operations of a list and a deque, which need no lock: a finalizer may
run anywhere, in the middle of another call and in a forked child.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bngen.errors import CallError
from bngen.runtime.argspec import ArgSpec
from bngen.runtime.borrowed import Loan, borrow, is_own
from bngen.runtime.buffers import Buffer, buffer
from bngen.runtime.memory import Arena, empty_aligned
from bngen.runtime.signature import BACKWARD, Signature, input_slot


class Frame:
    """Memory of one call: its arena, and copies of arguments, made when first needed."""

    def __init__(self, nbytes: int):
        self.arena = Arena(nbytes)
        self._copies: dict[str, Buffer] = {}

    def copy(self, spec: ArgSpec, there: Buffer) -> Buffer:
        """A copy of an argument, in memory that is used again."""
        if spec.name not in self._copies:
            self._copies[spec.name] = buffer(empty_aligned(spec.memory_shape, spec.dtype))
        np.copyto(self._copies[spec.name].array, there.array)
        return self._copies[spec.name]


class Pool:
    """The frames of a module that no call has; the one given back last goes first.

    Args:
        nbytes: size of an arena.
    """

    def __init__(self, nbytes: int):
        self._nbytes = nbytes
        self._free = deque([Frame(nbytes)])

    def take(self) -> Frame:
        """A frame; a new one where all are taken."""
        try:
            return self._free.pop()
        except IndexError:
            return Frame(self._nbytes)

    def give(self, frame: Frame) -> None:
        """Take a frame back."""
        self._free.append(frame)


@dataclass(frozen=True)
class Kept:
    """What a call keeps for its ``backward``.

    Attributes:
        frame: its memory.
        slots: the arguments that ``backward`` reads, by slot.
        loans: of those, the ones that lie in the caller's memory.
        changes: of parameters and buffers, before it; see `State.changes`.
        as_torch: whether results go out as tensors.
    """

    frame: Frame
    slots: Mapping[str, Buffer]
    loans: tuple[Loan, ...]
    changes: int
    as_torch: bool


class Call:
    """A ``forward`` that waits for its ``backward``; made by `Module.record` and `Module.forward`.

    Several may wait at once, in any order and in any thread. A call keeps a module's worth of
    memory, see `Module.memory`, until its ``backward``, until it is released, or until nobody holds
    it any longer.
    """

    def __init__(self, pool: Pool, kept: Kept):
        self._pool = pool
        # Whoever takes it out of this list has it: `backward`, `release` or the finalizer.
        self._kept = [kept]
        self._ended = ""

    @property
    def pending(self) -> bool:
        """Whether `Module.backward` can still be called for it."""
        return bool(self._kept)

    def release(self) -> None:
        """Give its memory back now: there will be no ``backward``."""
        self._end("was released")

    def __del__(self) -> None:
        self._end("was dropped")

    def __repr__(self) -> str:
        return f"<bngen call, {'pending' if self.pending else self._ended}>"

    def _end(self, how: str) -> None:
        kept = self._take(how)
        if kept is not None:
            self._pool.give(kept.frame)

    def _take(self, how: str) -> Kept | None:
        try:
            kept = self._kept.pop()
        except IndexError:
            return None
        self._ended = how
        return kept


class Pending:
    """The calls of one module.

    Args:
        signature: of the program.
        nbytes: size of an arena.
    """

    def __init__(self, signature: Signature, nbytes: int):
        self._program = signature.program
        backward = signature.call(BACKWARD)
        reads = set(backward.reads) if backward else set()
        # Of an argument that the program updates, `backward` reads a copy in the arena.
        self._kept = [
            (i, spec)
            for i, spec in enumerate(signature.arguments)
            if spec.name in reads and not spec.inplace
        ]
        self.pool = Pool(nbytes)
        # A thread's, not an identifier that is used again.
        self._mine = threading.local()

    @property
    def last(self) -> Call | None:
        """This thread's last call."""
        return getattr(self._mine, "call", None)

    def begin(
        self, values: Sequence[Any], slots: dict[str, Buffer], changes: int, as_torch: bool
    ) -> Kept:
        """A call of ``forward`` starts in this thread; the one before is dropped.

        Args:
            values: its arguments, as the caller gave them.
            slots: the memory that kernels read, by slot; what is copied is exchanged.
            changes: of parameters and buffers so far.
            as_torch: whether results go out as tensors.
        """
        self._mine.call = None
        frame = self.pool.take()
        try:
            kept, loans = {}, []
            for i, spec in self._kept:
                slot = input_slot(spec.name)
                there = slots[slot]
                loan = borrow(spec.name, values[i], there)
                if loan is not None:
                    loans.append(loan)
                elif not is_own(values[i], there):
                    slots[slot] = there = frame.copy(spec, there)
                kept[slot] = there
        except BaseException:
            self.pool.give(frame)
            raise
        return Kept(frame, kept, tuple(loans), changes, as_torch)

    def end(self, kept: Kept, wrote: bool) -> Call:
        """It has ended well.

        Args:
            kept: what `begin` returned.
            wrote: whether it has written to arguments.
        """
        if wrote:
            kept = replace(kept, loans=tuple(loan.renewed() for loan in kept.loans))
        self._mine.call = Call(self.pool, kept)
        return self._mine.call

    def find(self, call: Call | None) -> tuple[Call, Kept]:
        """The call that ``backward`` is for: this thread's last one, when none is given.

        Raises:
            CallError: for a call that is another module's, or waits no longer.
        """
        if call is None:
            call = self.last
            if call is None or not call.pending:
                raise CallError(
                    f"{self._program}: backward needs a forward call first, in the same thread, "
                    "and one for each backward",
                    hint="call mod.forward(...) before mod.backward(...), or pass call=",
                )
        elif not isinstance(call, Call):
            raise CallError(
                f"{self._program}: call={call!r:.60} is no call of a module",
                hint="take it from mod.record(...) or mod.last_call",
            )
        elif call._pool is not self.pool:
            raise CallError(
                f"{self._program}: this call is another module's",
                hint="a copy of a module is another one: call the backward of its own",
            )
        kept = next(iter(call._kept), None)
        if kept is None:
            raise CallError(
                f"{self._program}: this call {call._ended}, and there is one backward for each "
                "forward",
                hint="call mod.forward(...) again, or mod.backward(..., retain=True) before",
            )
        for loan in kept.loans:
            loan.check(self._program)
        return call, kept

    def twin(self, kept: Kept) -> Frame:
        """Another frame whose arena holds what a call's own does."""
        frame = self.pool.take()
        frame.arena.copy_from(kept.frame.arena)
        return frame

    def claim(self, call: Call) -> Kept:
        """What a call has kept, for its ``backward``; nobody else gets it from now on.

        Raises:
            CallError: if another thread has just released it.
        """
        kept = call._take("has had its backward")
        if kept is None:
            raise CallError(
                f"{self._program}: this call {call._ended} by another thread",
                hint="release a call when its backward has returned",
            )
        return kept
