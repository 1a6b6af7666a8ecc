"""EfficientNets (Tan, Le 2019) with torchvision's parameter names."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bngen.lang.activations import silu
from bngen.lang.layers import linear
from bngen.lang.pointwise import sigmoid
from bngen.lang.shapes import flatten
from bngen.lang.state import scope
from bngen.lang.tensor import Tensor
from bngen.lang.windows import adaptive_avg_pool2d
from bngen.models.blocks import ConvNorm, squeeze_excite
from bngen.models.common import Branches, Network, Options, divisible, dropout

_STEPS = "features.0.1.num_batches_tracked"


@dataclass(frozen=True)
class Stage:
    """Inverted residuals that give as many channels each.

    Attributes:
        expansion: channels of the depthwise convolution over those that come in.
        window: its height and width.
        stride: of the first block's.
        channels: that come out.
        blocks: how many.
    """

    expansion: int
    window: int
    stride: int
    channels: int
    blocks: int


@dataclass(frozen=True)
class EfficientNet(Network):
    """One size of the family; calling it on images gives logits.

    Attributes:
        stages: of the smallest one.
        stem: channels of the first convolution of that.
        width: factor for channels.
        depth: factor for blocks.
        dropout: default probability before the last layer.
        stochastic_depth: default probability of dropping a residual branch, see `Branches`.
    """

    stages: tuple[Stage, ...]
    stem: int = 32
    width: float = 1.0
    depth: float = 1.0
    dropout: float = 0.2
    stochastic_depth: float = 0.2

    def __call__(self, x: Tensor, options: Options) -> Tensor:
        """Logits ``[N, classes]`` of images ``[N, 3, H, W]``."""
        conv = ConvNorm(options.training)
        depths = [math.ceil(stage.blocks * self.depth) for stage in self.stages]
        with scope("features"):
            x = conv(x, "0", divisible(self.stem * self.width), 3, silu, 2)
        branches = Branches(options, self.stochastic_depth, sum(depths), _STEPS)
        with scope("features"):
            for at, (stage, blocks) in enumerate(zip(self.stages, depths, strict=True), start=1):
                for i in range(blocks):
                    with scope(str(at)), scope(str(i)):
                        x = self._block(x, stage, stage.stride if i == 0 else 1, conv, branches)
            x = conv(x, str(len(depths) + 1), 4 * x.shape[1], 1, silu)
        x = flatten(adaptive_avg_pool2d(x, 1), 1)
        x = dropout(x, self.dropout, options, _STEPS)
        bound = 1.0 / math.sqrt(options.num_classes)
        with scope("classifier"):
            init = {"weight_init": ("uniform", bound), "bias_init": 0.0}
            return linear(x, "1", options.num_classes, **init)

    def _block(
        self, x: Tensor, stage: Stage, stride: int, conv: ConvNorm, branches: Branches
    ) -> Tensor:
        inputs, outputs = x.shape[1], divisible(stage.channels * self.width)
        width = divisible(inputs * stage.expansion)
        y, at = x, 0
        with scope("block"):
            if width != inputs:
                y, at = conv(y, "0", width, 1, silu), 1
            y = conv(y, str(at), width, stage.window, silu, stride, groups=width)
            squeezed = max(1, inputs // 4)
            y = squeeze_excite(y, str(at + 1), squeezed, silu, sigmoid)
            y = conv(y, str(at + 2), outputs)
        if stride == 1 and inputs == outputs:
            return branches(y) + x
        branches(None)
        return y


_STAGES = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1),
)

VARIANTS = {
    "efficientnet_b0": EfficientNet(_STAGES),
    "efficientnet_b1": EfficientNet(_STAGES, depth=1.1),
    "efficientnet_b2": EfficientNet(_STAGES, width=1.1, depth=1.2, dropout=0.3),
    "efficientnet_b3": EfficientNet(_STAGES, width=1.2, depth=1.4, dropout=0.3),
    "tiny_efficientnet": EfficientNet((Stage(1, 3, 1, 8, 1), Stage(3, 5, 2, 16, 2)), stem=8),
}
