"""What every family of models shares: its options, what it says of itself, how it drops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import bngen.lang.pointwise as F
from bngen.dtypes import INDEX
from bngen.lang.emission import constant, emit
from bngen.lang.state import buffer
from bngen.lang.tensor import Tensor


@dataclass(frozen=True)
class Options:
    """What `make` hands to a model besides the images.

    Attributes:
        num_classes: extent of the logits.
        training: BN by the batch's statistics, dropout active.
        dropout: probability, or ``None`` for the model's own; 0 also keeps every residual branch.
        seed: where the sequence of dropout masks starts.
        step: tells the steps of a model that has no BN which counts them; int64 without axes.
    """

    num_classes: int
    training: bool
    dropout: float | None
    seed: int
    step: Tensor | None = None


class Network:
    """A built-in network; called on images and `Options` it gives logits.

    Where it has auxiliary classifiers, it gives in training a tuple, of which the logits are first.

    Attributes:
        image: height and width of an image unless another size is asked for.
        num_classes: extent of the logits unless another one is asked for.
        min_image: smallest height and width of an image.
        min_training_image: the same for training; ``None`` where it does not differ.
        dropout: default probability of its dropout layers; 0 if it has none.
        stochastic_depth: default probability of dropping the last residual branch of an image,
            which falls to 0 for the first one; 0 if none is dropped.
        counts_steps: whether it has BN layers, from whose count of batches masks follow.
        per_pixel: whether logits and labels are those of each pixel, not of each image.
        auxiliary: (name, weight in the loss) of each further result in training.
    """

    image: ClassVar[int] = 224
    num_classes: ClassVar[int] = 1000
    min_image: ClassVar[int] = 1
    min_training_image: ClassVar[int | None] = None
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    counts_steps: ClassVar[bool] = True
    per_pixel: ClassVar[bool] = False
    auxiliary: ClassVar[tuple[tuple[str, float], ...]] = ()

    def __call__(self, x: Tensor, options: Options) -> Tensor | tuple[Tensor, ...]:
        """Logits of images ``[N, 3, H, W]``."""
        raise NotImplementedError

    @property
    def has_dropout(self) -> bool:
        """Whether anything is dropped by default."""
        return bool(self.dropout or self.stochastic_depth)

    def smallest(self, training: bool) -> int:
        """The smallest height and width of an image."""
        return self.min_training_image or self.min_image if training else self.min_image


def step_seed(options: Options, counter: str | None) -> Tensor:
    """A seed that is another one in every step.

    The step is told by ``counter``, the full name of the ``num_batches_tracked`` of one of the
    model's BN layers, or by `Options.step` where there is none. With it, masks depend on
    ``options.seed`` and on the step alone. To be called outside of any scope.
    """
    step = options.step if counter is None else buffer(counter, (), INDEX)
    return step + options.seed


def dropout(x: Tensor, default: float, options: Options, counter: str | None) -> Tensor:
    """Dropout that draws a new mask in every step; see `step_seed`."""
    p = default if options.dropout is None else options.dropout
    if not options.training or p == 0:
        return x
    return F.dropout(x, p, seed=step_seed(options, counter))


class Branches:
    """Residual branches that are dropped as torchvision's ``StochasticDepth(p, "row")`` does.

    Args:
        options: of the network.
        last: probability of the last branch.
        count: how many there are, by which the probabilities rise in even steps from 0.
        counter: see `step_seed`; called for where it is known already.
    """

    def __init__(self, options: Options, last: float, count: float, counter: str | None):
        active = options.training and last > 0 and options.dropout != 0
        self._seed = step_seed(options, counter) if active else None
        self._step, self._met = last / count, 0

    def __call__(self, branch: Tensor | None) -> Tensor | None:
        """Count a branch; drop it for some images, which scales it up for the others.

        A block without a branch counts, too: it passes None.
        """
        p, self._met = self._step * self._met, self._met + 1
        if branch is None or self._seed is None or p == 0:
            return branch
        one = constant(1.0, branch.dtype)
        shape = (branch.shape[0], *(1,) * (branch.ndim - 1))
        kept = emit("broadcast_to", one, label="stochastic_depth", shape=shape)
        return branch * F.dropout(kept, p, seed=self._seed)


def divisible(width: float, by: int = 8) -> int:
    """A number of channels as MobileNets round it: the nearest multiple, 10 % below at most."""
    near = max(by, int(width + by / 2) // by * by)
    return near + by if near < 0.9 * width else near
