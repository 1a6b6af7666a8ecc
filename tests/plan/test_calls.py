"""Which kernels belong to which call, and what one leaves to the next."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bngen.ir.text import parse_graph
from bngen.passes.fusion.levels import LEVELS
from bngen.passes.prepare import Joint, join_gradient, prepare
from bngen.plan.calls import BACKWARD, FORWARD, kernels_of, nodes_given, saved
from bngen.plan.kernel import Call
from tests.strategies import programs


def planned(graph, level="icf", wrt=None):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no output depends on")
        return prepare(join_gradient(graph, wrt), 8, level)


@pytest.mark.parametrize("level", LEVELS)
@given(programs(), st.integers(0, 2**32 - 1))
def test_calls_of_random_programs(level, graph, number):
    prepared = planned(graph, level)
    plan, joint = prepared.planned.plan, prepared.joint
    first, second = kernels_of(plan, FORWARD), kernels_of(plan, BACKWARD)
    assert (*first, *second) == plan.kernels
    needing = nodes_given(plan.graph, joint.cotangents)
    assert needing.isdisjoint(n for k in first for n in k.nodes)
    written_first, written_second = ({v for k in ks for v in k.outputs} for ks in (first, second))
    own = {*plan.graph.outputs[: len(graph.outputs)], *(new for _, new in plan.graph.updates)}
    assert own.isdisjoint(written_second)
    # What waits for no cotangent and is read by `forward` or handed out runs in `forward`.
    read_first = {v for k in first for v in k.inputs}
    for kernel in second:
        if needing.isdisjoint(kernel.nodes):
            assert read_first.isdisjoint(kernel.outputs)
            assert set(plan.graph.input_values()).issuperset(kernel.inputs)
    kept = saved(plan)
    assert set(kept) <= written_first and len(set(kept)) == len(kept)


VIEWED = """
program viewed {
  input x : f32[4,6]
  parameter w : f32[6,4]
  y = matmul(x, w) : f32[4,4]
  r = reshape(y) {shape=(2, 8)} : f32[2,8]
  return r
}
"""


def test_a_kernel_that_reads_a_view_of_a_cotangent_is_backwards():
    plan = planned(parse_graph(VIEWED)).planned.plan
    forward, backward = plan.calls
    assert (forward.name, backward.name) == (FORWARD, BACKWARD)
    assert [k.anchor.op for k in kernels_of(plan, FORWARD)] == ["matmul"]
    assert kernels_of(plan, BACKWARD)


def test_a_program_without_its_gradient_is_one_call():
    graph = parse_graph(VIEWED)
    plan = prepare(Joint(graph, graph), 8).planned.plan
    assert plan.calls == (Call(FORWARD, 0, len(plan.kernels)),)
    assert kernels_of(plan, BACKWARD) == saved(plan) == ()


def test_a_backward_of_nothing_is_a_call_all_the_same():
    plan = planned(parse_graph(VIEWED), wrt=[]).planned.plan
    count = len(plan.kernels)
    assert plan.calls == (Call(FORWARD, 0, count), Call(BACKWARD, count, count))
