"""Elementwise functions, operators, scalars and dtypes against PyTorch."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import bngen as bg
from tests.lang.meaning import agree, evaluate, normal, traced

AWKWARD = np.array([-np.inf, -7.5, -1.0, -0.0, 0.0, 0.5, 1.0, 6.5, np.inf, np.nan])
DTYPES = ("bool", "uint8", "int32", "int64", "float32", "float64")


@pytest.mark.parametrize(
    "name", ["exp", "log", "sqrt", "rsqrt", "tanh", "sigmoid", "abs", "neg", "relu"]
)
def test_unary(name):
    theirs = getattr(torch, name)
    agree(getattr(bg, name), theirs, AWKWARD)
    agree(getattr(bg, name), theirs, AWKWARD.astype("float32"))


@pytest.mark.parametrize("name", ["exp", "log", "sqrt", "rsqrt", "tanh", "sigmoid"])
def test_integers_become_float32(name):
    agree(getattr(bg, name), getattr(torch, name), np.array([1, 2, 5]))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (bg.relu6, F.relu6),
        (bg.hardtanh, F.hardtanh),
        (lambda x: bg.hardtanh(x, -0.5, 2), lambda x: F.hardtanh(x, -0.5, 2)),
        (bg.leaky_relu, F.leaky_relu),
        (lambda x: bg.leaky_relu(x, 0.3), lambda x: F.leaky_relu(x, 0.3)),
        (bg.silu, F.silu),
        (bg.detach, torch.detach),
        (lambda x: x.pow(3), lambda x: x.pow(3)),
        (lambda x: 2**x, lambda x: 2**x),
        (lambda x: -x + abs(x) - (+x), lambda x: -x + abs(x) - (+x)),
        (lambda x: bg.where(x > 0, x, -1), lambda x: torch.where(x > 0, x, -1)),
        (lambda x: bg.where(x > 0, 1.0, 0.0), lambda x: torch.where(x > 0, 1.0, 0.0)),
    ],
)
def test_activations_and_expressions(ours, theirs):
    finite = AWKWARD[1:-2]
    agree(ours, theirs, finite)
    agree(ours, theirs, np.array([np.nan, 1.0]))


@pytest.mark.parametrize("exponent", [2, 1, 0.5, -0.5, -1, 2.5, 3, 0])
def test_powers(exponent):
    agree(lambda x: x**exponent, lambda x: x**exponent, np.array([0.25, 1.0, 7.0]))


def test_cheap_powers_use_cheap_ops():
    def f(x):
        return x**2, x**0.5, x**-0.5, x**-1

    ops = [n.op for n in traced(f, normal(3)).graph.nodes]
    assert ops == ["mul", "sqrt", "rsqrt", "constant", "div"]


BINARY = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "pow": torch.pow,
    "maximum": torch.maximum, "minimum": torch.minimum, "greater": torch.gt,
    "greater_equal": torch.ge, "less": torch.lt, "less_equal": torch.le, "equal": torch.eq,
    "not_equal": torch.ne,
}  # fmt: skip


@pytest.mark.parametrize("name", BINARY)
def test_binary_broadcasts(name):
    a, b = np.abs(normal(2, 3, 1)), normal(3, 4)
    a[0, 0, 0] = b[0, 0] = 1.0
    agree(getattr(bg, name), BINARY[name], a, b)


@pytest.mark.parametrize("scalar", [2, 0.5, -3, True, np.float32(0.5), np.int64(2)])
@pytest.mark.parametrize("dtype", ["int64", "float32", "float64"])
def test_scalars_on_either_side(scalar, dtype):
    x = np.array([1, 2, 4], dtype)
    plain = scalar.item() if isinstance(scalar, np.generic) else scalar

    def f(t, s):
        return t + s, s + t, t * s, s * t, t / s, s / t, t > s, s > t, t == s

    agree(lambda t: f(t, scalar), lambda t: f(t, plain), x)


@pytest.mark.parametrize(("a", "b"), list(itertools.product(DTYPES, DTYPES)))
@pytest.mark.parametrize("rank", [0, 1])
def test_dtypes_meet_as_in_pytorch(a, b, rank):
    """All pairs, where the second operand has axes and where it has none."""
    x, y = np.array([1, 0, 1], a), np.ones((3,) * rank, b)
    agree(lambda s, t: (s * t, s == t), lambda s, t: (s * t, s == t), x, y)
    agree(lambda s, t: (t + s) / 2, lambda s, t: (t + s) / 2, x, y)


@pytest.mark.parametrize("dtype", DTYPES)
def test_to(dtype):
    agree(
        lambda x: (x.to(dtype), x.float()),
        lambda x: (x.to(getattr(torch, dtype)), x.float()),
        np.array([0.0, 1.0, 2.75]),
    )


def test_equal_constants_are_one_node():
    def f(x):
        return (x + 2.0) * 2.0 - 0.0 + (-0.0)

    constants = [n for n in traced(f, normal(3)).graph.nodes if n.op == "constant"]
    assert [repr(n.attrs["value"]) for n in constants] == ["2.0", "0.0", "-0.0"]


# --- dropout ----------------------------------------------------------------------------------


def _dropped(x, seed=3, calls=1, **kwargs):
    def f(t):
        return tuple(bg.dropout(t, seed=seed, **kwargs) for _ in range(calls))

    return evaluate(f, x)[0]


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(p):
    (y,) = _dropped(np.ones((200, 200)), p=p)
    assert set(np.unique(y)) == {0.0, 1 / (1 - p)}
    assert abs((y == 0).mean() - p) < 4 * (p * (1 - p) / y.size) ** 0.5


def test_dropout_calls_are_independent_and_repeatable():
    a, b = _dropped(np.ones((100, 100)), calls=2)
    assert abs(((a == 0) & (b == 0)).mean() - 0.25) < 0.02
    np.testing.assert_array_equal(_dropped(np.ones((100, 100)))[0], a)
    assert not np.array_equal(_dropped(np.ones((100, 100)), seed=4)[0], a)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_dropout_takes_a_seed_tensor(shape):
    def f(x, seed):
        return bg.dropout(x, seed=seed)

    x = np.ones((50, 50))
    (y,), _ = evaluate(f, x, np.full(shape, 3))
    np.testing.assert_array_equal(y, _dropped(x)[0])


def test_dropout_at_its_ends():
    x = np.array([1.0, np.inf])
    for kwargs in ({"p": 0.0}, {"training": False}):
        np.testing.assert_array_equal(_dropped(x, **kwargs)[0], x)
    agree(lambda t: bg.dropout(t, 1.0), lambda t: F.dropout(t, 1.0), x)
