"""ConvNeXts (Liu et al. 2022) with torchvision's parameter names.

torchvision permutes maps to channels last for its layer norms and linear layers. Here maps stay as
convolutions have them: a norm reduces over axis 1, and a linear layer is a 1x1 convolution, of the
same weight.
"""

from __future__ import annotations

from dataclasses import dataclass

from bngen.lang import windows
from bngen.lang.activations import gelu
from bngen.lang.layers import conv2d, linear
from bngen.lang.pointwise import rsqrt
from bngen.lang.shapes import flatten
from bngen.lang.state import parameter, scope
from bngen.lang.tensor import Tensor
from bngen.lang.windows import adaptive_avg_pool2d
from bngen.models.common import Branches, Network, Options

_NORMAL = ("normal", 0.02)  # torchvision's is truncated at 100 standard deviations
_INIT = {"weight_init": _NORMAL, "bias_init": 0.0}
_EPS = 1e-6


@dataclass(frozen=True)
class ConvNeXt(Network):
    """One size of the family; calling it on images gives logits.

    Attributes:
        stages: (channels, blocks) of each.
        stochastic_depth: default probability of dropping a residual branch, see `Branches`.
        scale: that residual branches start with.
    """

    stages: tuple[tuple[int, int], ...]
    stochastic_depth: float
    scale: float = 1e-6
    counts_steps = False

    @property
    def min_image(self) -> int:
        """The smallest image of which a pixel is left."""
        return 4 * 2 ** (len(self.stages) - 1)

    def __call__(self, x: Tensor, options: Options) -> Tensor:
        """Logits ``[N, classes]`` of images ``[N, 3, H, W]``."""
        count = sum(blocks for _, blocks in self.stages)
        branches = Branches(options, self.stochastic_depth, max(count - 1, 1), None)
        with scope("features"):
            with scope("0"):
                x = conv2d(x, "0", self.stages[0][0], 4, stride=4, **_INIT)
                x = _norm(x, "1")
            for stage, (channels, blocks) in enumerate(self.stages):
                if stage > 0:
                    with scope(str(2 * stage)):
                        x = conv2d(_norm(x, "0"), "1", channels, 2, stride=2, **_INIT)
                for i in range(blocks):
                    with scope(str(2 * stage + 1)), scope(str(i)):
                        x = self._block(x, branches)
        with scope("classifier"):
            x = flatten(_norm(adaptive_avg_pool2d(x, 1), "0"), 1)
            return linear(x, "2", options.num_classes, **_INIT)

    def _block(self, x: Tensor, branches: Branches) -> Tensor:
        channels = x.shape[1]
        scale = parameter("layer_scale", (channels, 1, 1), x.dtype, self.scale)
        with scope("block"):
            y = conv2d(x, "0", channels, 7, padding=3, groups=channels, **_INIT)
            y = gelu(_linear(_norm(y, "2"), "3", 4 * channels))
            y = _linear(y, "5", channels)
        return branches(scale * y) + x


def _norm(x: Tensor, name: str) -> Tensor:
    """``nn.LayerNorm`` over the channels of each pixel."""
    with scope(name):
        weight = parameter("weight", x.shape[1], x.dtype, 1.0).view(1, -1, 1, 1)
        bias = parameter("bias", x.shape[1], x.dtype, 0.0).view(1, -1, 1, 1)
    centred = x - x.mean(1, keepdim=True)
    variance = (centred * centred).mean(1, keepdim=True)
    return centred * rsqrt(variance + _EPS) * weight + bias


def _linear(x: Tensor, name: str, channels: int) -> Tensor:
    """``nn.Linear`` over the channels of each pixel."""
    with scope(name):
        weight = parameter("weight", (channels, x.shape[1]), x.dtype, _NORMAL)
        bias = parameter("bias", channels, x.dtype, 0.0)
    return windows.conv2d(x, weight.view(*weight.shape, 1, 1), bias)


VARIANTS = {
    "convnext_tiny": ConvNeXt(((96, 3), (192, 3), (384, 9), (768, 3)), 0.1),
    "convnext_small": ConvNeXt(((96, 3), (192, 3), (384, 27), (768, 3)), 0.4),
    "tiny_convnext": ConvNeXt(((8, 1), (16, 2)), 0.1, scale=1.0),
}
