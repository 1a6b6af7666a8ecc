"""How parameters and buffers are filled before training: the distributions of PyTorch's layers.

In: the name of a row of `DISTRIBUTIONS` with its numbers, a shape, a random generator. Out: an
array. The distributions are PyTorch's, the random numbers NumPy's. Programs are checked against
this table when they are traced, and a compiled program carries its rows as data, so that a module
without its program is filled with the same numbers.

Sources: ``fan`` and gains are those of ``torch.nn.init`` (He, Zhang, Ren, Sun 2015). There,
``nn.Conv2d`` and ``nn.Linear`` call ``kaiming_uniform_(weight, a=sqrt(5))`` and draw the bias from
``U(-1/sqrt(fan_in), 1/sqrt(fan_in))``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bngen.arrays import numpy_dtype
from bngen.dtypes import FLOAT

Shape = tuple[int, ...]


def fans(shape: Shape) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight ``[out, in / groups, *window]``, as torch.nn.init has it."""
    window = math.prod(shape[2:])
    return shape[1] * window, shape[0] * window


@dataclass(frozen=True)
class Distribution:
    """One row of `DISTRIBUTIONS`.

    Attributes:
        arguments: how many numbers follow the name; None: one for each element.
        draw: (generator, shape, floating dtype, numbers) -> array.
        axes: how many a tensor must have, at least.
    """

    arguments: int | None
    draw: Callable[[np.random.Generator, Shape, np.dtype, Sequence[float]], np.ndarray]
    axes: int = 0


def _uniform(rng: np.random.Generator, shape: Shape, dtype: np.dtype, bound: float) -> np.ndarray:
    return rng.random(shape, dtype) * dtype.type(2 * bound) - dtype.type(bound)


def _normal(rng: np.random.Generator, shape: Shape, dtype: np.dtype, std: float) -> np.ndarray:
    return rng.standard_normal(shape, dtype) * dtype.type(std)


def _kaiming_uniform(
    rng: np.random.Generator, shape: Shape, dtype: np.dtype, numbers: Sequence[float]
) -> np.ndarray:
    a, fan_in = numbers
    # gain * sqrt(3 / fan_in) with the gain sqrt(2 / (1 + a^2)) of a leaky ReLU
    return _uniform(rng, shape, dtype, math.sqrt(2.0 / (1.0 + a * a)) * math.sqrt(3.0 / fan_in))


DISTRIBUTIONS = {
    # ("kaiming_uniform", a, fan_in)
    "kaiming_uniform": Distribution(2, _kaiming_uniform),
    # ("kaiming_normal_fan_in",): torch's kaiming_normal_(weight)
    "kaiming_normal_fan_in": Distribution(
        0, lambda rng, s, dt, _: _normal(rng, s, dt, math.sqrt(2.0 / fans(s)[0])), axes=2
    ),
    # ("kaiming_normal_fan_out",): kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
    "kaiming_normal_fan_out": Distribution(
        0, lambda rng, s, dt, _: _normal(rng, s, dt, math.sqrt(2.0 / fans(s)[1])), axes=2
    ),
    # ("uniform", bound): from -bound to bound
    "uniform": Distribution(1, lambda rng, s, dt, n: _uniform(rng, s, dt, n[0])),
    # ("normal", std): mean 0
    "normal": Distribution(1, lambda rng, s, dt, n: _normal(rng, s, dt, n[0])),
    # ("constant", value)
    "constant": Distribution(1, lambda rng, s, dt, n: np.full(s, n[0], dt)),
    # ("values", each element): of a tensor that the program itself holds
    "values": Distribution(None, lambda rng, s, dt, n: np.array(n, dt).reshape(s)),
}
EXACT = ("constant", "values")
"""Rows whose numbers are those of the element type; others draw floats."""


@dataclass(frozen=True)
class Initializer:
    """How one parameter or buffer is filled, as data.

    Attributes:
        name: a row of `DISTRIBUTIONS`.
        numbers: that follow it.
    """

    name: str
    numbers: tuple[int | float | bool, ...] = ()

    @property
    def is_fixed(self) -> bool:
        """Whether it is the value of a constant, which is no state."""
        return self.name == "values"

    def draw(self, rng: np.random.Generator, shape: Shape, dtype: str) -> np.ndarray:
        """A fresh array.

        Args:
            rng: advanced by what is drawn.
            shape: of the array.
            dtype: its element type.
        """
        kind = numpy_dtype(dtype)
        row = DISTRIBUTIONS[self.name]
        if self.name in EXACT or kind.kind == "f":
            return row.draw(rng, shape, kind, self.numbers)
        return row.draw(rng, shape, np.dtype(FLOAT), self.numbers).astype(kind)


def misfit(name: str, numbers: Sequence[Any], shape: Shape) -> str | None:
    """Why a row cannot fill a tensor, completing "'uniform' ..."; None where it can.

    Whether a constant's values are those of the element type is not looked at.
    """
    if name not in DISTRIBUTIONS:
        return f"is none of {', '.join(DISTRIBUTIONS)}"
    row = DISTRIBUTIONS[name]
    takes = math.prod(shape) if row.arguments is None else row.arguments
    if len(numbers) != takes:
        return f"takes {takes} numbers"
    if len(shape) < row.axes:
        return f"fills tensors of {row.axes} axes or more, not {list(shape)}"
    if name in EXACT:
        return None
    if not all(type(v) in (int, float) and abs(v) <= sys.float_info.max for v in numbers):
        return "takes finite numbers"
    if name == "kaiming_uniform" and numbers[1] <= 0:
        return "needs a fan-in above 0"
    return None
