"""Trace a function, evaluate its graph in double precision, and compare with PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import bngen as bg
from bngen.ir.interp import run
from bngen.ir.text import parse_graph
from bngen.ir.verify import verify
from tests.oracle import assert_few_ulps


def traced(fn: Callable[..., Any], *arrays: np.ndarray) -> bg.Program:
    """The program of ``fn`` for arguments like ``arrays``."""
    return bg.trace(fn, *(bg.Tensor(a.shape, a.dtype) for a in arrays))


def evaluate(fn: Callable[..., Any], *arrays: np.ndarray) -> Any:
    """What ``fn`` means: its sound, printable graph interpreted; (outputs, updates)."""
    program = traced(fn, *arrays)
    verify(program.graph, "trace")
    assert parse_graph(str(program.graph)) == program.graph
    args = dict(zip(program.arguments, arrays, strict=True))
    result = run(program.graph, args)
    for value, array in zip(program.graph.outputs, result.outputs, strict=True):
        assert (array.shape, array.dtype.name) == (value.shape, value.dtype)
    return result.outputs, result.updates


def agree(
    ours: Callable[..., Any], theirs: Callable[..., Any], *arrays: np.ndarray, sums: bool = False
) -> None:
    """Both functions give arrays of the same dtype, shape and values, but for a few roundings.

    Each element on its own scale; ``sums`` of terms that cancel on that of the largest.
    """
    outputs, _ = evaluate(ours, *arrays)
    expected = theirs(*(torch.from_numpy(np.array(a)) for a in arrays))
    expected = expected if isinstance(expected, tuple | list) else (expected,)
    assert len(outputs) == len(expected)
    for got, want in zip(outputs, expected, strict=True):
        assert_few_ulps(got, want, least=1.0, each=not sums)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Double-precision random numbers of unit variance."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape)
