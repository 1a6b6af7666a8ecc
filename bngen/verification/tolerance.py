"""THE tolerance rule: how far a result may be from exact.

bngen's largest error against double precision is at most `TIMES_TORCH` times PyTorch's own, plus
`FEW_ULPS` units in the last place of the tensor's type, on the scale of its largest element.

PyTorch's own error is the largest of several runs that are equally right: inputs as they are and
`nudged`, and in `bngen verify` both memory layouts. One run is a single draw of rounding errors: in
a deep network it is now and then more than four times as lucky as any other correct program.

`bngen verify` and the tests have the rule from here. It says nothing of NaN and infinities, which
stand exactly where PyTorch has them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bngen.arrays import letter_of
from bngen.dtypes import DTYPES

TIMES_TORCH = 4.0
FEW_ULPS = 16.0


def few_ulps(scale: float, dtype: str) -> float:
    """What rounding alone may cost a tensor whose largest element is ``scale``; 0 for integers."""
    return FEW_ULPS * DTYPES[dtype].ulp * scale


def allowed(torch_error: float, scale: float, dtype: str, times: float = TIMES_TORCH) -> float:
    """The largest error that passes.

    Args:
        torch_error: the largest of PyTorch's own; numbers may be arrays, to be judged one by one.
        scale: the tensor's largest element; 1 for errors that are relative to it.
        dtype: the tensor's element type.
        times: another factor, for a coarser rule.
    """
    return times * torch_error + few_ulps(scale, dtype)


def largest(array: np.ndarray, least: float = 0.0) -> float:
    """The largest finite magnitude of an array, or ``least``."""
    return float(np.max(np.abs(array), initial=least, where=np.isfinite(array)))


def nudged(inputs: Mapping[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The inputs with about half of the floats moved to a neighbour; a zero is no rounding."""

    def nudge(x: np.ndarray) -> np.ndarray:
        toward = rng.choice(np.array([-np.inf, np.inf], x.dtype), x.shape)
        moved = (rng.integers(0, 2, x.shape) > 0) & (x != 0)
        return np.where(moved, np.nextafter(x, toward), x)

    return {name: nudge(x) if letter_of(x.dtype) == "f" else x for name, x in inputs.items()}
