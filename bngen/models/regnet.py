"""RegNets of kind Y (Radosavovic et al. 2020) with torchvision's parameter names."""

from __future__ import annotations

from dataclasses import dataclass

from bngen.lang.activations import relu
from bngen.lang.layers import linear
from bngen.lang.pointwise import sigmoid
from bngen.lang.shapes import flatten
from bngen.lang.state import scope
from bngen.lang.tensor import Tensor
from bngen.lang.windows import adaptive_avg_pool2d
from bngen.models.blocks import ConvNorm, squeeze_excite
from bngen.models.common import Network, Options


@dataclass(frozen=True)
class RegNet(Network):
    """One size of the family; calling it on images gives logits.

    Attributes:
        stages: (channels, blocks) of each.
        group: channels of a group of the 3x3 convolutions.
        stem: channels of the first convolution.
        squeeze: channels between the convolutions of squeeze and excitation, over the block's
            input; 0 for RegNetX, which has none.
    """

    stages: tuple[tuple[int, int], ...]
    group: int
    stem: int = 32
    squeeze: float = 0.25

    def __call__(self, x: Tensor, options: Options) -> Tensor:
        """Logits ``[N, classes]`` of images ``[N, 3, H, W]``."""
        conv = ConvNorm(options.training)
        x = conv(x, "stem", self.stem, 3, relu, 2)
        with scope("trunk_output"):
            for stage, (channels, blocks) in enumerate(self.stages, start=1):
                for i in range(blocks):
                    with scope(f"block{stage}"), scope(f"block{stage}-{i}"):
                        x = self._block(x, channels, 2 if i == 0 else 1, conv)
        x = flatten(adaptive_avg_pool2d(x, 1), 1)
        return linear(x, "fc", options.num_classes, weight_init=("normal", 0.01), bias_init=0.0)

    def _block(self, x: Tensor, channels: int, stride: int, conv: ConvNorm) -> Tensor:
        shortcut = x
        if stride != 1 or x.shape[1] != channels:
            shortcut = conv(x, "proj", channels, 1, None, stride)
        with scope("f"):
            y = conv(x, "a", channels, 1, relu)
            groups = channels // min(self.group, channels)
            y = conv(y, "b", channels, 3, relu, stride, groups=groups)
            if self.squeeze:
                squeezed = round(self.squeeze * x.shape[1])
                y = squeeze_excite(y, "se", squeezed, relu, sigmoid, bias_init=None)
            y = conv(y, "c", channels)
        return relu(shortcut + y)


VARIANTS = {
    "regnet_y_400mf": RegNet(((48, 1), (104, 3), (208, 6), (440, 6)), group=8),
    "regnet_y_800mf": RegNet(((64, 1), (144, 3), (320, 8), (784, 2)), group=16),
    "tiny_regnet": RegNet(((16, 1), (24, 2)), group=8, stem=8),
}
