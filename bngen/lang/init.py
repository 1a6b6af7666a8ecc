"""How parameters and buffers are filled before training: the distributions of PyTorch's layers.

In: an `Input` of a graph, whose ``init`` names a row of `INITIALIZERS`, and a random generator.
Out: an array. The distributions are PyTorch's, the random numbers NumPy's.

Sources: ``fan`` and gains are those of ``torch.nn.init`` (He, Zhang, Ren, Sun 2015). There,
``nn.Conv2d`` and ``nn.Linear`` call ``kaiming_uniform_(weight, a=sqrt(5))`` and draw the bias from
``U(-1/sqrt(fan_in), 1/sqrt(fan_in))``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bngen.dtypes import FLOAT
from bngen.errors import ProgramError
from bngen.ir.attributes import shown, value_misfit
from bngen.ir.node import Graph, Input, TensorType

Shape = tuple[int, ...]


def fans(shape: Shape) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight ``[out, in / groups, *window]``, as torch.nn.init has it."""
    window = math.prod(shape[2:])
    return shape[1] * window, shape[0] * window


@dataclass(frozen=True)
class Initializer:
    """One row of `INITIALIZERS`.

    Attributes:
        arguments: how many numbers follow the name.
        draw: (generator, shape, floating dtype, numbers) -> array.
    """

    arguments: int
    draw: Callable[[np.random.Generator, Shape, np.dtype, tuple[float, ...]], np.ndarray]


def _uniform(rng: np.random.Generator, shape: Shape, dtype: np.dtype, bound: float) -> np.ndarray:
    return rng.random(shape, dtype) * dtype.type(2 * bound) - dtype.type(bound)


def _normal(rng: np.random.Generator, shape: Shape, dtype: np.dtype, std: float) -> np.ndarray:
    return rng.standard_normal(shape, dtype) * dtype.type(std)


def _kaiming_uniform(rng, shape, dtype, numbers):
    a, fan_in = numbers
    # gain * sqrt(3 / fan_in) with the gain sqrt(2 / (1 + a^2)) of a leaky ReLU
    return _uniform(rng, shape, dtype, math.sqrt(2.0 / (1.0 + a * a)) * math.sqrt(3.0 / fan_in))


INITIALIZERS = {
    # ("kaiming_uniform", a, fan_in)
    "kaiming_uniform": Initializer(2, _kaiming_uniform),
    # ("kaiming_normal_fan_in",): torch's kaiming_normal_(weight)
    "kaiming_normal_fan_in": Initializer(
        0, lambda rng, s, dt, _: _normal(rng, s, dt, math.sqrt(2.0 / fans(s)[0]))
    ),
    # ("kaiming_normal_fan_out",): kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
    "kaiming_normal_fan_out": Initializer(
        0, lambda rng, s, dt, _: _normal(rng, s, dt, math.sqrt(2.0 / fans(s)[1]))
    ),
    # ("uniform", bound): from -bound to bound
    "uniform": Initializer(1, lambda rng, s, dt, n: _uniform(rng, s, dt, n[0])),
    # ("normal", std): mean 0
    "normal": Initializer(1, lambda rng, s, dt, n: _normal(rng, s, dt, n[0])),
    # ("constant", value)
    "constant": Initializer(1, lambda rng, s, dt, n: np.full(s, n[0], dt)),
}


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
    if not known or init[0] not in INITIALIZERS:
        hint = f"a number, or a tuple that starts with one of {', '.join(INITIALIZERS)}"
        return f"{shown(init)} is no initializer ({hint})"
    name, *given = init
    wanted = INITIALIZERS[name].arguments
    if len(given) != wanted:
        return f"{name!r} takes {wanted} numbers, got {shown(init)}"
    if name.startswith("kaiming_normal") and len(type_.shape) < 2:
        return f"{name!r} needs two axes or more, got {type_}"
    if name == "constant":
        (value,) = given
        if type(value) is float and value.is_integer() and not type_.is_float:
            value = int(value)
        return value_misfit(value, type_.dtype)
    if not all(type(v) in (int, float) and abs(v) <= sys.float_info.max for v in given):
        return f"{name!r} takes finite numbers, got {shown(init)}"
    if name == "kaiming_uniform" and given[1] <= 0:
        return f"{name!r} needs a fan-in above 0, got {shown(init)}"
    return None


def fill(inp: Input, rng: np.random.Generator) -> np.ndarray:
    """A fresh array for a parameter or buffer.

    Args:
        inp: an input with an ``init``; an empty one means zeros.
        rng: advanced by what is drawn.

    Raises:
        ProgramError: for an ``init`` that is none; tracing refuses it earlier.
    """
    dtype = np.dtype(inp.value.dtype)
    init = inp.init or ("constant", 0)
    if wrong := init_misfit(init, inp.value.type):
        raise ProgramError(f"{inp.kind} {shown(inp.name)}: {wrong}")
    name, *numbers = init
    if name == "constant":
        return INITIALIZERS[name].draw(rng, inp.value.shape, dtype, tuple(numbers))
    drawn = dtype if dtype.kind == "f" else np.dtype(FLOAT)
    return INITIALIZERS[name].draw(rng, inp.value.shape, drawn, tuple(numbers)).astype(dtype)


@dataclass(frozen=True)
class Filler:
    """Draws the values of a program's parameters and buffers; plain data, so it can be pickled.

    Attributes:
        inputs: of the program, by name.
    """

    inputs: Mapping[str, Input]

    @classmethod
    def of(cls, graph: Graph) -> Filler:
        """That of a graph."""
        return cls({i.name: i for i in graph.inputs})

    def __call__(self, name: str, rng: np.random.Generator) -> np.ndarray:
        """A fresh array for one of them; see `fill`."""
        return fill(self.inputs[name], rng)
