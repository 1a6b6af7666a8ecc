"""One training step of a built-in network against PyTorch: loss, gradients, running statistics.

``python -m tests.whole_network densenet121 --batch 4 --image 224`` builds the network with its
gradient and a mean cross-entropy, runs it once from seeded weights, and runs the very same graph in
PyTorch in single and in double precision. Printed are the ten tensors that come closest to, or
exceed, what the tolerance rule of `oracle` allows; exit status 1 if any exceeds it.

A network has millions of ReLUs. Now and then rounding moves one element to the other side of the
kink, and the gradients of all layers before it jump by far more than rounding does: with
DenseNet-121 on small images that happens to PyTorch's own single precision in one run of ten. So
several batches are run, each with weights of its own, and each tensor is judged by the median.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

import bngen as bg
from bngen.compiler import FUSION_LEVELS
from bngen.ir.node import Graph
from bngen.runtime.module import Module
from bngen.verification.tolerance import allowed
from tests.oracle import TorchResults, torch_run, torch_runs


@dataclass(frozen=True)
class Finding:
    """One tensor: the largest error of ours and of PyTorch's runs, and what is allowed."""

    name: str
    ours: float
    theirs: float
    scale: float

    @property
    def allowed(self) -> float:
        """Four times PyTorch's error and a few units in the last place of the largest element."""
        return allowed(self.theirs, self.scale, "float32")

    @property
    def share(self) -> float:
        """How much of what is allowed is used; more than 1 is a failure, and so is NaN."""
        return self.ours / self.allowed if self.allowed else (0.0 if self.ours == 0 else np.inf)

    @property
    def ok(self) -> bool:
        """Whether the tensor obeys the rule."""
        return self.share <= 1


def arguments(module: Module, graph: Graph, seed: int) -> dict[str, np.ndarray]:
    """Weights as the module starts with, a random batch, random labels."""
    rng = np.random.default_rng(seed)
    classes = next(n.attrs["classes"] for n in graph.nodes if n.op == "one_hot")
    images, labels = (s.shape for s in module.signature.arguments)
    x = rng.standard_normal(images, dtype=np.float32)
    return {**module.state_dict(), "x": x, "labels": rng.integers(0, classes, labels)}


def step(module: Module, args: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Everything that one step gives, by name."""
    loss = module(args["x"], args["labels"])
    gradients = module.backward()
    held = {n: a for n, a in module.state_dict().items() if module_updates(module, n)}
    return {"loss": loss, **{f"grad {n}": g for n, g in gradients.items()}, **held}


def module_updates(module: Module, name: str) -> bool:
    """Whether the program writes a new value into a parameter or buffer."""
    return any(s.name == name and s.inplace for s in module.signature.state)


def as_step(results: TorchResults) -> dict[str, np.ndarray]:
    """The same of PyTorch's results."""
    gradients = {f"grad {n}": g for n, g in results.grads.items()}
    return {"loss": results.outputs[0], **gradients, **results.updates}


def findings(
    ours: Mapping[str, np.ndarray],
    theirs: Sequence[Mapping[str, np.ndarray]],
    exact: Mapping[str, np.ndarray],
) -> Iterator[Finding]:
    """Every tensor, judged.

    The gradient of a bias is on the scale of its layer's weight: both add up the same terms, but a
    bias that leads linearly into another BN has the gradient zero, and only roundings are left.
    """
    assert ours.keys() == exact.keys(), ours.keys() ^ exact.keys()
    scales = {name: float(np.abs(truth).max()) for name, truth in exact.items()}
    for name, truth in exact.items():
        errors = [float(np.abs(a[name] - truth.astype(np.float64)).max()) for a in (ours, *theirs)]
        partner = f"{name.removesuffix('.bias')}.weight" if name.startswith("grad ") else name
        scale = max(scales[name], scales.get(partner, 0.0))
        yield Finding(name, errors[0], max(errors[1:]), scale)


def compare(
    name: str,
    batch: int,
    image: int,
    fusion: str = "icf",
    target: str = "llvm -mcpu=native",
    seeds: int = 3,
    runs: int = 4,
) -> list[Finding]:
    """Build a network, run steps here and in PyTorch; the median findings, the worst first."""
    dropout = 0.0 if bg.models.MODELS[name].has_dropout else None
    graph = bg.models.make(name, batch, image, loss=True, dropout=dropout).graph
    wrt = [i.name for i in graph.inputs if i.kind == "parameter"]
    module = bg.build(graph, fusion=fusion, target=target, grad=True, wrt=wrt)
    judged: dict[str, list[Finding]] = {}
    for seed in range(seeds):
        args = arguments(module.init(seed), graph, seed)
        ours = step(module, args)
        theirs = [as_step(r) for r in torch_runs(graph, args, wrt, runs=runs)]
        exact = as_step(torch_run(graph, args, torch.float64, wrt))
        for finding in findings(ours, theirs, exact):
            judged.setdefault(finding.name, []).append(finding)
    return sorted(map(median, judged.values()), key=lambda f: -f.share)


def median(several: Sequence[Finding]) -> Finding:
    """The finding in the middle, the worse of two; NaN counts as the worst."""
    ordered = sorted(several, key=lambda f: np.inf if np.isnan(f.share) else f.share)
    return ordered[len(ordered) // 2]


def table(found: Sequence[Finding], rows: int = 10) -> str:
    """The first findings as text."""
    width = max(len(f.name) for f in found[:rows])
    lines = [f"{'tensor':{width}}  {'error':>9}  {'PyTorch':>9}  {'allowed':>9}  share"]
    for f in found[:rows]:
        cells = f"{f.ours:9.2e}  {f.theirs:9.2e}  {f.allowed:9.2e}  {f.share:5.2f}"
        lines.append(f"{f.name:{width}}  {cells}{'' if f.ok else '  exceeds'}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("network", choices=sorted(bg.models.MODELS))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--image", type=int, default=224)
    parser.add_argument("--fusion", choices=FUSION_LEVELS, default="icf")
    parser.add_argument("--target", default="llvm -mcpu=native")
    parser.add_argument("--seeds", type=int, default=3, help="how many batches")
    parser.add_argument("--runs", type=int, default=4, help="of PyTorch in single precision")
    found = compare(*vars(parser.parse_args(argv)).values())
    print(table(found))
    wrong = sum(not f.ok for f in found)
    print(f"{len(found) - wrong} of {len(found)} tensors within the tolerance rule")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
