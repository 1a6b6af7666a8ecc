"""Each invariant of plans is broken once and told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bngen.ir.verify import InternalError
from bngen.models import make
from bngen.passes.pipeline import plan_program
from bngen.plan.check import PLAN_INVARIANTS, check_plan
from bngen.plan.layout import CHANNELS_LAST
from bngen.plan.memory import Place
from tests.passes.meaning import joint_program
from tests.ranks import synchronized


@pytest.fixture(scope="module")
def planned():
    joint, late = joint_program(make("tiny_densenet", batch=2, image=32, num_classes=5).graph)
    return plan_program(joint, "icf", 8, cotangents=late)


def with_kernel(plan, i, **changes):
    kernels = list(plan.kernels)
    kernels[i] = replace(kernels[i], **changes)
    return replace(plan, kernels=tuple(kernels))


def two_writers(plan, memory):
    return with_kernel(plan, 1, outputs=plan.kernels[0].outputs), memory


def nobody_writes_a_result(plan, memory):
    result = plan.graph.outputs[0]
    i = next(i for i, k in enumerate(plan.kernels) if result in k.outputs)
    return with_kernel(plan, i, outputs=()), memory


def run_backwards(plan, memory):
    return replace(plan, kernels=plan.kernels[::-1]), memory


def an_input_forgotten(plan, memory):
    return with_kernel(plan, 1, inputs=plan.kernels[1].inputs[1:]), memory


def a_place_beyond_the_buffer(plan, memory):
    v = plan.kernels[3].outputs[0]
    root = memory.places[v].root
    return plan, replace(memory, places={**memory.places, v: Place(root, plan.nbytes(root))})


def an_arena_too_small(plan, memory):
    return plan, replace(memory, nbytes=memory.nbytes - 64)


def everything_at_once_in_one_place(plan, memory):
    return plan, replace(memory, arena=dict.fromkeys(memory.arena, 0))


def a_life_cut_short(plan, memory):
    root = max(memory.lives, key=lambda v: memory.lives[v][1] - memory.lives[v][0])
    first, last = memory.lives[root]
    return plan, replace(memory, lives={**memory.lives, root: (first, last - 1)})


def a_result_over_a_load(plan, memory):
    """The anchor of a data gradient may not write over what it still has to read."""
    for kernel in plan.kernels:
        for v in kernel.inputs:
            for out in kernel.outputs:
                read_early = any(v in n.operands for n in kernel.load)
                if read_early and out.type == v.type and v in memory.arena:
                    places = {**memory.places, out: memory.places[v]}
                    return plan, replace(memory, places=places)
    raise AssertionError("no such kernel")


def an_update_in_another_order(plan, memory):
    """A parameter that is channels-last, updated with what is in C order."""
    weight = next(i.value for i in plan.graph.inputs if i.name == "features.conv0.weight")
    gradient = next(v for v in plan.graph.outputs if v.type == weight.type)
    graph = replace(plan.graph, updates=((weight, gradient),))
    return replace(plan, graph=graph, layouts={**plan.layouts, weight: CHANNELS_LAST}), memory


def a_collective_read_too_early(plan, memory):
    """Over before the second kernel that reads it."""
    graph = synchronized(make("tiny_densenet", batch=2, image=32, num_classes=5).graph)
    plan, memory = (made := plan_program(graph, "icf", 8)).plan, made.memory
    first, *rest = plan.waits
    late = replace(first, before=first.before + 2)
    return replace(plan, waits=(late, *rest)), memory


BREACHES = {
    two_writers: "one writer",
    nobody_writes_a_result: "one writer",
    run_backwards: "written before read",
    an_input_forgotten: "complete bodies",
    a_place_beyond_the_buffer: "inside buffers",
    an_arena_too_small: "inside buffers",
    everything_at_once_in_one_place: "disjoint lives",
    a_life_cut_short: "within lives",
    a_result_over_a_load: "in place once",
    an_update_in_another_order: "updates fit",
    a_collective_read_too_early: "awaited",
}


def test_every_invariant_is_broken_here():
    assert set(BREACHES.values()) == PLAN_INVARIANTS.keys()


@pytest.mark.parametrize(
    "breach, invariant", BREACHES.items(), ids=lambda x: x if isinstance(x, str) else x.__name__
)
def test_a_breach_is_told(planned, breach, invariant):
    plan, memory = breach(planned.plan, planned.memory)
    assert list(PLAN_INVARIANTS[invariant](plan, memory))
    with pytest.raises(InternalError, match="the plan of 'tiny_densenet' breaks '"):
        check_plan(plan, memory)


def test_the_plan_itself_is_right(planned):
    check_plan(planned.plan, planned.memory)
