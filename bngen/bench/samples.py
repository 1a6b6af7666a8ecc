"""The bench's arithmetic: medians, quartiles, and ratios of times that were taken side by side.

In: lists of seconds. Out: plain dictionaries, as the JSON file holds them. A ratio is formed round
by round, so that what slows the machine for a while slows both sides of it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bngen.bench.turns import PHASES

Summary = dict[str, Any]
"""``median``, ``low`` and ``high`` quartile, ``min``, and the ``samples``."""


def summary(samples: Sequence[float]) -> Summary:
    """Median and spread; at least one sample.

    The quartiles are those of the samples themselves: with one sample all numbers are that one.
    """
    values = list(map(float, samples))
    low, median, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    return {"median": median, "low": low, "high": high, "min": min(values), "samples": values}


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Summary:
    """How many times longer they take than we do, pair by pair."""
    return summary([b / a for a, b in zip(ours, theirs, strict=True)])


def phases(turns: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Seconds of each phase, turn by turn."""
    return {phase: [turn[phase] for turn in turns] for phase in PHASES}


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean of positive numbers; at least one."""
    return math.exp(statistics.fmean(map(math.log, values)))


def roofline(flops: float, nbytes: float, gflops: float, gbytes: float) -> float:
    """The least seconds that a kernel can take on a machine with these limits.

    Args:
        flops: operations of the kernel.
        nbytes: bytes it must move.
        gflops: the machine's peak, in 1e9 operations a second.
        gbytes: its bandwidth, in 1e9 bytes a second.
    """
    return max(flops / gflops, nbytes / gbytes) / 1e9
