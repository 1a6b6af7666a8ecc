"""Moments of several samples, merged: the count, mean and variance of all of them together.

In: counts, and means and biased variances by channel, one row a sample. Out: the same of what they
are together. Without differences of large numbers: each sample's mean is compared with the common
one (Chan, Golub and LeVeque 1983). A sample without elements counts for nothing, whatever its row
holds.
"""

from __future__ import annotations

import functools

import numpy as np


def merged(
    counts: np.ndarray, means: np.ndarray, variances: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean, biased variance and count of several samples, in float64.

    Args:
        counts: elements a channel, ``[samples]``; integers, one of them at least not zero.
        means: ``[samples, C]``.
        variances: ``[samples, C]``.
    """
    there = counts > 0
    share = counts[there].astype(np.float64)[:, None]
    means, variances = (a[there].astype(np.float64) for a in (means, variances))
    total = int(counts.sum())
    # A rounding of this would be seen in constant channels, whose common mean is that of each.
    middle = means[0] + _added((means - means[0]) * share) / total
    # An infinity is its own mean, though no deviation from it is a number.
    middle = np.where(np.isfinite(middle), middle, _added(means) / len(means))
    spread = _added((variances + np.square(means - middle)) * share) / total
    return middle, spread, total


def _added(rows: np.ndarray) -> np.ndarray:
    """Their sum, one after the other: with the same bits as `shared_memory.c` has it."""
    return functools.reduce(np.add, rows)
