"""Collectives through the passes: the same meaning, few of them, started early, waited for late."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bngen.binding import layer_of
from bngen.ir.interp import run_ranks
from bngen.models import make
from bngen.passes.autodiff import differentiate
from bngen.passes.fusion.levels import LEVELS
from bngen.passes.pipeline import graph_passes
from bngen.passes.prepare import Joint, join_gradient, prepare
from bngen.plan.calls import BACKWARD, FORWARD, collectives_of
from tests.passes.meaning import joint_program, same_results
from tests.profiles import takes_long
from tests.ranks import synchronized
from tests.strategies import programs, random_args

NETWORKS = ("tiny_densenet", "tiny_resnet", "tiny_shufflenet")


def network(name, batch=2, image=32):
    return synchronized(make(name, batch=batch, image=image, num_classes=5).graph)


def plan_of(name, level, **options):
    return prepare(join_gradient(network(name, **options)), 8, level).planned.plan


@pytest.mark.parametrize("level", LEVELS)
@given(programs(max_layers=4), st.integers(0, 2**32 - 1))
def test_every_pass_keeps_what_two_ranks_mean(level, graph, seed):
    joint, _ = joint_program(synchronized(graph))
    args = [random_args(joint, seed), random_args(joint, seed + 1)]
    # Ranks share their weights.
    args[1] |= {i.name: args[0][i.name] for i in joint.inputs if i.kind == "parameter"}
    wanted = run_ranks([joint] * 2, args, "float64", keep=True)
    for _, run_pass in graph_passes(LEVELS[level]):
        joint = run_pass(joint)
    for found, want in zip(run_ranks([joint] * 2, args, "float64"), wanted, strict=True):
        same_results(found, want)


def counts(plan):
    return {call: len(collectives_of(plan, call)) for call in (FORWARD, BACKWARD)}


def test_how_many_there_are(golden):
    lines = []
    for name in NETWORKS:
        norms = Counter(n.op for n in network(name).nodes)["sync_batch_norm"]
        lines.append(f"{name}: {norms} batch normalizations")
        for level in LEVELS:
            found = counts(plan_of(name, level))
            lines.append(f"  {level}: forward {found[FORWARD]}, backward {found[BACKWARD]}")
    golden("\n".join(lines) + "\n")


@takes_long("plans DenseNet-121 twice")
def test_of_a_densenet_most_is_exchanged_once_at_icf():
    """``docs/distributed.md`` says so."""
    joint = join_gradient(network("densenet121"))
    page = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text()
    sent = []
    for level in ("none", "icf"):
        found = collectives_of(prepare(joint, 8, level).planned.plan, BACKWARD)
        sent.append(f"{sum(math.prod(v.shape) for k in found for v in k.outputs):,}")
    first, last = sent
    words = f"Of DenseNet-121's {len(found)} collectives backward, {first} numbers become {last}."
    assert words in page


@pytest.mark.parametrize("name", NETWORKS)
def test_at_icf_there_is_one_for_each_feature_map(name):
    graph = network(name)
    producers = graph.producers()

    def parts(v):
        node = producers.get(v)
        if node is None or node.row.moves != "joins":
            return [v]
        return [leaf for operand in node.operands for leaf in parts(operand)]

    norms = [n for n in graph.nodes if n.row.across]
    maps = {leaf for n in norms for leaf in parts(n.inputs[0])}
    assert counts(plan_of(name, "icf")) == {FORWARD: len(maps), BACKWARD: len(maps)}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", NETWORKS)
def test_ranks_with_other_batches_exchange_the_same_in_the_same_order(name, level):
    def exchanged(**options):
        plan = plan_of(name, level, **options)
        return [[(layer_of(k.anchor), k.anchor.op, [v.type for v in k.outputs])
                 for k in collectives_of(plan, call)]
                for call in (FORWARD, BACKWARD)]  # fmt: skip

    assert exchanged(batch=1) == exchanged(batch=7) == exchanged(batch=2, image=48)


@pytest.mark.parametrize("name", ["tiny_densenet", "tiny_resnet"])
def test_weight_gradients_hide_collectives(name):
    """Of those of backward, all but a few have a weight's gradient while they are under way."""
    plan = plan_of(name, "icf")
    backward = [w for w in plan.waits if w.kernel >= plan.calls[1].start]
    assert all(w.kernel < w.before for w in plan.waits)
    hidden = [
        w
        for w in backward
        if any("conv2d_grad_weight" in k.name for k in plan.kernels[w.kernel : w.before])
    ]
    assert len(hidden) >= 0.7 * len(backward)


def test_programs_without_ranks_have_nothing_of_it():
    plan = prepare(join_gradient(make("tiny_densenet", batch=2, image=32).graph), 8).planned.plan
    assert plan.waits == () and plan.computed == plan.kernels


def test_evaluation_and_programs_without_gradients_exchange_no_more_than_they_need():
    graph = network("tiny_densenet")
    forward = prepare(Joint(graph, graph), 8).planned.plan
    assert 0 < len(forward.waits) == counts(plan_of("tiny_densenet", "icf"))[FORWARD]
    joint = differentiate(graph, ["classifier.weight"])
    late = [v for v in joint.input_values() if v not in set(graph.input_values())]
    last = prepare(Joint(joint, graph, tuple(late), ("classifier.weight",)), 8).planned.plan
    assert counts(last)[BACKWARD] == 0
