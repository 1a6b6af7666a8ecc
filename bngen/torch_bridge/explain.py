"""What of a PyTorch model bngen takes, what it leaves, and why, with the model's own lines.

In: cut graphs, or a model and its arguments. Out: an `Explanation`, which prints as text, and tells
of what is taken all that ``bngen explain`` tells of a program.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bngen import cache as caches
from bngen.errors import BngenError
from bngen.explain import text as report_text
from bngen.explain.gather import Explained
from bngen.explain.gather import explained as explained_program
from bngen.explain.page import page
from bngen.explain.report import Report
from bngen.torch_bridge.region import asked_of
from bngen.torch_bridge.regions import Left, Regions, Taken, cut
from bngen.torch_bridge.sync_batch_norm import alone

_HELD = re.compile(r"L_self_modules_(\w+)_(?:parameters|buffers)_(\w+)_")
"""How Dynamo calls what a module holds."""


@dataclass(frozen=True)
class Explanation:
    """What becomes of a model's calls.

    Attributes:
        graphs: how many graphs Dynamo captured.
        regions: of each region, in order, how many of the model's calls it holds.
        left: the calls that run in PyTorch.
        taken: the regions themselves.
    """

    graphs: int
    regions: tuple[int, ...]
    left: tuple[Left, ...]
    taken: tuple[Taken, ...] = field(default=(), repr=False, compare=False)

    def reports(self, target: Any = "llvm -mcpu=native", fusion: str = "icf") -> list[Report]:
        """What each region becomes: stages, kernels, what was not fused, totals.

        The regions are planned, with their gradients where the model's call would ask for them, and
        not compiled; layers have the names that they have in the model.

        Args:
            target: what to plan for; see `bngen.bundle`.
            fusion: the level.

        Raises:
            BngenError: for a target or a level that there is not.
        """
        return [found.report for found in self._explained(target, fusion)]

    def text(self, target: Any = "llvm -mcpu=native", fusion: str = "icf") -> str:
        """The explanation and all `reports`, as ``bngen explain`` shows them."""
        reports = self.reports(target, fusion)
        return "\n\n".join((str(self), *map(report_text.text, reports)))

    def html(self, region: int = 0, target: Any = "llvm -mcpu=native", fusion: str = "icf") -> str:
        """The page that ``bngen explain --html`` writes, of one region.

        Raises:
            BngenError: where there is no such region.
        """
        if not 0 <= region < len(self.taken):
            raise BngenError(f"there is no region {region}: bngen takes {len(self.taken)}")
        return page(self._explained(target, fusion)[region], {})

    def _explained(self, target: Any, fusion: str) -> list[Explained]:
        machine = caches.target(target)
        found = []
        for taken in self.taken:
            asked = asked_of(taken).options(taken.graph)
            both = zip(taken.graph.inputs, taken.inputs, strict=True)
            asked["names"] = {i.name: name for i, node in both if (name := _parameter(node))}
            found.append(explained_program(taken.graph, machine, fusion=fusion, **asked))
        return found

    def __str__(self) -> str:
        taken, calls = sum(self.regions), sum(self.regions) + len(self.left)
        lines = [f"bngen takes {taken} of {calls} calls, in {_counted(len(self.regions), 'region')}"
                 f" of {_counted(self.graphs, 'graph')}; PyTorch runs"]  # fmt: skip
        rows = Counter((left.what, left.reason, str(left.loc or "")) for left in self.left)
        for (what, reason, loc), count in rows.items():
            times = f"{count}x " if count > 1 else ""
            lines.append(f"  {times}{what}{f' at {loc}' if loc else ''}: {reason}")
        return "\n".join(lines if rows else [lines[0].removesuffix("; PyTorch runs")])


def _parameter(node: torch.fx.Node) -> str:
    """The model's name of a parameter or a buffer; empty for what is neither."""
    found = _HELD.fullmatch(str(node.target))
    return f"{found[1]}.{found[2]}".replace("_modules_", ".") if found else ""


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def explained(cuts: Sequence[Regions]) -> Explanation:
    """The explanation of cut graphs."""
    return Explanation(
        len(cuts),
        tuple(taken.calls for c in cuts for taken in c.taken),
        tuple(left for c in cuts for left in c.left),
        tuple(taken for c in cuts for taken in c.taken),
    )


def explain_model(model: torch.nn.Module, *args: Any, **kwargs: Any) -> Explanation:
    """What ``torch.compile(model, backend="bngen")`` would take of a model, and why not the rest.

    The model is run once, a copy of it and in PyTorch; nothing is compiled, nothing of it changes,
    and no other rank is waited for.

    Args:
        model: any ``torch.nn.Module``, in the mode (train or eval) that is meant.
        *args: arguments of a call.
        **kwargs: the same by name.

    Raises:
        BngenError: for what is no module.
    """
    if not isinstance(model, torch.nn.Module):
        raise BngenError(f"explain_model takes a torch.nn.Module, not a {type(model).__name__}")
    cuts: list[Regions] = []

    def note(captured: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        def run(*inputs: Any) -> Any:
            cuts.append(cut(captured, inputs))
            return captured(*inputs)

        return run

    # Of a compiled model, the model itself: a copy of it is not compiled.
    model = copy.deepcopy(getattr(model, "_orig_mod", model))
    random = torch.get_rng_state()
    try:
        with alone():
            torch.compile(model, backend=note, dynamic=False)(*args, **kwargs)
    finally:
        torch.set_rng_state(random)
    return explained(cuts)
