"""A user's floats are computed as written, at every level of fusion and wherever they are fused to.

Not the real numbers that TVM's algebra takes them for: ``x * 0`` is NaN for an infinity, ``x - x``
too, a NaN differs from itself, adding a large constant rounds, a product is rounded before it is
added to. The interpreter does the same operations on NumPy's float32, so that the results must be
equal bit by bit, zeros' signs included.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import bngen as bg
from bngen.ir.build import GraphBuilder
from bngen.ir.interp import run
from bngen.ir.node import Graph
from bngen.ir.types import TensorType, Value
from tests.compiled import compiled, forward
from tests.profiles import LEVELS

SPECIAL = (
    0.0, -0.0, math.nan, math.inf, -math.inf, 1.0, -1.0, 0.5, 1.75, 2.5, 3.0, 1e-45, 1e-38, -1e-40,
    0.1, 0.3, 1 / 3, 4097.0, 12582912.0, 16777216.0, -16777217.0, 3e38, -3.4e38, 1e-20, 7.0,
)  # fmt: skip
CONSTANTS = (0.0, -0.0, 1.0, -1.0, 0.3, 4097.0, 12582912.0, math.inf, 1e-40, math.nan)
SHAPE = (2, 5, 3, 4)

UNARY = (
    "neg", "abs", "sqrt", "relu", "stop_gradient", "rsqrt", "floor", "ceil", "round", "sign",
)  # fmt: skip
BINARY = ("add", "sub", "mul", "div", "maximum", "minimum")
COMPARE = ("greater", "greater_equal", "less", "less_equal", "equal", "not_equal")


def special(*shape: int, seed: int = 0) -> np.ndarray:
    """Awkward numbers and ordinary ones, in every combination of places."""
    rng = np.random.default_rng(seed)
    some = rng.choice(np.array(SPECIAL, np.float32), shape)
    return np.where(rng.random(shape) < 0.7, some, rng.standard_normal(shape, np.float32))


def assert_same(ours: np.ndarray, theirs: np.ndarray, what: str) -> None:
    """Equal bit by bit, but for the bits of a NaN and the sign of a zero among equals' extrema."""
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs), err_msg=what)
    np.testing.assert_array_equal(ours, theirs, err_msg=what)
    zeros = (ours == 0) & ("maximum" not in what) & ("minimum" not in what)
    np.testing.assert_array_equal(
        np.signbit(ours)[zeros], np.signbit(theirs)[zeros], err_msg=f"sign of zero: {what}"
    )


def check(graph: Graph, level: str, target: str = "llvm -mcpu=native", seed: int = 0) -> None:
    args = {i.name: special(*i.value.shape, seed=seed + n) for n, i in enumerate(graph.inputs)}
    outputs, _ = forward(compiled(graph, level, target, grad=False), args)
    for ours, theirs in zip(outputs, run(graph, args).outputs, strict=True):
        assert_same(ours, theirs, str(graph))


@st.composite
def expressions(draw, shape: tuple[int, ...] = SHAPE) -> Graph:
    """A few operations that IEEE 754 defines exactly, over two tensors, some results used twice."""
    b = GraphBuilder(name="expression")
    known = [b.input(name, TensorType(shape)) for name in ("x", "y")]

    def operand() -> Value | float:
        if draw(st.integers(0, 3)):
            return draw(st.sampled_from(known))
        return draw(st.sampled_from(CONSTANTS))

    for _ in range(draw(st.integers(2, 9))):
        kind = draw(st.sampled_from(("unary", "binary", "binary", "binary", "where")))
        a = draw(st.sampled_from(known))
        if kind == "unary":
            made = b.emit(draw(st.sampled_from(UNARY)), a)
        elif kind == "binary":
            pair = [a, operand()] if draw(st.booleans()) else [operand(), a]
            made = b.emit(draw(st.sampled_from(BINARY)), *pair)
        else:
            chosen = b.emit(draw(st.sampled_from(COMPARE)), a, operand())
            made = b.emit("where", chosen, operand(), draw(st.sampled_from(known)))
        known.append(made)
    return b.finish(known[-1:] if draw(st.booleans()) else known[-3:])


# Shrinking takes minutes: for the thorough profile.
PHASES = [Phase.explicit, Phase.generate] if settings.default.derandomize else list(Phase)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=max(6, settings.default.max_examples // 4), phases=PHASES)
@given(data=st.data())
def test_drawn_expressions(level, data):
    graph = data.draw(expressions(data.draw(st.sampled_from((SHAPE, (7,), (3, 20))))))
    check(graph, level, data.draw(st.sampled_from(("llvm -mcpu=native", "llvm -mcpu=x86-64"))))


def tricks(x: bg.Tensor, y: bg.Tensor) -> tuple[bg.Tensor, ...]:
    """What relies on rounding, or on what only floats do."""
    rounded = (x + 12582912.0) - 12582912.0
    big = x * 4097.0
    high = big - (big - x)
    total = x + y
    lost = total - x
    product = x * y
    return (
        rounded, x + bg.stop_gradient(rounded - x), high, x - high,
        (x - (total - lost)) + (y - lost), product - x * y, product + x, x * 0.3 + y,
        x * 0.0, 0.0 / x, x - x, x / x, x + 0.0, -x, 0.0 - x, x * 1.0, (x * 1e-30) * 1e30,
        bg.where(x != x, 1.0, 0.0), bg.where(x == x, 1.0, 0.0), bg.where(x < y, x, y),
        bg.where(x <= y, 1.0, bg.where(x > y, 2.0, 3.0)), (x + y) - y, (x / 3.0) * 3.0,
    )  # fmt: skip


def placed(where: str):
    """The tricks alone, in a convolution's store slot, or in its load slot."""

    def alone(x, y):
        return tricks(x, y)

    def stored(x, y, w):
        z = bg.conv2d(x, w)
        return tricks(z, y)

    def loaded(x, y, w):
        return tuple(bg.conv2d(bg.where(t == t, t, 7.0), w) for t in tricks(x, y)[:8])

    return {"alone": alone, "stored": stored, "loaded": loaded}[where]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("where", ["alone", "stored", "loaded"])
def test_tricks(where, level):
    _, c, *_ = SHAPE
    types = [TensorType(SHAPE), TensorType(SHAPE)]
    args = [special(*SHAPE, seed=i) for i in range(2)]
    if where != "alone":
        # One tap that is 1: the convolution hands a channel on, if all channels are finite.
        types.append(TensorType((c, c, 1, 1)))
        args = [np.where(np.abs(a) < 1e3, a, np.float32(0.7)) for a in args]
        args.append(np.eye(c, dtype=np.float32)[:, :, None, None])
    graph = bg.trace(placed(where), *types).graph
    args = {i.name: a for i, a in zip(graph.inputs, args, strict=True)}
    outputs, _ = forward(compiled(graph, level, grad=False), args)
    for i, (ours, theirs) in enumerate(zip(outputs, run(graph, args).outputs, strict=True)):
        if where != "alone":  # A sum of zeros has no sign to speak of.
            ours, theirs = ours + np.float32(0), theirs + np.float32(0)
        assert_same(ours, theirs, f"trick {i}")
