"""Unmodified models of torchvision and timm, compiled by bngen, beside eager PyTorch.

``python -m tests.zoo`` compiles each model of `zoo_models` (``python -m tests.zoo resnet18 dla34``:
those, or any other of the two libraries), takes three SGD steps at a small learning rate and one
call in evaluation, and does the same in eager PyTorch in single and in double precision, from the
same weights. Printed are, for each model, the tensor that comes closest to, or exceeds, what the
tolerance rule allows, what bngen takes of it, and the CPU seconds of the first step; below, the
calls that are left to PyTorch. Exit status 1 if a model disagrees or cannot be run. With
``--fallback`` nothing is compiled: the share of the bytes is planned that kernels without a
schedule move.

As in `whole_network`, several seeds are run and each tensor is judged by the median: rounding now
and then moves an element to the other side of a ReLU's kink. PyTorch's own error is the largest of
four runs: both memory formats, with weights and images as they are and moved by a unit in the last
place.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bngen.torch_bridge.backend import backend
from bngen.torch_bridge.explain import Explanation, explained
from bngen.torch_bridge.regions import Regions, cut
from tests import zoo_fallback, zoo_models
from tests.torch_bridge.eager import nudge, tensors
from tests.whole_network import Finding, median

STEPS, RATE = 3, 1e-3
AUXILIARY = 0.4
"""Weight of the loss of a model's other results."""

Results = dict[str, torch.Tensor]


@dataclass
class Row:
    """What became of a model.

    Attributes:
        name: the model.
        error: why it could not be run; empty where it could.
        worst: the tensor that uses most of what is allowed, and the share.
        exceeding: how many tensors, of how many, exceed what is allowed.
        first_step: CPU seconds, compiling included where the cache has nothing.
        explanation: what bngen takes of the model.
    """

    name: str
    error: str = ""
    worst: tuple[str, float] = ("", 0.0)
    exceeding: tuple[int, int] = (0, 0)
    first_step: float = 0.0
    explanation: Explanation = field(default_factory=lambda: Explanation(0, (), ()))

    @property
    def ok(self) -> bool:
        """Whether the model has run, and agrees."""
        return not self.error and not self.exceeding[0]

    def text(self) -> str:
        """A line of the table."""
        if self.error:
            return f"{self.name:20} fails: {self.error}"
        e, (tensor, share), (wrong, among) = self.explanation, self.worst, self.exceeding
        agrees = "agrees" if not wrong else f"{wrong} of {among} exceed"
        taken = f"{sum(e.regions):4}/{sum(e.regions) + len(e.left):<4}"
        regions = f"{len(e.regions):3} of {e.graphs:<2}"
        return (f"{self.name:20} {agrees:17} {share:5.2f} {taken} {regions} "
                f"{self.first_step:6.1f}  {tensor}")  # fmt: skip


HEAD = f"{'model':20} {'':17} share taken/of  regions  cpu s  worst tensor"


def losses(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    """The loss of a model's results: cross-entropy, of auxiliary ones at a lower weight."""
    first, *others = (F.cross_entropy(t, labels) for t in tensors(outputs))
    return first + AUXILIARY * sum(others)


def trained(
    model: nn.Module, x: torch.Tensor, labels: torch.Tensor, first: list[float] | None = None
) -> Results:
    """Three steps and a call in evaluation; everything that comes of it, by name."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    found: Results = {}
    for i in range(STEPS):
        start = time.process_time()
        optimizer.zero_grad()
        outputs = model(x)
        loss = losses(outputs, labels)
        loss.backward()
        optimizer.step()
        if first is not None and i == 0:
            first.append(time.process_time() - start)
        found[f"loss {i + 1}"] = loss
    found |= {f"output {i}": t for i, t in enumerate(tensors(outputs))}
    found |= {f"grad {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    found |= {n: t for n, t in model.state_dict().items()}
    with torch.no_grad():
        found["output in eval"] = model.eval()(x)
    return {name: t.detach().clone() for name, t in found.items()}


def references(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> tuple[Results, list]:
    """Double precision, and four runs in single precision."""
    several = []
    for moved in (False, True):
        for format in (torch.contiguous_format, torch.channels_last):
            other, images = copy.deepcopy(model), x
            if moved:
                images = nudge(x)
                with torch.no_grad():
                    for p in other.parameters():
                        p.copy_(nudge(p))
            other, images = other.to(memory_format=format), images.to(memory_format=format)
            several.append(trained(other, images, labels))
    return trained(copy.deepcopy(model).double(), x.double(), labels), several


def findings(ours: Results, theirs: Sequence[Results], exact: Results) -> Iterator[Finding]:
    """Every tensor, judged; what is no float must be equal."""
    assert ours.keys() == exact.keys(), ours.keys() ^ exact.keys()
    for name, truth in exact.items():
        runs = [ours[name], *(run[name] for run in theirs)]
        errors = [(t.double() - truth.double()).abs().max().item() for t in runs]
        is_float = ours[name].is_floating_point()
        scale = _scale(name, exact) if is_float else 0.0
        yield Finding(name, errors[0], max(errors[1:]) if is_float else 0.0, scale)


def _scale(name: str, exact: Mapping[str, torch.Tensor]) -> float:
    """The largest element of a tensor, or of what stands beside it and is summed from the same.

    The gradient of a bias before a batch normalization is zero but for rounding, and so is the mean
    of what a batch normalization has centred.
    """
    module, _, kind = name.rpartition(".")
    beside = [name]
    if name.startswith("grad "):
        beside += [n for n in exact if n.rpartition(".")[0] == module]
    scale = max(exact[n].abs().max().item() for n in beside)
    if kind == "running_mean":
        scale = max(scale, exact[f"{module}.running_var"].max().item() ** 0.5)
    return scale


def compare(name: str, batch: int, image: int, seeds: int) -> Row:
    """Run a model here and in PyTorch."""
    torch._dynamo.reset()
    image = max(image, zoo_models.LEAST_IMAGE.get(name, 0))
    torch.manual_seed(0)
    compiled, cuts = zoo_models.make(name), []
    compiled.compile(backend=functools.partial(noted, cuts))
    judged: dict[str, list[Finding]] = {}
    first: list[float] = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        plain = zoo_models.make(name)
        zoo_models.seeded(plain, seed)
        x = torch.randn(batch, 3, image, image)
        labels = torch.randint(0, 1000, (batch,))
        compiled.load_state_dict(plain.state_dict())
        ours = trained(compiled, x, labels, first)
        exact, theirs = references(plain, x, labels)
        for finding in findings(ours, theirs, exact):
            judged.setdefault(finding.name, []).append(finding)
    found = sorted(map(median, judged.values()), key=lambda f: -f.share if f.share >= 0 else -1e99)
    wrong = sum(not f.ok for f in found)
    worst = found[0].name, found[0].share
    return Row(name, "", worst, (wrong, len(found)), first[0], explained(cuts))


def noted(cuts: list[Regions], captured: torch.fx.GraphModule, inputs: Sequence[Any]) -> Any:
    """The backend, which also notes what it takes of graphs in training."""
    run, known = backend(captured, inputs), not torch.is_grad_enabled()

    def call(*inputs: Any) -> Any:
        nonlocal known
        if not known:
            cuts.append(cut(captured, inputs))
            known = True
        return run(*inputs)

    return call


def row_of(make: Callable[..., Any], name: str, *sizes: int) -> Any:
    """A row of a table, with what went wrong as a result of its own."""
    try:
        return make(name, *sizes)
    except Exception as error:
        traceback.print_exc()
        return Row(name, f"{type(error).__name__}: {error}".splitlines()[0])


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", default=zoo_models.NAMES, metavar="MODELS")
    parser.add_argument("--image", type=int, help="64 by default, 224 to plan")
    parser.add_argument("--batch", type=int, help="4 by default, 8 to plan")
    parser.add_argument("--seeds", type=int, default=3, help="how many batches and weights")
    parser.add_argument("--json", type=Path, help="a file to write the rows to")
    parser.add_argument("--fallback", action="store_true", help="only plan, for this machine")
    args = parser.parse_args(argv)
    try:
        zoo_models.libraries()
    except zoo_models.NotInstalledError as error:
        print(error, file=sys.stderr)
        return 2
    rows: list[Any] = []
    print(zoo_fallback.HEAD if args.fallback else HEAD, flush=True)
    for name in args.models:
        if args.fallback:
            row = row_of(zoo_fallback.shares, name, args.batch or 8, args.image or 224)
        else:
            row = row_of(compare, name, args.batch or 4, args.image or 64, args.seeds)
        print(row.text(), flush=True)
        rows.append(row)
        if args.json:
            args.json.write_text(json.dumps(list(map(_described, rows)), default=str, indent=1))
    for row in rows:
        print(f"\n{row.name}: {row.explanation}")
    return 0 if all(row.ok for row in rows) else 1


def _described(row: Any) -> dict[str, Any]:
    """A row as JSON has it; of regions the numbers, not the programs."""
    if isinstance(row, Row):
        row = replace(row, explanation=replace(row.explanation, taken=()))
    return asdict(row)


if __name__ == "__main__":
    sys.exit(main())
