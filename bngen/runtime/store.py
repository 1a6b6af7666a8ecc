"""Files that can be made again, kept in the user's cache folder.

In: a key, which is the digest of all that they depend on, and files. Out: the same files, in this
process or a later one. An entry is a folder that appears complete, by a rename, or not at all; what
has been damaged since counts as absent. The entries used longest ago give way to new ones.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bngen.errors import ToolchainError
from bngen.runtime import toolchain

_LOG = logging.getLogger(__name__)
_INDEX = "index.json"
_LEFTOVERS_AFTER = 3600
"""Seconds after which a folder under construction is one that nobody will finish."""


class Store:
    """Entries of one kind.

    Args:
        name: of the folder within the cache folder.
        limit: bytes that all entries together may take.
    """

    def __init__(self, name: str, limit: int):
        self._name, self._limit = name, limit

    def find(self, key: str) -> Shelf | None:
        """The entry of a key, if there is one; it counts as used now."""
        try:
            folder = toolchain.private_folder(self._name) / key
            digests = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
            os.utime(folder)
        except (OSError, ValueError, ToolchainError):
            return None
        return Shelf(folder, digests) if isinstance(digests, dict) else None

    def add(self, key: str, files: Mapping[str, bytes]) -> Shelf | None:
        """Keep files under a key; where that cannot be, a warning says why.

        Returns:
            The new entry, or None where it could not be written.
        """
        digests = {name: _digest(content) for name, content in files.items()}
        content = {**files, _INDEX: json.dumps(digests).encode()}
        try:
            place = toolchain.private_folder(self._name)
            staging = Path(tempfile.mkdtemp(prefix=".new-", dir=place))
            try:
                for name, data in content.items():
                    (staging / name).write_bytes(data)
                _take_place(staging, place / key)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
            self._make_room(place, key)
        except (OSError, ToolchainError) as error:
            _LOG.warning("nothing is kept for the next time: %s", error)
            return None
        return Shelf(place / key, digests)

    def _make_room(self, place: Path, newest: str) -> None:
        entries = sorted(map(_Usage.of, place.iterdir()), key=lambda e: e.used, reverse=True)
        total = 0
        for entry in entries:
            unfinished = entry.folder.name.startswith(".")
            total += 0 if unfinished else entry.nbytes
            old = entries[0].used - entry.used > _LEFTOVERS_AFTER
            if old if unfinished else total > self._limit and entry.folder.name != newest:
                shutil.rmtree(entry.folder, ignore_errors=True)


@dataclass(frozen=True)
class _Usage:
    """How much a folder takes, and when it was used last (in seconds since the epoch)."""

    folder: Path
    nbytes: int
    used: float

    @classmethod
    def of(cls, folder: Path) -> _Usage:
        try:
            nbytes = sum(f.stat().st_size for f in folder.iterdir())
            return cls(folder, nbytes, folder.stat().st_mtime)
        except OSError:  # Another process has just removed it.
            return cls(folder, 0, 0.0)


class Shelf:
    """What is kept under one key."""

    def __init__(self, folder: Path, digests: Mapping[str, str]):
        """Opens nothing yet."""
        self._folder, self._digests = folder, digests

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            OSError: when it is gone or is not what was written; the entry is given up then.
        """
        content = (self._folder / name).read_bytes()
        if _digest(content) != self._digests.get(name):
            shutil.rmtree(self._folder, ignore_errors=True)
            raise OSError(f"{self._folder / name} is damaged")
        return content

    def path(self, name: str) -> Path:
        """Where a file lies whose content is what was written; raises as `read`."""
        self.read(name)
        return self._folder / name


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _take_place(staging: Path, folder: Path) -> None:
    try:
        staging.rename(folder)
    except OSError:
        # Another process was first, or what lies there is damaged: the new one takes its place.
        shutil.rmtree(folder, ignore_errors=True)
        staging.rename(folder)
