"""exp, log, erf and their kin: to the last digits over the whole range, and in vectors."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

import bngen as bg
from tests.test_compiled import AVX2, NATIVE

ULPS = 2.5
NAMES = ("exp", "expm1", "tanh", "sigmoid", "silu", "log", "log1p", "erf", "sqrt", "rsqrt")
DENSE = 1 << 12


def sweep(dtype: str) -> np.ndarray:
    """All bit patterns in a sample, where exp runs from zero to infinity, and around zero."""
    rng = np.random.default_rng(0)
    info = np.finfo(dtype)
    unsigned = f"uint{info.bits}"
    patterns = rng.integers(0, np.iinfo(unsigned).max, DENSE, unsigned, endpoint=True).view(dtype)
    limit = np.log(info.max.astype("longdouble")) * 1.1
    tiny = info.smallest_subnormal * rng.integers(1, 1 << 20, DENSE)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-12, 1e-6, 0.625, -0.625])
    parts = [patterns, np.linspace(-limit, limit, DENSE), np.linspace(-2, 2, DENSE), tiny, special]
    return np.concatenate([p.astype(dtype) for p in parts])


def exact(name: str, x: np.ndarray) -> np.ndarray:
    """In the widest type there is."""
    if name == "erf":  # of the C library, whose double is within a unit
        return np.vectorize(math.erf, otypes=["float64"])(x).astype("longdouble")
    x = x.astype("longdouble")
    if name == "rsqrt":
        return 1 / np.sqrt(x)
    if name not in ("sigmoid", "silu"):
        return getattr(np, name)(x)
    tail = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, tail) / (1 + tail) * (x if name == "silu" else 1)


@pytest.mark.parametrize("target", [NATIVE, AVX2, "llvm -mcpu=x86-64"], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_within_a_few_units_in_the_last_place(dtype, target):
    x = sweep(dtype)
    program = bg.trace(lambda t: tuple(getattr(bg, n)(t) for n in NAMES), bg.Tensor(x.shape, dtype))
    outputs = bg.build(program, target=target)(x)
    with np.errstate(all="ignore"):
        for name, ours in zip(NAMES, outputs, strict=True):
            wide = exact(name, x)
            reference = wide.astype(dtype)
            finite = np.isfinite(reference)
            np.testing.assert_array_equal(ours[~finite], reference[~finite], err_msg=name)
            unit = np.spacing(np.abs(reference[finite])).astype("longdouble")
            if name == "silu":  # the rounding of a subnormal sigmoid is multiplied with x
                unit += np.abs(x[finite]) * np.finfo(dtype).smallest_subnormal
            off = np.abs(ours[finite] - wide[finite]) / unit
            worst = np.argmax(off)
            assert off[worst] <= ULPS, f"{name}({x[finite][worst]!r}) is {off[worst]} units off"
            theirs = getattr(torch, name, torch.nn.functional.silu)(torch.tensor(x)).numpy()
            zero = (ours == 0) & (theirs == 0)
            np.testing.assert_array_equal(np.signbit(ours[zero]), np.signbit(theirs[zero]), name)


@pytest.mark.parametrize(
    "name",
    ["exp", "tanh", "sigmoid", "silu", "log", "round", "gelu", "elu", "softplus", "mish"],
)
def test_no_call_for_each_element(name):
    """Machine code of vectors calls no function of the C library."""
    program = bg.trace(lambda t: getattr(bg, name)(t), bg.Tensor(4096))
    (text,) = bg.bundle(program, target=AVX2, emit=["asm"]).emit("asm").values()
    assert re.search(r"\bymm\d", text)
    assert not re.search(r"\b(exp|log|tanh|nearbyint|expm1|log1p|erf|round)f?@PLT", text)
