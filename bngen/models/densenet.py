"""DenseNets (Huang, Liu, van der Maaten, Weinberger 2017) with torchvision's parameter names."""

from __future__ import annotations

from dataclasses import dataclass

from bngen.lang.activations import relu
from bngen.lang.layers import batch_norm, conv2d, linear
from bngen.lang.shapes import cat, flatten
from bngen.lang.state import scope
from bngen.lang.tensor import Tensor
from bngen.lang.windows import adaptive_avg_pool2d, avg_pool2d, max_pool2d
from bngen.models.common import Network, Options

_CONV = {"bias": False, "weight_init": ("kaiming_normal_fan_in",)}


@dataclass(frozen=True)
class DenseNet(Network):
    """One size of the family; calling it on images gives logits.

    Attributes:
        growth: channels that each layer adds.
        blocks: layers of each dense block.
        stem: channels of the first convolution.
        bottleneck: channels of the 1x1 convolutions, as a multiple of ``growth``.
    """

    growth: int
    blocks: tuple[int, ...]
    stem: int
    bottleneck: int = 4

    @property
    def min_image(self) -> int:
        """The smallest image of which a pixel is left at the end."""
        size = 2 ** (len(self.blocks) - 1)  # before the transitions, each of which halves
        for _ in range(2):  # the stem: a strided convolution and pool, both rounding up
            size = 2 * size - 1
        return size

    def __call__(self, x: Tensor, options: Options) -> Tensor:
        """Logits ``[N, classes]`` of images ``[N, 3, H, W]``."""
        training = options.training
        with scope("features"):
            x = conv2d(x, "conv0", self.stem, 7, stride=2, padding=3, **_CONV)
            x = relu(batch_norm(x, "norm0", training))
            x = max_pool2d(x, 3, stride=2, padding=1)
            for i, layers in enumerate(self.blocks, start=1):
                x = self._block(x, f"denseblock{i}", layers, training)
                if i < len(self.blocks):
                    x = self._transition(x, f"transition{i}", training)
            x = relu(batch_norm(x, "norm5", training))
        x = flatten(adaptive_avg_pool2d(x, 1), 1)
        return linear(x, "classifier", options.num_classes, bias_init=0.0)

    def _block(self, x: Tensor, name: str, layers: int, training: bool) -> Tensor:
        features = [x]
        with scope(name):
            for j in range(1, layers + 1):
                y = cat(features, dim=1)
                with scope(f"denselayer{j}"):
                    y = relu(batch_norm(y, "norm1", training))
                    y = conv2d(y, "conv1", self.bottleneck * self.growth, 1, **_CONV)
                    y = relu(batch_norm(y, "norm2", training))
                    features.append(conv2d(y, "conv2", self.growth, 3, padding=1, **_CONV))
        return cat(features, dim=1)

    def _transition(self, x: Tensor, name: str, training: bool) -> Tensor:
        with scope(name):
            x = relu(batch_norm(x, "norm", training))
            return avg_pool2d(conv2d(x, "conv", x.shape[1] // 2, 1, **_CONV), 2)


VARIANTS = {
    "densenet121": DenseNet(32, (6, 12, 24, 16), 64),
    "densenet161": DenseNet(48, (6, 12, 36, 24), 96),
    "densenet169": DenseNet(32, (6, 12, 32, 32), 64),
    "densenet201": DenseNet(32, (6, 12, 48, 32), 64),
    "tiny_densenet": DenseNet(4, (2, 3), 8, bottleneck=2),
}
