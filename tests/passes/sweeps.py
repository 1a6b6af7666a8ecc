"""The counts of the page `docs/how/sweeps.md`, and the text of its tables."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from bngen.ir.node import Graph
from bngen.ir.types import TensorType
from bngen.lang.program import trace
from bngen.models import make
from bngen.models.common import Options
from bngen.models.densenet import DenseNet
from bngen.models.resnet import ResNet
from bngen.passes.fusion.levels import LEVELS
from bngen.passes.pipeline import Planned, plan_program
from bngen.plan.calls import saved
from bngen.plan.traffic import KernelTraffic, kernel_traffic, total
from tests.passes.meaning import joint_program

LANES = 16
MIB = 2**20
NETWORKS = ("densenet121", "resnet50")


def network(model: Callable) -> Graph:
    """One size of a family on small images."""
    options = Options(num_classes=10, training=True, dropout=None, seed=0)
    return trace(lambda x: model(x, options), TensorType((8, 3, 64, 64)), name="network").graph


LAYERS = {
    "DenseNet": lambda layers: network(DenseNet(32, (layers,), 64)),
    "ResNet": lambda layers: network(ResNet((layers,), bottleneck=True)),
}
"""A network of one block of so many composite layers."""


@cache
def planned(name: str, level: str) -> Planned:
    """Plan of a training step at batch 8, 224x224."""
    joint, late = joint_program(make(name, batch=8, image=224).graph)
    return plan_program(joint, level, LANES, cotangents=late)


def rows_of(graph: Graph, level: str) -> tuple[KernelTraffic, ...]:
    joint, late = joint_program(graph)
    return kernel_traffic(plan_program(joint, level, LANES, cotangents=late).plan)


def counts(rows: tuple[KernelTraffic, ...]) -> tuple[int, ...]:
    """Forward and then backward: kernels that touch feature maps, sweeps read, sweeps written."""
    found: list[int] = []
    for backward in (False, True):
        half = [r for r in rows if r.backward == backward and r.traffic.sweeps]
        found += [len(half), total(half).sweeps_read, total(half).sweeps_written]
    return tuple(found)


def composite_layer(family: str, level: str) -> tuple[int, ...]:
    """What a fourth composite layer adds to a block of three."""
    three, four = (counts(rows_of(LAYERS[family](n), level)) for n in (3, 4))
    return tuple(b - a for a, b in zip(three, four, strict=True))


def network_row(name: str, level: str) -> str:
    """Sweeps, bytes they move and bytes kept of a network's training step."""
    plan = planned(name, level).plan
    rows = kernel_traffic(plan)
    cells = []
    for backward in (False, True):
        half = total(r for r in rows if r.backward == backward)
        cells += [half.sweeps_read, half.sweeps_written, f"{half.nbytes / MIB:,.0f}"]
    kept = sum(map(plan.nbytes, saved(plan)))
    return f"| `{level}` | " + " | ".join(map(str, [*cells, f"{kept / MIB:,.0f}"])) + " |"


def layer_table(family: str) -> str:
    """Kernels and sweeps of one composite layer at every level."""
    lines = [
        f"| {family} | forward: kernels | read | written | backward: kernels | read | written |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for level in LEVELS:
        cells = (f"`{level}`", *map(str, composite_layer(family, level)))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def network_table(name: str) -> str:
    """Sweeps and bytes of a whole training step at every level."""
    lines = [
        f"| {name} | forward: read | written | MiB | backward: read | written | MiB | MiB kept |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    return "\n".join(lines + [network_row(name, level) for level in LEVELS])


PAGE = """# Feature-map sweeps

What fusion saves is passes over feature maps in memory. A *sweep* is one kernel reading or writing
one feature map once; these numbers are counted in the plan, and a test holds this page to it.
One composite layer, of a DenseNet (BN-ReLU-CONV1x1-BN-ReLU-CONV3x3 over the concatenation of all
maps before it) and of a ResNet (a bottleneck with its sum), inside a block:

{layers}

Whole training steps at batch 8, 224x224, gradients of the images included. *Kept* is what the
forward pass writes for the backward pass to read:

{networks}

At `icf` a DenseNet keeps convolution outputs, pool outputs and pool indices, nothing normalized or
rectified; a ResNet also its residual sums, since each is an operand of the next.
"""


def page_of_sweeps() -> str:
    """The page as it must stand in `docs/how`."""
    return PAGE.format(
        layers="\n\n".join(map(layer_table, LAYERS)),
        networks="\n\n".join(map(network_table, NETWORKS)),
    )
