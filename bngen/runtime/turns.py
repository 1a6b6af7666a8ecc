"""One call at a time: the lock of a module, and what a fork leaves of it.

In: the methods of a module that touch its memory, marked `alone`. Out: calls of several threads
wait for each other; a call from within a call (a signal handler, a finalizer) is refused, since it
would wait for itself; a forked child does not wait for threads that it has not got.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from bngen.errors import CallError

_Method = TypeVar("_Method", bound=Callable[..., Any])


class Turns:
    """Who is at work on a module.

    Attributes:
        cut_short: whether this process was forked while another thread was at work: what that
            thread was writing is half written here.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.worker: int | None = None
        self.cut_short = False
        _everywhere.add(self)

    def after_fork(self) -> None:
        """In the child: threads that were at work or waiting are gone, the forking one is not."""
        if self.worker == threading.get_ident():
            return
        self.cut_short = self.cut_short or self.worker is not None
        self.lock, self.worker = threading.RLock(), None


_everywhere: weakref.WeakSet[Turns] = weakref.WeakSet()


def _after_fork() -> None:
    for turns in list(_everywhere):
        turns.after_fork()


os.register_at_fork(after_in_child=_after_fork)


def alone(method: _Method) -> _Method:
    """Let a method of an object with ``_turns`` have the object to itself.

    The lock is one that its own thread may take twice, so that a call from within is seen rather
    than deadlocked: a signal handler that interrupts before any work simply goes first.
    """

    @functools.wraps(method)
    def in_turn(self: Any, *args: Any, **named: Any) -> Any:
        turns: Turns = self._turns
        with turns.lock:
            if turns.worker is not None:
                raise CallError(
                    f"{self.signature.program}: {method.__name__} was called from within another "
                    "call of the same module, as by a signal handler or a finalizer",
                    hint="call it when the other has returned, or use copy.deepcopy(mod)",
                )
            turns.worker = threading.get_ident()
            try:
                return method(self, *args, **named)
            finally:
                turns.worker = None

    return in_turn  # type: ignore[return-value]
