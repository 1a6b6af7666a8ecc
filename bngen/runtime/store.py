"""Files that can be made again, kept in the user's cache folder.

In: a key, which is the digest of all that they depend on, and files. Out: the same files, in this
process or a later one. An entry is a folder that appears complete, by a rename, or not at all; what
has been damaged since counts as absent. The entries used longest ago give way to new ones.

Contents are what is handed out, not paths: what was checked is what is used. The digests beside the
files tell damage; against other people there is `folders`.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import logging
import os
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass

from bngen import files as whole
from bngen.errors import ToolchainError
from bngen.runtime import folders

_LOG = logging.getLogger(__name__)
_INDEX = "index.json"
_LONGEST_INDEX = 4 << 20
_NEW = ".new-"
_SOMETHING_ELSE = (
    errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENOTDIR, errno.ENOTEMPTY, errno.ENXIO,
)  # fmt: skip
"""Errors that say that a name stands for something else than an entry or a file of one."""


class Store:
    """Entries of one kind.

    Args:
        name: of the folder within the cache folder.
        limit: bytes that all entries together may take.
    """

    def __init__(self, name: str, limit: int):
        self._name, self._limit = name, limit

    def read(self, key: str, *names: str) -> tuple[bytes, ...] | None:
        """Files of an entry, which counts as used now.

        Returns:
            Their contents, or None where one of them is absent or not what was written; a damaged
            entry is given up.
        """
        try:
            with folders.cache_folder(self._name) as place:
                return _read(place, key, names)
        except FileNotFoundError:
            return None
        except (OSError, ToolchainError) as error:
            _LOG.info("%s", error)
            return None

    def add(self, key: str, files: Mapping[str, bytes]) -> bool:
        """Keep files under a key, instead of those that are there; a warning says if that fails."""
        try:
            with folders.cache_folder(self._name, make=True) as place:
                with whole.working_folder(place, _NEW) as (name, folder):
                    for file, content in files.items():
                        whole.add_file(folder, file, content)
                    whole.add_file(folder, _INDEX, _index(key, files))
                    _take_place(place, name, key)
                self._make_room(place, key)
        except (OSError, ToolchainError) as error:
            reason = getattr(error, "strerror", None) or error
            _warn(f"nothing is kept for the next time: {reason}")
            return False
        return True

    def _make_room(self, place: int, newest: str) -> None:
        names = [name for name in os.listdir(place) if not name.startswith(".")]
        entries = sorted((_Usage.of(place, name) for name in names), key=lambda e: -e.used)
        total = 0
        for entry in entries:
            total += entry.nbytes
            if total > self._limit and entry.name != newest:
                shutil.rmtree(entry.name, ignore_errors=True, dir_fd=place)


@functools.cache
def _warn(text: str) -> None:
    """Once in a process: what ails the folder ails it each time."""
    _LOG.warning("%s", text)


@dataclass(frozen=True)
class _Usage:
    """How much a folder takes, and when it was used last (in seconds since the epoch)."""

    name: str
    nbytes: int
    used: float

    @classmethod
    def of(cls, place: int, name: str) -> _Usage:
        try:
            folder = os.open(name, whole.FOLDER | os.O_NOFOLLOW, dir_fd=place)
        except OSError:  # Another process has just removed it, or it is no entry.
            return cls(name, 0, 0.0)
        try:
            with os.scandir(folder) as entries:
                nbytes = sum(e.stat(follow_symlinks=False).st_size for e in entries)
            return cls(name, nbytes, os.fstat(folder).st_mtime)
        except OSError:
            return cls(name, 0, 0.0)
        finally:
            os.close(folder)


# --- entries ----------------------------------------------------------------------------------


class _DamagedError(Exception):
    """A file of an entry that is not what was written."""


def _read(place: int, key: str, names: tuple[str, ...]) -> tuple[bytes, ...] | None:
    try:
        folder = _open(key, whole.FOLDER, place)
        try:
            if not folders.is_private(folder):
                raise _DamagedError("others could write to it")
            index = _read_index(folder, key)
            contents = tuple(_read_checked(folder, name, index) for name in names)
            _touch(folder)
            return contents
        finally:
            os.close(folder)
    except _DamagedError as error:
        _LOG.info("entry %s is made again: %s", key, error)
        _remove(place, key)
        return None


def _index(key: str, files: Mapping[str, bytes]) -> bytes:
    rows = {name: [len(content), _digest(content)] for name, content in files.items()}
    return json.dumps({"key": key, "files": rows}).encode()


def _read_index(folder: int, key: str) -> Mapping[str, list]:
    """Size and digest of each file, as far as they are what an index says."""
    try:
        index = json.loads(_content(folder, _INDEX, _LONGEST_INDEX).decode())
    except (ValueError, RecursionError) as error:
        raise _DamagedError(f"{_INDEX} cannot be read: {error}") from None
    rows = index.get("files") if isinstance(index, dict) and index.get("key") == key else None
    if not isinstance(rows, dict):
        raise _DamagedError(f"{_INDEX} is not that of this entry")
    return rows


def _read_checked(folder: int, name: str, index: Mapping[str, list]) -> bytes:
    row = index.get(name)
    if not isinstance(row, list) or [type(field) for field in row] != [int, str]:
        raise _DamagedError(f"{_INDEX} does not list {name}")
    content = _content(folder, name, row[0])
    if [len(content), _digest(content)] != row:
        raise _DamagedError(f"{name} is not what was written")
    return content


def _content(folder: int, name: str, longest: int) -> bytes:
    """A regular file's content; never waits for a pipe's other end."""
    descriptor = _open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, folder)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > longest:
            raise _DamagedError(f"{name} is not what was written")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _open(name: str, flags: int, folder: int) -> int:
    """Open an entry, or a file of one, unless something else lies there."""
    if "/" in name:
        raise _DamagedError(f"{name} is no name of a file")
    try:
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=folder)
    except OSError as error:
        if error.errno in _SOMETHING_ELSE:
            raise _DamagedError(f"{name}: {error.strerror}") from None
        raise


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _touch(folder: int) -> None:
    try:
        os.utime(folder)
    except OSError:  # A cache that can only be read is used all the same.
        pass


def _remove(place: int, key: str) -> None:
    """Take an entry away by its name at once, so that nobody meets a part of it."""
    dead = f"{_NEW}{os.urandom(8).hex()}"
    try:
        os.rename(key, dead, src_dir_fd=place, dst_dir_fd=place)
        os.unlink(dead, dir_fd=place)  # what is no folder
    except OSError:
        shutil.rmtree(dead, ignore_errors=True, dir_fd=place)


def _take_place(place: int, name: str, key: str) -> None:
    """Rename a folder to an entry's; where other processes are quicker each time, theirs stays."""
    for _ in range(3):
        try:
            os.rename(name, key, src_dir_fd=place, dst_dir_fd=place)
            return
        except OSError as error:
            if error.errno not in _SOMETHING_ELSE:
                raise
            _remove(place, key)
