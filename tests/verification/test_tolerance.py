"""The tolerance rule: its unit, its limit, and the neighbours of an input."""

import numpy as np
import pytest

from bngen.verification.tolerance import (
    FEW_ULPS,
    TIMES_TORCH,
    allowed,
    few_ulps,
    largest,
    nudged,
)


def test_the_rule():
    assert (TIMES_TORCH, FEW_ULPS) == (4, 16)  # to be made wider by nobody
    assert allowed(0.0, 2.0, "float32") == few_ulps(2.0, "float32") == 2.0**-18
    assert allowed(1e-3, 0.0, "float64") == 4e-3
    assert allowed(1e-3, 0.0, "float64", times=100) == 0.1
    assert few_ulps(1e6, "int64") == few_ulps(1e6, "bool") == 0


def test_the_largest_element_is_finite():
    assert largest(np.array([1.0, -3.0, np.inf, np.nan])) == 3
    assert largest(np.array([np.nan]), least=0.5) == 0.5
    assert largest(np.zeros((0,))) == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_about_half_of_the_floats_move_to_a_neighbour(dtype):
    x = np.random.default_rng(1).standard_normal(1000).astype(dtype)
    x[:3] = 0, np.nan, 1e-20
    held = {"x": x, "i": np.arange(3)}
    moved = nudged(held, np.random.default_rng(0))
    assert moved["x"].dtype == x.dtype and np.array_equal(moved["i"], held["i"])
    assert moved["x"][0] == 0 and np.isnan(moved["x"][1])
    steps = np.abs(moved["x"][2:] - x[2:])
    assert 400 < np.count_nonzero(steps) < 600
    assert (steps <= np.spacing(np.abs(x[2:]))).all()
    again = nudged(held, np.random.default_rng(0))["x"]
    assert np.array_equal(moved["x"], again, equal_nan=True)
