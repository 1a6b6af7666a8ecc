"""MobileNetV3 (Howard et al. 2019) with torchvision's parameter names."""

from __future__ import annotations

from dataclasses import dataclass

from bngen.lang.activations import hardsigmoid, hardswish, relu
from bngen.lang.layers import linear
from bngen.lang.shapes import flatten
from bngen.lang.state import scope
from bngen.lang.tensor import Tensor
from bngen.lang.windows import adaptive_avg_pool2d
from bngen.models.blocks import Activation, ConvNorm, squeeze_excite
from bngen.models.common import Network, Options, divisible, dropout

_ACTIVATIONS: dict[str, Activation] = {"relu": relu, "hardswish": hardswish}


@dataclass(frozen=True)
class Block:
    """An inverted residual.

    Attributes:
        window: height and width of the depthwise convolution.
        width: channels of it.
        channels: that the block gives.
        excite: whether channels are scaled by squeeze and excitation.
        activation: by name.
        stride: of the depthwise convolution.
    """

    window: int
    width: int
    channels: int
    excite: bool
    activation: str
    stride: int

    def __call__(self, x: Tensor, conv: ConvNorm) -> Tensor:
        """The block's result, in the scope that is open."""
        y, at, activation = x, 0, _ACTIVATIONS[self.activation]
        with scope("block"):
            if self.width != x.shape[1]:
                y, at = conv(y, "0", self.width, 1, activation), 1
            y = conv(y, str(at), self.width, self.window, activation, self.stride,
                     groups=self.width)  # fmt: skip
            if self.excite:
                squeezed = divisible(self.width // 4)
                at += 1
                y = squeeze_excite(y, str(at), squeezed, relu, hardsigmoid)
            y = conv(y, str(at + 1), self.channels)
        return y + x if self.stride == 1 and x.shape[1] == self.channels else y


@dataclass(frozen=True)
class MobileNetV3(Network):
    """One size of the family; calling it on images gives logits.

    Attributes:
        blocks: its inverted residuals.
        hidden: width of the classifier's hidden layer.
        stem: channels of the first convolution.
        dropout: default probability before the last layer.
    """

    blocks: tuple[Block, ...]
    hidden: int
    stem: int = 16
    dropout: float = 0.2

    def __call__(self, x: Tensor, options: Options) -> Tensor:
        """Logits ``[N, classes]`` of images ``[N, 3, H, W]``."""
        conv = ConvNorm(options.training, eps=0.001, momentum=0.01)
        with scope("features"):
            x = conv(x, "0", self.stem, 3, hardswish, 2)
            for at, block in enumerate(self.blocks, start=1):
                with scope(str(at)):
                    x = block(x, conv)
            x = conv(x, str(len(self.blocks) + 1), 6 * x.shape[1], 1, hardswish)
        x = flatten(adaptive_avg_pool2d(x, 1), 1)
        init = {"weight_init": ("normal", 0.01), "bias_init": 0.0}
        with scope("classifier"):
            x = hardswish(linear(x, "0", self.hidden, **init))
        x = dropout(x, self.dropout, options, "features.0.1.num_batches_tracked")
        with scope("classifier"):
            return linear(x, "3", options.num_classes, **init)


VARIANTS = {
    "mobilenet_v3_large": MobileNetV3(
        (
            Block(3, 16, 16, False, "relu", 1),
            Block(3, 64, 24, False, "relu", 2),
            Block(3, 72, 24, False, "relu", 1),
            Block(5, 72, 40, True, "relu", 2),
            Block(5, 120, 40, True, "relu", 1),
            Block(5, 120, 40, True, "relu", 1),
            Block(3, 240, 80, False, "hardswish", 2),
            Block(3, 200, 80, False, "hardswish", 1),
            Block(3, 184, 80, False, "hardswish", 1),
            Block(3, 184, 80, False, "hardswish", 1),
            Block(3, 480, 112, True, "hardswish", 1),
            Block(3, 672, 112, True, "hardswish", 1),
            Block(5, 672, 160, True, "hardswish", 2),
            Block(5, 960, 160, True, "hardswish", 1),
            Block(5, 960, 160, True, "hardswish", 1),
        ),
        hidden=1280,
    ),
    "mobilenet_v3_small": MobileNetV3(
        (
            Block(3, 16, 16, True, "relu", 2),
            Block(3, 72, 24, False, "relu", 2),
            Block(3, 88, 24, False, "relu", 1),
            Block(5, 96, 40, True, "hardswish", 2),
            Block(5, 240, 40, True, "hardswish", 1),
            Block(5, 240, 40, True, "hardswish", 1),
            Block(5, 120, 48, True, "hardswish", 1),
            Block(5, 144, 48, True, "hardswish", 1),
            Block(5, 288, 96, True, "hardswish", 2),
            Block(5, 576, 96, True, "hardswish", 1),
            Block(5, 576, 96, True, "hardswish", 1),
        ),
        hidden=1024,
    ),
    "tiny_mobilenet_v3": MobileNetV3(
        (Block(3, 8, 8, True, "relu", 1), Block(5, 24, 8, True, "hardswish", 1)),
        hidden=24,
        stem=8,
    ),
}
