"""Records: tuned knobs as data, one TOML file a CPU, and which knob values are legal.

In: folders of records and a target. Out: `Records.lookup`, which `compile_plan` asks for each
kernel. A record is found by the kernel's digest, so that it never meets a kernel other than the one
it was measured on, and is passed over unless `legal`: it may change speed, never results. Whoever
compiles asks `legal` once more, with the extents of the kernel at hand: those of a file are only
what the file says. A file is read in bounded time, whatever it holds.

Files are looked for in this order, and a kernel that one lacks may be in the next:

1. the folder given by name, 2. the user's own folder, 3. the folder bngen is shipped with; in each
``<exact CPU>.toml``, ``<psABI level>.toml``, ``generic.toml``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import tomllib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bngen import files
from bngen.codegen.nests import legal
from bngen.errors import BngenError, SourceLoc, ToolchainError
from bngen.ir.attributes import shown
from bngen.scheduling.knobs import Knobs

_LOG = logging.getLogger(__name__)
FORMAT = 1


class Cpu(Protocol):
    """What a target must say for its records to be found."""

    cpu: str
    psabi: str


# --- records ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """The best known knobs of one kernel.

    Attributes:
        id: `digest` of the kernel.
        kind: the rule's kind.
        what: the sub-layers, for people.
        extents: the kernel's extents, which the knobs must fit.
        knobs: what was found fastest.
        seconds: time with these knobs; no less than ``baseline`` where nothing beat the rule.
        baseline: time with the rule's own knobs, measured in turn with the other.
        threads: threads that both ran on.
        trials: how many candidates were measured.
    """

    id: str
    kind: str
    what: str
    extents: dict[str, int]
    knobs: Knobs
    seconds: float
    baseline: float
    threads: int
    trials: int


def digest(kind: str, signature: str) -> str:
    """The name of a kernel in record files.

    Args:
        kind: the rule's kind.
        signature: see `codegen.signature`. What follows a bar, the alignment of users'
            memory, makes no other kernel of it.
    """
    text = f"{kind}:{signature.partition('|')[0]}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class Records:
    """Records by digest, the most specific file first."""

    of: dict[str, Record] = field(default_factory=dict)

    def lookup(self, kind: str, signature: str, extents: Mapping[str, int]) -> Knobs | None:
        """Knobs for a kernel, or None where the rule's own serve.

        Args:
            kind: of its strategy.
            signature: of it.
            extents: what the strategy knows of it by now; that may be other than when it was tuned.
        """
        record = self.of.get(digest(kind, signature))
        # Where nothing beat the rule, the rule decides: it may be a better one by now.
        if record is None or record.seconds >= record.baseline:
            return None
        if dict(extents) != record.extents or legal(kind, record.extents, record.knobs):
            return None
        return dict(record.knobs)


def find(target: Cpu, folder: str | Path | None = None) -> Records:
    """All records that serve a target.

    Args:
        target: its exact CPU and psABI level name files.
        folder: looked into first.

    Raises:
        BngenError: for a folder that is not there, or a file that is no record file.
    """
    found = Records()
    for path in _files(target, folder):
        for record in read(path):
            found.of.setdefault(record.id, record)
    return found


def places(target: Cpu, folder: str | Path | None = None) -> dict[str, SourceLoc]:
    """Where each record that `find` finds stands: file and line, by digest.

    Args:
        target: see `find`.
        folder: see `find`.
    """
    found: dict[str, SourceLoc] = {}
    for path in _files(target, folder):
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
            if name := _ID_LINE.fullmatch(line.rstrip()):
                found.setdefault(name[1], SourceLoc(str(path), number))
    return found


def _files(target: Cpu, folder: str | Path | None) -> Iterator[Path]:
    """The files that serve a target, the first to be asked first."""
    if folder and not Path(folder).is_dir():
        raise BngenError(f"no folder of schedule records {folder}", hint="bngen tune makes one")
    for place in (folder, _user_folder_if_readable(), shipped_folder()):
        for name in dict.fromkeys((target.cpu, target.psabi, "generic")):
            path = Path(place) / f"{name}.toml" if place else None
            if path and path.is_file():
                yield path


def _user_folder_if_readable() -> Path | None:
    """Nobody has asked for the user's own records in so many words: what cannot be read is left."""
    try:
        folder = user_folder()
        os.listdir(folder)
        return folder
    except FileNotFoundError:
        return None
    except ToolchainError as error:
        _LOG.warning("the user's schedule records are not read: %s", error)
    except OSError as error:
        _LOG.warning("the user's schedule records are not read: %s: %s", folder, error.strerror)
    return None


def shipped_folder() -> Path:
    """Package data where bngen is installed, the folder beside the package in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "_schedules"
    return inside if inside.is_dir() else package.parent / "schedules"


def user_folder() -> Path:
    """Where `bngen tune` writes: measured at length, so not among what a cache may lose.

    Raises:
        ToolchainError: when that is in a home that cannot be found.
    """
    xdg = os.environ.get("XDG_DATA_HOME", "").strip()
    try:
        data = Path(xdg) if xdg else Path("~/.local/share").expanduser()
    except RuntimeError as error:  # No HOME, and no entry for the user either.
        hint = "set XDG_DATA_HOME"
        raise ToolchainError(f"no folder for records: {error}", hint=hint) from None
    return data / "bngen" / "schedules"


# --- files ------------------------------------------------------------------------------------

MOST_CHARACTERS = 2 << 20
"""Of a file: some five thousand records."""
MOST_KEYS = 32
"""Dots, brackets and braces of a line; TOML's reader takes the square of dotted keys."""
MOST = 2**31 - 1
"""Of extents, knobs and counts."""
_ID = re.compile(r"[0-9a-f]{16}")
_ID_LINE = re.compile(r"\s*id\s*=\s*[\"']([0-9a-f]{16})[\"']\s*(?:#.*)?")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value <= MOST


def _are_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_count, value.values()))


def _are_knobs(value: Any) -> bool:
    """Some are switches, and may be 0."""
    return isinstance(value, dict) and all(
        type(v) is int and 0 <= v <= MOST for v in value.values()
    )


def _is_time(value: Any) -> bool:
    return isinstance(value, float) and 0 < value < math.inf


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "id": lambda v: isinstance(v, str) and _ID.fullmatch(v) is not None,
    "kind": _is_text, "what": _is_text, "extents": _are_counts, "knobs": _are_knobs,
    "seconds": _is_time, "baseline": _is_time, "threads": _is_count, "trials": _is_count,
}  # fmt: skip
"""Field of a record -> whether a value can be its."""


def read(path: Path) -> list[Record]:
    """The records of a file.

    Raises:
        BngenError: naming the file and the record that is wrong.
    """
    table = _table(path)
    found = table.get("format")
    if type(found) is not int or found != FORMAT:
        what = f"{path} has format {shown(found)}, this bngen reads {FORMAT}"
        raise BngenError(what, hint=_TUNE)
    rows = table.get("kernel", [])
    if not isinstance(rows, list):
        raise BngenError(f"{path}: kernel is {shown(rows)}, no list of records", hint=_TUNE)
    return [_record(path, number, row) for number, row in enumerate(rows, start=1)]


_TUNE = "run bngen tune again"


def _table(path: Path) -> dict[str, Any]:
    """What a file says, in TOML of a bounded size and shape."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST_CHARACTERS + 1)
        if len(text) > MOST_CHARACTERS:
            raise ValueError(f"it has more than {MOST_CHARACTERS} characters")
        for number, line in enumerate(text.split("\n"), start=1):
            if sum(map(line.count, ".[{")) > MOST_KEYS:
                raise ValueError(f"line {number} has more than {MOST_KEYS} dots and brackets")
        return tomllib.loads(text)
    # ValueError: no UTF-8, no TOML, or a number of thousands of digits.
    except (OSError, ValueError) as error:
        raise BngenError(f"{path} is no record file: {error}", hint="delete it") from error
    except RecursionError:
        raise BngenError(f"{path} is no record file: brackets too deep", hint="delete it") from None


def _record(path: Path, number: int, row: Any) -> Record:
    wrong = [name for name, fits in _FIELDS.items() if not _has(row, name, fits)]
    if wrong:
        name = f"number {number}" if "id" in wrong else row["id"]
        raise BngenError(f"{path}: kernel {name}: {', '.join(wrong)} missing or wrong", hint=_TUNE)
    return Record(**{name: row[name] for name in _FIELDS})


def _has(row: Any, name: str, fits: Callable[[Any], bool]) -> bool:
    return isinstance(row, dict) and name in row and fits(row[name])


def add(
    path: Path, found: dict[str, Record], own: Container[str], versions: Mapping[str, str]
) -> None:
    """Write a record file to which another tuner may be adding, too.

    Args:
        path: its name is the CPU's.
        found: records by digest; what the file holds by now is added.
        own: digests of those that count, whatever the file says of their kernels.
        versions: see `write`.

    Raises:
        BngenError: for a file that has been damaged meanwhile.
        ToolchainError: when the folder cannot be written.
    """
    with files.alone_in(path.parent):
        if path.exists():
            found.update({r.id: r for r in read(path) if r.id not in own})
        write(path, found.values(), versions)


def write(path: Path, records: Iterable[Record], versions: Mapping[str, str]) -> None:
    """Write a record file; it appears complete or not at all.

    Args:
        path: its name is the CPU's.
        records: in any order; the file is sorted, so that two of them can be compared.
        versions: of what the records were measured with.

    Raises:
        ToolchainError: when the folder cannot be written.
    """
    text = render(records, versions)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(path, text.encode())
    except OSError as error:
        hint = "choose another --out"
        raise ToolchainError(f"cannot write {path}: {error.strerror}", hint=hint) from error


def render(records: Iterable[Record], versions: Mapping[str, str]) -> str:
    """A record file's text."""
    lines = ["# Written by bngen tune. Times are in seconds.", f"format = {FORMAT}"]
    lines.append(f"versions = {_inline(versions)}")
    for record in sorted(records, key=lambda r: (r.kind, sorted(r.extents.items()), r.id)):
        lines += ["", "[[kernel]]"]
        lines += [f"{name} = {_value(getattr(record, name))}" for name in _FIELDS]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return _inline(value)
    if isinstance(value, float):
        return f"{value:.4e}"
    return json.dumps(value)  # text and integers are written alike in JSON and TOML


def _inline(table: Mapping[str, Any]) -> str:
    return f"{{ {', '.join(f'{_key(k)} = {_value(v)}' for k, v in table.items())} }}"


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() else json.dumps(name)
