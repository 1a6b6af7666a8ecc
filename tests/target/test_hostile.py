"""Targets that are nearly right: refused in one line and in time, or they are what they say.

Whatever is drawn comes from the number of the example alone: a failure names it.
"""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bngen.errors import TargetError
from bngen.target.parse import Target

AT_ONCE = 10
SECONDS = 30.0  # LLVM is asked about each of its CPUs once, where a feature is unknown
SPECS = (
    "llvm -mcpu=native", "llvm -mcpu=x86-64-v3 -mattr=-fma,+avx512f", "-mcpu=znver4",
    '{"kind": "llvm", "mcpu": "x86-64-v4", "mattr": ["-avx512f", "+avx2"]}',
    '{"kind": {"kind": "llvm"}, "mcpu": "znver3", "keys": ["cpu"], "feature.x": 1}',
)  # fmt: skip
CHARACTERS = "-+=,{}[]\"'\\ \n\x00aé²\ud800.3:x6_"


def check_target(spec: Any, **options: Any) -> Target | None:
    started = time.process_time()
    try:
        target = Target.parse(spec, **options)
    except TargetError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        return None
    finally:
        assert time.process_time() - started < SECONDS
    assert Target.parse(str(target)) == target
    return target


def _mutated(spec: str, rng: random.Random) -> str:
    letters = list(spec)
    for _ in range(rng.randint(1, 3)):
        i, j = rng.randrange(len(letters)), rng.randrange(len(letters))
        match rng.randrange(4):
            case 0:
                del letters[i]
            case 1:
                letters.insert(i, rng.choice(CHARACTERS))
            case 2:
                letters[i] = rng.choice(CHARACTERS)
            case _:
                letters[i], letters[j] = letters[j], letters[i]
    return "".join(letters)


@given(st.integers(0, 2**32 - 1))
def test_mutations(number: int):
    for rng in (random.Random(f"{number} {i}") for i in range(AT_ONCE)):
        check_target(_mutated(rng.choice(SPECS), rng))


HOSTILE = [
    '{"a":' * 1600, '{"a":' * 100_000, '{"mcpu": 3}', '{"mcpu": ' + "9" * 5000 + "}",
    '{"mcpu": ""}',
    '{"mcpu": "a\\u0000b"}', '{"mcpu": "\\ud800"}', '{"mattr": [3]}', '{"mattr": [["+avx2"]]}',
    '{"mattr": [null]}', '{"mattr": {"+avx2": 1}}', '{"mattr": ""}', '{"mattr": "+"}',
    '{"kind": {}}',
    '{"kind": ["llvm"]}', '{"kind": null}', '{"mtriple": ""}', '{"mtriple": 3}', '{"mtriple": "-"}',
    "{", "{}}", "[]", "null", "'", "\x00", "x" * 1_000_000, "-mcpu=" + "x" * 1_000_000,
    "llvm -mcpu=" + "x" * 8000, "llvm " * 100_000, "llvm -mcpu=\ud800",
    "llvm -mtriple=x86_64-\ud800", "llvm -mcpu=\x00", "llvm -mattr=+\x00",
    "llvm -mattr=" + ",".join(f"+{i}" for i in range(10_000)), "--", "llvm -mcpu",
    "llvm -mcpu=-mattr", b"llvm", 3, [], ["llvm"], object, {3: 4}, {None: None},
    {"mcpu": None}, {"mcpu": b"native"}, {"mattr": (1, 2)}, {"mattr": b"+avx2"}, {"mtriple": b"x"},
]  # fmt: skip


@pytest.mark.parametrize("spec", HOSTILE, ids=lambda s: ascii(s)[:40])
def test_what_is_no_target(spec: Any):
    assert check_target(spec) is None


@pytest.mark.parametrize(
    "options",
    [{"mcpu": 3}, {"mcpu": b"native"}, {"mcpu": ["native"]}, {"mcpu": "x" * 1_000_000},
     {"mattr": 3}, {"mattr": [3]}, {"mattr": "\x00"}, {"mattr": b"+avx2"}, {"mattr": {"+avx2": 1}}],
    ids=lambda o: ascii(o)[:40],
)  # fmt: skip
def test_what_is_no_option(options: dict[str, Any]):
    assert check_target("llvm", **options) is None


def test_no_features_are_none():
    assert check_target("llvm", mattr=None, mcpu="") == Target.parse("llvm")
    assert check_target({"kind": "llvm", "mattr": []}) == Target.parse("llvm")
