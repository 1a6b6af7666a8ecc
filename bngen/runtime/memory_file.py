"""Files in memory: paths for tools and loaders with no disk, mount or other process behind them.

In: contents. Out: a path, for as long as its descriptor is open. A file in memory cannot be swapped
between a check and its use, lies on no file system that is full, read-only or mounted noexec, and
is gone with its process.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from bngen.errors import ToolchainError
from bngen.runtime import folders

_ADD_SEALS, _ALL_SEALS = 1033, 0x1 | 0x2 | 0x4 | 0x8
"""``F_ADD_SEALS`` of fcntl.h; ``F_SEAL_SEAL``, ``_SHRINK``, ``_GROW`` and ``_WRITE``."""
_LARGE = 64 << 20
"""Bytes; a file that is written here is an object file with one kernel."""
_DESCRIPTORS = "/proc/self/fd"
_count = itertools.count()


def sealed(content: bytes) -> tuple[str, int]:
    """A path to a content that nobody can change any more, and its descriptor, for who closes it.

    No two of these paths are equal. The dynamic loader takes a path that it knows for the library
    that it has loaded from there, though another file may lie there by now. Who walks through the
    libraries of a process, as a backtrace does, opens each by its path: once the descriptor is
    closed it may be any file.

    Raises:
        OSError: where the system has no files in memory.
    """
    descriptor = _created()
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        fcntl.fcntl(descriptor, _ADD_SEALS, _ALL_SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    # `a//b` and `a/./b` are `a/b`: a number, written with one and the other.
    spelling = "".join("/." if bit == "1" else "/" for bit in f"{next(_count):b}")
    return f"{_DESCRIPTORS}{spelling}/{descriptor}", descriptor


@contextmanager
def written() -> Iterator[tuple[str, int]]:
    """The path and the descriptor of an empty file, to write to by one and read by the other.

    Where the system has no files in memory, it lies in a scratch folder.

    Raises:
        ToolchainError: when there is no room for it either, or files may not become large.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if 0 <= limit < _LARGE:
        what = f"files may not grow beyond {limit} bytes in this process"
        raise ToolchainError(what, hint="raise the limit: ulimit -f unlimited")
    with ExitStack() as stack:
        try:
            descriptor = _created()
            path = f"{_DESCRIPTORS}/{descriptor}"
        except OSError:
            path = str(stack.enter_context(folders.scratch()) / "file")
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, descriptor)
        yield path, descriptor


def _created() -> int:
    if not hasattr(os, "memfd_create") or not os.path.isdir(_DESCRIPTORS):
        raise OSError(errno.ENOSYS, "no files in memory")
    return os.memfd_create("bngen", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
