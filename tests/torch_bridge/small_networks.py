"""A DenseNet, a ResNet and a MobileNet of torchvision's own blocks, small enough for ranks.

All kinds of layers of theirs are there; what ranks could get wrong besides is, too: a layer without
weights, one that averages all batches, one of another momentum.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo_models import torchvision

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


def dense() -> nn.Module:
    """Two layers of a block, a transition, and a normalization over all of it."""
    densenet = torchvision().models.densenet
    block = densenet._DenseBlock(2, 8, bn_size=2, growth_rate=4, drop_rate=0.0)
    end = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    return Network(_stem(8), [block, densenet._Transition(16, 8), end], 8)


def residual() -> nn.Module:
    """A block with a shortcut that is normalized, too."""
    shortcut = nn.Sequential(nn.Conv2d(8, 12, 1, stride=2, bias=False), nn.BatchNorm2d(12))
    return Network(_stem(8), [torchvision().models.resnet.BasicBlock(8, 12, 2, shortcut)], 12)


def mobile() -> nn.Module:
    """Inverted residuals."""
    block = torchvision().models.mobilenetv2.InvertedResidual(8, 8, stride=1, expand_ratio=2)
    net = Network(_stem(8), [block], 8)
    net.stem[1].momentum = 0.3
    net.blocks[0].conv[3] = nn.BatchNorm2d(8, affine=False, momentum=None)
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
