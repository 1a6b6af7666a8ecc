"""What one process keeps for the next: targets, and programs with their machine code.

In: all that the outcome depends on, as text. Out: what was made of it before. Everything is kept
under a digest of its inputs, of the machine, and of bngen's own source, so that nothing stale is
ever found; `runtime.store` looks after the files.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import pickle
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from bngen.backend.kernels import Code, link, objects
from bngen.errors import ToolchainError
from bngen.ir.node import Graph
from bngen.ir.text import print_graph
from bngen.runtime import host, native
from bngen.runtime.module import Built
from bngen.runtime.native import Entry
from bngen.runtime.store import Shelf, Store
from bngen.scheduling.records import Records
from bngen.target import Target

_LOG = logging.getLogger(__name__)
_LIMIT = 1 << 30
"""Bytes that programs may take; DenseNet-121's training step takes 15 MB."""
_PROGRAMS, _TARGETS = Store("programs", _LIMIT), Store("targets", 1 << 20)
_BUILT, _LIBRARY, _OBJECTS = "built.pickle", "kernels.so", "objects.pickle"
_TARGET = "target.pickle"


# --- targets ----------------------------------------------------------------------------------


def target(spec: Any, mcpu: str | None = None, mattr: str | Sequence[str] = ()) -> Target:
    """`Target.parse`, which asks LLVM, and so has to load it first."""
    if isinstance(spec, Target) and mcpu is None and not mattr:
        return spec
    asked = spec if isinstance(spec, Mapping) else None if spec is None else str(spec)
    try:
        text = json.dumps([asked, mcpu, mattr])
    except TypeError:  # Nothing that a target is written in: to be refused in the proper words.
        return Target.parse(spec, mcpu=mcpu, mattr=mattr)
    digest = _digest(text)
    shelf = _TARGETS.find(digest)
    found = _unpickled(shelf, _TARGET) if shelf else None
    if found is None:
        found = Target.parse(spec, mcpu=mcpu, mattr=mattr)
        _TARGETS.add(digest, {_TARGET: pickle.dumps(found)})
    return found


# --- programs ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """A program out of the cache, its kernels loaded."""

    built: Built
    entries: Mapping[str, Entry]
    shelf: Shelf

    def objects(self) -> dict[str, bytes] | None:
        """The kernels' object files by symbol, or None where they are gone by now."""
        return _unpickled(self.shelf, _OBJECTS)


def key(
    program: Graph,
    machine: Target,
    fusion: str,
    grad: bool,
    wrt: Iterable[str] | None,
    tuned: Records,
) -> str:
    """The digest of all that a build depends on; see `compiler.build`."""
    records = sorted(repr(record) for record in tuned.of.values())
    features = sorted(machine.features)
    asked = (fusion, grad, None if wrt is None else tuple(wrt))
    return _digest(print_graph(program), repr(machine), repr((features, asked, records)))


def find(digest: str) -> Kept | None:
    """The program kept under a `key`. Its kernels take the thread pool that is installed."""
    shelf = _PROGRAMS.find(digest)
    built = _unpickled(shelf, _BUILT) if shelf else None
    return _loaded(built, shelf) if built is not None else None


def keep(digest: str, built: Built, codes: Sequence[Code]) -> Kept | None:
    """Keep a program under a `key`, and load its kernels from there.

    Returns:
        None where nothing can be kept: the next process compiles the program again.
    """
    try:
        library = link(codes)
    except ToolchainError:  # Without a C compiler; the thread pool has said so.
        return None
    kept = pickle.dumps(objects(codes))
    files = {_BUILT: pickle.dumps(built), _LIBRARY: library, _OBJECTS: kept}
    shelf = _PROGRAMS.add(digest, files)
    return _loaded(built, shelf) if shelf else None


def _loaded(built: Built, shelf: Shelf) -> Kept | None:
    try:
        symbols = {step.symbol for step in built.steps}
        return Kept(built, native.load(shelf.path(_LIBRARY), symbols), shelf)
    except (OSError, ToolchainError) as error:
        _LOG.info("%s: made again", error)
        return None


# --- both -------------------------------------------------------------------------------------


def _unpickled(shelf: Shelf, name: str) -> Any:
    try:
        return pickle.loads(shelf.read(name))
    except OSError as error:
        _LOG.info("%s: made again", error)
        return None


def _digest(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in (_source(), host.identity(), *parts):
        digest.update(f"{len(part)}:{part}".encode())
    return digest.hexdigest()[:32]


@functools.cache
def _source() -> str:
    """A digest of bngen's own code, and of what reads and runs an entry."""
    versions = [metadata.version(name) for name in ("apache-tvm", "apache-tvm-ffi", "numpy")]
    digest = hashlib.sha256(repr((sys.version_info[:3], versions)).encode())
    package = Path(__file__).parent
    for path in sorted((*package.rglob("*.py"), *package.rglob("*.c"))):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package)}:{len(content)}:".encode())
        digest.update(content)
    return digest.hexdigest()
