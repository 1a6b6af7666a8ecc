"""Layers that several families are built of, with the names that torchvision gives them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bngen.lang.layers import batch_norm, conv2d
from bngen.lang.state import Init, scope
from bngen.lang.tensor import Tensor
from bngen.lang.windows import Pair, adaptive_avg_pool2d

Activation = Callable[[Tensor], Tensor]

FAN_OUT = ("kaiming_normal_fan_out",)
"""``kaiming_normal_(weight, mode="fan_out")``."""


@dataclass(frozen=True)
class ConvNorm:
    """Convolution without a bias, BN and perhaps an activation, as one family writes them.

    Attributes:
        training: whether BN uses the batch's statistics.
        weight_init: of the convolution; ``None`` for that of ``nn.Conv2d``.
        eps: of the BN.
        momentum: of the BN.
        names: of the convolution and of the BN; without them they stand in the open scope.
    """

    training: bool
    weight_init: Init = FAN_OUT
    eps: float = 1e-5
    momentum: float = 0.1
    names: tuple[str, str] = ("0", "1")

    def __call__(
        self,
        x: Tensor,
        name: str,
        channels: int,
        window: Pair = 1,
        activation: Activation | None = None,
        stride: int = 1,
        padding: Pair | None = None,
        dilation: int = 1,
        groups: int = 1,
    ) -> Tensor:
        """The block called ``name``; its padding keeps the size of a map unless it is given."""
        with scope(name):
            return self.within(x, channels, window, activation, stride, padding, dilation, groups)

    def within(
        self,
        x: Tensor,
        channels: int,
        window: Pair = 1,
        activation: Activation | None = None,
        stride: int = 1,
        padding: Pair | None = None,
        dilation: int = 1,
        groups: int = 1,
        names: tuple[str, str] | None = None,
    ) -> Tensor:
        """The same in the scope that is open."""
        if padding is None:
            sides = window if isinstance(window, tuple) else (window, window)
            padding = tuple((side - 1) // 2 * dilation for side in sides)
        conv, norm = names or self.names
        x = conv2d(
            x, conv, channels, window, stride=stride, padding=padding, dilation=dilation,
            groups=groups, bias=False, weight_init=self.weight_init,
        )  # fmt: skip
        x = batch_norm(x, norm, self.training, eps=self.eps, momentum=self.momentum)
        return x if activation is None else activation(x)


def squeeze_excite(
    x: Tensor,
    name: str,
    channels: int,
    activation: Activation,
    gate: Activation,
    bias_init: Init = 0.0,
) -> Tensor:
    """Scale each channel by what two 1x1 convolutions make of the means (Hu et al. 2018).

    Args:
        x: ``[N, C, H, W]``.
        name: torchvision's name of the block.
        channels: between the two convolutions.
        activation: between them.
        gate: behind them.
        bias_init: of both; ``None`` for that of ``nn.Conv2d``.
    """
    init = {"weight_init": FAN_OUT, "bias_init": bias_init}
    with scope(name):
        scale = conv2d(adaptive_avg_pool2d(x, 1), "fc1", channels, 1, **init)
        scale = conv2d(activation(scale), "fc2", x.shape[1], 1, **init)
    return gate(scale) * x
