"""Every decision for the built-in networks and for programs that reach further, as golden files.

Strategies, slots, knobs, refusals and memory, see `tests.decisions`. Who changes a decision changes
these files by ``pytest --update-golden``, and reads the difference.
"""

from __future__ import annotations

import pytest

import bngen as bg
from bngen.models import make
from tests.decided_programs import PROGRAMS
from tests.decisions import table
from tests.profiles import THOROUGH, takes_long

NETWORKS = {
    "densenet121": (16,), "mobilenet_v2": (4, 8, 16), "resnet18": (8,), "resnet50": (16,),
    "vgg16_bn": (4,),
}  # fmt: skip
OTHER_WIDTHS = {
    "densenet121": (4, 8), "resnet18": (4, 16), "resnet50": (4, 8), "vgg16_bn": (8, 16),
}  # fmt: skip
"""Lanes of machines for which a network is planned when there is time."""


LARGE = ("densenet121", "mobilenet_v2")
"""Networks of which only blocks are decided in every run; see `tests.decided_programs`."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[takes_long("is large")] if name in LARGE else [])
        for name in NETWORKS
    ],
)
def test_network(name, golden):
    """Forward and backward at batch 8, 224x224, gradients of images included."""
    golden(table(make(name).graph, NETWORKS[name]))


def test_network_in_mixed_precision(golden):
    """The same kernels as in float32, with conversions in their slots."""
    golden(table(bg.autocast(make("resnet18", 8, 64)).graph, (16,)))


@pytest.mark.parametrize("name", OTHER_WIDTHS)
def test_network_at_other_widths(name, golden, request):
    updating = request.config.getoption("--update-golden")
    if not updating and not THOROUGH:
        pytest.skip("takes a minute: HYPOTHESIS_PROFILE=thorough")
    golden(table(make(name).graph, OTHER_WIDTHS[name]))


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name, golden):
    case = PROGRAMS[name]
    golden(table(case.program.graph, case.lanes, gradient=case.gradient))
