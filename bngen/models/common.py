"""What every family of models shares: its options, and how a classifier starts."""

from __future__ import annotations

from dataclasses import dataclass

import bngen.lang.pointwise as F
from bngen.dtypes import INDEX
from bngen.lang.state import buffer
from bngen.lang.tensor import Tensor


@dataclass(frozen=True)
class Options:
    """What `make` hands to a model besides the images.

    Attributes:
        num_classes: extent of the logits.
        training: BN by the batch's statistics, dropout active.
        dropout: probability, or ``None`` for the model's own.
        seed: where the sequence of dropout masks starts.
    """

    num_classes: int
    training: bool
    dropout: float | None
    seed: int


def dropout(x: Tensor, default: float, options: Options, counter: str) -> Tensor:
    """Dropout that draws a new mask in every step without a seed among the inputs.

    The step is told by ``counter``, the ``num_batches_tracked`` of one of the model's BN layers;
    with it, the masks depend on ``options.seed`` and on the step alone.
    """
    p = default if options.dropout is None else options.dropout
    if not options.training or p == 0:
        return x
    return F.dropout(x, p, seed=buffer(counter, (), INDEX) + options.seed)
