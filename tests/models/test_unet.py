"""The U-Nets against modules of the same structure and names, written for PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bngen as bg
from bngen.ir.interp import run
from bngen.models import MODELS, make
from tests.models import known
from tests.oracle import assert_same


class DoubleConv(nn.Module):
    def __init__(self, inputs, outputs, middle=None):
        super().__init__()
        layers, channels = [], inputs
        for width in (middle or outputs, outputs):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
            layers += [nn.ReLU(inplace=True)]
            channels = width
        self.double_conv = nn.Sequential(*layers)

    def forward(self, x):
        return self.double_conv(x)


class Down(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(inputs, outputs))

    def forward(self, x):
        return self.maxpool_conv(x)


class Up(nn.Module):
    def __init__(self, inputs, outputs, bilinear):
        super().__init__()
        if bilinear:
            self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            self.conv = DoubleConv(inputs, outputs, inputs // 2)
        else:
            self.up = nn.ConvTranspose2d(inputs, inputs // 2, kernel_size=2, stride=2)
            self.conv = DoubleConv(inputs, outputs)

    def forward(self, x, skipped):
        x = self.up(x)
        down, right = skipped.shape[2] - x.shape[2], skipped.shape[3] - x.shape[3]
        x = F.pad(x, [right // 2, right - right // 2, down // 2, down - down // 2])
        return self.conv(torch.cat([skipped, x], dim=1))


class OutConv(nn.Module):
    def __init__(self, inputs, classes):
        super().__init__()
        self.conv = nn.Conv2d(inputs, classes, 1)

    def forward(self, x):
        return self.conv(x)


class UNet(nn.Module):
    """Of four levels, as people train it; ``width`` is 64 there."""

    def __init__(self, classes, bilinear, width=64):
        super().__init__()
        less = 2 if bilinear else 1
        w1, w2, w3, w4, w5 = (width << i for i in range(5))
        self.inc = DoubleConv(3, w1)
        self.down1, self.down2, self.down3 = Down(w1, w2), Down(w2, w3), Down(w3, w4)
        self.down4 = Down(w4, w5 // less)
        self.up1, self.up2 = Up(w5, w4 // less, bilinear), Up(w4, w3 // less, bilinear)
        self.up3, self.up4 = Up(w3, w2 // less, bilinear), Up(w2, w1, bilinear)
        self.outc = OutConv(w1, classes)

    def forward(self, x):
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x4 = self.down3(x3)
        y = self.up1(self.down4(x4), x4)
        return self.outc(self.up4(self.up3(self.up2(y, x3), x2), x1))


@pytest.mark.parametrize(("name", "bilinear"), [("unet", False), ("unet_bilinear", True)])
def test_state_is_named_and_shaped_as_the_modules(name, bilinear):
    with torch.device("meta"):
        state = UNet(MODELS[name].num_classes, bilinear).state_dict()
    ours = make(name, batch=1).parameters
    assert [(k, tuple(v.shape)) for k, v in state.items()] == [
        (k, t.shape) for k, t in ours.items()
    ]


@pytest.mark.parametrize("bilinear", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("image", [32, 37])
def test_results_are_the_modules(bilinear, training, image):
    """Of a narrow one; 37 is halved with a rest, for which maps are padded when they are joined."""
    net = type(MODELS["unet"])(width=4, bilinear=bilinear)
    module = UNet(3, bilinear, width=4).double().train(training)
    state = known.state_of({k: tuple(v.shape) for k, v in module.state_dict().items()})
    module.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
    x = 1.7 * known.numbers((2, 3, image, image), 1 << 20)
    wanted = module(torch.from_numpy(x)).detach().numpy()
    options = bg.models.Options(3, training, dropout=None, seed=0)
    graph = bg.trace(lambda x: net(x, options), bg.Tensor[2, 3, image, image]).graph
    found = run(graph, {**state, "x": x}, dtype="float64")
    assert_same(found.outputs[0], wanted, "logits")
    for key, value in found.updates.items():
        assert_same(value, module.state_dict()[key].numpy(), key)
    assert np.any(found.outputs[0])
