"""Ops element by element wait for no reshape of the map that they are done to."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bngen as bg
from bngen.ir.interp import run
from bngen.passes.fusion.levels import LEVELS
from bngen.passes.prepare import join_gradient, prepare
from bngen.passes.reshapes import lower_reshapes
from tests.compiled import check
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


def of_sequences(x, first, weight, bias, mean, var, second):
    y = bg.conv1d(x, first, padding=1)
    y = bg.relu(bg.batch_norm(y, mean, var, weight, bias, training=True))
    return bg.conv1d(y, second)


def of_rows(x, first, weight, bias, mean, var, second):
    y = bg.batch_norm(bg.linear(x, first), mean, var, weight, bias, training=True)
    return bg.linear(bg.relu(y), second)


def network(kind, n, c, k, extent):
    """A convolution of sequences, or a product of rows, its normalization, and another one."""
    types = [bg.Tensor[k]] * 4
    if kind == "rows":
        return bg.trace(of_rows, bg.Tensor[n, c], bg.Tensor[k, c], *types, bg.Tensor[5, k]).graph
    x, first, second = bg.Tensor[n, c, extent], bg.Tensor[k, c, 3], bg.Tensor[5, k, 1]
    return bg.trace(of_sequences, x, first, *types, second).graph


def slots(kind, level):
    """What the kernels around convolutions, or products, take in at a fusion level."""
    joint = join_gradient(network(kind, 16, 24, 32, 40), ["x", "first", "weight", "second"])
    kernels = prepare(joint, 16, level).planned.plan.kernels
    found = [k for k in kernels if k.anchor is not None and k.anchor.row.kind == "contract"]
    return {n.op for k in found for n in k.load}, {n.op for k in found for n in k.store}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["sequences", "rows"])
def test_normalization_of_any_rank_joins_its_neighbours(kind, level):
    loads, stores = slots(kind, level)
    assert ("relu" in loads) == (level != "none")
    assert ({"bn_apply", "bn_grad_affine"} <= loads) == (level in ("bnff", "icf"))
    assert ("where" in stores) == (level in ("bnff", "icf"))
    partial = {"bn_partial_stats", "bn_grad_partial_sums"} <= stores
    assert partial == (kind == "sequences" and level in ("bnff", "icf"))


@settings(max_examples=1)
@given(
    st.sampled_from([3, 8, 21]), st.sampled_from([3, 16]), st.sampled_from([8, 20]),
    st.sampled_from([7, 32, 1300]), st.integers(0, 99), st.sampled_from(["normal", "awkward"]),
)  # fmt: skip
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["sequences", "rows"])
def test_normalization_of_any_rank(kind, level, n, c, k, extent, seed, contents):
    graph = network(kind, 8 * n, c, k, extent if n < 8 else 7)
    check(graph, random_args(graph, seed, contents), level)


def both_reshaped(x, y):
    x, y = x.exp().reshape(4, 6, 5), y.exp().reshape(4, 6, 5)
    return (x * y + 1.0).reshape(2, 60)


def one_reshaped(x, y):
    return bg.where(x.exp().reshape(4, 6, 5) > 2.0, y, 0.5)


@pytest.mark.parametrize(
    ("fn", "other", "before"),
    [(both_reshaped, (2, 3, 4, 5), ["exp", "exp", "constant", "mul", "add", "reshape"]),
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
