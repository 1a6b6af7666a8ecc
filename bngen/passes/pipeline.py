"""The ordered list of passes: from a traced program to kernels and their memory.

In: a graph, a fusion level, the vector width. Out: a `Planned`. Every stage is a complete program
that can be printed and interpreted; `dump` sees each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bngen.ir.build import prune
from bngen.ir.node import Graph
from bngen.ir.types import Value
from bngen.ir.verify import verify
from bngen.passes.collectives import sum_over_ranks_last
from bngen.passes.concatenations import (
    nest_concatenations,
    place_concatenations,
    split_concatenations,
)
from bngen.passes.conversions import join_conversions
from bngen.passes.deferral import defer_affine_gradients
from bngen.passes.fission import fission_batch_norm, hoist_channel_factors, split_reductions
from bngen.passes.fusion.cut import fuse
from bngen.passes.fusion.levels import LEVELS, FusionLevel
from bngen.passes.index_maps import join_index_maps
from bngen.passes.layout.assign import assign_layouts
from bngen.passes.memory import plan_memory
from bngen.passes.reshapes import lower_reshapes
from bngen.passes.simplify import (
    forward_slices,
    pool_before_convolution,
    share_common_subexpressions,
    share_statistics,
)
from bngen.plan.check import check_plan
from bngen.plan.formats import C_ORDER, Formats
from bngen.plan.kernel import KernelPlan
from bngen.plan.memory import MemoryPlan

Dump = Callable[[str, Graph], None]


@dataclass(frozen=True)
class Planned:
    """What the passes decided."""

    plan: KernelPlan
    memory: MemoryPlan


def graph_passes(level: FusionLevel) -> list[tuple[str, Callable[[Graph], Graph]]]:
    """The graph-to-graph passes of a fusion level, in order."""
    passes: list[tuple[str, Callable[[Graph], Graph]]] = [
        ("conversions", join_conversions),
        ("moves", join_index_maps),
        ("reshapes", lower_reshapes),
        ("conversions", join_conversions),
        ("nest", nest_concatenations),
        ("pools", pool_before_convolution),
        (
            "fission",
            lambda g: fission_batch_norm(g, one_sweep=level.one_sweep, deferred=level.channel),
        ),
        ("slices", forward_slices),
        ("cse", share_common_subexpressions),
    ]
    if level.across:
        passes += [("statistics", share_statistics), ("cse", share_common_subexpressions)]
    if level.channel:
        passes += [("deferral", defer_affine_gradients), ("slices", forward_slices)]
        passes += [("conversions", join_conversions)]
    passes += [
        ("collectives", lambda g: sum_over_ranks_last(g, slices=level.across)),
        ("reductions", split_reductions),
        ("factors", hoist_channel_factors),
        ("cse", share_common_subexpressions),
        ("prune", prune),
        ("parts", split_concatenations),
    ]
    return passes


def plan_program(
    graph: Graph,
    level: str,
    lanes: int,
    cotangents: Iterable[Value] | None = None,
    keep: Iterable[Value] = (),
    dump: Dump | None = None,
    formats: Formats = C_ORDER,
    *,
    pairs: str = "",
) -> Planned:
    """Run every pass.

    Args:
        graph: as traced, or differentiated.
        level: a key of `LEVELS`.
        lanes: float32 elements of a vector register.
        cotangents: inputs that only ``backward`` is given; None where there is no such call.
        keep: values that must survive the last kernel.
        dump: called with each stage's name and graph.
        formats: the users' arrays that are channels-last.
        pairs: which convolutions of bfloat16 multiply pairs of channels, see `Target.pairs`.
    """
    rules = LEVELS[level]
    for name, run in graph_passes(rules):
        graph = run(graph)
        verify(graph, stage=name)
        if dump:
            dump(name, graph)
    graph, layouts = assign_layouts(graph, lanes, formats, pairs=pairs)
    graph = prune(graph)
    if rules.across:
        graph, layouts = place_concatenations(graph, layouts)
    verify(graph, stage="layout")
    if dump:
        dump("layout", graph)
    plan = fuse(graph, layouts, rules, None if cotangents is None else frozenset(cotangents))
    memory = plan_memory(plan, keep)
    check_plan(plan, memory)
    return Planned(plan, memory)
