"""Plans: the same in every process, and each kernel in the call that needs it."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import bngen as bg
from bngen.ir.interp import run
from bngen.ir.text import parse_graph
from bngen.models import make
from bngen.passes.autodiff import differentiate
from bngen.passes.fusion.levels import LEVELS
from bngen.passes.pipeline import plan_program
from bngen.plan.calls import BACKWARD, FORWARD, kernels_of, nodes_given
from tests.oracle import assert_few_ulps
from tests.passes.meaning import joint_program

LISTING = """
from bngen.models import make
from bngen.passes.pipeline import plan_program
from tests.passes.meaning import joint_program
joint, late = joint_program(make("tiny_resnet", batch=2, image=32).graph)
planned = plan_program(joint, "icf", 16, cotangents=late)
for k in planned.plan.kernels:
    print(k.name, [v.name for v in (*k.inputs, *k.outputs)])
print(planned.memory)
"""


def test_hash_seeds_change_nothing():
    """Sets are visited in another order in each process; plans must not depend on it."""
    listings = {
        subprocess.run(
            [sys.executable, "-c", LISTING],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("0", "1", "2")
    }  # fmt: skip
    assert len(listings) == 1


@pytest.mark.parametrize("level", LEVELS)
def test_what_serves_backward_alone_runs_in_it(level):
    """Weights packed for the data gradient are packed when the second call begins, not kept."""
    joint, late = joint_program(make("tiny_resnet", batch=2, image=32).graph)
    plan = plan_program(joint, level, 16, cotangents=late).plan
    needing = nodes_given(plan.graph, late)
    first_call, second_call = kernels_of(plan, FORWARD), kernels_of(plan, BACKWARD)
    assert (*first_call, *second_call) == plan.kernels
    assert needing.isdisjoint(n for k in first_call for n in k.nodes)
    flipped = {v for v, layout in plan.layouts.items() if "flipped" in str(layout)}
    packed = [v for k in plan.kernels for v in k.outputs if v in flipped]
    assert packed
    read_first = {v for k in first_call for v in k.inputs}
    for kernel in first_call:
        assert flipped.isdisjoint(kernel.outputs) or not read_first.isdisjoint(kernel.outputs)
    assert any(not flipped.isdisjoint(k.outputs) for k in second_call)


NORMALIZED = """
program normalized {
  input x : f32[2,24,1,8]
  m = mean(x) {axes=(1, 2, 3), keepdims=True} : f32[2,1,1,1]
  d = sub(x, m) : f32[2,24,1,8]
  q = mul(d, d) : f32[2,24,1,8]
  v = mean(q) {axes=(1, 2, 3), keepdims=True} : f32[2,1,1,1]
  r = rsqrt(v) : f32[2,1,1,1]
  y = mul(d, r) : f32[2,24,1,8]
  t = tanh(y) : f32[2,24,1,8]
  z = mul(y, t) : f32[2,24,1,8]
  a = slice(z) {start=0, stop=10} : f32[2,10,1,8]
  b = slice(z) {start=10, stop=24} : f32[2,14,1,8]
  c = relu(b) : f32[2,14,1,8]
  o = cat(c, a) : f32[2,24,1,8]
  return o
}
"""
"""A normalization over channels: its gradient has a pointwise kernel with two results."""


def test_a_pointwise_kernel_overwrites_nothing_that_another_result_reads():
    """Each result has a nest of its own; the second runs after the first was stored."""
    joint = differentiate(parse_graph(NORMALIZED), None, cotangents="inputs")
    late = [i.value for i in joint.inputs if i.name.startswith("grad_")]
    planned = plan_program(joint, "icf", 16, cotangents=late)
    kernels = {k.name: k for k in planned.plan.kernels}
    assert any(k.anchor is None and len(k.outputs) > 1 for k in kernels.values())
    for name, read, written in planned.memory.in_place:
        kernel = kernels[name]
        reached = {read}
        for node in kernel.nodes:
            if not reached.isdisjoint(node.operands):
                reached.update(node.outputs)
        assert kernel.anchor or reached & set(kernel.outputs) == {written}


def test_what_meets_again_in_a_pointwise_kernel_follows_from_its_first_value():
    """Results of a value that nobody else needs, and one more made of two of them."""

    def moved(x, p, a, b, c):
        g = x * p
        m, v = a + g, b + g
        return m, v, a * g, b * g, m / v * c

    graph = bg.trace(moved, *[bg.Tensor[1, 24, 2, 8]] * 5).graph
    planned = plan_program(graph, "icf", 16)
    assert max(len(k.outputs) for k in planned.plan.kernels) == 6
    rng = np.random.default_rng(0)
    args = {i.name: rng.uniform(1, 2, i.value.shape).astype("float32") for i in graph.inputs}
    for ours, exact in zip(bg.build(graph)(*args.values()), run(graph, args).outputs, strict=True):
        assert_few_ulps(ours, exact)
