"""Record files that are nearly right: refused in one line and in time, or read and harmless.

Whatever is drawn comes from the number of the example alone: a failure names it.
"""

from __future__ import annotations

import math
import random
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bngen.codegen.nests import legal
from bngen.errors import BngenError
from bngen.tuning import records
from bngen.tuning.records import Record, Records, read, render, shipped_folder
from tests.ir.mutations import mutated
from tests.tuning.test_records import EXTENTS, candidates, space

AT_ONCE = 10
SECONDS = 8.0
numbers = st.integers(0, 2**32 - 1)


def _known() -> list[Record]:
    """A record of each kind, on the extents of the tests of legality and as shipped."""
    shipped = {r.kind: r for p in sorted(shipped_folder().glob("*.toml")) for r in read(p)}
    made = [
        Record(f"{i:016x}", kind, "relu conv2d", dict(e), next(iter(candidates(kind, e))),
               1e-4, 2e-4, 2, 24)
        for i, (kind, e) in enumerate(EXTENTS.items())
    ]  # fmt: skip
    return [*shipped.values(), *made]


KNOWN = _known()
TEXTS = [render(KNOWN, {"bngen": "0.1.0"}), *(render([r], {}) for r in KNOWN)]


def check_file(path: Path, content: str | bytes) -> list[Record]:
    """What is read; nothing where the file is refused as it should be."""
    raw = content if isinstance(content, bytes) else content.encode(errors="surrogatepass")
    path.write_bytes(raw)
    started = time.process_time()
    try:
        rows = read(path)
        for row in rows:
            check_lookup(row)
        return rows
    except BngenError as error:
        message = str(error)
        assert str(path) in message and "\n" not in message and len(message) < 1000
        return []
    finally:
        assert time.process_time() - started < SECONDS


def check_lookup(row: Record) -> None:
    """What is found is legal for the extents that the file names, and made of small integers."""
    key = records.digest(row.kind, "some kernel")
    knobs = Records({key: replace(row, id=key)}).lookup(row.kind, "some kernel", row.extents)
    assert knobs is None or legal(row.kind, row.extents, knobs) is None
    assert all(type(v) is int and 0 <= v < 2**31 for v in (knobs or {}).values())


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("records") / "znver4.toml"


@given(numbers)
def test_mutations_of_record_files(path: Path, number: int):
    for rng in (random.Random(f"{number} {i}") for i in range(AT_ONCE)):
        check_file(path, mutated(rng.choice(TEXTS), rng))


@given(numbers)
def test_bytes_that_are_turned(path: Path, number: int):
    for rng in (random.Random(f"{number} {i}") for i in range(AT_ONCE)):
        raw = bytearray(rng.choice(TEXTS[1:]).encode())
        for _ in range(rng.randint(1, 4)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        check_file(path, bytes(raw))


@given(numbers)
def test_values_of_another_kind(path: Path, number: int):
    values = (
        "0", "-1", "1", "3", "true", "nan", "inf", "-inf", "0.5", "-0.0", "1e400", "''", "'x'",
        "[]", "[1]", "{}", "{ a = 1 }", "2147483647", "2147483648", "9223372036854775807",
        "9223372036854775808", "1" + "0" * 4000, "1" + "0" * 5000, "0x7fffffff", "1979-05-27",
    )  # fmt: skip
    for rng in (random.Random(f"{number} {i}") for i in range(AT_ONCE)):
        parts = re.split(r"(?<== )([^,{}\n]+|\{[^}]*\})(?=[,\n ])", rng.choice(TEXTS[1:]))
        at = rng.randrange(1, len(parts), 2)
        parts[at] = rng.choice(values)
        check_file(path, "".join(parts))


_HEAD = "format = 1\n"
HOSTILE = {
    "a number": _HEAD + "kernel = 3\n",
    "a text": _HEAD + "kernel = 'x'\n",
    "a table": _HEAD + "[kernel]\nid = 'x'\n",
    "a list of lists": _HEAD + "kernel = [[]]\n",
    "a format that only equals one": "format = true\n",
    "a format of another type": "format = 1.0\n",
    "deep brackets": _HEAD + "kernel = " + "[" * 100_000,
    "deep brackets, closed": _HEAD + "kernel = " + "[" * 3000 + "]" * 3000,
    "deep brackets on many lines": _HEAD + "kernel = " + "[\n" * 100_000,
    "deep tables on many lines": _HEAD + "kernel = " + "[{a=\n" * 100_000,
    "dotted keys": _HEAD + ".".join("a" * 30_000) + " = 1\n",
    "dotted quoted keys": _HEAD + ".".join(['"\u2028"'] * 30_000) + " = 1\n",
    "a dotted header": _HEAD + "[" + ".".join("a" * 30_000) + "]\n",
    "many dotted headers": _HEAD + "".join(
        f"[{'.'.join([f'a{i}'] * 31)}]\n" for i in range(20_000)
    ),
    "a digit too many": _HEAD + "kernel = " + "9" * 5000 + "\n",
    "a long file": _HEAD + "#" * 3_000_000,
    "no text": b"\xff\xfe\x00\x01",
    "a NUL": _HEAD + "\x00",
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files(path: Path, what: str):
    assert check_file(path, HOSTILE[what]) == []


def test_a_file_that_only_looks_like_one(tmp_path):
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(BngenError, match=r"folder.toml is no record file"):
        read(tmp_path / "folder.toml")


@pytest.mark.parametrize("kind", EXTENTS)
@pytest.mark.parametrize("size", [2**31 - 1, 2**20, 720720])
def test_legality_takes_little_time_whatever_the_extents(kind: str, size: int):
    small = {"groups": 1, "spread_h": 1, "spread_w": 1, "group_rows": 1, "in_lanes": 16}
    extents = {name: small.get(name, size) for name in EXTENTS[kind]}
    names = space(kind, extents)
    started = time.process_time()
    for value in (1, 2, size, 2**31 - 1):
        declined = legal(kind, extents, dict.fromkeys(names, value))
        assert declined is None or len(declined.reason) < 1000
    assert time.process_time() - started < SECONDS


@pytest.mark.parametrize("kind", EXTENTS)
def test_knobs_that_are_no_number_of_anything_are_declined(kind: str):
    good = next(iter(candidates(kind, EXTENTS[kind])))
    for value in (0, -1, 2**31, 2**63, 10**5000, 1.0, True, None, "1", math.nan):
        for name in good:
            if value == 0 and name == "scratch":  # a switch
                continue
            assert name in legal(kind, EXTENTS[kind], {**good, name: value}).reason


OURS, THEIRS = 16 * "a", 16 * "b"


def test_what_another_tuner_has_added_stays(tmp_path):
    """Each writes the whole file, with what it knows; of its own kernels it knows better."""
    path = tmp_path / "cpu.toml"
    ours, theirs = (replace(KNOWN[0], id=name) for name in (OURS, THEIRS))
    found = {OURS: ours}
    records.add(path, found, {OURS}, {})
    records.add(path, {THEIRS: theirs}, {THEIRS}, {})
    found[OURS] = replace(ours, trials=ours.trials + 1)
    records.add(path, found, {OURS}, {})
    assert {r.id: r.trials for r in records.read(path)} == {
        OURS: ours.trials + 1, THEIRS: theirs.trials,
    }  # fmt: skip
    assert set(found) == {OURS, THEIRS}
