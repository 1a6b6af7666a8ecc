"""Gradients of a region in stages: each handed to PyTorch as soon as its kernels have run.

In: what a region's module says of its gradients. Out: `Stage`s; and a region's arguments, passed
through one identity a stage, whose backward runs the kernels up to there. Autograd runs what was
made last first, and what is done with the gradient of a parameter before anything else: so
DistributedDataParallel has the gradients of a stage, and sends them, before the next stage runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from bngen.dtypes import DTYPES
from bngen.runtime.calls import Backward
from bngen.runtime.module import Module
from bngen.runtime.signature import BACKWARD, OutputSpec, Signature, input_slot
from bngen.runtime.steps import Step
from bngen.torch_bridge.derivatives import first_derivatives

PARTS = 10
"""Of all bytes of gradients, how many parts are handed over by themselves, at most."""
LEAST = 1 << 18
"""Bytes that are worth a stage."""


@dataclass(frozen=True)
class Stage:
    """Gradients that are handed over together.

    Attributes:
        stop: the step of the module before which they are complete.
        arguments: by number, what they are gradients of.
    """

    stop: int
    arguments: tuple[int, ...]


def reads(steps: Sequence[Step], names: Sequence[str]) -> dict[str, int]:
    """For arguments that a module's steps read, by name the step after the last of these."""
    slots = {input_slot(name): name for name in names}
    return {
        slots[operand.slot]: i + 1
        for i, step in enumerate(steps)
        for operand in step.operands
        if operand.slot in slots
    }


def stages_of(
    signature: Signature, names: Sequence[str], last_read: Mapping[str, int]
) -> tuple[Stage, ...]:
    """The stages of a module's ``backward``, in order; one where there is nothing to gain.

    Whoever is handed a parameter's gradient may change the parameter: no later stage reads it.

    Args:
        signature: of the module.
        names: of the region's arguments, in order.
        last_read: see `reads`.
    """
    backward = signature.call(BACKWARD)
    if backward is None:
        return ()
    number = {name: i for i, name in enumerate(names)}
    rows = sorted(
        (max(spec.done, last_read.get(spec.name, 0)), number[spec.name], _nbytes(spec))
        for spec in signature.gradients
    )
    least = max(sum(nbytes for *_, nbytes in rows) / PARTS, LEAST)
    found: list[Stage] = []
    held, size = [], 0
    for at, (done, argument, nbytes) in enumerate(rows):
        held.append(argument)
        size += nbytes
        together = at + 1 < len(rows) and rows[at + 1][0] == done
        if size >= least and not together:
            found.append(Stage(done, tuple(held)))
            held, size = [], 0
    # The last one runs what is left, too.
    last = found.pop() if found and not held else Stage(0, tuple(held))
    return (*found, Stage(backward.stop, last.arguments))


def _nbytes(spec: OutputSpec) -> int:
    return math.prod(spec.shape) * DTYPES[spec.dtype].nbytes


def is_shared() -> bool:
    """Whether there are other processes that may wait for gradients."""
    there = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    # That mode looks at gradients between stages, when not all of them are complete.
    return there and not torch.is_anomaly_enabled()


class UnderWay:
    """The backward of one call, as far as it has run.

    Args:
        built: the region's module.
        tokens: of the region's arguments, see `derivatives.tokens`.

    Attributes:
        first: the step up to which the region's own node runs; all where there are no stages.
    """

    def __init__(self, built: Module, tokens: Sequence[torch.Tensor]):
        self._built, self.tokens = built, tokens
        self.first: int | None = None
        self._begun: Backward | None = None

    def begin(
        self, cotangents: Sequence[Any], call: Any, retain: bool, *, whole: bool
    ) -> dict[str, torch.Tensor]:
        """Run the first stage, or all; the gradients by name, complete as far as that goes.

        They are held nowhere else: of a gradient that others hold, too, PyTorch makes a copy for
        ``.grad``.
        """
        begun, gradients = self._built.begin_backward(*cotangents, call=call, retain=retain)
        self._begun = begun
        self.advance(None if whole else self.first)
        return gradients

    def advance(self, stop: int | None) -> None:
        """Run what has not run of the steps before ``stop``."""
        assert self._begun is not None
        self._built.advance(self._begun, stop)


def tapped(
    tensors: Sequence[torch.Tensor], stages: Sequence[Stage], under_way: UnderWay
) -> list[torch.Tensor]:
    """A region's arguments, those of each stage but the first passed through an identity."""
    passed = list(tensors)
    for stage in reversed(stages[1:]):
        there = [i for i in stage.arguments if tensors[i].requires_grad]
        if there:
            results = _Tap.apply(under_way, stage.stop, *(tensors[i] for i in there))
            for i, result in zip(there, results, strict=True):
                passed[i] = result
    under_way.first = stages[0].stop
    return passed


class _Tap(torch.autograd.Function):
    """An identity that runs a part of a region's backward before it hands gradients on."""

    @staticmethod
    def forward(
        ctx: Any, under_way: UnderWay, stop: int, *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.under_way, ctx.stop, ctx.tokens = under_way, stop, under_way.tokens
        ctx.set_materialize_grads(False)
        return tensors

    @staticmethod
    @first_derivatives
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[Any, ...]:
        ctx.under_way.advance(ctx.stop)
        return None, None, *gradients
