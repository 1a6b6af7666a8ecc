"""Inception v3 (Szegedy et al. 2016) with torchvision's parameter names.

As torchvision's default is, it is trained with its auxiliary classifier, whose loss counts 0.4, as
in PyTorch's own tutorial. In evaluation that holds its parameters and computes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from bngen.lang.activations import relu
from bngen.lang.emission import constant, emit
from bngen.lang.layers import linear
from bngen.lang.shapes import cat, flatten
from bngen.lang.state import scope
from bngen.lang.tensor import Tensor
from bngen.lang.windows import Pair, adaptive_avg_pool2d, avg_pool2d, max_pool2d
from bngen.models.blocks import ConvNorm
from bngen.models.common import Network, Options, dropout

_STEPS = "Conv2d_1a_3x3.bn.num_batches_tracked"
_WIDE, _TALL = (1, 7), (7, 1)

_Layer = tuple[str, int, Pair]
"""A convolution of a branch: the end of its name, channels, window."""


@dataclass(frozen=True)
class Inception3(Network):
    """The network; calling it on images gives logits, in training those of both classifiers.

    Attributes:
        dropout: default probability before the last layer.
    """

    dropout: float = 0.5
    image = 299
    min_image = 75
    min_training_image = 299
    auxiliary = (("aux_logits", 0.4),)

    def __call__(self, x: Tensor, options: Options) -> Tensor | tuple[Tensor, ...]:
        """Logits ``[N, classes]`` of images ``[N, 3, H, W]``."""
        # torchvision's normal distributions are truncated at 20 standard deviations and more.
        conv = _blocks(options, 0.1)
        x = conv(x, "Conv2d_1a_3x3", 32, 3, relu, 2, padding=0)
        x = conv(x, "Conv2d_2a_3x3", 32, 3, relu, padding=0)
        x = conv(x, "Conv2d_2b_3x3", 64, 3, relu)
        x = conv(max_pool2d(x, 3, stride=2), "Conv2d_3b_1x1", 80, 1, relu)
        x = conv(x, "Conv2d_4a_3x3", 192, 3, relu, padding=0)
        x = max_pool2d(x, 3, stride=2)
        for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            with scope(name):
                x = _block_of_5x5(x, pooled, conv)
        with scope("Mixed_6a"):
            x = _halved(x, conv)
        for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160),
                            ("Mixed_6e", 192)):  # fmt: skip
            with scope(name):
                x = _block_of_7x7(x, width, conv)
        with scope("AuxLogits"):
            # Evaluation takes images too small for it; it only declares what it holds, then.
            aux = _auxiliary(x if options.training else _blank(x), options)
        with scope("Mixed_7a"):
            x = _halved_again(x, conv)
        for name in ("Mixed_7b", "Mixed_7c"):
            with scope(name):
                x = _wide_block(x, conv)
        x = flatten(adaptive_avg_pool2d(x, 1), 1)
        x = dropout(x, self.dropout, options, _STEPS)
        x = linear(x, "fc", options.num_classes, weight_init=("normal", 0.1))
        return (x, aux) if options.training else x


def _blocks(options: Options, std: float) -> ConvNorm:
    return ConvNorm(options.training, ("normal", std), eps=0.001, names=("conv", "bn"))


def _branch(x: Tensor, prefix: str, layers: tuple[_Layer, ...], conv: ConvNorm) -> Tensor:
    for suffix, channels, window in layers:
        x = conv(x, f"{prefix}{suffix}", channels, window, relu)
    return x


def _pooled(x: Tensor, channels: int, conv: ConvNorm) -> Tensor:
    return conv(avg_pool2d(x, 3, stride=1, padding=1), "branch_pool", channels, 1, relu)


def _block_of_5x5(x: Tensor, pooled: int, conv: ConvNorm) -> Tensor:
    branches = [
        conv(x, "branch1x1", 64, 1, relu),
        _branch(x, "branch5x5", (("_1", 48, 1), ("_2", 64, 5)), conv),
        _branch(x, "branch3x3dbl", (("_1", 64, 1), ("_2", 96, 3), ("_3", 96, 3)), conv),
        _pooled(x, pooled, conv),
    ]
    return cat(branches, dim=1)


def _halved(x: Tensor, conv: ConvNorm) -> Tensor:
    y = conv(x, "branch3x3", 384, 3, relu, 2, padding=0)
    z = _branch(x, "branch3x3dbl", (("_1", 64, 1), ("_2", 96, 3)), conv)
    z = conv(z, "branch3x3dbl_3", 96, 3, relu, 2, padding=0)
    return cat([y, z, max_pool2d(x, 3, stride=2)], dim=1)


def _block_of_7x7(x: Tensor, width: int, conv: ConvNorm) -> Tensor:
    once = (("_1", width, 1), ("_2", width, _WIDE), ("_3", 192, _TALL))
    twice = (("_1", width, 1), ("_2", width, _TALL), ("_3", width, _WIDE), ("_4", width, _TALL),
             ("_5", 192, _WIDE))  # fmt: skip
    branches = [
        conv(x, "branch1x1", 192, 1, relu),
        _branch(x, "branch7x7", once, conv),
        _branch(x, "branch7x7dbl", twice, conv),
        _pooled(x, 192, conv),
    ]
    return cat(branches, dim=1)


def _halved_again(x: Tensor, conv: ConvNorm) -> Tensor:
    y = conv(x, "branch3x3_1", 192, 1, relu)
    y = conv(y, "branch3x3_2", 320, 3, relu, 2, padding=0)
    z = _branch(x, "branch7x7x3", (("_1", 192, 1), ("_2", 192, _WIDE), ("_3", 192, _TALL)), conv)
    z = conv(z, "branch7x7x3_4", 192, 3, relu, 2, padding=0)
    return cat([y, z, max_pool2d(x, 3, stride=2)], dim=1)


def _wide_block(x: Tensor, conv: ConvNorm) -> Tensor:
    y = conv(x, "branch1x1", 320, 1, relu)
    once = _fork(conv(x, "branch3x3_1", 384, 1, relu), "branch3x3_2", conv)
    twice = _branch(x, "branch3x3dbl", (("_1", 448, 1), ("_2", 384, 3)), conv)
    twice = _fork(twice, "branch3x3dbl_3", conv)
    return cat([y, once, twice, _pooled(x, 192, conv)], dim=1)


def _fork(x: Tensor, prefix: str, conv: ConvNorm) -> Tensor:
    halves = [
        conv(x, f"{prefix}{end}", 384, window, relu)
        for end, window in (("a", (1, 3)), ("b", (3, 1)))
    ]
    return cat(halves, dim=1)


def _blank(x: Tensor) -> Tensor:
    zero = constant(0.0, x.dtype)
    return emit("broadcast_to", zero, label="inception_v3", shape=(*x.shape[:2], 17, 17))


def _auxiliary(x: Tensor, options: Options) -> Tensor:
    x = _blocks(options, 0.1)(avg_pool2d(x, 5, stride=3), "conv0", 128, 1, relu)
    # torchvision gives this block a spread of 0.01, but looks for it at the convolution within.
    x = _blocks(options, 0.1)(x, "conv1", 768, 5, relu, padding=0)
    x = flatten(adaptive_avg_pool2d(x, 1), 1)
    return linear(x, "fc", options.num_classes, weight_init=("normal", 0.001))


VARIANTS = {"inception_v3": Inception3()}
