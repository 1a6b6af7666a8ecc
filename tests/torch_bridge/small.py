"""The small model that most tests of the backend compile, and images for it."""

import torch
import torch.nn.functional as F
from torch import nn


def images(*shape, **options):
    return torch.randn(shape or (4, 3, 8, 8), **options)


class Net(nn.Module):
    """Convolutions with a shortcut, a pool and a classifier."""

    def __init__(self, width=8, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, padding=1, bias=False), norm(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), norm(width)
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(width, 5)

    def features(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = x + self.bn2(self.conv2(x))
        return self.relu(x)

    def forward(self, x):
        return self.fc(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))
