"""Built-in networks as programs, with the parameter names and start values of torchvision's.

A ``state_dict`` of the torchvision model of the same name fits as it is. The ``tiny_`` ones are of
the same build, small enough for tests.
"""

from __future__ import annotations

import difflib
import numbers
import sys
from collections.abc import Callable
from dataclasses import dataclass

from bngen.dtypes import INDEX
from bngen.errors import ProgramError, SourceLoc
from bngen.ir.types import TensorType
from bngen.lang.loss import cross_entropy
from bngen.lang.program import Program, trace
from bngen.lang.tensor import Tensor
from bngen.models import densenet, mobilenet, resnet, vgg
from bngen.models.common import Options


@dataclass(frozen=True)
class ModelSpec:
    """One row of `MODELS`.

    Attributes:
        name: torchvision's name.
        forward: (images, options) -> logits, called while tracing.
        min_image: smallest height and width of an image.
        has_dropout: whether the model drops anything by default.
    """

    name: str
    forward: Callable[[Tensor, Options], Tensor]
    min_image: int
    has_dropout: bool


MODELS: dict[str, ModelSpec] = {
    name: ModelSpec(name, net, net.min_image, hasattr(net, "dropout"))
    for family in (densenet, resnet, mobilenet, vgg)
    for name, net in family.VARIANTS.items()
}


def make(
    name: str,
    batch: int = 8,
    image: int = 224,
    num_classes: int = 1000,
    training: bool = True,
    loss: bool = False,
    dropout: float | None = None,
    seed: int = 0,
) -> Program:
    """A built-in network as a program of images ``x``, float32 ``[batch, 3, image, image]``.

    Args:
        name: a key of `MODELS`.
        batch: images in a batch.
        image: height and width.
        num_classes: extent of the logits.
        training: BN by the batch's statistics (else the running ones), dropout active.
        loss: take ``labels``, int64 ``[batch]``, too, and return the mean cross-entropy instead
            of the logits.
        dropout: probability instead of torchvision's; 0 switches it off, which makes the result
            comparable with PyTorch's.
        seed: the dropout masks follow from it and from the number of steps taken, which the BN
            layers count; each step draws new ones.

    Raises:
        ProgramError: an unknown name, or sizes that the network cannot take.
    """
    frame = sys._getframe(1)
    loc = SourceLoc(frame.f_code.co_filename, frame.f_lineno)
    spec = _find(name, loc)
    for what, value, least in (
        ("batch", batch, 1), ("image", image, spec.min_image), ("num_classes", num_classes, 1),
    ):  # fmt: skip
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise ProgramError(f"{name}: {what}={value!r} is no integer", loc=loc)
        if value < least:
            hint = f"use {least} or more"
            raise ProgramError(f"{name}: {what}={value} is too small", loc=loc, hint=hint)
    if dropout is not None and not 0 <= dropout <= 1:
        raise ProgramError(f"{name}: dropout={dropout!r}", loc=loc, hint="use 0 to 1")
    if dropout and not spec.has_dropout:
        raise ProgramError(f"{name}: has no dropout", loc=loc, hint="use dropout=None")
    options = Options(int(num_classes), bool(training), dropout, int(seed))
    images = TensorType((int(batch), 3, int(image), int(image)))

    def logits_of(x: Tensor) -> Tensor:
        return spec.forward(x, options)

    def loss_of(x: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(spec.forward(x, options), labels)

    if loss:
        return trace(loss_of, images, TensorType((int(batch),), INDEX), name=name)
    return trace(logits_of, images, name=name)


def _find(name: str, loc: SourceLoc) -> ModelSpec:
    if name in MODELS:
        return MODELS[name]
    near = difflib.get_close_matches(str(name), MODELS, 3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(MODELS)}"
    raise ProgramError(f"no built-in model {name!r}", loc=loc, hint=hint)
