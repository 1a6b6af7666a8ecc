"""Every decision for the built-in networks and for programs that reach further, as golden files.

Strategies, slots, knobs, refusals and memory, see `tests.decisions`. Who changes a decision changes
these files by ``pytest --update-golden``, and reads the difference.
"""

from __future__ import annotations

import os

import pytest

from bngen.models import make
from tests.decided_programs import PROGRAMS
from tests.decisions import MACHINES, part_for, table

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
NETWORKS = {
    "densenet121": (16,),
    "mobilenet_v2": (4, 8, 16),
    "resnet18": (8,),
    "resnet50": (16,),
    "vgg16_bn": (4,),
}
"""Lanes of the machines that each is planned for every time; for all of them when thorough."""


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name, golden, request):
    """Forward and backward at batch 8, 224x224, gradients of images included."""
    updating = request.config.getoption("--update-golden")
    lanes = tuple(MACHINES) if THOROUGH or updating else NETWORKS[name]
    golden(table(make(name).graph, lanes), part=lambda text: part_for(text, lanes))


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name, golden):
    case = PROGRAMS[name]
    golden(table(case.program.graph, case.lanes, gradient=case.gradient))


def test_a_table_for_fewer_machines_is_a_part_of_that_for_all():
    graph = PROGRAMS["images"].program.graph
    whole = table(graph, MACHINES)
    for lanes in ((4,), (8, 16), (16,), tuple(MACHINES)):
        assert part_for(whole, lanes) == table(graph, lanes)
