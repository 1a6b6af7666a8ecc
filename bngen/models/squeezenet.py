"""SqueezeNets (Iandola et al. 2016), which have no BN, with torchvision's parameter names."""

from __future__ import annotations

from dataclasses import dataclass

from bngen.lang.activations import relu
from bngen.lang.layers import conv2d
from bngen.lang.shapes import cat, flatten
from bngen.lang.state import scope
from bngen.lang.tensor import Tensor
from bngen.lang.windows import adaptive_avg_pool2d, max_pool2d
from bngen.models.common import Network, Options, dropout

_POOL = None
"""Stands for a pool among the widths of fire modules."""


@dataclass(frozen=True)
class SqueezeNet(Network):
    """One version; calling it on images gives logits.

    Attributes:
        stem: (channels, window) of the first convolution.
        fires: (squeezed, expanded by each window) channels of each fire module, or `_POOL`.
        min_image: smallest height and width of an image.
        dropout: default probability before the last convolution.
    """

    stem: tuple[int, int]
    fires: tuple[tuple[int, int] | None, ...]
    min_image: int
    dropout: float = 0.5
    counts_steps = False

    def __call__(self, x: Tensor, options: Options) -> Tensor:
        """Logits ``[N, classes]`` of images ``[N, 3, H, W]``."""
        channels, window = self.stem
        with scope("features"):
            x = relu(_conv(x, "0", channels, window, 2))
            for at, widths in enumerate(self.fires, start=2):
                if widths is _POOL:
                    x = max_pool2d(x, 3, stride=2, ceil_mode=True)
                else:
                    with scope(str(at)):
                        x = _fire(x, *widths)
        x = dropout(x, self.dropout, options, None)
        with scope("classifier"):
            init = {"weight_init": ("normal", 0.01), "bias_init": 0.0}
            x = relu(conv2d(x, "1", options.num_classes, 1, **init))
        return flatten(adaptive_avg_pool2d(x, 1), 1)


def _fire(x: Tensor, squeezed: int, expanded: int) -> Tensor:
    x = relu(_conv(x, "squeeze", squeezed, 1))
    by_windows = [
        _conv(x, f"expand{window}x{window}", expanded, window, padding=window // 2)
        for window in (1, 3)
    ]
    return cat([relu(y) for y in by_windows], dim=1)


def _conv(
    x: Tensor, name: str, channels: int, window: int, stride: int = 1, padding: int = 0
) -> Tensor:
    init = ("kaiming_uniform", 0.0, x.shape[1] * window**2)
    return conv2d(
        x, name, channels, window, stride=stride, padding=padding, weight_init=init, bias_init=0.0
    )


_FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))

VARIANTS = {
    "squeezenet1_0": SqueezeNet(
        (96, 7), (_POOL, *_FIRES[:3], _POOL, *_FIRES[3:7], _POOL, *_FIRES[7:]), min_image=21
    ),
    "squeezenet1_1": SqueezeNet(
        (64, 3), (_POOL, *_FIRES[:2], _POOL, *_FIRES[2:4], _POOL, *_FIRES[4:]), min_image=17
    ),
    "tiny_squeezenet": SqueezeNet((16, 3), (_POOL, (4, 8), (4, 8)), min_image=5),
}
