"""The output folder of a build: all of it or none of it.

In: the folder's path, then files by name, among them a ``manifest.json`` that lists the others.
Out: a folder of these, and their contents again. The folder is written next to its destination and
takes its place in one step at the end, so an interrupted or failed build leaves what was there
before; a build that was killed leaves a folder beside it, which the next one there removes.

Nothing is ever deleted that an earlier build did not write: a folder with anything else in it is
refused, before any compiling.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bngen import files
from bngen.errors import ToolchainError

MANIFEST = "manifest.json"
_STAGING = ".bngen-build-"
_ELSEWHERE = "choose another folder, or --out"
_AGAIN = "build it again with bngen build"


@contextmanager
def output_folder(path: Path) -> Iterator[Path]:
    """An empty folder that takes the place of ``path`` when the block ends well.

    Raises:
        ToolchainError: at once, when the folder cannot be written or holds foreign files.
    """
    path = _resolved(path)
    _check_replaceable(path)
    with ExitStack() as stack:
        with _writing(path):
            stack.callback(_remove_empty, [p for p in path.parents if not p.exists()])
            path.parent.mkdir(parents=True, exist_ok=True)
            parent = stack.enter_context(files.opened(path.parent))
            name, _ = stack.enter_context(files.working_folder(parent, _STAGING))
            staging = path.parent / name / "new"
            staging.mkdir()
        yield staging
        with _writing(path):
            _swap(staging, path)


def write_files(folder: Path, contents: Mapping[str, bytes], out: Path) -> None:
    """Write files by name, which may lie in folders of the folder.

    Args:
        folder: an existing, empty folder.
        contents: what to write.
        out: what messages call the folder, where it is going to have another name.
    """
    with _writing(out):
        for name, content in contents.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)


def read_files(folder: Path, names: Sequence[str]) -> list[bytes]:
    """Contents of files of a folder that a build has written.

    Raises:
        ToolchainError: for one that is missing or cannot be read.
    """
    contents = []
    for name in names:
        path = folder / name
        try:
            # A pipe would be waited for.
            if not path.is_file():
                raise _missing(folder, name)
            contents.append(path.read_bytes())
        except OSError as error:
            what = f"cannot read {path}: {error.strerror or error}"
            raise ToolchainError(what, hint=_AGAIN) from None
    return contents


def _missing(folder: Path, name: str) -> ToolchainError:
    if not folder.is_dir():
        return ToolchainError(f"there is no folder {folder}", hint="name one that a build wrote")
    return ToolchainError(f"{folder} has no file {name}", hint=_AGAIN)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into one line for the user."""
    try:
        yield
    except OSError as error:
        raise ToolchainError(
            f"cannot write {path}: {error.strerror or error}",
            hint=f"{_ELSEWHERE}, or make room there",
        ) from error


def _resolved(path: Path) -> Path:
    """Where a folder really is: a link is not to be replaced, but what it stands for."""
    try:
        return Path(os.path.realpath(path.expanduser()))
    except (RuntimeError, OSError) as error:  # a home that is not there, a current folder that went
        raise ToolchainError(f"cannot find {path}: {error}", hint=_ELSEWHERE) from None


def _check_replaceable(path: Path) -> None:
    """Refuse a destination whose removal would lose something bngen did not write."""
    with _writing(path):
        if path.exists() and not path.is_dir():
            raise ToolchainError(f"{path} is a file, not a folder", hint=_ELSEWHERE)
        if os.path.ismount(path):
            raise ToolchainError(
                f"{path} is a mount point and cannot be replaced", hint="name a folder in it"
            )
        if path.exists() and not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(None, "permission denied")
        if not path.exists() or not any(path.iterdir()):
            return
        foreign = _foreign_files(path)
    if foreign:
        raise ToolchainError(
            f"{path} holds {foreign[0]}, which bngen did not write", hint=_ELSEWHERE
        )


def _foreign_files(path: Path) -> list[str]:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        ours = {MANIFEST, *manifest["files"]} if "generator" in manifest else set()
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        ours = set()
    there = (str(f.relative_to(path)) for f in path.rglob("*") if not f.is_dir() or f.is_symlink())
    return sorted(name for name in there if name not in ours)


def _swap(staging: Path, path: Path) -> None:
    """Put the new folder where the old one is, in one step wherever the file system can."""
    if not path.exists() or not any(path.iterdir()):
        staging.rename(path)
        return
    if files.exchange(staging, path):
        return
    old = staging.with_name("old")
    path.rename(old)
    try:
        staging.rename(path)
    except BaseException:
        old.rename(path)
        raise


def _remove_empty(folders: Sequence[Path]) -> None:
    """Take back the parents made for a build that failed."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
