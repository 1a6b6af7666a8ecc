"""VGG with batch normalization (Simonyan, Zisserman 2015) with torchvision's parameter names."""

from __future__ import annotations

from dataclasses import dataclass

from bngen.lang.activations import relu
from bngen.lang.layers import batch_norm, conv2d, linear
from bngen.lang.shapes import flatten
from bngen.lang.state import scope
from bngen.lang.tensor import Tensor
from bngen.lang.windows import adaptive_avg_pool2d, max_pool2d
from bngen.models.common import Network, Options, dropout


@dataclass(frozen=True)
class VGG(Network):
    """One size of the family; calling it on images gives logits.

    Attributes:
        stages: output channels of the convolutions between two pools.
        pooled: height and width to which the features are averaged.
        hidden: width of the two hidden layers of the classifier.
        dropout: default probability behind each of them.
    """

    stages: tuple[tuple[int, ...], ...]
    pooled: int = 7
    hidden: int = 4096
    dropout: float = 0.5

    @property
    def min_image(self) -> int:
        """The smallest image of which a pixel is left after the pools."""
        return 2 ** len(self.stages)

    def __call__(self, x: Tensor, options: Options) -> Tensor:
        """Logits ``[N, classes]`` of images ``[N, 3, H, W]``."""
        with scope("features"):
            at = 0  # torchvision numbers convolution, BN, ReLU and pool alike
            for stage in self.stages:
                for channels in stage:
                    x = conv2d(
                        x, str(at), channels, 3, padding=1,
                        weight_init=("kaiming_normal_fan_out",), bias_init=0.0,
                    )  # fmt: skip
                    x = relu(batch_norm(x, str(at + 1), options.training))
                    at += 3
                x = max_pool2d(x, 2)
                at += 1
        x = flatten(adaptive_avg_pool2d(x, self.pooled), 1)
        for layer in (0, 3):
            x = relu(self._linear(x, layer, self.hidden))
            x = dropout(x, self.dropout, options, "features.1.num_batches_tracked")
        return self._linear(x, 6, options.num_classes)

    def _linear(self, x: Tensor, layer: int, features: int) -> Tensor:
        with scope("classifier"):
            return linear(x, str(layer), features, weight_init=("normal", 0.01), bias_init=0.0)


VARIANTS = {
    "vgg16_bn": VGG(((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)),
    "tiny_vgg": VGG(((8,), (12, 12)), pooled=2, hidden=16),
}
