"""How parameters and buffers are filled before training: the distributions of PyTorch's layers.

In: an `Input` of a graph, whose ``init`` names a row of `INITIALIZERS`, and a random generator.
Out: an array. The distributions are PyTorch's, the random numbers NumPy's.

Sources: ``fan`` and gains are those of ``torch.nn.init`` (He, Zhang, Ren, Sun 2015). There,
``nn.Conv2d`` and ``nn.Linear`` call ``kaiming_uniform_(weight, a=sqrt(5))`` and draw the bias from
``U(-1/sqrt(fan_in), 1/sqrt(fan_in))``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from bngen.ir.node import Graph, Input

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


def fill(inp: Input, rng: np.random.Generator) -> np.ndarray:
    """A fresh array for a parameter or buffer.

    Args:
        inp: an input with an ``init``; an empty one means zeros.
        rng: advanced by what is drawn.
    """
    dtype = np.dtype(inp.value.dtype)
    name, *numbers = inp.init or ("constant", 0)
    if name == "constant":
        return INITIALIZERS[name].draw(rng, inp.value.shape, dtype, tuple(numbers))
    drawn = dtype if dtype.kind == "f" else np.dtype("float32")
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
