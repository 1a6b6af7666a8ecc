"""The output folder of a build: all of it or none of it.

In: the folder's path, then the texts and objects of a module. Out: a folder with ``manifest.json``
and the files it lists. The folder is written next to its destination and renamed at the end, so
an interrupted or failed build leaves what was there before.

Nothing is ever deleted that an earlier build did not write: a folder with anything else in it is
refused, before any compiling.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bngen.errors import ToolchainError
from bngen.version import __version__

MANIFEST = "manifest.json"
OBJECTS = "kernels"
SUFFIX = {"tir": ".tir.py", "ll": ".ll", "asm": ".s"}


@contextmanager
def output_folder(path: Path) -> Iterator[Path]:
    """An empty folder that takes the place of ``path`` when the block ends well.

    Raises:
        ToolchainError: at once, when the folder cannot be written or holds foreign files.
    """
    path = Path(os.path.abspath(path.expanduser()))
    made = [p for p in path.parents if not p.exists()]
    _check_replaceable(path)
    try:
        staging = _make_staging(path)
        try:
            yield staging
            _swap(staging, path)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    finally:
        _remove_empty(made)


def write_module(module: Any, folder: Path, emit: Sequence[str] = ()) -> dict[str, Any]:
    """Write a module's objects, the texts asked for, and the manifest that lists them.

    Args:
        module: a built module.
        folder: an existing, empty folder.
        emit: kinds of text, of `SUFFIX`.

    Returns:
        The manifest.
    """
    with _writing(folder):
        (folder / OBJECTS).mkdir()
        module.save_objects(folder / OBJECTS)
    for kind in emit:
        _write_texts(folder / kind, module.emit(kind), SUFFIX[kind])
    manifest = {
        "generator": f"bngen {__version__}",
        **module.manifest(),
        "files": sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()),
    }
    with _writing(folder):
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def _write_texts(folder: Path, texts: Mapping[str, str], suffix: str) -> None:
    with _writing(folder):
        folder.mkdir()
        for name, text in texts.items():
            (folder / f"{name}{suffix}").write_text(text, encoding="utf-8")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into one line for the user."""
    try:
        yield
    except OSError as error:
        raise ToolchainError(
            f"cannot write {path}: {error.strerror or error}",
            hint="choose another --out, or make room there",
        ) from error


def _make_staging(path: Path) -> Path:
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))


def _check_replaceable(path: Path) -> None:
    """Refuse a destination whose removal would lose something bngen did not write."""
    with _writing(path):
        if path.exists() and not path.is_dir():
            raise ToolchainError(f"{path} is a file, not a folder", hint="choose another --out")
        if path.exists() and not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(None, "permission denied")
        if not path.exists() or not any(path.iterdir()):
            return
        foreign = _foreign_files(path)
    if foreign:
        raise ToolchainError(
            f"{path} holds {foreign[0]}, which bngen did not write", hint="choose another --out"
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
    """Put the new folder where the old one is; the old one comes back if that fails."""
    with _writing(path):
        # mkdtemp's folder is private to the user; the result gets what mkdir would have given it.
        mask = os.umask(0)
        os.umask(mask)
        staging.chmod(0o777 & ~mask)
        if not path.exists():
            staging.rename(path)
            return
        old = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
        path.rename(old)  # onto an empty folder: one step
        try:
            staging.rename(path)
        except BaseException:
            old.rename(path)
            raise
        shutil.rmtree(old)


def _remove_empty(folders: Sequence[Path]) -> None:
    """Take back the parents made for a build that failed."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
