"""MNASNet-B1 (Tan et al. 2019) with torchvision's parameter names."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bngen.lang.activations import relu
from bngen.lang.layers import linear
from bngen.lang.state import scope
from bngen.lang.tensor import Tensor
from bngen.models.blocks import ConvNorm
from bngen.models.common import Network, Options, divisible, dropout

_MOMENTUM = 1 - 0.9997

_STACKS = (
    # window, stride of the first block, expansion, channels, blocks
    (3, 2, 3, 24, 3),
    (5, 2, 3, 40, 3),
    (5, 2, 6, 80, 3),
    (3, 1, 6, 96, 2),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


@dataclass(frozen=True)
class MNASNet(Network):
    """One size of the family; calling it on images gives logits.

    Attributes:
        alpha: factor for channels.
        head: channels of the last convolution.
        dropout: default probability before the last layer.
    """

    alpha: float
    head: int = 1280
    dropout: float = 0.2

    def __call__(self, x: Tensor, options: Options) -> Tensor:
        """Logits ``[N, classes]`` of images ``[N, 3, H, W]``."""
        conv = ConvNorm(options.training, momentum=_MOMENTUM)
        stem = divisible(32 * self.alpha)
        with scope("layers"):
            x = conv.within(x, stem, 3, relu, 2, names=("0", "1"))
            x = conv.within(x, stem, 3, relu, groups=stem, names=("3", "4"))
            x = conv.within(x, divisible(16 * self.alpha), names=("6", "7"))
            for at, (window, stride, expansion, channels, blocks) in enumerate(_STACKS, start=8):
                outputs = divisible(channels * self.alpha)
                for i in range(blocks):
                    with scope(str(at)), scope(str(i)), scope("layers"):
                        x = _block(x, window, stride if i == 0 else 1, expansion, outputs, conv)
            x = conv.within(x, self.head, 1, relu, names=("14", "15"))
        x = dropout(x.mean((2, 3)), self.dropout, options, "layers.1.num_batches_tracked")
        # kaiming_uniform_(weight, mode="fan_out", nonlinearity="sigmoid"), whose gain is 1
        bound = math.sqrt(3.0 / options.num_classes)
        with scope("classifier"):
            init = {"weight_init": ("uniform", bound), "bias_init": 0.0}
            return linear(x, "1", options.num_classes, **init)


def _block(
    x: Tensor, window: int, stride: int, expansion: int, channels: int, conv: ConvNorm
) -> Tensor:
    width = x.shape[1] * expansion
    y = conv.within(x, width, 1, relu)
    y = conv.within(y, width, window, relu, stride, groups=width, names=("3", "4"))
    y = conv.within(y, channels, names=("6", "7"))
    return y + x if stride == 1 and x.shape[1] == channels else y


VARIANTS = {
    "mnasnet0_5": MNASNet(0.5),
    "mnasnet1_0": MNASNet(1.0),
    "tiny_mnasnet": MNASNet(0.1, head=16),
}
