"""Files that appear whole or not at all, and folders that go when their process is gone.

In: open folders, contents. Out: files in place, or what was there before and an `OSError`. A
working folder is locked for as long as its process lives; one whose lock is free was left by a
process that was killed, and the next process that makes one there removes it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
"""How a folder is opened whose entries are to be listed."""
_HERE, _EXCHANGE = -100, 2
"""``AT_FDCWD`` and ``RENAME_EXCHANGE`` of fcntl.h and stdio.h."""
_FOLDER_REFUSES = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY)
_FORGOTTEN_AFTER = 24 * 3600
"""Seconds after which a folder is given up where the file system cannot lock."""


@contextmanager
def opened(path: Path | str) -> Iterator[int]:
    """The descriptor of a folder, for as long as the block."""
    descriptor = os.open(path, FOLDER)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def alone_in(path: Path | str) -> Iterator[None]:
    """A block that begins when no other process is in one with the same folder.

    The folder is made if need be. Who reads a file there, adds to it and writes it anew loses
    nothing of what others add. Where the folder cannot be locked the block begins at once.
    """
    with ExitStack() as stack:
        with suppress(OSError):
            os.makedirs(path, exist_ok=True)
            fcntl.flock(stack.enter_context(opened(path)), fcntl.LOCK_EX)
        yield


@contextmanager
def working_folder(parent: int, prefix: str) -> Iterator[tuple[str, int]]:
    """A new private folder, for as long as the block.

    Args:
        parent: descriptor of the folder that it lies in.
        prefix: what its name begins with; what dead processes left under it is removed first.

    Yields:
        Its name and its descriptor. When the block renames the folder, it stays.
    """
    sweep(parent, prefix)
    name, descriptor = _locked(parent, prefix)
    try:
        yield name, descriptor
    finally:
        shutil.rmtree(name, ignore_errors=True, dir_fd=parent)
        os.close(descriptor)


def sweep(parent: int, prefix: str) -> None:
    """Remove the working folders that dead processes of this user left."""
    pattern = re.compile(re.escape(prefix) + "[0-9a-f]{16}")
    for name in os.listdir(parent):
        if pattern.fullmatch(name):
            _remove_dead(parent, name)


def write_whole(path: Path | str, content: bytes) -> None:
    """Write a file that is there complete, or as it was before.

    What is no regular file (a device, a pipe) is written to as it is.

    Raises:
        OSError: when it cannot be written.
    """
    if _is_special(Path(path)):
        _write_in_place(Path(path), content)
        return
    path = Path(os.path.realpath(path))
    try:
        with opened(path.parent) as parent, working_folder(parent, ".bngen-") as (_, folder):
            add_file(folder, "new", content, _mode_for(path))
            os.replace("new", path.name, src_dir_fd=folder, dst_dir_fd=parent)
    except OSError as error:
        # A file of one's own in a folder of somebody else's, or mounted by itself.
        if error.errno not in _FOLDER_REFUSES or not os.access(path, os.W_OK):
            raise
        _write_in_place(path, content)


def obstacle(path: Path | str) -> str | None:
    """Why a file cannot be written, as far as that can be told beforehand; None when it may be."""
    if _is_special(Path(path)):
        return None if os.access(path, os.W_OK) else f"{path} cannot be written to"
    path = Path(os.path.realpath(path))
    if path.is_dir():
        return f"{path} is a folder"
    return _unwritable(path)


def folder_obstacle(path: Path | str) -> str | None:
    """Why files cannot be put into a folder, which need not be there; None when they may be."""
    path = Path(os.path.realpath(path))
    if os.path.lexists(path) and not path.is_dir():
        return f"{path} is no folder"
    return _unwritable(path)


def exchange(one: Path, other: Path) -> bool:
    """Let two files or folders of a file system change names, in one step.

    Returns:
        Whether it has been done; not every file system can.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        return False
    names = os.fsencode(one), os.fsencode(other)
    if library.renameat2(_HERE, names[0], _HERE, names[1], _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV):
        return False
    raise OSError(code, os.strerror(code), str(other))


def add_file(folder: int, name: str, content: bytes, mode: int = 0o600) -> None:
    """Write a file that is not there yet into an open folder.

    Raises:
        OSError: when it cannot be written; a part of it may be there.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, mode, dir_fd=folder)
    try:
        _write_all(descriptor, content)
    finally:
        os.close(descriptor)  # which is where a quota on a network's disk may make itself felt


def _is_special(path: Path) -> bool:
    """Whether it is a pipe or a device. An open pipe has a path (/dev/stdout), and no real one."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def _unwritable(path: Path) -> str | None:
    """What stands in the way of writing to a path, or to the nearest one above it."""
    nearest = next(p for p in (path, *path.parents) if os.path.lexists(p))
    if nearest != path and not nearest.is_dir():
        return f"{nearest} is no folder"
    if not os.access(nearest, os.W_OK):
        return f"{nearest} cannot be written to"
    return None


def _mode_for(path: Path) -> int:
    """Who may read a file: as before, or as the user's mask has it."""
    if path.exists():
        return path.stat().st_mode & 0o777
    return 0o666


def _write_in_place(path: Path, content: bytes) -> None:
    with path.open("wb", buffering=0) as file:
        _write_all(file.fileno(), content)


def _write_all(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _locked(parent: int, prefix: str) -> tuple[str, int]:
    while True:
        name = f"{prefix}{os.urandom(8).hex()}"
        os.mkdir(name, 0o700, dir_fd=parent)
        try:
            descriptor = os.open(name, FOLDER | os.O_NOFOLLOW, dir_fd=parent)
        except FileNotFoundError:
            continue  # Another process took it for dead: it was not locked yet.
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # No locks here: others go by its age.
            return name, descriptor
        try:
            os.stat(name, dir_fd=parent, follow_symlinks=False)
            return name, descriptor
        except FileNotFoundError:
            os.close(descriptor)


def _remove_dead(parent: int, name: str) -> None:
    try:
        descriptor = os.open(name, FOLDER | os.O_NOFOLLOW, dir_fd=parent)
    except OSError:
        return
    try:
        status = os.fstat(descriptor)
        if status.st_uid == os.geteuid() and not _owner_lives(descriptor, status.st_mtime):
            shutil.rmtree(name, ignore_errors=True, dir_fd=parent)
    finally:
        os.close(descriptor)


def _owner_lives(descriptor: int, changed: float) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno == errno.EWOULDBLOCK or time.time() - changed < _FORGOTTEN_AFTER
    return False
