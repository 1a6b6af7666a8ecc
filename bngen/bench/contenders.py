"""Who takes part: bngen at some fusion level, and PyTorch in the forms people run it in.

In: an `Entry`. Out: a `Contender`, which computes the loss and all gradients of one fixed batch
with weights that follow from the seed alone, so that every contender has the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bngen.bench.forms import FORMS
from bngen.lang.init import fill
from bngen.options import PRECISIONS
from bngen.programs import step_program, trained

OURS = "bngen"


@dataclass(frozen=True)
class Entry:
    """One contender of one race.

    Attributes:
        program: a built-in network or ``file.py:function``.
        contender: `OURS`, a fusion level, or one of `forms.FORMS`.
        batch: images in a batch; None where the program decides.
        image: height and width; None where the program decides.
        fusion: the level of `OURS`.
        target: what bngen compiles for.
        threads: threads of either side.
        schedules: folder of records that takes precedence.
        seed: weights and batch follow from it.
        dtype: the precision of bngen's convolutions; PyTorch's follows from its form.
    """

    program: str
    contender: str
    batch: int | None = None
    image: int | None = None
    fusion: str = "icf"
    target: str = "llvm -mcpu=native"
    threads: int | None = None
    schedules: str | None = None
    seed: int = 0
    dtype: str = PRECISIONS[0]


class Contender(Protocol):
    """One training step in two halves."""

    def forward(self) -> float:
        """Compute the loss (for a program of several results: the sum of the first)."""

    def backward(self) -> None:
        """Compute the gradients of all parameters for the last `forward`."""

    def without_work(self) -> bool:
        """From now on, skip the kernels: a step then takes what surrounds them.

        Returns:
            Whether the contender can do that.
        """


def weights(graph: Any, seed: int) -> dict[str, np.ndarray]:
    """Parameters and buffers, as `Module.init` draws them."""
    rng = np.random.default_rng(seed)
    return {i.name: fill(i, rng) for i in graph.inputs if i.kind != "input"}


def batch(graph: Any, seed: int) -> dict[str, np.ndarray]:
    """The arguments: normal numbers, and for integers (labels) zeros and ones."""
    rng = np.random.default_rng(seed + 1)
    arrays = {}
    for i in graph.inputs:
        if i.kind != "input":
            continue
        shape, dtype = i.value.shape, i.value.dtype
        if i.value.type.is_float:
            arrays[i.name] = rng.standard_normal(shape).astype(dtype)
        else:
            arrays[i.name] = rng.integers(0, 2, shape).astype(dtype)
    return arrays


class BngenStep:
    """A module of the program, with its gradient.

    Attributes:
        module: what runs.
    """

    def __init__(self, entry: Entry):
        """Compile, and load the weights."""
        from bngen.compiler import build

        graph = step_program(entry.program, entry.batch, entry.image, entry.dtype).graph
        level = entry.fusion if entry.contender == OURS else entry.contender
        self.module = build(
            graph, target=entry.target, fusion=level, threads=entry.threads, grad=True,
            wrt=trained(graph), schedules=entry.schedules,
        ).connect_alone()  # fmt: skip
        if state := weights(graph, entry.seed):
            self.module.load_state_dict(state)
        self._arguments = list(batch(graph, entry.seed).values())
        self._cotangents = [
            np.ones(s.shape, s.dtype) for s in self.module.signature.cotangents if s.shape
        ]

    def forward(self) -> float:
        """See `Contender`."""
        result = self.module.forward(*self._arguments)
        first = next(iter(result.values())) if isinstance(result, Mapping) else result
        first = np.asarray(first[0] if isinstance(first, tuple) else first)
        return float(first.flat[0]) if first.size else 0.0

    def backward(self) -> None:
        """See `Contender`; the gradients are dropped."""
        self.module.backward(*self._cotangents)

    def without_work(self) -> bool:
        """See `Contender`."""
        self.module.without_work()
        return True


class TorchStep:
    """The PyTorch module of a built-in network, in one of its `forms.FORMS`."""

    def __init__(self, entry: Entry):
        """Build the module, and load the weights."""
        from bngen.torch_bridge.training import TrainingStep

        form = FORMS[entry.contender]
        graph = step_program(entry.program, entry.batch, entry.image).graph
        self._step = TrainingStep(
            entry.program, weights(graph, entry.seed), *batch(graph, entry.seed).values(),
            channels_last=form.channels_last, compiler=form.compiler, precision=form.precision,
            threads=entry.threads,
        )  # fmt: skip

    def forward(self) -> float:
        """See `Contender`."""
        return self._step.forward()

    def backward(self) -> None:
        """See `Contender`."""
        self._step.backward()

    def without_work(self) -> bool:
        """See `Contender`."""
        return False


def contender(entry: Entry) -> Contender:
    """The contender an entry names, ready for its first step."""
    return TorchStep(entry) if entry.contender in FORMS else BngenStep(entry)
