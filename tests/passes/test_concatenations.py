"""Concatenations nested by their longest earlier prefix."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bngen.ir.build import GraphBuilder
from bngen.ir.interp import run
from bngen.ir.node import Graph
from bngen.ir.types import TensorType
from bngen.ir.verify import verify
from bngen.passes.concatenations import nest_concatenations
from tests.oracle import assert_same
from tests.strategies import programs, random_args


def joins(*rows: str, axis: int = 1) -> list[str]:
    """Concatenate inputs a..e and earlier rows 0..9, nest, and give the operands in the same way.

    ``joins("ab", "abc")`` gives ``["ab", "0c"]``.
    """
    b = GraphBuilder()
    named = {c: b.input(c, TensorType((2, 3, 4, 4))) for c in "abcde"}
    for i, row in enumerate(rows):
        named[str(i)] = b.emit("cat", *(named[c] for c in row), axis=axis)
    graph = nest_concatenations(b.finish((named[str(len(rows) - 1)],)))
    letters = {v: c for c, v in named.items()}
    return ["".join(letters[v] for v in n.inputs) for n in graph.nodes]


@pytest.mark.parametrize(
    "before, after",
    [
        (["ab", "abc", "abcd"], ["ab", "0c", "1d"]),
        (["ab", "abcd"], ["ab", "0cd"]),
        (["ab", "0c", "abcd"], ["ab", "0c", "1d"]),
        (["ab", "abc", "0cd"], ["ab", "0c", "1d"]),
        (["abc", "ab"], ["abc", "ab"]),
        (["ab", "ba", "bac"], ["ab", "ba", "1c"]),
        (["ab", "cab"], ["ab", "cab"]),
        (["ab", "ab"], ["ab", "ab"]),
        (["bc", "ab", "a0d"], ["bc", "ab", "a0d"]),
        (["a", "ab", "0bc"], ["a", "ab", "1c"]),
        (["aa", "aab"], ["aa", "0b"]),
    ],
)
def test_operands(before, after):
    assert joins(*before) == after


def test_other_axes_are_left_alone():
    assert joins("ab", "abc", axis=2) == ["ab", "abc"]


@given(programs(), st.integers(0, 2**32 - 1))
def test_meaning_stays_and_twice_is_once(graph: Graph, seed: int):
    nested = nest_concatenations(graph)
    verify(nested, "nest_concatenations")
    assert nest_concatenations(nested) == nested
    args = random_args(graph, seed)
    before, after = (run(g, args, "float64").outputs for g in (graph, nested))
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        assert_same(b, a, f"output {i}", rtol=0)
