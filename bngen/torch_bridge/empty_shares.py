"""A rank without a single image of a batch takes part in what the other ranks exchange.

In: batch normalizations of such a rank, in the order of its model, which runs in PyTorch there:
nothing is compiled for no image. Out: what they give, nothing; gradients of zero; the running
statistics of the other ranks.

The others run regions, each of many layers. A rank that follows hears of each region what is
exchanged in it (`agreement`), answers that with nothing, and is told at its end which layers it
had and what their running statistics are. It does so at the first of these layers that its own
model comes to. That node of autograd answers what the others exchange in the region's backward:
autograd runs nodes in the opposite order of that in which they were made, here as there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bngen.runtime.agreement import Agreement, Planned
from bngen.runtime.communicator import Communicator, Work, waiting_for
from bngen.runtime.signature import FORWARD
from bngen.torch_bridge.derivatives import first_derivatives
from bngen.torch_bridge.distributed import carrier_named


@dataclass(frozen=True)
class Layer:
    """A layer that has run on ranks with images.

    Attributes:
        name: in the model.
        statistics: its running mean and variance, ``[C]`` each; none where it keeps none.
    """

    name: str
    statistics: tuple[Tensor, ...]


def told(
    carrier: Communicator, followers: Collection[int], layers: Sequence[Layer]
) -> list[tuple[str, list[Tensor]]]:
    """Tell ranks that follow of layers that have run, or hear it; all ranks call it.

    Args:
        carrier: the ranks.
        followers: those that follow.
        layers: of a rank that has images.

    Returns:
        Names and statistics, in float64, of the first rank that has images.
    """
    first = min(rank for rank in range(carrier.size) if rank not in followers)
    layers = layers if carrier.rank == first else ()
    text = json.dumps([[layer.name, [len(s) for s in layer.statistics]] for layer in layers])
    said = np.frombuffer(text.encode(), np.uint8)
    size = np.array([said.size], "<i8").view(np.uint8)
    lengths = _waited(carrier, lambda: carrier.gather(size))
    room = np.full(int(lengths.copy().view("<i8").max()), ord(" "), np.uint8)
    room[: said.size] = said
    rows = json.loads(bytes(_waited(carrier, lambda: carrier.gather(room))[first]))
    sizes = [size for _, lengths in rows for size in lengths]
    values = np.zeros(sum(sizes))
    if layers and sizes:
        values = torch.cat([s for layer in layers for s in layer.statistics]).double().numpy()
    summed = _waited(carrier, lambda: carrier.sum(values)) if sizes else values
    parts = iter(torch.from_numpy(summed).split(sizes))
    return [(name, [next(parts) for _ in lengths]) for name, lengths in rows]


def _waited(carrier: Communicator, begin: Callable[[], Work]) -> np.ndarray:
    with waiting_for("the running statistics for ranks without images", carrier):
        return begin().result()


class Follower:
    """One forward of a rank without images."""

    def __init__(self) -> None:
        self._covered: Counter[str] = Counter()
        self._statistics: dict[str, list[Tensor]] = {}

    def normalized(
        self,
        input: Tensor,
        running: tuple[Tensor | None, Tensor | None],
        weight: Tensor | None,
        bias: Tensor | None,
        group: str,
        layer: str,
    ) -> Tensor:
        """A layer of no image, whose statistics become those of the other ranks."""
        if not self._covered[layer]:
            token = torch.zeros((), requires_grad=True)  # for a node, whatever the input wants
            input = _Followed.apply(self, carrier_named(group), layer, input, token)
        self._covered[layer] -= 1
        kept = [buffer for buffer in running if buffer is not None]
        with torch.no_grad():
            for buffer, value in zip(kept, self._statistics[layer], strict=True):
                buffer.copy_(value)
        shape = (1, -1, *(1,) * (input.ndim - 2))
        for vector, combine in ((weight, torch.mul), (bias, torch.add)):
            if vector is not None:
                input = combine(input, vector.to(input.dtype).reshape(shape))
        return input

    def join(self, carrier: Communicator, layer: str) -> list[Planned]:
        """Follow the others until they have run a layer; what they exchange in its backward."""
        who = f"{layer or 'a layer'} without images: "
        late: list[Planned] = []
        while not self._covered[layer]:
            planned, followers = Agreement(who, carrier, ()).settled()
            for each in planned:
                if each.call == FORWARD:
                    each.answered(carrier, who)
            for name, statistics in told(carrier, followers, ()):
                self._covered[name] += 1
                self._statistics[name] = statistics
            late = [*(p for p in planned if p.call != FORWARD), *late]
        return late


class _Followed(torch.autograd.Function):
    """An identity in whose place the others run regions."""

    @staticmethod
    def forward(
        ctx: Any, follower: Follower, carrier: Communicator, layer: str, x: Tensor, token: Tensor
    ) -> Tensor:
        ctx.rest = follower.join(carrier, layer), carrier, f"{layer or 'a layer'} without images: "
        return x.clone()

    @staticmethod
    @first_derivatives
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        late, carrier, who = ctx.rest
        for each in late:
            each.answered(carrier, who)
        return None, None, None, dy, None
