"""What several processes want made at once is made by one of them, and the others wait for it.

In: the key of a `store`. Out: a block in which it is made. Ranks of a training on one machine ask
for the same programs at the same time; without this each would compile all of them.

A lock is a byte of one file in the cache folder, and belongs to that open file: it goes with the
process, leaves nothing behind, and keeps threads apart as it does processes.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from bngen.errors import ToolchainError
from bngen.runtime import folders

_LOG = logging.getLogger(__name__)
_PATIENCE = 600.0
"""Seconds after which a process makes it by itself: the other one may have been stopped."""
_SHORTEST, _LONGEST = 0.01, 0.2
"""Seconds between two looks."""
_FLOCK = "hhqqi4x"
"""``struct flock`` of fcntl.h, where files have offsets of 64 bits."""


@contextmanager
def one_maker(key: str) -> Iterator[None]:
    """A block that begins when no other process is in one with the same key.

    Who finds none there lets others wait until the block ends. Who had to wait does not: what it
    waited for is kept by now, or cannot be made or kept, and then each makes its own at once. So
    does everybody where nothing can be locked, and who has waited for long.

    Processes wait for those of their own priority alone. One in the background may not get a CPU
    for as long as another waits for it.

    Args:
        key: of what is made, and kept for others.
    """
    with ExitStack() as stack:
        try:
            if sys.platform != "linux":
                raise OSError(f"locks of {sys.platform} are others")
            file = _opened()
            stack.callback(os.close, file)
            at = _byte_of(key)
            if _took(file, at):
                # Not by closing it alone: a process forked meanwhile has it open, too.
                stack.callback(_set, file, at, fcntl.F_UNLCK)
            else:
                _wait(file, at)
        except (OSError, ToolchainError) as error:
            _LOG.info("whether others make the same cannot be told: %s", error)
        yield


def _opened() -> int:
    """The file of locks."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with folders.cache_folder("making", make=True) as place:
        return os.open("locks", flags, 0o600, dir_fd=place)


def _byte_of(key: str) -> int:
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    digest = hashlib.sha256(f"{niceness}:{key}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 2


def _took(file: int, at: int) -> bool:
    """Whether a byte is this block's from now on; False for another's."""
    try:
        _set(file, at, fcntl.F_WRLCK)
    except (BlockingIOError, PermissionError):  # POSIX allows both for a byte of another's.
        return False
    return True


def _set(file: int, at: int, kind: int) -> None:
    fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, kind, 0, at, 1, 0))


def _is_free(file: int, at: int) -> bool:
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, 0, at, 1, 0)
    kind, *_ = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked))
    return kind == fcntl.F_UNLCK


def _wait(file: int, at: int) -> None:
    """Until a byte is nobody's, or patience ends."""
    pause, deadline = _SHORTEST, time.monotonic() + _PATIENCE
    while not _is_free(file, at):
        if time.monotonic() > deadline:
            _LOG.info("another process has made nothing for %.0f s", _PATIENCE)
            return
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST)
