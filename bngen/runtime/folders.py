"""Folders that nobody else can change, so that what lies in them may be loaded as code.

In: BNGEN_CACHE_DIR, XDG_CACHE_HOME, HOME, TMPDIR. Out: descriptors of folders in the cache, and a
scratch folder for the files of one task.

A path is walked from the root, each folder opened relative to the one before and then looked at:
what was checked is what is used, whatever happens to names meanwhile. Symbolic links are followed
here, not by the system, and checked as folders are.
"""

from __future__ import annotations

import errno
import functools
import grp
import os
import pwd
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bngen import files
from bngen.errors import ToolchainError

_SEARCH = getattr(os, "O_PATH", os.O_RDONLY) | os.O_CLOEXEC | os.O_NOFOLLOW
_MOST_LINKS = 40
_OWN_CACHE = "set BNGEN_CACHE_DIR to a folder that only you can write to"
_SCRATCH = "bngen-scratch-"
_ROOM = 16 << 20
"""Bytes that a task may need; a folder with less is the last choice."""


def cache_dir() -> Path:
    """Where bngen keeps what can be made again: BNGEN_CACHE_DIR, else the user's cache folder.

    Raises:
        ToolchainError: when that is in a home that cannot be found.
    """
    own = os.environ.get("BNGEN_CACHE_DIR", "").strip()
    if own:
        return _expanded(own)
    xdg = os.environ.get("XDG_CACHE_HOME", "").strip()
    # A relative one is to be passed over, says the specification of these variables.
    return (Path(xdg) if os.path.isabs(xdg) else _expanded("~/.cache")) / "bngen"


@contextmanager
def cache_folder(name: str, make: bool = False) -> Iterator[int]:
    """The descriptor of a folder in the cache, for as long as the block.

    Args:
        name: of the folder.
        make: whether to make it, and what is above it, where it is missing.

    Raises:
        FileNotFoundError: when it is not there, and not to be made.
        ToolchainError: when it cannot be used, or somebody else could change it.
    """
    cache = cache_dir()
    try:
        descriptor = _opened(cache / name, make)
    except FileNotFoundError:
        if not make:
            raise
        raise ToolchainError(f"cannot make the cache folder {cache}", hint=_OWN_CACHE) from None
    except OSError as error:
        what = f"cannot use the cache folder {cache}: {_reason(error)}"
        raise ToolchainError(what, hint=_OWN_CACHE) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def is_private(folder: int) -> bool:
    """Whether an open folder is the user's (or root's), and nobody else can write to it."""
    status = os.fstat(folder)
    writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return status.st_uid in _trusted_owners() and not writable


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty private folder for the files of one task.

    Raises:
        ToolchainError: when there is nowhere to make one.
    """
    with ExitStack() as stack:
        path, parent = stack.enter_context(_scratch_parent())
        try:
            name, _ = stack.enter_context(files.working_folder(parent, _SCRATCH))
        except OSError as error:
            what = f"cannot write to {path}: {_reason(error)}"
            raise ToolchainError(what, hint="set TMPDIR to a folder with room") from None
        yield path / name


# --- walking ----------------------------------------------------------------------------------


def _opened(path: Path, make: bool = False, shared: bool = False) -> int:
    """Open a folder to list it, once it and all above it have been checked.

    Args:
        path: of the folder; a relative one starts in the current folder.
        make: whether to make what is missing.
        shared: whether others may add what is theirs, as to /tmp.

    Raises:
        OSError: as the system says; PermissionError for what somebody else could change.
    """
    walk = _Walk(make)
    try:
        whole = path if path.is_absolute() else Path.cwd() / path
        ahead = list(reversed(whole.parts[1:]))
        while ahead:
            ahead += reversed(walk.step(ahead.pop()))
        walk.check(shared)
        return os.open(".", files.FOLDER, dir_fd=walk.here)
    finally:
        os.close(walk.here)


class _Walk:
    """On the way from the root to a folder; ``here`` is the descriptor of the one reached."""

    def __init__(self, make: bool):
        self._make, self._links = make, 0
        self._root()

    def _root(self) -> None:
        self.here, self.trail = os.open("/", _SEARCH), "/"

    def step(self, name: str) -> tuple[str, ...]:
        """Go on to an entry of this folder; for a link, the steps that it stands for are left."""
        self.check(shared=True)
        there = self._open(name)
        status = os.fstat(there)
        if stat.S_ISDIR(status.st_mode):
            os.close(self.here)
            self.here, self.trail = there, os.path.join(self.trail, name)
            return ()
        try:
            if not stat.S_ISLNK(status.st_mode):
                raise NotADirectoryError(errno.ENOTDIR, f"{self._of(name)} is no folder")
            self._links += 1
            if self._links > _MOST_LINKS:
                raise OSError(errno.ELOOP, f"{self._of(name)} is one link too many")
            if status.st_uid not in _trusted_owners():
                raise PermissionError(errno.EACCES, f"{self._of(name)} is somebody else's link")
            target = Path(os.readlink("", dir_fd=there))
        finally:
            os.close(there)
        if not target.is_absolute():
            return target.parts
        os.close(self.here)
        self._root()
        return target.parts[1:]

    def _open(self, name: str) -> int:
        try:
            return os.open(name, _SEARCH, dir_fd=self.here)
        except FileNotFoundError:
            if not self._make:
                raise
        try:
            os.mkdir(name, 0o700, dir_fd=self.here)
        except FileExistsError:  # Another process was first.
            pass
        return os.open(name, _SEARCH, dir_fd=self.here)

    def _of(self, name: str) -> str:
        return os.path.join(self.trail, name)

    def check(self, shared: bool) -> None:
        """Refuse the folder reached if somebody else could change what is the user's in it.

        Raises:
            PermissionError: saying who could.
        """
        status = os.fstat(self.here)
        if status.st_uid not in _trusted_owners():
            what = f"{self.trail} belongs to another user ({status.st_uid})"
            raise PermissionError(errno.EACCES, what)
        # In a sticky folder, entries are their owners', and those are checked in turn.
        if shared and status.st_mode & stat.S_ISVTX:
            return
        others = status.st_mode & stat.S_IWOTH
        group = status.st_mode & stat.S_IWGRP and not self._own_group(status.st_gid)
        if others or group:
            raise PermissionError(errno.EACCES, f"others can write to {self.trail}")

    def _own_group(self, gid: int) -> bool:
        """Whether a group is the user's alone and stands for nobody else in a list of access.

        Where each user has such a group, masks leave folders writable for it.
        """
        if gid != _own_group(os.geteuid()) or not hasattr(os, "listxattr"):
            return False
        try:
            # Through /proc, since a descriptor that is good for searching alone cannot be asked.
            return "system.posix_acl_access" not in os.listxattr(f"/proc/self/fd/{self.here}")
        except OSError as error:
            return error.errno == errno.ENOTSUP


def _trusted_owners() -> tuple[int, ...]:
    """The user and root, and whoever owns ``/``: root's number where a container hides it."""
    return os.geteuid(), 0, os.stat("/").st_uid


@functools.cache
def _own_group(uid: int) -> int | None:
    """The group that is a user's alone and bears the same name."""
    try:
        user = pwd.getpwuid(uid)
        group = grp.getgrgid(user.pw_gid)
    except KeyError:
        return None
    alone = group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
    return group.gr_gid if alone else None


# --- places -----------------------------------------------------------------------------------


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # No HOME, and no entry for the user either.
        raise ToolchainError(f"cannot find the folder {path}: {error}", hint=_OWN_CACHE) from None


@contextmanager
def _scratch_parent() -> Iterator[tuple[Path, int]]:
    """The first folder for temporary files that can be trusted and has room, else one without."""
    with ExitStack() as stack:
        found: list[tuple[Path, int]] = []
        for path, make in _scratch_places():
            try:
                descriptor = _opened(path, make, shared=True)
            except OSError:
                continue
            stack.callback(os.close, descriptor)
            found.append((path, descriptor))
            if _has_room(descriptor):
                yield found[-1]
                return
        if not found:
            what = "there is no folder for temporary files that only you can change"
            raise ToolchainError(what, hint="set TMPDIR")
        yield found[0]


def _scratch_places() -> Iterator[tuple[Path, bool]]:
    """Paths, and whether to make them."""
    try:
        yield Path(tempfile.gettempdir()), False
    except FileNotFoundError:
        pass
    try:
        yield cache_dir() / "scratch", True
    except ToolchainError:
        pass
    yield Path("/dev/shm"), False


def _has_room(descriptor: int) -> bool:
    try:
        told = os.fstatvfs(descriptor)
    except OSError:
        return False
    inodes = told.f_files == 0 or told.f_favail > 0  # 0 of 0: as many as there is room for
    read_only = told.f_flag & os.ST_RDONLY
    return not read_only and inodes and told.f_bavail * told.f_frsize >= _ROOM


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
