"""Locks that a forked process finds open: the threads that held them are not in it.

In: nothing. Out: `Lock`, and `forget_at_fork` for what a forked process has not got.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any


class Lock:
    """A lock that its own thread may take twice; in a forked process nobody else has it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _everywhere.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: Any) -> None:
        self._lock.release()

    def after_fork(self) -> None:
        """In the child: the thread that has forked is there, and what it holds it still holds."""
        if not self._lock._is_owned():  # type: ignore[attr-defined]
            self._lock = threading.RLock()


_everywhere: weakref.WeakSet[Any] = weakref.WeakSet()


def forget_at_fork(what: Any) -> None:
    """Let ``what.after_fork()`` run in each forked process, as long as it lives."""
    _everywhere.add(what)


def _after_fork() -> None:
    for what in list(_everywhere):
        what.after_fork()


os.register_at_fork(after_in_child=_after_fork)
