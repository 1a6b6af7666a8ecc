"""ShuffleNetV2 (Ma, Zhang, Zheng, Sun 2018) with torchvision's parameter names."""

from __future__ import annotations

from dataclasses import dataclass

from bngen.lang.activations import relu
from bngen.lang.layers import linear
from bngen.lang.shapes import cat, channel_shuffle, chunk
from bngen.lang.state import scope
from bngen.lang.tensor import Tensor
from bngen.lang.windows import max_pool2d
from bngen.models.blocks import ConvNorm
from bngen.models.common import Network, Options


@dataclass(frozen=True)
class ShuffleNetV2(Network):
    """One size of the family; calling it on images gives logits.

    Attributes:
        stages: (channels, blocks) of each.
        head: channels of the last convolution.
        stem: channels of the first convolution.
    """

    stages: tuple[tuple[int, int], ...]
    head: int = 1024
    stem: int = 24

    def __call__(self, x: Tensor, options: Options) -> Tensor:
        """Logits ``[N, classes]`` of images ``[N, 3, H, W]``."""
        conv = ConvNorm(options.training, weight_init=None)
        x = conv(x, "conv1", self.stem, 3, relu, 2)
        x = max_pool2d(x, 3, stride=2, padding=1)
        for stage, (channels, blocks) in enumerate(self.stages, start=2):
            for i in range(blocks):
                with scope(f"stage{stage}"), scope(str(i)):
                    x = _block(x, channels // 2, 2 if i == 0 else 1, conv)
        x = conv(x, "conv5", self.head, 1, relu)
        return linear(x.mean((2, 3)), "fc", options.num_classes)


def _block(x: Tensor, half: int, stride: int, conv: ConvNorm) -> Tensor:
    """Half of the channels pass as they are, or strided; then the two halves are interleaved."""
    if stride == 1:
        kept, y = chunk(x, 2, dim=1)
    else:
        kept, y = x, x
        with scope("branch1"):
            groups = x.shape[1]
            kept = conv.within(kept, groups, 3, None, stride, groups=groups)
            kept = conv.within(kept, half, 1, relu, names=("2", "3"))
    with scope("branch2"):
        y = conv.within(y, half, 1, relu)
        y = conv.within(y, half, 3, None, stride, groups=half, names=("3", "4"))
        y = conv.within(y, half, 1, relu, names=("5", "6"))
    return channel_shuffle(cat([kept, y], dim=1), 2)


VARIANTS = {
    "shufflenet_v2_x0_5": ShuffleNetV2(((48, 4), (96, 8), (192, 4))),
    "shufflenet_v2_x1_0": ShuffleNetV2(((116, 4), (232, 8), (464, 4))),
    "tiny_shufflenet": ShuffleNetV2(((16, 2), (24, 1)), head=32, stem=8),
}
