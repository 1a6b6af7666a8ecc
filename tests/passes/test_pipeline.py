"""Every pass preserves meaning, on random programs and their gradients, at each level."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bngen.ir.build import GraphBuilder, prune
from bngen.ir.node import Graph
from bngen.ir.ops import OPS
from bngen.ir.types import TensorType
from bngen.ir.verify import verify
from bngen.passes.concatenations import place_concatenations
from bngen.passes.deferral import defer_affine_gradients
from bngen.passes.fission import fission_batch_norm, hoist_channel_factors, split_reductions
from bngen.passes.fusion.levels import LEVELS
from bngen.passes.layout.assign import assign_layouts
from bngen.passes.pipeline import graph_passes
from bngen.plan.formats import Formats
from bngen.plan.layout import Blocked, plain, same_bytes
from tests.passes.meaning import joint_program, reference, same_meaning, same_results
from tests.strategies import formats_of, programs, random_args

seeds = st.integers(0, 2**31)
LANES = st.sampled_from([4, 8, 16])


def both(graph: Graph) -> tuple[Graph, Graph]:
    """A program and the program with its gradients."""
    return graph, joint_program(graph)[0]


def ops(graph: Graph) -> list[str]:
    return [n.op for n in graph.nodes]


# --- the list -------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@given(graph=programs(), seed=seeds)
def test_each_stage_preserves_meaning(level, graph, seed):
    """Each stage against the stage before, tightly: no pass hides behind the noise of another."""
    for stage in both(graph):
        args = random_args(stage, seed)
        before = reference(stage, args)
        for name, apply in graph_passes(LEVELS[level]):
            stage = apply(stage)
            verify(stage, name)
            after = reference(stage, args)
            same_results(after, before)
            before = after
        verify(stage, "passes", also=("no coarse ops", "no dead nodes"))


@pytest.mark.parametrize("level", LEVELS)
@given(graph=programs())
def test_the_list_twice_is_the_list_once(level, graph):
    """What the passes made they leave alone."""
    for stage in both(graph):
        once = through(stage, level)
        assert ops(through(once, level)) == ops(once)


def through(graph: Graph, level: str) -> Graph:
    for _, apply in graph_passes(LEVELS[level]):
        graph = apply(graph)
    return graph


# --- fission --------------------------------------------------------------------------------------


@pytest.mark.parametrize("one_sweep", [False, True])
@pytest.mark.parametrize("deferred", [False, True])
@given(graph=programs(), seed=seeds)
def test_fission(one_sweep, deferred, graph, seed):
    for stage in both(graph):
        split = fission_batch_norm(stage, one_sweep=one_sweep, deferred=deferred)
        assert "coarse" not in {OPS[n.op].kind for n in split.nodes}
        same_meaning(stage, split, seed)
        assert fission_batch_norm(split, one_sweep=one_sweep, deferred=deferred) == split
        cut = split_reductions(split)
        same_meaning(split, cut, seed)
        assert split_reductions(cut) == cut
        hoisted = hoist_channel_factors(cut)
        same_meaning(cut, hoisted, seed)
        assert hoist_channel_factors(hoisted) == hoisted


# --- deferral -------------------------------------------------------------------------------------


@given(graph=programs(), seed=seeds)
def test_deferral(graph, seed):
    joint, _ = joint_program(graph)
    split = fission_batch_norm(joint, one_sweep=True, deferred=True)
    deferred = prune(defer_affine_gradients(split))
    same_meaning(split, deferred, seed)
    assert ops(prune(defer_affine_gradients(deferred))) == ops(deferred)


def consumers_of_one_map(count: int) -> Graph:
    b = GraphBuilder()
    x = b.emit("silu", b.input("x", TensorType((2, 4, 5, 5))))
    results = []
    for _ in range(count):
        weight, bias = (b.input(n, TensorType((4,)), "parameter") for n in ("gamma", "beta"))
        results.append(b.emit("relu", b.emit("batch_norm", x, weight, bias)[0]))
    return b.finish(results)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_one_affine_term_a_map(count):
    """However many consumers a map has, their affine parts become one."""
    joint, _ = joint_program(consumers_of_one_map(count))
    split = fission_batch_norm(joint, one_sweep=True, deferred=True)
    split = dict(graph_passes(LEVELS["icf"]))["cse"](split)
    assert ops(split).count("bn_grad_affine") == count
    deferred = prune(defer_affine_gradients(split))
    assert ops(deferred).count("bn_grad_affine") == 1
    same_meaning(split, deferred, seed=1)


# --- layout ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@given(graph=programs(), lanes=LANES, seed=seeds, data=st.data())
def test_layouts_and_places_only_copy(level, graph, lanes, seed, data):
    """Both passes add copies, which mean nothing, and take nothing away."""
    for stage in both(graph):
        stage = through(stage, level)
        formats = data.draw(formats_of(stage))
        laid, layouts = assign_layouts(stage, lanes, formats)
        same_meaning(stage, laid, seed, rtol=0)
        placed, table = place_concatenations(laid, layouts)
        same_meaning(laid, placed, seed, rtol=0)
        for after in (laid, placed):
            verify(after, "layout")
            kept = [n for n in ops(after) if n != "copy"]
            assert kept == [n for n in ops(stage) if n != "copy"]
        assert set(table) >= set(placed.values())
        check_layouts(placed, table, formats)


def check_layouts(graph: Graph, layouts, formats: Formats) -> None:
    """Blocked layouts have the channels of their values; users' arrays lie as is declared."""
    for v in graph.values():
        layout = layouts[v]
        if isinstance(layout, Blocked):
            assert layout.channels == v.type.channels, v
    for i in graph.inputs:
        assert layouts[i.value] == plain(i.value.type, channels_last=i.name in formats.inputs)
    for i, v in enumerate(graph.outputs):
        declared = plain(v.type, channels_last=i in formats.outputs)
        assert same_bytes(v.type, layouts[v], declared)
    for target, new in graph.updates:
        assert same_bytes(new.type, layouts[new], layouts[target])


@given(graph=programs(), lanes=LANES)
def test_parts_of_a_concatenation_belong_to_it_alone(graph, lanes):
    """No value lies in two concatenations, and none that the user owns lies in any."""
    for stage in both(graph):
        laid = assign_layouts(through(stage, "icf"), lanes)
        placed, layouts = place_concatenations(*laid)
        inputs, parts = set(placed.input_values()), []
        for node in placed.nodes:
            if node.op == "cat" and isinstance(layouts[node.out], Blocked):
                parts += node.inputs
        assert len(parts) == len(set(parts)) and inputs.isdisjoint(parts)
