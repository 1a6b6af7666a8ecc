"""U-Nets (Ronneberger, Fischer, Brox 2015) with BN, for segmentation.

Layers, parameter names and the two classes are those of the most used one for PyTorch
(github.com/milesial/Pytorch-UNet), start values PyTorch's own.
"""

from __future__ import annotations

from dataclasses import dataclass

from bngen.lang.activations import relu
from bngen.lang.layers import conv2d, conv_transpose2d
from bngen.lang.places import interpolate, pad
from bngen.lang.shapes import cat
from bngen.lang.state import scope
from bngen.lang.tensor import Tensor
from bngen.lang.windows import max_pool2d
from bngen.models.blocks import ConvNorm
from bngen.models.common import Network, Options


@dataclass(frozen=True)
class UNet(Network):
    """One size of the family; calling it on images gives logits of each pixel.

    Attributes:
        width: channels of the first convolution; each level has twice as many as the one before.
        levels: how often maps are halved, and doubled again.
        bilinear: maps are doubled by interpolation, not by a transposed convolution; the deepest
            level has no more channels than the one before it, then.
    """

    width: int = 64
    levels: int = 4
    bilinear: bool = False
    num_classes = 2
    per_pixel = True

    @property
    def min_image(self) -> int:
        """The smallest image of which a pixel is left at the deepest level."""
        return 2**self.levels

    def __call__(self, x: Tensor, options: Options) -> Tensor:
        """Logits ``[N, classes, H, W]`` of images ``[N, 3, H, W]``."""
        conv = ConvNorm(options.training, weight_init=None)
        shrink = 2 if self.bilinear else 1
        widths = [self.width << level for level in range(self.levels + 1)]
        widths[-1] //= shrink
        with scope("inc"):
            maps = [_double_conv(x, widths[0], widths[0], conv)]
        for level, width in enumerate(widths[1:], start=1):
            with scope(f"down{level}"), scope("maxpool_conv"), scope("1"):
                maps.append(_double_conv(max_pool2d(maps[-1], 2), width, width, conv))
        x = maps.pop()
        for level in range(1, self.levels + 1):
            width = widths[self.levels - level] // (shrink if level < self.levels else 1)
            with scope(f"up{level}"):
                x = self._joined(x, maps.pop())
                with scope("conv"):
                    middle = x.shape[1] // 2 if self.bilinear else width
                    x = _double_conv(x, middle, width, conv)
        with scope("outc"):
            return conv2d(x, "conv", options.num_classes, 1)

    def _joined(self, x: Tensor, skipped: Tensor) -> Tensor:
        """The map of a deeper level, doubled, behind the channels of the one it is added to."""
        if self.bilinear:
            x = interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        else:
            x = conv_transpose2d(x, "up", x.shape[1] // 2, 2, stride=2)
        down, right = (skipped.shape[axis] - x.shape[axis] for axis in (2, 3))
        if down or right:
            x = pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
        return cat([skipped, x], dim=1)


def _double_conv(x: Tensor, middle: int, channels: int, conv: ConvNorm) -> Tensor:
    with scope("double_conv"):
        x = conv.within(x, middle, 3, relu, names=("0", "1"))
        return conv.within(x, channels, 3, relu, names=("3", "4"))


VARIANTS = {
    "unet": UNet(),
    "unet_bilinear": UNet(bilinear=True),
    "tiny_unet": UNet(width=8, levels=2),
    "tiny_unet_bilinear": UNet(width=8, levels=2, bilinear=True),
}
