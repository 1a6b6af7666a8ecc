"""ResNets (He, Zhang, Ren, Sun 2016) with torchvision's parameter names.

As in torchvision, a bottleneck's stride is in its 3x3 convolution. ResNeXts (Xie et al. 2017) and
wide ResNets (Zagoruyko, Komodakis 2016) are those of which that convolution has groups or channels
of its own number.
"""

from __future__ import annotations

from dataclasses import dataclass

from bngen.lang.activations import relu
from bngen.lang.layers import batch_norm, conv2d, linear
from bngen.lang.shapes import flatten
from bngen.lang.state import scope
from bngen.lang.tensor import Tensor
from bngen.lang.windows import adaptive_avg_pool2d, max_pool2d
from bngen.models.common import Network, Options

_CONV = {"bias": False, "weight_init": ("kaiming_normal_fan_out",)}


def _conv_bn(
    x: Tensor, number: int, channels: int, window: int, stride: int, training: bool,
    dilation: int = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    padding = window // 2 * dilation
    x = conv2d(
        x, f"conv{number}", channels, window, stride=stride, padding=padding, dilation=dilation,
        groups=groups, **_CONV,
    )  # fmt: skip
    return batch_norm(x, f"bn{number}", training)


def _shortcut(x: Tensor, channels: int, stride: int, training: bool) -> Tensor:
    """The input itself, or its projection where the sum needs another shape."""
    if stride == 1 and x.shape[1] == channels:
        return x
    with scope("downsample"):
        return batch_norm(conv2d(x, "0", channels, 1, stride=stride, **_CONV), "1", training)


@dataclass(frozen=True)
class ResNet(Network):
    """One size of the family; calling it on images gives logits.

    Attributes:
        blocks: residual blocks of each stage.
        bottleneck: 1x1, 3x3, 1x1 convolutions instead of two of 3x3.
        stem: channels of the first convolution; each further stage doubles them.
        groups: of a bottleneck's 3x3 convolution.
        width: channels of that, as a multiple of the stage's.
        dilated: numbers of stages, from 0, that dilate their windows instead of striding.
    """

    blocks: tuple[int, ...]
    bottleneck: bool
    stem: int = 64
    groups: int = 1
    width: int = 1
    dilated: tuple[int, ...] = ()

    def __call__(self, x: Tensor, options: Options) -> Tensor:
        """Logits ``[N, classes]`` of images ``[N, 3, H, W]``."""
        x = flatten(adaptive_avg_pool2d(self.features(x, options.training), 1), 1)
        return linear(x, "fc", options.num_classes)

    def features(self, x: Tensor, training: bool) -> Tensor:
        """The last stage's feature map."""
        x = relu(_conv_bn(x, 1, self.stem, 7, 2, training))
        x = max_pool2d(x, 3, stride=2, padding=1)
        dilation = 1
        for stage, blocks in enumerate(self.blocks):
            stride, before = 2 if stage > 0 else 1, dilation
            if stage in self.dilated:
                stride, dilation = 1, dilation * 2
            with scope(f"layer{stage + 1}"):
                for i in range(blocks):
                    first = i == 0
                    with scope(str(i)):
                        x = self._block(
                            x, self.stem << stage, stride if first else 1, training,
                            before if first else dilation,
                        )  # fmt: skip
        return x

    def _block(
        self, x: Tensor, channels: int, stride: int, training: bool, dilation: int
    ) -> Tensor:
        if self.bottleneck:
            width = channels * self.width
            y = relu(_conv_bn(x, 1, width, 1, 1, training))
            y = relu(_conv_bn(y, 2, width, 3, stride, training, dilation, self.groups))
            y = _conv_bn(y, 3, 4 * channels, 1, 1, training)
        else:
            y = relu(_conv_bn(x, 1, channels, 3, stride, training))
            y = _conv_bn(y, 2, channels, 3, 1, training)
        return relu(y + _shortcut(x, y.shape[1], stride, training))


VARIANTS = {
    "resnet18": ResNet((2, 2, 2, 2), bottleneck=False),
    "resnet34": ResNet((3, 4, 6, 3), bottleneck=False),
    "resnet50": ResNet((3, 4, 6, 3), bottleneck=True),
    "resnet101": ResNet((3, 4, 23, 3), bottleneck=True),
    "resnext50_32x4d": ResNet((3, 4, 6, 3), bottleneck=True, groups=32, width=2),
    "resnext101_32x8d": ResNet((3, 4, 23, 3), bottleneck=True, groups=32, width=4),
    "wide_resnet50_2": ResNet((3, 4, 6, 3), bottleneck=True, width=2),
    "wide_resnet101_2": ResNet((3, 4, 23, 3), bottleneck=True, width=2),
    "tiny_resnet": ResNet((1, 2), bottleneck=True, stem=8),
    "tiny_resnext": ResNet((1, 1), bottleneck=True, stem=8, groups=4, width=2),
}
