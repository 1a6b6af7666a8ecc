"""Built-in networks as programs, with the parameter names and start values of torchvision's.

A ``state_dict`` of the torchvision model of the same name fits as it is; torchvision has no U-Net,
see `unet` for whose they are. The ``tiny_`` ones are of the same build, small enough for tests.
"""

from __future__ import annotations

import difflib
import numbers
import sys
from collections.abc import Callable, Sequence

from bngen.dtypes import INDEX
from bngen.errors import ProgramError, SourceLoc
from bngen.ir.types import TensorType
from bngen.lang.loss import cross_entropy
from bngen.lang.program import Program, trace
from bngen.lang.tensor import Tensor
from bngen.models import (
    convnext,
    deeplab,
    densenet,
    efficientnet,
    googlenet,
    inception,
    mnasnet,
    mobilenet,
    mobilenet_v3,
    regnet,
    resnet,
    shufflenet,
    squeezenet,
    unet,
    vgg,
)
from bngen.models.common import Network, Options

_FAMILIES = (
    densenet, resnet, mobilenet, mobilenet_v3, mnasnet, efficientnet, regnet, shufflenet, convnext,
    squeezenet, googlenet, inception, vgg, unet, deeplab,
)  # fmt: skip

MODELS: dict[str, Network] = {
    name: network for family in _FAMILIES for name, network in family.VARIANTS.items()
}
"""Every built-in network by its name, which is torchvision's."""

PUBLIC = tuple(name for name in MODELS if not name.startswith("tiny_"))
"""Names of those that people train."""


def make(
    name: str,
    batch: int = 8,
    image: int | None = None,
    num_classes: int | None = None,
    training: bool = True,
    loss: bool = False,
    dropout: float | None = None,
    seed: int = 0,
) -> Program:
    """A built-in network as a program of images ``x``, float32 ``[batch, 3, image, image]``.

    The program returns the logits; of a network with auxiliary classifiers, in training, a dict of
    ``logits`` and, by torchvision's names, theirs.

    Args:
        name: a key of `MODELS`.
        batch: images in a batch.
        image: height and width; the network's own, most often 224, when missing.
        num_classes: extent of the logits; the network's own, most often 1000, when missing.
        training: BN by the batch's statistics (else the running ones), dropout active.
        loss: take ``labels``, int64 ``[batch]`` (of each pixel ``[batch, image, image]``), too, and
            return the mean cross-entropy instead of the logits; that of auxiliary classifiers is
            added with the weights of `Network.auxiliary`.
        dropout: probability instead of torchvision's; 0 switches it off, and stochastic depth, too,
            which makes the result comparable with PyTorch's.
        seed: the dropout masks follow from it and from the number of steps taken, which the BN
            layers count; each step draws new ones. A network without BN counts nothing: while it
            drops, its program takes ``step``, int64 without axes, last.

    Raises:
        ProgramError: an unknown name, or sizes that the network cannot take.
    """
    frame = sys._getframe(1)
    loc = SourceLoc(frame.f_code.co_filename, frame.f_lineno)
    network = _find(name, loc)
    image = network.image if image is None else image
    num_classes = network.num_classes if num_classes is None else num_classes
    for what, value, least in (
        ("batch", batch, 1), ("image", image, network.smallest(training)),
        ("num_classes", num_classes, 1),
    ):  # fmt: skip
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise ProgramError(f"{name}: {what}={value!r} is no integer", loc=loc)
        if value < least:
            hint = f"use {least} or more"
            raise ProgramError(f"{name}: {what}={value} is too small", loc=loc, hint=hint)
    if dropout is not None and not 0 <= dropout <= 1:
        raise ProgramError(f"{name}: dropout={dropout!r}", loc=loc, hint="use 0 to 1")
    if dropout and not network.dropout:
        hint = "use dropout=None" + (", or 0 against its stochastic depth" * network.has_dropout)
        raise ProgramError(f"{name}: has no dropout", loc=loc, hint=hint)
    sizes = (int(batch), 3, int(image), int(image))
    given = {"x": TensorType(sizes)}
    if loss:
        given["labels"] = TensorType(sizes[:1] + sizes[2:] * network.per_pixel, INDEX)
    if training and network.has_dropout and dropout != 0 and not network.counts_steps:
        given["step"] = TensorType((), INDEX)

    def result(x: Tensor, labels: Tensor | None, step: Tensor | None) -> Tensor | dict[str, Tensor]:
        options = Options(int(num_classes), bool(training), dropout, int(seed), step)
        found = network(x, options)
        logits, *further = found if isinstance(found, tuple) else (found,)
        auxiliary = list(zip(network.auxiliary, further, strict=True)) if further else []
        if labels is not None:
            return _loss(logits, auxiliary, labels)
        named = {name: aux for (name, _), aux in auxiliary}
        return {"logits": logits, **named} if named else logits

    return trace(_taking(tuple(given), result), *given.values(), name=name)


def _loss(logits: Tensor, auxiliary: Sequence[tuple], labels: Tensor) -> Tensor:
    total = cross_entropy(logits, labels)
    for (_, weight), aux in auxiliary:
        total = total + weight * cross_entropy(aux, labels)
    return total


def _taking(arguments: tuple[str, ...], result: Callable) -> Callable:
    """``result`` as a function of just these arguments: their names are the program's."""
    return {
        ("x",): lambda x: result(x, None, None),
        ("x", "step"): lambda x, step: result(x, None, step),
        ("x", "labels"): lambda x, labels: result(x, labels, None),
        ("x", "labels", "step"): result,
    }[arguments]


def nearest(name: str) -> list[str]:
    """Built-in networks that a name may have been meant for."""
    among = MODELS if str(name).startswith("tiny") else PUBLIC
    return difflib.get_close_matches(str(name), among, 3, cutoff=0.7)


def _find(name: str, loc: SourceLoc) -> Network:
    if name in MODELS:
        return MODELS[name]
    near = nearest(name)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(PUBLIC)}"
    raise ProgramError(f"no built-in model {name!r}", loc=loc, hint=hint)
