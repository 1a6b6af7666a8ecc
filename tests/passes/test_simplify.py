"""Algebra on graphs: what is rewritten, what is left alone, and that the meaning stays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bngen.ir.build import GraphBuilder
from bngen.ir.node import Graph
from bngen.ir.types import TensorType
from bngen.passes.autodiff import differentiate
from bngen.passes.fission import fission_batch_norm
from bngen.passes.simplify import (
    forward_slices,
    pool_before_convolution,
    share_common_subexpressions,
    share_statistics,
)
from tests.passes.meaning import same_meaning
from tests.strategies import programs

HALF = {"kernel": (2, 2), "stride": (2, 2)}


def ops(graph: Graph) -> list[str]:
    return [n.op for n in graph.nodes]


def maps(b: GraphBuilder, *channels: int):
    return [b.input("x", TensorType((2, c, 6, 6))) for c in channels]


# --- common subexpressions ------------------------------------------------------------------------


def test_equal_nodes_are_computed_once():
    b = GraphBuilder()
    (x,) = maps(b, 4)
    twice = [b.emit("exp", b.emit("neg", x)) for _ in range(2)]
    graph = share_common_subexpressions(b.finish([b.emit("add", *twice)]))
    assert ops(graph) == ["neg", "exp", "add"]
    assert len(set(graph.nodes[-1].inputs)) == 1


def test_attributes_tell_nodes_apart():
    b = GraphBuilder()
    (x,) = maps(b, 4)
    sums = [b.emit("sum", x, axes=axes) for axes in ((2, 3), (0, 1))]
    assert ops(share_common_subexpressions(b.finish(sums))) == ["sum", "sum"]


# --- slices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start, stop, left", [(0, 3, "a"), (3, 8, "b"), (4, 6, "slice"), (2, 5, "slice"), (0, 8, "cat")]
)
def test_a_slice_within_one_part_reads_that_part(start, stop, left):
    b = GraphBuilder()
    a, c = maps(b, 3, 5)
    whole = b.emit("cat", a, c)
    (out,) = forward_slices(b.finish([b.emit("slice", whole, start=start, stop=stop)])).outputs
    if left in "ab":
        assert out == {"a": a, "b": c}[left]
    else:
        assert out.name.startswith(left)


# --- statistics -----------------------------------------------------------------------------------


def test_one_statistic_a_feature_map():
    b = GraphBuilder()
    first, second, third = maps(b, 3, 5, 2)
    inner = b.emit("cat", first, second)
    stats = [b.emit("bn_stats", v) for v in (first, inner, b.emit("cat", inner, third))]
    graph = b.finish([mean for mean, _ in stats])
    shared = share_common_subexpressions(share_statistics(graph))
    read = [n.inputs[0] for n in shared.nodes if n.op == "bn_stats"]
    assert read == [first, second, third]


# --- pools ----------------------------------------------------------------------------------------


def transition(window: int = 1, also_returned: bool = False, pool="avg_pool2d", **attrs) -> Graph:
    b = GraphBuilder()
    (x,) = maps(b, 8)
    w = b.input("w", TensorType((4, 8, window, window)), "parameter")
    y = b.emit("conv2d", b.emit("silu", x), w)
    pooled = b.emit(pool, y, **{**HALF, **attrs})
    pooled = pooled[0] if isinstance(pooled, tuple) else pooled
    return b.finish([pooled, y] if also_returned else [pooled])


def test_the_pool_goes_first():
    assert ops(pool_before_convolution(transition())) == ["silu", "avg_pool2d", "conv2d"]


def test_both_gradients_are_taken_of_few_pixels():
    graph = pool_before_convolution(differentiate(transition()))
    small = {n.op: n.outputs[0].shape for n in graph.nodes}
    assert small["conv2d"] == (2, 4, 3, 3)
    assert small["conv2d_grad_input"] == (2, 8, 3, 3)
    assert small["avg_pool2d_grad"] == (2, 8, 6, 6)
    (weight,) = (n for n in graph.nodes if n.op == "conv2d_grad_weight")
    assert [v.shape for v in weight.inputs] == [(2, 8, 3, 3), (2, 4, 3, 3)]


@pytest.mark.parametrize(
    "changes",
    [
        {"window": 3},
        {"also_returned": True},
        {"stride": (1, 1)},
        {"pool": "max_pool2d"},
    ],
    ids=str,
)
def test_what_does_not_commute_or_pay_is_left(changes):
    graph = transition(**changes)
    assert ops(pool_before_convolution(graph)) == ops(graph)
    joint = differentiate(graph)
    assert ops(pool_before_convolution(joint)) == ops(joint)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_pools_that_overhang(ceil_mode, inside):
    """Windows that reach into padding, or over the edge, divide by what the pool says."""
    attrs = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)}
    graph = differentiate(transition(**attrs, ceil_mode=ceil_mode, count_include_pad=inside))
    moved = pool_before_convolution(graph)
    assert ops(moved) != ops(graph)
    same_meaning(graph, moved, seed=1)


# --- meaning --------------------------------------------------------------------------------------


@given(programs(), st.integers(0, 2**31))
def test_slices_and_shared_nodes_change_no_bit(graph, seed):
    for simplify in (share_common_subexpressions, forward_slices):
        once = simplify(graph)
        same_meaning(graph, once, seed, rtol=0)
        assert ops(simplify(once)) == ops(once)


@given(programs(), st.integers(0, 2**31))
def test_shared_statistics_and_moved_pools(graph, seed):
    split = fission_batch_norm(graph, one_sweep=True, deferred=False)
    same_meaning(split, share_statistics(split), seed)
    same_meaning(graph, pool_before_convolution(graph), seed)
