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
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from bngen.errors import ToolchainError
from bngen.ir.node import Graph
from bngen.ir.text import print_graph
from bngen.plan.formats import Formats
from bngen.runtime import bundle, host, native, plain
from bngen.runtime.native import Entry
from bngen.runtime.plain import PlainError
from bngen.runtime.signature import Built
from bngen.runtime.store import Store
from bngen.target.parse import Target
from bngen.tuning.records import Records

_LOG = logging.getLogger(__name__)
_LIMIT = 1 << 30
"""Bytes that programs may take; DenseNet-121's training step takes 15 MB."""
_PROGRAMS, _TARGETS = Store("programs", _LIMIT), Store("targets", 1 << 20)
_TARGET = "target.json"


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
    kept = _TARGETS.read(digest, _TARGET)
    if kept:
        try:
            return plain.loads(Target, kept[0])
        except PlainError as error:
            _LOG.info("target %s is parsed again: %s", digest, error)
    found = Target.parse(spec, mcpu=mcpu, mattr=mattr)
    _TARGETS.add(digest, {_TARGET: plain.dumps(Target, found)})
    return found


# --- programs ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """A program out of the cache, its kernels loaded.

    Attributes:
        built: what a module runs.
        entries: the kernels, by symbol.
        key: what it is kept under.
    """

    built: Built
    entries: Mapping[str, Entry]
    key: str

    def objects(self) -> dict[str, bytes] | None:
        """The kernels' object files by symbol, or None where they are gone by now."""
        symbols = sorted({step.symbol for step in self.built.steps})
        found = _PROGRAMS.read(self.key, *map(bundle.object_file, symbols))
        return None if found is None else dict(zip(symbols, found, strict=True))


def key(
    program: Graph,
    machine: Target,
    fusion: str,
    grad: bool,
    wrt: Iterable[str] | None,
    tuned: Records,
    formats: Formats,
) -> str:
    """The digest of all that a build depends on; see `compiler.build`."""
    records = sorted(repr(record) for record in tuned.of.values())
    features = sorted(machine.features)
    asked = (fusion, grad, None if wrt is None else tuple(wrt), str(formats))
    return _digest(print_graph(program), repr(machine), repr((features, asked, records)))


def find(key: str) -> Kept | None:
    """The program kept under a `key`. Its kernels take the thread pool that is installed."""
    names = (*bundle.DATA, bundle.LIBRARY)
    found = _PROGRAMS.read(key, *names)
    if found is None:
        return None
    contents = dict(zip(names, found, strict=True))
    try:
        built = bundle.built_of(contents)
        entries = native.load(contents[bundle.LIBRARY], {step.symbol for step in built.steps})
    except (PlainError, ToolchainError) as error:
        _LOG.info("entry %s is made again: %s", key, error)
        return None
    return Kept(built, entries, key)


def keep(key: str, built: Built, library: bytes, objects: Mapping[str, bytes]) -> None:
    """Keep a program under a `key`; where that cannot be, the next process compiles it again.

    Args:
        key: see `key`.
        built: what a module runs.
        library: the kernels' shared library.
        objects: their object files, by symbol.
    """
    _PROGRAMS.add(key, bundle.files(built, library, objects))


# --- both -------------------------------------------------------------------------------------


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
