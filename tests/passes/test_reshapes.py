"""Ops element by element wait for no reshape of the map that they are done to."""

import pytest

import bngen as bg
from bngen.ir.interp import run
from bngen.passes.prepare import join_gradient, prepare
from bngen.passes.reshapes import lower_reshapes
from tests.passes.meaning import same_results
from tests.strategies import random_args

VECTOR = bg.Tensor[6]


def normalized(x, weight, bias):
    """BN of sequences and of volumes, and an activation."""
    return bg.relu(bg.batch_norm(x, None, None, weight, bias, training=True))


@pytest.mark.parametrize("shape", [(2, 6, 20), (2, 6, 3, 4, 5)], ids=["sequences", "volumes"])
def test_an_activation_joins_normalization_of_any_rank(shape):
    graph = bg.trace(normalized, bg.Tensor[shape], VECTOR, VECTOR).graph
    kernels = [k.sublayers for k in prepare(join_gradient(graph), 16).planned.plan.kernels]
    assert any({"bn_apply", "relu"} <= set(k) for k in kernels)
    assert any({"less_equal", "where"} <= set(k) and "bn_apply" in k for k in kernels)


def both_reshaped(x, y):
    x, y = x.exp().reshape(4, 6, 5), y.exp().reshape(4, 6, 5)
    return (x * y + 1.0).reshape(2, 60)


def one_reshaped(x, y):
    return bg.where(x.exp().reshape(4, 6, 5) > 2.0, y, 0.5)


@pytest.mark.parametrize(
    ("fn", "other", "before"),
    [(both_reshaped, (2, 3, 4, 5), ["exp", "exp", "constant", "mul", "add", "reshape", "reshape"]),
     (one_reshaped, (4, 6, 5), ["exp", "constant", "greater", "reshape", "constant", "where",
                              "reshape"])],
    ids=["both", "one"],
)  # fmt: skip
def test_what_moves(fn, other, before):
    graph = bg.trace(fn, bg.Tensor[2, 3, 4, 5], bg.Tensor[other]).graph
    moved = lower_reshapes(graph)
    assert lower_reshapes(moved) == moved
    used = {v for n in moved.nodes for v in n.operands} | set(moved.outputs)
    assert sorted(n.op for n in moved.nodes if n.out in used) == sorted(before)
    args = random_args(graph, 1)
    same_results(run(moved, args, "float64"), run(graph, args, "float64", keep=True), 0)


def test_maps_are_left():
    """Who reads them computes as it loads; rows are what a product reads next."""

    def nets(x, y):
        return bg.relu(bg.exp(x).reshape(2, 5, 4, 3)), bg.relu(bg.exp(y).reshape(2, 24))

    graph = bg.trace(nets, bg.Tensor[2, 3, 4, 5], bg.Tensor[2, 8, 3, 1]).graph
    assert lower_reshapes(graph) == graph


def test_rows_of_a_product_are_left():
    def mlp(x, w):
        return bg.gelu(bg.linear(x, w).reshape(2, 12, 8))

    graph = bg.trace(mlp, bg.Tensor[24, 5], bg.Tensor[8, 5]).graph
    assert lower_reshapes(graph) == graph
