"""Plans: the same in every process, and each kernel in the call that needs it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bngen.ir.text import parse_graph
from bngen.models import make
from bngen.passes.fusion import LEVELS, late_nodes
from bngen.passes.pipeline import plan_program
from tests.passes.meaning import joint_program

LISTING = """
from bngen.models import make
from bngen.passes.pipeline import plan_program
from tests.passes.meaning import joint_program
joint, late = joint_program(make("tiny_resnet", batch=2, image=32).graph)
planned = plan_program(joint, "icf", 16, late=late)
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
    plan = plan_program(joint, level, 16, late=late).plan
    tainted = late_nodes(plan.graph, frozenset(late))
    second = [any(n in tainted for n in k.nodes) for k in plan.kernels].index(True)
    first_call, second_call = plan.kernels[:second], plan.kernels[second:]
    flipped = {v for v, layout in plan.layouts.items() if "flipped" in str(layout)}
    packed = [v for k in plan.kernels for v in k.outputs if v in flipped]
    assert packed
    read_first = {v for k in first_call for v in k.inputs}
    for kernel in first_call:
        assert flipped.isdisjoint(kernel.outputs) or not read_first.isdisjoint(kernel.outputs)
    assert any(not flipped.isdisjoint(k.outputs) for k in second_call)


def test_a_pointwise_kernel_with_two_results_overwrites_nothing_that_both_read():
    """The second result has a nest of its own and reads its operands after the first is stored."""
    graph = parse_graph("""
program two_results {
  input x : f32[2,16,4,4]
  parameter w : f32[16,16,1,1]
  parameter w2 : f32[16,16,1,1]
  parameter a : f32[2,16,4,4]
  z = conv2d(x, w) : f32[2,16,4,4]
  s = sum(z) {axes=(1, 2, 3), keepdims=True} : f32[2,1,1,1]
  y = add(z, s) : f32[2,16,4,4]
  p = mul(y, a) : f32[2,16,4,4]
  q = sub(y, a) : f32[2,16,4,4]
  c = cat(p, q) : f32[2,32,4,4]
  r = conv2d(p, w2) : f32[2,16,4,4]
  t = conv2d(q, w2) : f32[2,16,4,4]
  return (r, t, c)
}
""")
    planned = plan_program(graph, "icf", 16)
    for name, read, _ in planned.memory.in_place:
        (kernel,) = [k for k in planned.plan.kernels if k.name == name]
        assert kernel.anchor is not None or len(kernel.outputs) == 1, (name, read)
