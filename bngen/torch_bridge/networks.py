"""The built-in networks as PyTorch modules: what `bngen bench` measures against.

In: a name of `bngen.models.MODELS`. Out: an ``nn.Module`` built as torchvision builds it (ReLU in
place, the same order of operations), whose ``state_dict`` has torchvision's names, so that weights
copy over from a bngen module. Sizes come from the programs' own tables; nothing is listed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bngen.errors import UsageError
from bngen.models import MODELS
from bngen.models.densenet import DenseNet
from bngen.models.mobilenet import MobileNetV2
from bngen.models.resnet import ResNet
from bngen.models.vgg import VGG


def make_network(name: str, num_classes: int = 1000) -> nn.Module:
    """A built-in network, in training mode and without dropout.

    Args:
        name: a key of `bngen.models.MODELS`.
        num_classes: extent of the logits.

    Raises:
        UsageError: for a program that is no built-in network.
    """
    if name not in MODELS:
        raise UsageError(f"{name} has no PyTorch module to compare with", hint="name a built-in")
    sizes = MODELS[name].forward
    return BUILDERS[type(sizes)](sizes, num_classes).train()


def _conv(inputs: int, outputs: int, window: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, window, stride, window // 2, groups=groups, bias=False)


# --- DenseNet ---------------------------------------------------------------------------------


class _DenseLayer(nn.Module):
    def __init__(self, inputs: int, sizes: DenseNet):
        super().__init__()
        width = sizes.bottleneck * sizes.growth
        self.norm1, self.relu1 = nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)
        self.conv1 = _conv(inputs, width, 1)
        self.norm2, self.relu2 = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.conv2 = _conv(width, sizes.growth, 3)

    def forward(self, features: list[Tensor]) -> Tensor:
        y = self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))
        return self.conv2(self.relu2(self.norm2(y)))


class _DenseBlock(nn.ModuleDict):
    def __init__(self, inputs: int, layers: int, sizes: DenseNet):
        super().__init__(
            {
                f"denselayer{i + 1}": _DenseLayer(inputs + i * sizes.growth, sizes)
                for i in range(layers)
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class _Transition(nn.Sequential):
    def __init__(self, inputs: int):
        super().__init__()
        self.norm, self.relu = nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)
        self.conv, self.pool = _conv(inputs, inputs // 2, 1), nn.AvgPool2d(2)


class _DenseNet(nn.Module):
    def __init__(self, sizes: DenseNet, num_classes: int):
        super().__init__()
        self.features = body = nn.Sequential()
        body.conv0 = _conv(3, sizes.stem, 7, 2)
        body.norm0, body.relu0 = nn.BatchNorm2d(sizes.stem), nn.ReLU(inplace=True)
        body.pool0 = nn.MaxPool2d(3, 2, 1)
        channels = sizes.stem
        for i, layers in enumerate(sizes.blocks, start=1):
            body.add_module(f"denseblock{i}", _DenseBlock(channels, layers, sizes))
            channels += layers * sizes.growth
            if i < len(sizes.blocks):
                body.add_module(f"transition{i}", _Transition(channels))
                channels //= 2
        body.norm5 = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.features(x), inplace=True)
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


# --- ResNet -----------------------------------------------------------------------------------


class _Residual(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool):
        super().__init__()
        windows = ((1, 1), (3, stride), (1, 1)) if bottleneck else ((3, stride), (3, 1))
        outputs = 4 * width if bottleneck else width
        self.count = len(windows)
        self.relu = nn.ReLU(inplace=True)
        channels = inputs
        for i, (window, step) in enumerate(windows, start=1):
            wide = outputs if i == self.count else width
            self.add_module(f"conv{i}", _conv(channels, wide, window, step))
            self.add_module(f"bn{i}", nn.BatchNorm2d(wide))
            channels = wide
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                _conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            if i < self.count:
                y = self.relu(y)
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class _ResNet(nn.Module):
    def __init__(self, sizes: ResNet, num_classes: int):
        super().__init__()
        self.conv1, self.bn1 = _conv(3, sizes.stem, 7, 2), nn.BatchNorm2d(sizes.stem)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        channels, self.stages = sizes.stem, len(sizes.blocks)
        for stage, blocks in enumerate(sizes.blocks):
            width, layer = sizes.stem << stage, nn.Sequential()
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                layer.append(_Residual(channels, width, stride, sizes.bottleneck))
                channels = 4 * width if sizes.bottleneck else width
            self.add_module(f"layer{stage + 1}", layer)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


# --- MobileNetV2 ------------------------------------------------------------------------------


def _conv_bn_relu6(
    inputs: int, outputs: int, window: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = _conv(inputs, outputs, window, stride, groups)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


class _InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        width = inputs * expansion
        self.shortcut = stride == 1 and inputs == outputs
        self.conv = nn.Sequential()
        if expansion != 1:
            self.conv.append(_conv_bn_relu6(inputs, width, 1))
        self.conv.append(_conv_bn_relu6(width, width, 3, stride, width))
        self.conv.append(_conv(width, outputs, 1)).append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


class _MobileNetV2(nn.Module):
    def __init__(self, sizes: MobileNetV2, num_classes: int):
        super().__init__()
        self.features = nn.Sequential(_conv_bn_relu6(3, sizes.stem, 3, 2))
        channels = sizes.stem
        for expansion, outputs, blocks, first_stride in sizes.stages:
            for i in range(blocks):
                stride = first_stride if i == 0 else 1
                self.features.append(_InvertedResidual(channels, outputs, stride, expansion))
                channels = outputs
        self.features.append(_conv_bn_relu6(channels, sizes.head, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.0), nn.Linear(sizes.head, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


# --- VGG --------------------------------------------------------------------------------------


class _VGG(nn.Module):
    def __init__(self, sizes: VGG, num_classes: int):
        super().__init__()
        self.features = nn.Sequential()
        channels = 3
        for stage in sizes.stages:
            for outputs in stage:
                self.features.append(nn.Conv2d(channels, outputs, 3, padding=1))
                self.features.append(nn.BatchNorm2d(outputs)).append(nn.ReLU(inplace=True))
                channels = outputs
            self.features.append(nn.MaxPool2d(2, 2))
        self.pooled, hidden = sizes.pooled, sizes.hidden
        self.classifier = nn.Sequential(
            nn.Linear(channels * sizes.pooled**2, hidden), nn.ReLU(inplace=True), nn.Dropout(0.0),
            nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout(0.0),
            nn.Linear(hidden, num_classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), self.pooled)
        return self.classifier(x.flatten(1))


BUILDERS: dict[type, Callable[[Any, int], nn.Module]] = {
    DenseNet: _DenseNet,
    ResNet: _ResNet,
    MobileNetV2: _MobileNetV2,
    VGG: _VGG,
}
"""One row a family: its table of sizes -> the module."""
