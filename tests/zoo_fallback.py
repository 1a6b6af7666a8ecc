"""How much of a model's traffic kernels without a schedule of their own would move, by planning.

In: a model of the zoo and the size of its images. Out: the share of bytes, and which ops they are.
Nothing is compiled: the model runs once in PyTorch, its regions are planned as they would be built,
and `nests.choose` says how each kernel would be generated on this machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bngen.codegen.nests import choose
from bngen.passes.prepare import Joint, join_gradient, prepare
from bngen.plan.formats import declared_formats
from bngen.plan.kernel import Kernel, KernelPlan
from bngen.plan.layout import PackedWeight
from bngen.target.parse import Target
from bngen.torch_bridge.explain import Explanation, explained
from bngen.torch_bridge.region import asked_of
from bngen.torch_bridge.regions import Regions, Taken, cut
from tests import zoo_models

HEAD = f"{'model':20} regions   kernels  fallback  what of it"


@dataclass
class Share:
    """A model's kernels without a schedule.

    Attributes:
        name: the model.
        kernels: how many have none, of how many.
        unfused: how many kernels there would be without fusion.
        share: of the bytes that all kernels read and write.
        ops: the same by the ops that the kernels hold, the largest first.
        explanation: what bngen takes of the model.
    """

    name: str
    kernels: tuple[int, int]
    unfused: int
    share: float
    ops: tuple[tuple[str, float], ...]
    explanation: Explanation
    ok: bool = True

    def text(self) -> str:
        """A line of the table."""
        of, regions = f"{self.kernels[0]}/{self.kernels[1]}", len(self.explanation.regions)
        ops = ", ".join(f"{op} {100 * share:.1f} %" for op, share in self.ops[:4])
        return f"{self.name:20} {regions:7} {of:>9} {100 * self.share:7.1f} %  {ops}"


def shares(name: str, batch: int, image: int) -> Share:
    """Plan a model's training step for this machine."""
    image = max(image, zoo_models.LEAST_IMAGE.get(name, 0))
    target = Target.parse("llvm -mcpu=native")
    slow, total, count, without, unfused = Counter(), 0, 0, 0, 0
    graphs = cuts(name, batch, image)
    for taken in (t for c in graphs for t in c.taken):
        plan = planned(taken, target.channel_block).planned.plan
        unfused += len(planned(taken, target.channel_block, "none").planned.plan.kernels)
        for kernel in plan.kernels:
            moved = sum(plan.nbytes(v) for v in (*kernel.inputs, *kernel.outputs))
            total, count = total + moved, count + 1
            if choose(kernel, plan.layouts, target.machine).strategy.kind == "fallback":
                without += 1
                slow[_named(kernel, plan)] += moved
    ops = tuple((op, moved / total) for op, moved in slow.most_common() if moved > 0.001 * total)
    share = sum(slow.values()) / max(total, 1)
    return Share(name, (without, count), unfused, share, ops, explained(graphs))


def _named(kernel: Kernel, plan: KernelPlan) -> str:
    """What a kernel holds; of a copy alone, of what."""
    name = "+".join(kernel.sublayers)
    if name != "copy":
        return name
    values = (*kernel.inputs, *kernel.outputs)
    if any(isinstance(plan.layouts[v], PackedWeight) for v in values):
        return "copy of weights"
    return "copy of vectors" if len(values[0].shape) == 1 else "copy of maps"


def planned(taken: Taken, block: int, level: str = "icf") -> Any:
    """A region's kernels at a level of fusion, as `bngen.build` plans them."""
    options = asked_of(taken).options(taken.graph)
    formats = declared_formats(taken.graph, options["memory_format"])
    if "wrt" in options:
        joint = join_gradient(taken.graph, options["wrt"], formats)
    else:
        joint = Joint(taken.graph, taken.graph, formats=formats)
    return prepare(joint, block, level)


def cuts(name: str, batch: int, image: int) -> list[Regions]:
    """What Dynamo captures of a model, cut; the model runs in PyTorch."""
    found: list[Regions] = []

    def note(captured: torch.fx.GraphModule, _: Sequence[Any]) -> Any:
        def run(*inputs: Any) -> Any:
            found.append(cut(captured, inputs))
            return captured(*inputs)

        return run

    torch._dynamo.reset()
    torch.compile(zoo_models.make(name), backend=note)(torch.randn(batch, 3, image, image))
    return found
