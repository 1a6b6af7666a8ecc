"""The text form: exact round trips, and errors that name the line."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bngen.errors import ProgramError, SourceLoc
from bngen.ir.build import GraphBuilder
from bngen.ir.node import Graph
from bngen.ir.text import parse_graph
from bngen.ir.types import TensorType
from tests.ir.op_cases import CASES
from tests.strategies import programs

TEXT = """program cpl {
  input x : f32[2,3,8,8]
  parameter features.0.weight : f32[4,3,3,3] init=('kaiming_uniform', 2.23606797749979)
  buffer running_mean : f32[4] init=('zeros',)
  buffer running_var : f32[4]
  y = conv2d(x, features.0.weight) {padding=(1, 1, 1, 1)} : f32[2,4,8,8]
  n, m, v = batch_norm(y, _, _) : f32[2,4,8,8], f32[4], f32[4]
  new_m, new_v = bn_update(running_mean, running_var, m, v, _) {count=128} : f32[4], f32[4]
  p, i = max_pool2d(n) {kernel=(2, 2), stride=(2, 2)} : f32[2,4,4,4], i32[2,4,4,4]
  update running_mean = new_m
  update running_var = new_v
  return pooled = p, 'grad:x y' = y
}
"""


def test_text_is_printed_as_it_was_read():
    assert str(parse_graph(TEXT)) == TEXT


@given(programs())
def test_random_programs_survive_the_round_trip(graph: Graph):
    assert parse_graph(str(graph)) == graph


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_every_op_and_attribute_survives_the_round_trip(case):
    assert parse_graph(str(case.graph)) == case.graph


@given(
    st.one_of(
        st.floats(width=64), st.integers(-(2**63), 2**63 - 1), st.booleans(),
    )
)  # fmt: skip
def test_numbers_survive_with_their_type_and_sign(value):
    b = GraphBuilder()
    graph = b.finish((b.emit("constant", value=value, dtype="float64"),))
    again = parse_graph(str(graph)).nodes[0].attrs["value"]
    assert (type(again), repr(again)) == (type(value), repr(value))


_NUMBERS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False))  # as text holds
_INIT = st.recursive(
    st.one_of(_NUMBERS, st.booleans(), st.none(), st.text()),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
)


@given(
    st.lists(st.text(min_size=1), min_size=3, max_size=3, unique=True),
    _INIT.map(lambda v: (v,)),
    st.sampled_from(["input", "parameter", "buffer"]),
    st.booleans(),
)
def test_any_names_and_initial_values_survive(names, init, kind, tuple_output):
    b = GraphBuilder(name=names[0])
    x = b.input(names[1], TensorType(()), kind, init)
    y = b.emit("exp", x, name=names[2])
    graph = b.finish((y,), output_names=(names[0],), tuple_output=tuple_output)
    assert parse_graph(str(graph)) == graph


@pytest.mark.parametrize("name", ["_", "input", "update", "return", "inf", "nan", "True", "a:b.c"])
def test_names_that_look_like_syntax(name):
    b = GraphBuilder()
    x = b.input("x", TensorType(()))
    y = b.emit("exp", x, name=name)
    graph = b.finish((b.emit("exp", y), y), output_names=(name, "z"))
    assert parse_graph(str(graph)) == graph


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("tuple_output", [True, False])
def test_what_a_call_returns_survives(count, tuple_output):
    b = GraphBuilder()
    x = b.input("x", TensorType(()))
    graph = b.finish((x,) * count, tuple_output=tuple_output)
    assert parse_graph(str(graph)) == graph


def test_nan_compares_equal_to_itself_after_the_round_trip():
    b = GraphBuilder()
    graph = b.finish((b.constant(float("nan")),))
    assert parse_graph(str(graph)) == graph
    assert math.isnan(graph.nodes[0].attrs["value"])


def test_a_value_that_only_equals_the_default_is_printed():
    b = GraphBuilder()
    graph = b.finish((b.emit("hardtanh", b.input("x", TensorType(())), lo=-1, hi=1),))
    assert "{hi=1, lo=-1}" in str(graph)
    attrs = parse_graph(str(graph)).nodes[0].attrs
    assert (type(attrs["lo"]), type(attrs["hi"])) == (int, int)


def test_locations_are_comments():
    b = GraphBuilder()
    y = b.emit("exp", b.input("x", TensorType(())), loc=SourceLoc("net.py", 7))
    text = b.finish((y,)).text(locations=True)
    assert "exp = exp(x) : f32[]  # net.py:7" in text
    assert parse_graph(text) == b.finish((y,))


BROKEN = [
    ("y = conv2d", "y = conv3d", 6, "unknown op 'conv3d'; did you mean conv2d?"),
    ("padding=", "pading=", 6, "unknown attributes ['pading']"),
    ("{count=128} ", "", 8, "missing ['count']"),
    ("conv2d(x, ", "conv2d(z, ", 6, "'z' is not defined here (define it on an earlier line)"),
    ("p, i = ", "p, y = ", 9, "'y' is assigned twice"),
    ("f32[2,4,8,8]", "f32[2,4,6,6]", 6, "it gives f32[2,4,8,8]"),
    ("n, m, v =", "n, m =", 7, "2 result(s) of batch_norm"),
    ("init=('zeros',)", "init=('zeros'", 4, "expected ')', found 'the end of the line'"),
    ("x : f32", "x : f16", 2, "unknown element type 'f16'"),
    ("x : f32[2,3,8,8]", "x : f32[2,-3,8,8]", 2, "is no shape"),
    ("x : f32[2,3,8,8]", "x : f32[2,3,8,8] y", 2, "'y' is left over"),
    ("update running_mean = new_m", "update running_mean", 10, "expected '='"),
    ("pooled = p, ", "p, ", 12, "some results have labels"),
    ("  return pooled = p, 'grad:x y' = y\n", "", 12, "expected"),
    ("\n}\n", "\n", 12, "the closing '}' is missing"),
    ("\n}\n", "\n}\n}\n", 14, "'}' follows the end of the program"),
    ("program cpl", "module cpl", 1, "expected 'program', found 'module'"),
    ("x, features", "x; features", 6, "cannot read '; features"),
    ("(y, _, _)", "(y, _, _, _)", 7, "batch_norm takes (x, weight?, bias?), got 4 operands"),
    (TEXT, "", 1, "the text is empty"),
]


@pytest.mark.parametrize("old, new, line, message", BROKEN, ids=[m for *_, m in BROKEN])
def test_errors_name_the_line(old, new, line, message):
    broken = TEXT.replace(old, new, 1)
    assert broken != TEXT
    with pytest.raises(ProgramError) as error:
        parse_graph(broken)
    assert str(error.value).startswith(f"line {line}: ")
    assert message in str(error.value)
