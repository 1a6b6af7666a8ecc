"""Whole programs through the interpreter: against PyTorch, in both precisions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bngen.errors import CallError
from bngen.ir import interp
from bngen.ir.build import GraphBuilder
from bngen.ir.node import Graph
from bngen.ir.text import parse_graph
from bngen.ir.types import TensorType
from bngen.ir.verify import InternalError, verify
from tests.oracle import assert_close, assert_same, torch_run, torch_runs
from tests.strategies import programs, random_args

seeds = st.integers(0, 2**32 - 1)


@given(programs(), seeds)
def test_random_programs_mean_what_pytorch_says(graph: Graph, seed: int):
    verify(graph, also=("no dead nodes",))
    args = random_args(graph, seed)
    ours, theirs = interp.run(graph, args, "float64"), torch_run(graph, args, torch.float64)
    for i, (a, b) in enumerate(zip(ours.outputs, theirs.outputs, strict=True)):
        assert_same(a, b, f"output {i}")
    assert ours.updates.keys() == theirs.updates.keys()
    for name, array in ours.updates.items():
        assert_same(array, theirs.updates[name], name)


@given(programs(heads=False), seeds)
def test_awkward_arguments_stay_within_the_tolerance_rule(graph: Graph, seed: int):
    args = random_args(graph, seed, "awkward")
    ours = interp.run(graph, args)
    reference = torch_run(graph, args, torch.float64)
    theirs = torch_runs(graph, args)
    for i, (a, b) in enumerate(zip(ours.outputs, reference.outputs, strict=True)):
        assert_close(a, [t.outputs[i] for t in theirs], b, f"output {i}")
    for name, array in ours.updates.items():
        assert_close(array, [t.updates[name] for t in theirs], reference.updates[name], name)


ROOT = """program root {
  input x : f32[2,3]
  half = constant() {value=0.1} : f32[]
  y = mul(x, half) : f32[2,3]
  z = sqrt(y) : f32[2,3]
  update x = z
  return y
}"""


def test_float64_reaches_constants_casts_and_random_numbers():
    b = GraphBuilder()
    seed, x = b.input("seed", TensorType((), "int64")), b.input("x", TensorType((4,)))
    noise = b.emit("random_uniform", seed, shape=(4,))
    same = b.emit("cast", b.emit("mul", x, 0.1), dtype="float32")
    graph = b.finish((b.emit("add", noise, same),))
    args = {"seed": 3, "x": np.full(4, 1 / 3)}
    (wide,), (narrow,) = (interp.run(graph, args, d).outputs for d in ("float64", None))
    assert (wide.dtype, narrow.dtype) == (np.float64, np.float32)
    noise = interp.run(graph, {**args, "x": np.zeros(4)}, "float64").outputs[0]
    np.testing.assert_array_equal(wide, noise + 1 / 3 * 0.1)


def test_updates_and_kept_values():
    x = np.arange(6.0).reshape(2, 3)
    results = interp.run(parse_graph(ROOT), {"x": x}, "float64", keep=True)
    np.testing.assert_array_equal(results.updates["x"], np.sqrt(x * 0.1))
    assert set(results.env) == {"x", "half", "y", "z"}
    assert interp.run(parse_graph(ROOT), {"x": x}).env is None


def test_intermediate_values_are_freed_after_their_last_use(monkeypatch):
    b = GraphBuilder()
    y = b.input("x", TensorType((1000,)))
    for _ in range(50):
        y = b.emit("add", y, y)
    alive, most, evaluate = [], [], interp.evaluate

    def counting(node, arrays, dtype):
        import weakref

        results = evaluate(node, arrays, dtype)
        alive.extend(weakref.ref(r) for r in results)
        most.append(sum(r() is not None for r in alive))
        return results

    monkeypatch.setattr(interp, "evaluate", counting)
    interp.run(b.finish((y,)), {"x": np.ones(1000)})
    assert max(most) <= 2


@pytest.mark.parametrize(
    "args, message", [({}, "no argument for input 'x'"), ({"x": np.ones(3)}, r"has shape \[3\]")]
)
def test_arguments_are_checked(args, message):
    with pytest.raises(CallError, match=message):
        interp.run(parse_graph(ROOT), args)


def test_a_meaning_that_contradicts_its_shape_rule_is_a_bug():
    b = GraphBuilder()
    x = b.input("x", TensorType((2, 3)))
    b.emit("relu", x)
    node = b.finish(()).nodes[0]
    with pytest.raises(InternalError, match="relu"):
        interp.evaluate(node, [np.ones((3, 2), np.float32)])
