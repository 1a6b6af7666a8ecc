"""Programs of several ranks: together they mean what one process means with the whole batch."""

from __future__ import annotations

import numpy as np
import pytest

import bngen as bg
from bngen.errors import CallError
from bngen.ir.build import GraphBuilder
from bngen.ir.interp import run, run_ranks
from bngen.ir.text import parse_graph
from bngen.ir.types import TensorType
from bngen.models import make
from bngen.moments import merged
from bngen.passes.autodiff import differentiate
from tests.oracle import assert_same
from tests.ranks import shared_out, synchronized
from tests.strategies import random_args


@pytest.mark.parametrize("shares", [(2, 2), (1, 3), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("name", ["tiny_densenet", "tiny_resnet", "tiny_shufflenet"])
def test_a_batch_in_shares_is_that_batch(name, shares):
    def program(batch):
        return make(name, batch=batch, image=32, num_classes=5).graph

    whole = differentiate(program(sum(shares)))
    parts = [differentiate(synchronized(program(n))) for n in shares]
    args = random_args(whole, 0)
    cotangent = next(i.name for i in whole.inputs if i.name.startswith("grad_"))
    want = run(whole, args, "float64")
    found = run_ranks(parts, shared_out(args, ["x", cotangent], shares), "float64")
    for i, label in enumerate(whole.output_names):
        split = label in ("output:0", "grad:x")
        combine = np.concatenate if split else np.add.reduce
        got = combine([f.outputs[i] for f in found])
        assert_same(got, want.outputs[i], label, rtol=1e-9, floor=1e-2)
    for name_, new in want.updates.items():
        for f in found:
            assert_same(f.updates[name_], new, name_, rtol=1e-12)


def test_moments_of_shares_far_from_zero():
    rng = np.random.default_rng(0)
    x = 1e6 + rng.standard_normal((100, 3))
    x[:, 1] = 3e4 + 0.1
    parts = np.split(x, [1, 40])
    rows = [np.stack([f(p, axis=0) for p in parts]) for f in (np.mean, np.var)]
    counts = np.array([len(p) for p in parts])
    mean, var, total = merged(counts, *rows)
    assert total == 100
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(var[[0, 2]], x[:, [0, 2]].var(0), rtol=1e-9)
    assert var[1] < 1e-16  # of what is constant, but for its roundings


def test_a_share_of_nothing_does_not_count():
    means = np.array([[np.nan, 0.0], [1.0, 2.0]])
    mean, var, total = merged(np.array([0, 4]), means, np.abs(means))
    np.testing.assert_array_equal(mean, [1.0, 2.0])
    np.testing.assert_array_equal(var, [1.0, 2.0])
    assert total == 4


def test_sums_of_several_values_and_averages():
    b = GraphBuilder()
    x, y = b.input("x", TensorType((3,))), b.input("y", TensorType((2, 2)))
    graph = b.finish([*b.emit("all_reduce", x, y), b.emit("all_reduce", x, average=True)])
    args = [{"x": np.full(3, k), "y": np.full((2, 2), 10.0 * k)} for k in (1, 2, 6)]
    for found in run_ranks([graph] * 3, args):
        x_sum, y_sum, mean = (r.flat[0] for r in found.outputs)
        assert (x_sum, y_sum, mean) == (9, 90, 3)


def test_gradients_are_those_of_all_ranks_results():
    """f = sum over ranks of r * total, total = the sum of all x: each x has the sum of the r."""
    b = GraphBuilder()
    x, r = b.input("x", TensorType(())), b.input("r", TensorType(()))
    graph = b.finish([b.emit("mul", b.emit("all_reduce", x), r)])
    joint = differentiate(graph, ["x"], cotangents="ones")
    for found in run_ranks([joint] * 2, [{"x": 2.0, "r": 5.0}, {"x": 3.0, "r": 7.0}]):
        assert found.outputs[1] == 12.0


OTHER = """
program other {
  input x : f32[2,4]
  s = all_reduce(x) : f32[2,4]
  return s
}
"""


def test_ranks_that_do_something_else_are_told():
    one = parse_graph(OTHER)
    none = parse_graph("program none {\n  input x : f32[2,4]\n  return x\n}\n")
    args = {"x": np.ones((2, 4), "float32")}
    with pytest.raises(CallError, match=r"rank 0 exchanges all_reduce in '': .*rank 1 .*nothing"):
        run_ranks([one, none], [args, args])


def test_the_language_says_it():
    @bg.program
    def net(x: bg.Tensor[4, 3, 4, 4], g: bg.Tensor[3], m: bg.Tensor[3], v: bg.Tensor[3]):
        y = bg.batch_norm(x, m, v, g, training=True, group="pair")
        return bg.all_reduce(y.mean(), average=True, group="pair")

    @bg.program
    def alone(x: bg.Tensor[8, 3, 4, 4], g: bg.Tensor[3], m: bg.Tensor[3], v: bg.Tensor[3]):
        return bg.batch_norm(x, m, v, g, training=True).mean()

    args = random_args(alone.graph, 3)
    want = run(alone.graph, args, "float64")
    for found in run_ranks([net.graph] * 2, shared_out(args, ["x"], [4, 4]), "float64"):
        assert_same(found.outputs[0], want.outputs[0], "mean")
        for name, new in want.updates.items():
            assert_same(found.updates[name], new, name, rtol=1e-12)


@pytest.mark.parametrize(
    "write, words",
    [
        (lambda x: bg.all_reduce(x > 0), "all_reduce: not defined for bool"),
        (lambda x: bg.all_reduce(x.to(bg.int32), average=True), "needs floating-point tensors"),
        (lambda x: bg.all_reduce(x, group=3), "group=3 is no name"),
        (lambda x: bg.batch_norm(x, None, None, training=True, group=2), "group=2 is no name"),
    ],
)
def test_what_cannot_be_exchanged_is_refused(write, words):
    with pytest.raises(bg.ProgramError, match=words):
        assert bg.trace(write, bg.Tensor[2, 3, 4, 4]).graph is None
