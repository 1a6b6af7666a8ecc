"""What one process keeps for the next: targets, and the bundles of programs.

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
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from bngen.errors import BngenError
from bngen.ir.node import Graph
from bngen.plan.formats import Formats
from bngen.runtime import bundle as bundles
from bngen.runtime import host, plain
from bngen.runtime.bundle import Bundle
from bngen.runtime.plain import PlainError
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


def key(
    program: Graph,
    machine: Target,
    fusion: str,
    grad: bool,
    wrt: Sequence[str] | None,
    tuned: Records,
    formats: Formats,
) -> str:
    """The digest of all that a bundle depends on; see `compiler.bundle`."""
    records = sorted(repr(record) for record in tuned.of.values())
    # Not its repr: sets of features have another order in each process.
    described = plain.dumps(Target, machine).decode()
    asked = (fusion, grad, None if wrt is None else tuple(wrt), str(formats))
    return _digest(str(program), described, repr((asked, records)))


def find(key: str) -> Bundle | None:
    """The bundle kept under a `key`."""

    def fetch(names: Sequence[str]) -> tuple[bytes, ...]:
        found = _PROGRAMS.read(key, *map(_flat, names))
        if found is None:
            raise PlainError("a file of it is gone, or not what was written")
        return found

    try:
        return bundles.read(fetch)
    except BngenError as error:
        _LOG.info("entry %s is made again: %s", key, error)
        return None


def keep(key: str, bundle: Bundle) -> None:
    """Keep a bundle under a `key`; where that cannot be, the next process compiles it again."""
    _PROGRAMS.add(key, {_flat(name): content for name, content in bundles.files(bundle).items()})


def _flat(name: str) -> str:
    """The name of a bundle's file in an entry, which has no folders; texts are not kept."""
    return name.rpartition("/")[2]


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
