"""What `legal` lets through changes no result; whatever else a lookup answers, the rule decides."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bngen.codegen.compile import compile_plan
from bngen.codegen.nests import STRATEGIES
from bngen.ir.build import GraphBuilder
from bngen.ir.node import Graph
from bngen.ir.types import TensorType
from bngen.passes.prepare import join_gradient, prepare
from bngen.runtime import threads as thread_pool
from bngen.scheduling.fallback import no_knobs
from bngen.scheduling.knobs import Knobs
from bngen.target.parse import Target
from bngen.tuning.lone import LoneKernel
from bngen.tuning.search import Job, agree, compile_candidate, jobs

HUGE = (0, -1, 10**9, 2**31, 2**63, 10**30)
sides = st.integers(1, 20)
channels = st.sampled_from([1, 3, 16, 20, 40, 64])


@functools.cache
def target() -> Target:
    thread_pool.install()
    return Target.parse()


@st.composite
def convolutions(draw) -> Graph:
    """A convolution between activations, with statistics and a pool behind it."""
    b = GraphBuilder(name="drawn")
    n, c, h, w = draw(st.integers(1, 4)), draw(channels), draw(sides), draw(sides)
    groups = draw(st.sampled_from([1, 1, 1, c, *(g for g in (4, 5, 8) if c % g == 0)]))
    r, s = draw(st.sampled_from([(3, 3), (3, 3), (1, 1), (5, 3)]))
    stride, dilation = draw(st.sampled_from([((1, 1), (1, 1)), ((2, 2), (1, 1)), ((1, 1), (2, 1))]))
    k = groups * draw(st.sampled_from([1, 2])) if groups > 1 else draw(channels)
    x = b.input("x", TensorType((n, c, h, w)))
    weight = b.input("w", TensorType((k, c // groups, r, s)), "parameter")
    halo = dilation[0] * (r - 1), dilation[1] * (s - 1)
    padding = (halo[0] // 2, -(-halo[0] // 2), halo[1] // 2, -(-halo[1] // 2))
    if draw(st.booleans()):
        x = b.emit("relu", x)
    y = b.emit(
        "conv2d", x, weight, stride=stride, dilation=dilation, padding=padding, groups=groups
    )
    outputs = [b.emit("relu", y)]
    if draw(st.booleans()) and n * y.shape[2] * y.shape[3] > 8:
        outputs = [*b.emit("batch_norm", y)]
    if draw(st.booleans()):
        pool = {"kernel": (2, 2), "stride": (1, 1), "padding": (1, 1)}
        outputs.append(b.emit("max_pool2d", outputs[0], **pool)[0])
    return b.finish(outputs)


def work(graph: Graph) -> list[Job]:
    """The kernels of a program and its gradient that have knobs."""
    plan = prepare(join_gradient(graph), target().channel_block).planned.plan
    return jobs(plan, target())


@st.composite
def choices(draw, job: Job) -> Knobs:
    """A legal choice: any, or one that takes the most of each knob."""
    space = list(job.strategy.candidates(job.facts))
    if draw(st.booleans()):
        names = draw(st.permutations(sorted(space[0])))
        return max(space, key=lambda k: [k[n] for n in names])
    return draw(st.sampled_from(space))


@settings(max_examples=max(1, settings.default.max_examples // 3))
@given(st.data())
def test_drawn_legal_knobs_compile_and_change_no_result(data):
    found = work(data.draw(convolutions()))
    assume(found)
    job = data.draw(st.sampled_from(found))
    knobs = data.draw(choices(job))
    own = compile_candidate(job, target(), job.own)
    assert agree(compile_candidate(job, target(), knobs).results(), own.results()), knobs


@pytest.fixture(scope="module")
def several() -> list[Job]:
    """A kernel of each kind."""
    b = GraphBuilder(name="several")
    x = b.input("x", TensorType((2, 24, 12, 8)))
    for i, (shape, attrs) in enumerate([
        ((40, 24, 3, 3), {"padding": (1, 1, 1, 1)}),
        ((40, 1, 3, 3), {"padding": (1, 1, 1, 1), "groups": 40}),
        ((20, 40, 3, 3), {"padding": (1, 1, 1, 1), "stride": (2, 2)}),
        ((24, 20, 1, 1), {}),
        ((24, 2, 3, 3), {"padding": (1, 1, 1, 1), "groups": 12}),
    ]):  # fmt: skip
        x = b.emit("conv2d", x, b.input(f"w{i}", TensorType(shape), "parameter"), **attrs)
        x = b.emit("relu", b.emit("batch_norm", x)[0])
    x = b.emit("avg_pool2d", x, kernel=(2, 2), stride=(1, 1))
    rows = b.emit("reshape", x, shape=(x.shape[0], x.type.size // x.shape[0]))
    weight = b.input("fc", TensorType((18, rows.shape[1])), "parameter")
    return work(b.finish((b.emit("matmul", rows, weight, trans_b=True),)))


def test_there_is_a_kernel_of_each_kind(several):
    of_floats = [row for row in STRATEGIES if not row.in_tiles]
    tuned = {row.kind for row in of_floats if row.knobs is not no_knobs} - {"partial"}
    assert {job.strategy.kind for job in several} >= tuned - {"pointwise"}


@given(data=st.data())
@settings(max_examples=max(1, settings.default.max_examples // 5))
def test_knobs_of_no_legal_value_fall_to_the_rule(several, data):
    """Whatever a lookup answers, the kernel is the one that the rule makes."""
    job = data.draw(st.sampled_from(several))
    name = data.draw(st.sampled_from(sorted(job.own)))
    bad = data.draw(st.sampled_from([
        {**job.own, name: data.draw(st.sampled_from(HUGE))},
        {n: v for n, v in job.own.items() if n != name} or {"columns": 1},
        {**job.own, "depth": 1},
        dict.fromkeys(job.own, 7919),
    ]))  # fmt: skip
    assert job.strategy.misfit(job.facts, bad) is not None
    plan = replace(job.plan, kernels=(job.kernel,))
    (compiled,) = compile_plan(plan, target(), knobs=lambda *_: bad, jobs=1)
    assert compiled.code.knobs == job.own
    own = compile_candidate(job, target(), job.own).results()
    for ours, theirs in zip(LoneKernel(compiled).results(), own, strict=True):
        np.testing.assert_array_equal(ours, theirs)
