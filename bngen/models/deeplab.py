"""DeepLabV3 (Chen, Papandreou, Schroff, Adam 2017) with torchvision's parameter names.

As torchvision's default is, it has no auxiliary classifier; its 21 classes are those of Pascal VOC.
"""

from __future__ import annotations

from dataclasses import dataclass

from bngen.lang.activations import relu
from bngen.lang.layers import conv2d
from bngen.lang.places import interpolate
from bngen.lang.shapes import cat
from bngen.lang.state import scope
from bngen.lang.tensor import Tensor
from bngen.lang.windows import adaptive_avg_pool2d
from bngen.models.blocks import ConvNorm
from bngen.models.common import Network, Options, dropout
from bngen.models.resnet import ResNet


@dataclass(frozen=True)
class DeepLabV3(Network):
    """One size of the family; calling it on images gives logits of each pixel.

    Attributes:
        backbone: whose last stages are dilated.
        channels: of the head.
        rates: dilations of its parallel convolutions.
        dropout: default probability behind these.
    """

    backbone: ResNet
    channels: int = 256
    rates: tuple[int, ...] = (12, 24, 36)
    dropout: float = 0.5
    num_classes = 21
    per_pixel = True

    def __call__(self, x: Tensor, options: Options) -> Tensor:
        """Logits ``[N, classes, H, W]`` of images ``[N, 3, H, W]``."""
        size = x.shape[2:]
        with scope("backbone"):
            x = self.backbone.features(x, options.training)
        conv = ConvNorm(options.training, weight_init=None)
        with scope("classifier"), scope("0"):
            x = self._pyramid(x, conv)
        x = dropout(x, self.dropout, options, "backbone.bn1.num_batches_tracked")
        with scope("classifier"):
            x = conv.within(x, self.channels, 3, relu, names=("1", "2"))
            x = conv2d(x, "4", options.num_classes, 1)
        return _resized(x, size)

    def _pyramid(self, x: Tensor, conv: ConvNorm) -> Tensor:
        """Atrous spatial pyramid pooling: windows of several sizes, the largest the whole map."""
        with scope("convs"):
            found = [conv(x, "0", self.channels, 1, relu)]
            for at, rate in enumerate(self.rates, start=1):
                found.append(conv(x, str(at), self.channels, 3, relu, dilation=rate))
            with scope(str(len(self.rates) + 1)):
                mean = adaptive_avg_pool2d(x, 1)
                mean = conv.within(mean, self.channels, 1, relu, names=("1", "2"))
            found.append(_resized(mean, x.shape[2:]))
        return conv(cat(found, dim=1), "project", self.channels, 1, relu)


def _resized(x: Tensor, size: tuple[int, ...]) -> Tensor:
    return interpolate(x, size=size, mode="bilinear", align_corners=False)


VARIANTS = {
    "deeplabv3_resnet50": DeepLabV3(ResNet((3, 4, 6, 3), bottleneck=True, dilated=(2, 3))),
    "deeplabv3_resnet101": DeepLabV3(ResNet((3, 4, 23, 3), bottleneck=True, dilated=(2, 3))),
    "tiny_deeplab": DeepLabV3(
        ResNet((1, 1), bottleneck=True, stem=8, dilated=(1,)), channels=8, rates=(2, 3)
    ),
}
