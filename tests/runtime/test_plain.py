"""Plain data: what is written is read again, and nothing else is."""

import copy
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bngen.runtime import plain
from bngen.runtime.plain import PlainError


@dataclass(frozen=True)
class Point:
    x: int
    name: str | None
    where: tuple[int, ...] = ()


@dataclass(frozen=True)
class Everything:
    yes: bool
    number: float
    any_number: int | float | bool
    points: tuple[Point, ...]
    pairs: tuple[tuple[str, Point], ...]
    one: Point | None
    names: frozenset[str]
    sizes: Mapping[str, int]
    rest: Mapping[str, Any]


numbers = st.integers(-(2**70), 2**70)
text = st.text(st.characters(codec="utf-8"), max_size=5)
points = st.builds(Point, numbers, st.none() | text, st.lists(numbers, max_size=3).map(tuple))
json_like = st.recursive(
    st.none() | st.booleans() | numbers | text, lambda x: st.lists(x, max_size=3), max_leaves=5
)
everything = st.builds(
    Everything,
    st.booleans(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False) | numbers | st.booleans(),
    st.lists(points, max_size=3).map(tuple),
    st.lists(st.tuples(text, points), max_size=3).map(tuple),
    st.none() | points,
    st.frozensets(text, max_size=3),
    st.dictionaries(text, numbers, max_size=3),
    st.dictionaries(text, json_like, max_size=3),
)


@given(everything)
def test_what_is_written_is_read_again(value):
    written = plain.dumps(Everything, value)
    assert plain.loads(Everything, written) == value
    assert plain.dumps(Everything, plain.loads(Everything, written)) == written


@pytest.mark.parametrize(
    "data",
    [
        None, [], 3, "x", {},
        {"x": 1, "name": None},
        {"x": 1, "name": None, "where": [], "more": 1},
        {"x": True, "name": None, "where": []},
        {"x": 1.0, "name": None, "where": []},
        {"x": "1", "name": None, "where": []},
        {"x": 1, "name": 2, "where": []},
        {"x": 1, "name": None, "where": [1, "2"]},
        {"x": 1, "name": None, "where": [[1]]},
        {"x": 1, "name": None, "where": {"0": 1}},
        {"x": 1, "name": None, "where": None},
    ],
)  # fmt: skip
def test_what_is_of_another_type_is_refused(data):
    with pytest.raises(PlainError):
        plain.loads(Point, json.dumps(data).encode())


@pytest.mark.parametrize(
    "data", [[], {"x": [1], "name": [None], "where": []}, {"x": [1], "name": ["a"]}, {"x": 1}]
)
def test_columns_of_other_lengths_are_refused(data):
    with pytest.raises(PlainError):
        plain.loads(tuple[Point, ...], json.dumps(data).encode())


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff\xfe", b"[" * 200_000, b'{"a":' * 200_000, b"9" * 10_000, b"NaN",
        b"[-Infinity]", b'"\\ud800"', b'{"x": 1} 2', b"\x00", "\ufeff{}".encode(),
    ],
)  # fmt: skip
def test_what_is_no_such_text_is_refused(content):
    for kind in (Point, Mapping[str, Any], tuple[int, ...]):
        with pytest.raises(PlainError):
            plain.loads(kind, content)


def test_types_without_a_plain_form_are_named():
    with pytest.raises(TypeError, match="no plain form of .*bytes"):
        plain.dumps(bytes, b"")


@given(st.binary(max_size=50))
def test_any_bytes_are_read_or_refused(content):
    try:
        plain.loads(Everything, content)
    except PlainError:
        pass


@given(everything, st.data())
def test_any_damage_is_read_or_refused(value, data):
    written = bytearray(plain.dumps(Everything, value))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(written) - 1))
        written[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        assert isinstance(plain.loads(Everything, bytes(written)), Everything)
    except PlainError:
        pass


def test_what_is_read_later():
    later = plain.Later(b'{"a": [1], "b": 2}', {"b": 3})
    assert later["b"] == 3 and "_found" not in vars(later)
    for one in (later, copy.deepcopy(later), pickle.loads(pickle.dumps(later))):
        assert dict(one) == {"a": [1], "b": 3} and len(one) == 2
    with pytest.raises(PlainError):
        plain.Later(b"[]", {})["a"]
