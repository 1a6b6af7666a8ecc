"""What of a PyTorch model bngen takes, what it leaves, and why, with the model's own lines.

In: cut graphs, or a model and its arguments. Out: an `Explanation`, which prints as text.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bngen.errors import BngenError
from bngen.torch_bridge.regions import Left, Regions, cut


@dataclass(frozen=True)
class Explanation:
    """What becomes of a model's calls.

    Attributes:
        graphs: how many graphs Dynamo captured.
        regions: of each region, in order, how many of the model's calls it holds.
        left: the calls that run in PyTorch.
    """

    graphs: int
    regions: tuple[int, ...]
    left: tuple[Left, ...]

    def __str__(self) -> str:
        taken, calls = sum(self.regions), sum(self.regions) + len(self.left)
        lines = [f"bngen takes {taken} of {calls} calls, in {_counted(len(self.regions), 'region')}"
                 f" of {_counted(self.graphs, 'graph')}; PyTorch runs"]  # fmt: skip
        rows = Counter((left.what, left.reason, str(left.loc or "")) for left in self.left)
        for (what, reason, loc), count in rows.items():
            times = f"{count}x " if count > 1 else ""
            lines.append(f"  {times}{what}{f' at {loc}' if loc else ''}: {reason}")
        return "\n".join(lines if rows else [lines[0].removesuffix("; PyTorch runs")])


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def explained(cuts: Sequence[Regions]) -> Explanation:
    """The explanation of cut graphs."""
    return Explanation(
        len(cuts),
        tuple(taken.calls for c in cuts for taken in c.taken),
        tuple(left for c in cuts for left in c.left),
    )


def explain_model(model: torch.nn.Module, *args: Any, **kwargs: Any) -> Explanation:
    """What ``torch.compile(model, backend="bngen")`` would take of a model, and why not the rest.

    The model is run once, a copy of it and in PyTorch; nothing is compiled, nothing of it changes.

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
        torch.compile(model, backend=note, dynamic=False)(*args, **kwargs)
    finally:
        torch.set_rng_state(random)
    return explained(cuts)
