"""GoogLeNet (Szegedy et al. 2015), with BN, with torchvision's parameter names.

As torchvision's default is, it is trained with its two auxiliary classifiers, whose losses count
0.3 each as in the paper. In evaluation they hold their parameters and compute nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from bngen.lang.activations import relu
from bngen.lang.layers import linear
from bngen.lang.shapes import cat, flatten
from bngen.lang.state import scope
from bngen.lang.tensor import Tensor
from bngen.lang.windows import adaptive_avg_pool2d, max_pool2d
from bngen.models.blocks import ConvNorm
from bngen.models.common import Network, Options, dropout

_STEPS = "conv1.bn.num_batches_tracked"
_NORMAL = ("normal", 0.01)  # torchvision's is truncated at 200 standard deviations


@dataclass(frozen=True)
class GoogLeNet(Network):
    """The network; calling it on images gives logits, in training those of all classifiers.

    Attributes:
        dropout: default probability before the last layer.
        dropout_aux: the same of the auxiliary classifiers.
    """

    dropout: float = 0.2
    dropout_aux: float = 0.7
    min_image = 15
    auxiliary = (("aux_logits2", 0.3), ("aux_logits1", 0.3))

    def __call__(self, x: Tensor, options: Options) -> Tensor | tuple[Tensor, ...]:
        """Logits ``[N, classes]`` of images ``[N, 3, H, W]``."""
        conv = ConvNorm(options.training, _NORMAL, eps=0.001, names=("conv", "bn"))
        x = conv(x, "conv1", 64, 7, relu, 2)
        x = conv(_halved(x, 3), "conv2", 64, 1, relu)
        x = conv(x, "conv3", 192, 3, relu)
        x = _inception(_halved(x, 3), "inception3a", (64, 96, 128, 16, 32, 32), conv)
        x = _inception(x, "inception3b", (128, 128, 192, 32, 96, 64), conv)
        first = _inception(_halved(x, 3), "inception4a", (192, 96, 208, 16, 48, 64), conv)
        x = _inception(first, "inception4b", (160, 112, 224, 24, 64, 64), conv)
        x = _inception(x, "inception4c", (128, 128, 256, 24, 64, 64), conv)
        second = _inception(x, "inception4d", (112, 144, 288, 32, 64, 64), conv)
        x = _inception(second, "inception4e", (256, 160, 320, 32, 128, 128), conv)
        x = _inception(_halved(x, 2), "inception5a", (256, 160, 320, 32, 128, 128), conv)
        x = _inception(x, "inception5b", (384, 192, 384, 48, 128, 128), conv)
        # Here, for parameters are held in the order in which they are declared.
        aux1 = self._auxiliary(first, "aux1", conv, options)
        aux2 = self._auxiliary(second, "aux2", conv, options)
        x = flatten(adaptive_avg_pool2d(x, 1), 1)
        x = dropout(x, self.dropout, options, _STEPS)
        x = linear(x, "fc", options.num_classes, weight_init=_NORMAL)
        return (x, aux2, aux1) if options.training else x

    def _auxiliary(self, x: Tensor, name: str, conv: ConvNorm, options: Options) -> Tensor:
        with scope(name):
            x = flatten(conv(adaptive_avg_pool2d(x, 4), "conv", 128, 1, relu), 1)
            x = relu(linear(x, "fc1", 1024, weight_init=_NORMAL))
        x = dropout(x, self.dropout_aux, options, _STEPS)
        with scope(name):
            return linear(x, "fc2", options.num_classes, weight_init=_NORMAL)


def _halved(x: Tensor, window: int) -> Tensor:
    return max_pool2d(x, window, stride=2, ceil_mode=True)


def _inception(x: Tensor, name: str, widths: tuple[int, ...], conv: ConvNorm) -> Tensor:
    """Four branches; that of two small windows has 3x3, where the paper has 5x5."""
    plain, reduced3, wide3, reduced5, wide5, pooled = widths
    with scope(name):
        branches = [conv(x, "branch1", plain, 1, relu)]
        for branch, reduced, wide in (("branch2", reduced3, wide3), ("branch3", reduced5, wide5)):
            with scope(branch):
                branches.append(conv(conv(x, "0", reduced, 1, relu), "1", wide, 3, relu))
        with scope("branch4"):
            y = max_pool2d(x, 3, stride=1, padding=1, ceil_mode=True)
            branches.append(conv(y, "1", pooled, 1, relu))
    return cat(branches, dim=1)


VARIANTS = {"googlenet": GoogLeNet()}
