"""What ``backward`` reads of the call before it, and whether that still stands.

In: the steps of a program, then each ``forward``. Out: copies of the arguments that ``backward``
reads, since a caller may fill the same array with the next batch before it; a `Tape`, or the
reason why there is none. All else that ``backward`` reads lies in the arena, which each ``forward``
overwrites, and in parameters.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bngen.errors import CallError
from bngen.runtime.arguments import ArgSpec
from bngen.runtime.memory import empty_aligned

INPUT = "in:"
"""How the slots of inputs begin: ``in:<name>``."""


@dataclass(frozen=True)
class Tape:
    """One call of ``forward``.

    Attributes:
        number: of the call, counted over all threads.
        slots: the buffers of that call, by slot.
        as_torch: whether results go out as tensors.
    """

    number: int
    slots: Mapping[str, np.ndarray]
    as_torch: bool


class Recorder:
    """The tape of a module; used with the module's lock held.

    Args:
        program: its name, for messages.
        read: slots that ``backward`` reads, among others.
        arguments: of ``forward``.
    """

    def __init__(self, program: str, read: Iterable[str], arguments: Sequence[ArgSpec]):
        self._program = program
        self._inputs = {slot.removeprefix(INPUT) for slot in read if slot.startswith(INPUT)}
        # Of an argument that the program updates, `backward` reads a copy in the arena.
        self._kept = [s for s in arguments if s.name in self._inputs and not s.inplace]
        self._copies: dict[str, np.ndarray] = {}
        self._number = 0
        self._tape: Tape | None = None
        self._changed = ""
        # The number of this thread's last call; a thread's, not an identifier that is used again.
        self._mine = threading.local()

    def begin(self, slots: dict[str, np.ndarray]) -> None:
        """A call of ``forward`` starts; what ``backward`` reads of the caller's is copied."""
        self._tape = None
        for spec in self._kept:
            if spec.name not in self._copies:
                self._copies[spec.name] = empty_aligned(spec.memory_shape, spec.dtype)
            np.copyto(self._copies[spec.name], slots[INPUT + spec.name])
            slots[INPUT + spec.name] = self._copies[spec.name]

    def end(self, slots: Mapping[str, np.ndarray], as_torch: bool) -> None:
        """It has ended well."""
        self._number += 1
        self._mine.number, self._changed = self._number, ""
        self._tape = Tape(self._number, slots, as_torch)

    def changed(self, name: str) -> None:
        """A parameter or buffer was given another value from outside of the program."""
        if name in self._inputs:
            self._changed = name

    def lose(self) -> None:
        """Forget the tape: it has been used, or half written."""
        self._tape = None

    def look(self) -> Tape:
        """The tape of this thread's last call.

        Raises:
            CallError: when there is none, or what ``backward`` would read has changed since.
        """
        mine = getattr(self._mine, "number", None)
        if self._number != mine and (mine is not None or self._tape is not None):
            since = "" if mine is None else " since this one did"
            raise CallError(
                f"{self._program}: another thread has called forward{since}, and backward belongs "
                "to the thread of the last forward",
                hint="give each thread a copy.deepcopy(mod), or hold a lock around both calls",
            )
        if self._tape is None:
            raise CallError(
                f"{self._program}: backward needs a forward call first, and one for each backward",
                hint="call mod.forward(...) before mod.backward(...)",
            )
        if self._changed:
            raise CallError(
                f"{self._program}: {self._changed!r}, which backward reads, was changed by "
                "load_state_dict or init after the forward call",
                hint="call mod.forward(...) again",
            )
        return self._tape
