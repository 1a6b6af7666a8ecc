"""A DenseNet, a ResNet and a MobileNet, of blocks as torchvision's are, small enough for ranks.

All kinds of layers of theirs are there; what ranks could get wrong besides is, too: a layer without
weights, one that averages all batches, one of another momentum.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

CLASSES = 3


class Network(nn.Module):
    """Layers, a pool and a classifier.

    Args:
        stem: a convolution and its normalization.
        blocks: what follows.
        width: channels of what comes out of it.
    """

    def __init__(self, stem: nn.Module, blocks: list[nn.Module], width: int):
        super().__init__()
        self.stem, self.blocks = stem, nn.Sequential(*blocks)
        self.classifier = nn.Linear(width, CLASSES)

    def forward(self, x):
        x = self.blocks(F.relu(self.stem(x)))
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _stem(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))


def _conv(inside: int, outside: int, size: int, **options) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, size, padding=size // 2, bias=False, **options)


class _DenseLayer(nn.Sequential):
    """Normalizations before their convolutions; the result goes beside what it is made of."""

    def __init__(self, width: int, growth: int = 4, bottleneck: int = 8):
        super().__init__(
            nn.BatchNorm2d(width), nn.ReLU(inplace=True), _conv(width, bottleneck, 1),
            nn.BatchNorm2d(bottleneck), nn.ReLU(inplace=True), _conv(bottleneck, growth, 3),
        )  # fmt: skip

    def forward(self, x):
        return torch.cat([x, super().forward(x)], 1)


class _BasicBlock(nn.Module):
    def __init__(self, width: int, wider: int):
        super().__init__()
        self.way = nn.Sequential(
            _conv(width, wider, 3, stride=2), nn.BatchNorm2d(wider), nn.ReLU(inplace=True),
            _conv(wider, wider, 3), nn.BatchNorm2d(wider),
        )  # fmt: skip
        self.shortcut = nn.Sequential(_conv(width, wider, 1, stride=2), nn.BatchNorm2d(wider))

    def forward(self, x):
        return F.relu(self.way(x) + self.shortcut(x), inplace=True)


class _InvertedResidual(nn.Module):
    """It ends in a normalization without weights, which averages all batches."""

    def __init__(self, width: int, between: int):
        super().__init__()
        self.conv = nn.Sequential(
            _conv(width, between, 1), nn.BatchNorm2d(between), nn.ReLU6(inplace=True),
            _conv(between, between, 3, groups=between), nn.BatchNorm2d(between),
            nn.ReLU6(inplace=True),
            _conv(between, width, 1), nn.BatchNorm2d(width, affine=False, momentum=None),
        )  # fmt: skip

    def forward(self, x):
        return x + self.conv(x)


def dense() -> nn.Module:
    """Two layers of a block, a transition, and a normalization over all of it."""
    transition = nn.Sequential(
        nn.BatchNorm2d(16), nn.ReLU(inplace=True), _conv(16, 8, 1), nn.AvgPool2d(2)
    )
    end = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    return Network(_stem(8), [_DenseLayer(8), _DenseLayer(12), transition, end], 8)


def residual() -> nn.Module:
    """A block with a shortcut that is normalized, too."""
    return Network(_stem(8), [_BasicBlock(8, 12)], 12)


def mobile() -> nn.Module:
    """Inverted residuals, after a layer of another momentum."""
    net = Network(_stem(8), [_InvertedResidual(8, 16)], 8)
    net.stem[1].momentum = 0.3
    return net


NETWORKS = (dense, residual, mobile)


def batches(steps: int, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images and labels for so many steps."""
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(count, 3, 8, 8, generator=generator),
         torch.randint(CLASSES, (count,), generator=generator))
        for _ in range(steps)
    ]  # fmt: skip


def trained(
    model: nn.Module, steps: list, ranks: int = 1, after: Callable[[int], None] | None = None
) -> dict:
    """Losses and gradients of each step of a training, and the state it leaves.

    Args:
        model: may be in a DistributedDataParallel, which takes the mean of the ranks' gradients.
        steps: of each the images, the labels, and how many images all ranks have together.
        ranks: how many there are.
        after: called after each backward with the number of its step.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    plain = getattr(model, "module", model)
    found = {}
    for i, (x, labels, total) in enumerate(steps):
        loss = F.cross_entropy(model(x), labels, reduction="sum") / total
        optimizer.zero_grad()
        (loss * ranks).backward()
        if after:
            after(i)
        found[f"{i}.loss"] = loss.detach().clone()
        for name, p in plain.named_parameters():
            found[f"{i}.{name}.grad"] = p.grad.detach().clone()
        optimizer.step()
    return found | {k: v.detach().clone() for k, v in plain.state_dict().items()}
