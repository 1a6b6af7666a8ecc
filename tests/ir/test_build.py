"""The graph builder, substitution, pruning."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bngen.errors import SourceLoc
from bngen.ir.build import GraphBuilder, plain, prune, substitute
from bngen.ir.interp import run
from bngen.ir.node import Graph
from bngen.ir.ops import OPS
from bngen.ir.text import parse_graph
from bngen.ir.types import TensorType, Value
from bngen.ir.verify import verify
from tests.ir.op_cases import CASES
from tests.oracle import assert_same
from tests.strategies import programs, random_args

F32 = TensorType((2, 3))


def start() -> tuple[GraphBuilder, Value]:
    b = GraphBuilder(name="test")
    return b, b.input("x", F32)


def test_names_are_unique_and_readable():
    b, x = start()
    names = [b.emit("exp", x).name for _ in range(3)]
    assert names == ["exp", "exp_1", "exp_2"]
    assert b.emit("exp", x, name="x").name == "x_1"
    assert GraphBuilder(b.finish(())).emit("exp", x).name == "exp_3"


def test_every_op_with_several_results_names_them():
    """But those of which there are as many as operands, which are numbered."""
    for case in CASES:
        results, row = case.graph.outputs, OPS[case.op]
        numbered = row.variadic and len(results) == len(case.operands)
        assert len(results) == 1 or numbered or len(row.results) == len(results), case.op


def test_numbers_become_constants_of_the_neighbours_type_and_are_shared():
    b = GraphBuilder()
    x = b.input("x", TensorType((2,), "float64"))
    b.emit("where", b.emit("greater", x, 0), b.emit("mul", x, 2.0), 0)
    constants = [n for n in b.finish(()).nodes if n.op == "constant"]
    assert [(n.attrs["value"], n.out.dtype) for n in constants] == [
        (0, "float64"),
        (2.0, "float64"),
    ]


def test_equal_constants_of_other_type_or_sign_are_told_apart():
    b = GraphBuilder()
    keys = [(0.0, "float32"), (-0.0, "float32"), (0, "int64"), (0.0, "float64")]
    assert len({b.constant(*k).name for k in keys}) == 4
    assert b.constant(float("nan")) == b.constant(float("nan"))


def test_constants_of_the_graph_are_found_again():
    b, x = start()
    graph = b.finish((b.emit("mul", x, 2.0),))
    assert GraphBuilder(graph).constant(2.0) == graph.nodes[0].out


def test_missing_trailing_operands_may_be_left_out():
    b, x = start()
    y, _, _ = b.emit("batch_norm", x)
    assert b.producer(y).inputs == (x, None, None)


def test_arguments_precede_parameters():
    b, _ = start()
    b.input("w", F32, "parameter")
    b.input("running", F32, "buffer")
    b.input("dy", F32)
    assert [i.name for i in b.finish(()).inputs] == ["x", "dy", "w", "running"]


def test_a_rewrite_reaches_operands_outputs_and_updates():
    b, x = start()
    y = b.emit("silu", x)
    graph = b.finish((y, b.emit("exp", y)), updates=((x, y),), output_names=("a", "b"))
    b = GraphBuilder.rewriting(graph)
    for node in graph.nodes:
        if node.op == "silu":
            b.replace(node.out, b.emit("mul", node.inputs[0], b.emit("sigmoid", node.inputs[0])))
        else:
            b.add(node)
    new = b.finish()
    verify(new)
    assert [n.op for n in new.nodes] == ["sigmoid", "mul", "exp"]
    assert new.outputs[0].name == new.updates[0][1].name == "mul"
    assert (new.output_names, new.name) == (("a", "b"), "test")
    args = {"x": np.ones((2, 3))}
    for a, c in zip(run(graph, args).outputs, run(new, args).outputs, strict=True):
        np.testing.assert_allclose(a, c, rtol=1e-6)


def test_locations_are_those_of_the_builder_unless_told():
    b, x = start()
    b.loc = SourceLoc("net.py", 3)
    b.emit("exp", x)
    b.emit("log", x, loc=SourceLoc("net.py", 4))
    assert [n.loc.line for n in b.finish(()).nodes] == [3, 4]


def test_attributes_become_plain_python():
    value = plain([np.int64(3), (np.float32(0.5), np.bool_(True)), "s"])
    assert value == (3, (0.5, True), "s")
    assert [type(v) for v in (value[0], *value[1])] == [int, float, bool]


TEXT = """program p {
  input x : f32[2]
  input z : f32[2]
  a = exp(x) : f32[2]
  b = log(a) : f32[2]
  c = add(b, a) : f32[2]
  d = neg(x) : f32[2]
  update z = d
  return c
}"""


def test_substitute():
    graph = parse_graph(TEXT)
    x, z = graph.input_values()
    a, b, c, d = (n.out for n in graph.nodes)
    new = substitute(graph, {a: z, c: b, d: z})
    assert [n.inputs for n in new.nodes] == [(x,), (z,), (b, z), (x,)]
    assert (new.outputs, new.updates) == ((b,), ((z, z),))


@pytest.mark.parametrize("output, left", [("a", "ad"), ("c", "abcd"), ("z", "d")])
def test_prune_keeps_what_outputs_and_updates_need(output, left):
    graph = parse_graph(TEXT.replace("return c", f"return {output}"))
    pruned = prune(graph)
    assert "".join(n.out.name for n in pruned.nodes) == left
    assert pruned.inputs == graph.inputs


@given(programs(), st.integers(0, 2**32 - 1))
def test_copying_and_pruning_change_nothing(graph: Graph, seed: int):
    b = GraphBuilder.rewriting(graph)
    for node in graph.nodes:
        b.add(node)
    assert b.finish() == graph == GraphBuilder(graph).finish() == prune(graph)
    last = prune(b.finish(graph.outputs[:1], updates=(), output_names=()))
    assert len(last.nodes) <= len(graph.nodes)
    args = random_args(graph, seed)
    first = run(graph, args, "float64").outputs[0]
    assert_same(run(last, args, "float64").outputs[0], first, "first output", rtol=0)
