"""The built-in networks as PyTorch modules: what `bngen bench` measures against.

In: a name of `bngen.models.MODELS`. Out: an ``nn.Module`` that makes the calls that torchvision's
makes, in its order, whose ``state_dict`` has torchvision's names, so that weights copy over from a
bngen module. It is made from the program, see `modules`, so that nothing is listed twice; only what
one call of PyTorch does and the program writes in several is written here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bngen.errors import UsageError
from bngen.models import MODELS, make
from bngen.models.convnext import ConvNeXt
from bngen.torch_bridge.modules import module_of


def make_network(
    name: str, batch: int = 8, image: int | None = None, num_classes: int | None = None
) -> nn.Module:
    """A built-in network, in training mode and without dropout.

    Args:
        name: a key of `bngen.models.MODELS`.
        batch: images in a batch, the only number that the module takes.
        image: their height and width; the network's own when missing.
        num_classes: extent of the logits; the network's own when missing.

    Raises:
        UsageError: for a program that is no built-in network.
    """
    if name not in MODELS:
        raise UsageError(f"{name} has no PyTorch module to compare with", hint="name a built-in")
    network = MODELS[name]
    if type(network) in BUILDERS:
        return BUILDERS[type(network)](network, num_classes or network.num_classes).train()
    dropout = 0.0 if network.has_dropout else None
    return module_of(make(name, batch, image, num_classes, dropout=dropout).graph)


def loss_of(name: str, found: Tensor | dict[str, Tensor], labels: Tensor) -> Tensor:
    """The loss that `bngen.models.make` gives, of what the module gives."""
    if isinstance(found, Tensor):
        return F.cross_entropy(found, labels)
    loss = F.cross_entropy(found["logits"], labels)
    for aux, weight in MODELS[name].auxiliary:
        loss = loss + weight * F.cross_entropy(found[aux], labels)
    return loss


# --- ConvNeXt ---------------------------------------------------------------------------------


class _Norm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Permute(nn.Module):
    def __init__(self, *order: int):
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


class _Block(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.layer_scale = nn.Parameter(torch.empty(channels, 1, 1))
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels, 7, padding=3, groups=channels), _Permute(0, 2, 3, 1),
            nn.LayerNorm(channels, 1e-6), nn.Linear(channels, 4 * channels), nn.GELU(),
            nn.Linear(4 * channels, channels), _Permute(0, 3, 1, 2),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer_scale * self.block(x)
        y += x
        return y


class _ConvNeXt(nn.Module):
    def __init__(self, sizes: ConvNeXt, num_classes: int):
        super().__init__()
        channels = sizes.stages[0][0]
        self.features = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, channels, 4, 4), _Norm(channels, 1e-6))
        )
        for stage, (width, blocks) in enumerate(sizes.stages):
            if stage > 0:
                halved = nn.Conv2d(channels, width, 2, 2)
                self.features.append(nn.Sequential(_Norm(channels, 1e-6), halved))
            self.features.append(nn.Sequential(*(_Block(width) for _ in range(blocks))))
            channels = width
        self.classifier = nn.Sequential(
            _Norm(channels, 1e-6), nn.Flatten(1), nn.Linear(channels, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1))


BUILDERS: dict[type, Callable[[Any, int], nn.Module]] = {ConvNeXt: _ConvNeXt}
"""Families whose programs are no calls of PyTorch's one by one."""
