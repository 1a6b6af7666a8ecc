"""On which inputs a compiled program is tried: random ones and awkward ones.

In: a program's graph, and a module's initialized state. Out: the `Case`s that make a difference to
it, and for each an array for every input, filled by the role that the input plays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from bngen.ir.node import Graph

ROLES = {
    ("conv2d", "weight"): "weight",
    ("matmul", "b"): "weight",
    ("batch_norm", "weight"): "gamma",
    ("batch_norm", "bias"): "bias",
    ("sync_batch_norm", "weight"): "gamma",
    ("sync_batch_norm", "bias"): "bias",
    ("bn_normalize", "weight"): "gamma",
    ("bn_normalize", "bias"): "bias",
    ("bn_normalize", "mean"): "mean",
    ("bn_normalize", "var"): "variance",
    ("bn_update", "running_mean"): "mean",
    ("bn_update", "running_var"): "variance",
    ("bias_add", "bias"): "bias",
    ("one_hot", "labels"): "labels",
}
"""What an input is for, by the operand it is first used as; everything else is ``data``."""


def roles(graph: Graph) -> dict[str, str]:
    """The role of every input by name."""
    found: dict[str, str] = {}
    inputs = {i.name for i in graph.inputs}
    for node in graph.nodes:
        for operand, value in zip(node.row.roles, node.inputs, strict=False):
            role = ROLES.get((node.op, operand))
            if role and value is not None and value.name in inputs:
                found.setdefault(value.name, role)
    return {name: found.get(name, "data") for name in sorted(inputs)}


Fill = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def _normal(mean: float, std: float) -> Fill:
    return lambda rng, shape: mean + std * rng.standard_normal(shape)


def _he(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    fan_in = math.prod(shape[1:]) or 1
    return rng.standard_normal(shape) * math.sqrt(2.0 / fan_in)


def _uniform(lo: float, hi: float) -> Fill:
    return lambda rng, shape: rng.uniform(lo, hi, shape)


def _zero_and_negative(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.resize([0.0, -1.0, 0.5, -0.25], shape)


def _with_constant_channel(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    # One channel, not all: a network fed a constant alone computes differences of equal numbers,
    # and then its own rounding, which no two correct programs share.
    x = rng.standard_normal(shape)
    x[(slice(None),) * (x.ndim > 1) + (slice(0, 1),) * (x.ndim > 0)] = 3.0
    return x


def _with_nan(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    x = rng.standard_normal(shape)
    x.flat[rng.integers(x.size)] = np.nan
    return x


_USUAL: dict[str, Fill] = {
    "data": _normal(0.0, 1.0),
    "weight": _he,
    "gamma": _uniform(0.5, 1.5),
    "bias": _normal(0.0, 0.2),
    "mean": _normal(0.0, 0.2),
    "variance": _uniform(0.5, 1.5),
}


@dataclass(frozen=True)
class Case:
    """Inputs of one run: how each role is filled where that differs from the usual."""

    name: str
    fills: Mapping[str, Fill]


CASES = (
    Case("random", {}),
    Case("mean 1e4 times the spread", {"data": _normal(1e4, 1.0)}),
    Case("constant channel", {"data": _with_constant_channel}),
    Case("gamma zero and negative", {"gamma": _zero_and_negative}),
    Case("NaN in the input", {"data": _with_nan}),
)


def cases_for(graph: Graph) -> list[Case]:
    """The cases that differ from the usual on this program's inputs."""
    there = {role for name, role in roles(graph).items() if name in _filled(graph)}
    return [case for case in CASES if not case.fills or there & set(case.fills)]


def _filled(graph: Graph) -> set[str]:
    """Inputs that a case fills; the others keep what initialization gave them."""
    of = roles(graph)
    floats = (i for i in graph.inputs if i.value.type.is_float)
    return {i.name for i in floats if i.kind == "input" or of[i.name] not in ("weight", "data")}


def make_inputs(
    graph: Graph, case: Case, state: Mapping[str, np.ndarray], seed: int
) -> dict[str, np.ndarray]:
    """An array for every input of the graph but constants.

    Args:
        graph: the program.
        case: what is awkward this time.
        state: initialized parameters and buffers; weights keep what is here, the vectors of BN
            are filled anew so that each of them matters.
        seed: seed of the random numbers.
    """
    rng = np.random.default_rng(seed)
    fills = {**_USUAL, **case.fills}
    of, filled, classes = roles(graph), _filled(graph), _label_ranges(graph)
    arrays = {}
    for item in graph.inputs:
        value = item.value
        if item.is_constant:
            continue
        if item.name in filled:
            array = np.asarray(fills[of[item.name]](rng, value.shape))
        elif item.kind == "input":
            array = rng.integers(0, classes.get(item.name, 2), value.shape)
        else:
            array = np.array(state[item.name])
        arrays[item.name] = np.asarray(array, value.dtype)
    return arrays


def _label_ranges(graph: Graph) -> dict[str, int]:
    """How many classes an integer input may name."""
    return {n.inputs[0].name: n.attrs["classes"] for n in graph.nodes if n.row.class_numbers}
