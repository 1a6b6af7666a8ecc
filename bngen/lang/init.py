"""Initializers as programs write them: checked, and what a layer gets that names none.

In: an ``init`` (a name with its numbers) and the type it is to fill. Out: why it cannot, or an
`Initializer`, a row of `bngen.initializers`, whose table says what the names mean.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bngen.errors import ProgramError
from bngen.initializers import DISTRIBUTIONS, EXACT, Initializer, Shape, fans, misfit
from bngen.ir.attributes import shown, value_misfit
from bngen.ir.node import Input
from bngen.ir.types import TensorType


def layer_weight(shape: Shape) -> tuple:
    """The initializer of the weight of ``nn.Conv2d`` and ``nn.Linear``."""
    return ("kaiming_uniform", math.sqrt(5.0), fans(shape)[0])


def layer_bias(weight_shape: Shape) -> tuple:
    """The initializer of the bias of ``nn.Conv2d`` and ``nn.Linear``."""
    return ("uniform", 1.0 / math.sqrt(fans(weight_shape)[0]))


def default_init(name: str, shape: Shape) -> tuple:
    """What a parameter gets that was declared without an initializer."""
    if len(shape) >= 2:
        return layer_weight(shape)
    return ("constant", 1.0 if name.rpartition(".")[2] == "weight" else 0.0)


def init_misfit(init: Any, type_: TensorType) -> str | None:
    """Why an ``init`` cannot fill a tensor of a type, or None where it can."""
    known = isinstance(init, tuple) and init and isinstance(init[0], str)
    if not known or init[0] not in DISTRIBUTIONS:
        names = ", ".join(n for n in DISTRIBUTIONS if n != "values")  # which bg.constant writes
        hint = f"a number, or a tuple that starts with one of {names}"
        return f"{shown(init)} is no initializer ({hint})"
    name, *given = init
    if wrong := misfit(name, given, type_.shape):
        return f"{name!r} {wrong}, got {shown(init)}"
    for value in given if name in EXACT else ():
        if type(value) is float and value.is_integer() and not type_.is_float:
            value = int(value)
        if wrong := value_misfit(value, type_.dtype):
            return wrong
    return None


def initializer(inp: Input) -> Initializer:
    """How a parameter or buffer is filled; one without an ``init`` with zeros.

    Raises:
        ProgramError: for an ``init`` that is none; tracing refuses it earlier.
    """
    init = inp.init or ("constant", 0)
    if wrong := init_misfit(init, inp.value.type):
        raise ProgramError(f"{inp.kind} {shown(inp.name)}: {wrong}")
    name, *numbers = init
    return Initializer(name, tuple(numbers))


def fill(inp: Input, rng: np.random.Generator) -> np.ndarray:
    """A fresh array for a parameter or buffer; see `initializer`.

    Args:
        inp: an input of a graph.
        rng: advanced by what is drawn.
    """
    return initializer(inp).draw(rng, inp.value.shape, inp.value.dtype)
