"""MobileNetV2 (Sandler et al. 2018) with torchvision's parameter names."""

from __future__ import annotations

from dataclasses import dataclass

from bngen.lang.activations import relu6
from bngen.lang.layers import batch_norm, conv2d, linear
from bngen.lang.shapes import flatten
from bngen.lang.state import scope
from bngen.lang.tensor import Tensor
from bngen.lang.windows import adaptive_avg_pool2d
from bngen.models.common import Network, Options, dropout

_CONV = {"bias": False, "weight_init": ("kaiming_normal_fan_out",)}


def _conv_bn_relu6(
    x: Tensor, name: str, channels: int, window: int, stride: int, groups: int, training: bool
) -> Tensor:
    with scope(name):
        x = conv2d(
            x, "0", channels, window, stride=stride, padding=window // 2, groups=groups, **_CONV
        )
        return relu6(batch_norm(x, "1", training))


def _inverted_residual(
    x: Tensor, channels: int, stride: int, expansion: int, training: bool
) -> Tensor:
    width = x.shape[1] * expansion
    y, at = x, 0
    with scope("conv"):
        if expansion != 1:
            y, at = _conv_bn_relu6(y, "0", width, 1, 1, 1, training), 1
        y = _conv_bn_relu6(y, str(at), width, 3, stride, width, training)
        y = conv2d(y, str(at + 1), channels, 1, **_CONV)
        y = batch_norm(y, str(at + 2), training)
    return x + y if stride == 1 and x.shape[1] == channels else y


@dataclass(frozen=True)
class MobileNetV2(Network):
    """The network; calling it on images gives logits.

    Attributes:
        stages: (expansion, channels, blocks, stride of the first block).
        stem: channels of the first convolution.
        head: channels of the last convolution.
        dropout: default probability before the classifier.
    """

    stages: tuple[tuple[int, int, int, int], ...]
    stem: int = 32
    head: int = 1280
    dropout: float = 0.2

    def __call__(self, x: Tensor, options: Options) -> Tensor:
        """Logits ``[N, classes]`` of images ``[N, 3, H, W]``."""
        training = options.training
        with scope("features"):
            x = _conv_bn_relu6(x, "0", self.stem, 3, 2, 1, training)
            at = 1
            for expansion, channels, blocks, first_stride in self.stages:
                for i in range(blocks):
                    stride = first_stride if i == 0 else 1
                    with scope(str(at)):
                        x = _inverted_residual(x, channels, stride, expansion, training)
                    at += 1
            x = _conv_bn_relu6(x, str(at), self.head, 1, 1, 1, training)
        x = flatten(adaptive_avg_pool2d(x, 1), 1)
        x = dropout(x, self.dropout, options, "features.0.1.num_batches_tracked")
        with scope("classifier"):
            return linear(x, "1", options.num_classes, weight_init=("normal", 0.01), bias_init=0.0)


VARIANTS = {
    "mobilenet_v2": MobileNetV2(
        (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        )
    ),
    "tiny_mobilenet": MobileNetV2(((1, 8, 1, 1), (3, 12, 2, 2)), stem=8, head=24),
}
