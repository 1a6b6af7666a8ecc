"""Every function of the language on every element type, compiled: PyTorch's result, or a refusal.

What bngen takes it computes as PyTorch does, in the type that PyTorch gives, at each level of
fusion, interpreted and compiled. What it does not take it refuses while tracing, at the user's
line; `REFUSED` lists all that PyTorch would take. Many functions share one program: each compiles
in milliseconds, a program does not.
"""

from __future__ import annotations

import operator
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import bngen as bg
from bngen.compiler import FUSION_LEVELS
from bngen.dtypes import DTYPES
from bngen.ir.build import GraphBuilder
from bngen.ir.interp import run
from bngen.ir.ops.row import ShapeError
from bngen.ir.types import TensorType
from bngen.torch_bridge.element_types import array_of, tensor_of
from tests.oracle import assert_few_ulps
from tests.profiles import some

LEVELS = some(FUSION_LEVELS[::-1], 1)
nan, inf = np.nan, np.inf

VALUES = {
    "bool": [1, 0, 1, 1, 0, 0, 1, 0, 1, 1, 0, 1],
    "uint8": [0, 1, 2, 3, 5, 127, 128, 200, 254, 255, 7, 9],
    "int32": [0, 1, -1, 2, -3, 7, -8, 100, 46341, -(2**31), 2**31 - 1, 5],
    "int64": [0, 1, -1, 2, -3, 7, -8, 100, 2**33, -(2**63), 2**63 - 1, 5],
    "bfloat16": [0.0, -0.0, 1, -1, 0.5, -2.5, 3, 1e-30, 1e30, inf, -inf, nan],
    "float32": [0.0, -0.0, 1, -1, 0.5, -2.5, 3, 1e-30, 1e30, inf, -inf, nan],
    "float64": [0.0, -0.0, 1, -1, 0.5, -2.5, 3, 1e-300, 1e300, inf, -inf, nan],
}
"""Each with limits, and with what overflows when squared."""

NUMBERS = (True, 3, -1, -1.5, 300)
INTEGERS = ("uint8", "int32", "int64")
POWERS = (True, 0, 2, 3, 7, -1, -2, 0.5, -0.5, 1.5, 2.0)


@dataclass(frozen=True)
class Function:
    """A function of one or two tensors in both libraries."""

    name: str
    ours: Callable
    theirs: Callable
    operands: int = 1


def same(name: str, fn: Callable, operands: int = 1) -> Function:
    """The same Python in both."""
    return Function(name, fn, fn, operands)


def _functions() -> list[Function]:
    rows = [
        Function(n, getattr(bg, n), getattr(torch, n))
        for n in ("neg", "abs", "exp", "log", "sqrt", "rsqrt", "tanh", "sigmoid", "relu", "detach")
    ]
    rows += [
        Function(n, getattr(bg, n), getattr(torch, n))
        for n in (
            "expm1",
            "log1p",
            "erf",
            "sin",
            "floor",
            "ceil",
            "round",
            "sign",
            "square",
            "reciprocal",
            "isnan",
            "isinf",
            "isfinite",
            "logical_not",
            "bitwise_not",
        )
    ]
    rows += [
        Function(n, getattr(bg, n), getattr(F, n))
        for n in (
            "relu6",
            "hardtanh",
            "leaky_relu",
            "silu",
            "hardsigmoid",
            "hardswish",
            "elu",
            "selu",
            "softplus",
            "logsigmoid",
            "mish",
            "softsign",
            "tanhshrink",
            "hardshrink",
            "softshrink",
        )
    ]
    rows += [
        Function(n, getattr(bg, n), getattr(torch, n), 2)
        for n in ("logical_and", "logical_or", "logical_xor", "bitwise_and")
    ]
    rows += [
        Function("clamp", lambda x: bg.clamp(x, 1, 3), lambda x: torch.clamp(x, 1, 3)),
        Function("clamp to 0.5", lambda x: bg.clamp(x, max=0.5), lambda x: torch.clamp(x, max=0.5)),
        Function(
            "clamp by tensors", lambda a, b: bg.clamp(a, min=b), lambda a, b: a.clamp(min=b), 2
        ),
        Function(
            "threshold", lambda x: bg.threshold(x, 1.0, 7.0), lambda x: F.threshold(x, 1.0, 7.0)
        ),
        Function("argmax", lambda x: bg.argmax(x), lambda x: torch.argmax(x)),
        Function("argmin1", lambda x: bg.argmin(x, 1), lambda x: torch.argmin(x, 1)),
        Function("norm", bg.vector_norm, torch.linalg.vector_norm),
        Function("var1", lambda x: bg.var(x, 1), lambda x: torch.var(x, 1)),
        Function("logsumexp", lambda x: bg.logsumexp(x, 1), lambda x: torch.logsumexp(x, 1)),
        Function("normalize", lambda x: bg.normalize(x), lambda x: F.normalize(x)),
    ]
    for dtype in VALUES:
        rows.append(
            Function(f"to_{dtype}", lambda x, d=dtype: x.to(d),
                     lambda x, d=dtype: x.to(getattr(torch, d)))
        )  # fmt: skip
    for n in ("sum", "mean", "amax", "amin"):
        ours, theirs = getattr(bg, n), getattr(torch, n)
        for dim in (0, 1, (0, 1)):
            rows.append(
                Function(f"{n}{dim}", lambda x, f=ours, d=dim: f(x, d),
                         lambda x, f=theirs, d=dim: f(x, d))
            )  # fmt: skip
    rows += [
        Function("softmax", lambda x: bg.softmax(x, 1), lambda x: torch.softmax(x, 1)),
        Function("log_softmax", lambda x: bg.log_softmax(x, 1), lambda x: torch.log_softmax(x, 1)),
        Function("cat", lambda x: bg.cat([x, x], 1), lambda x: torch.cat([x, x], 1)),
        same("slice", lambda x: x[:, 1:4]),
        same("reshape", lambda x: x.reshape(3, 4)),
        same("matmul", lambda a, b: a @ b.reshape(6, 2), 2),
        Function("maximum", bg.maximum, torch.maximum, 2),
        Function("minimum", bg.minimum, torch.minimum, 2),
        Function(
            "where", lambda a, b: bg.where(a > b, a, b), lambda a, b: torch.where(a > b, a, b), 2
        ),
    ]
    arithmetic = ("add", "sub", "mul", "truediv", "pow", "gt", "ge", "lt", "le", "eq", "ne")
    for n in arithmetic:
        fn = getattr(operator, n)
        rows.append(same(n, fn, 2))
        for number in NUMBERS if n != "pow" else POWERS:
            rows.append(same(f"{n} {number}", lambda x, f=fn, s=number: f(x, s)))
            rows.append(same(f"{number} {n}", lambda x, f=fn, s=number: f(s, x)))
    return rows


FUNCTIONS = _functions()


_LATER_POWERS = {"pow", *(f"{n} pow" for n in POWERS if not isinstance(n, float))}
_OUT_OF_RANGE = {
    name
    for n in ("gt", "ge", "lt", "le", "eq", "ne")
    for number in (-1, 300)
    for name in (f"{n} {number}", f"{number} {n}")
}
_OF_INTEGERS = {
    "matmul", "relu6", "softsign", "tanhshrink", "threshold", "logsumexp", "bitwise_and",
    "bitwise_not",
}  # fmt: skip
REFUSED = {
    "bool": _LATER_POWERS - {"pow", "True pow"} | {"pow True", "logsumexp"},
    "uint8": _LATER_POWERS | _OUT_OF_RANGE | _OF_INTEGERS,
    "int32": _LATER_POWERS | _OF_INTEGERS | {"hardtanh"},
    "int64": _LATER_POWERS | _OF_INTEGERS | {"hardtanh"},
    "bfloat16": set(),
    "float32": set(),
    "float64": set(),
}
"""What PyTorch takes and bngen does not. An integer's power is a product that a constant counts;
a number that no uint8 is PyTorch wraps before it compares, which answers another question."""
BEYOND = {
    "bool": {n for s in (3, -1, -1.5, 300) for n in (f"sub {s}", f"{s} sub")},
    **dict.fromkeys((*INTEGERS, "bfloat16", "float32", "float64"), {"sub True", "True sub"}),
}
"""What bngen takes and PyTorch does not."""


LOST_DIGITS = {"erf"}
"""Whose small results PyTorch gives as 0 in bfloat16, and not in float32."""


def arguments(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Two matrices of awkward values that meet in another order."""
    a = np.array(VALUES[dtype], dtype).reshape(2, 6)
    return a, np.roll(a.ravel(), 5)[::-1].reshape(2, 6).copy()


def accepted(function: Function, dtype: str) -> bool:
    """Whether bngen takes it; a refusal names this file's line, where the function is written."""
    try:
        bg.trace(function.ours, *[bg.Tensor((2, 6), dtype)] * function.operands).graph  # noqa: B018
    except bg.ProgramError as e:
        assert e.loc is not None and e.loc.file == __file__, f"{function.name}: {e}"
        return False
    return True


def expected(function: Function, arrays: tuple[np.ndarray, ...]) -> np.ndarray | None:
    """PyTorch's result, or None where it refuses."""
    tensors = [tensor_of(a) for a in arrays[: function.operands]]
    if function.name in LOST_DIGITS and tensors[0].dtype == torch.bfloat16:
        return array_of(function.theirs(tensors[0].float()).bfloat16())
    try:
        return array_of(function.theirs(*tensors))
    except (RuntimeError, TypeError, NotImplementedError):
        return None


@pytest.mark.parametrize("dtype", VALUES)
def test_what_is_refused(dtype):
    taken = {f.name for f in FUNCTIONS if accepted(f, dtype)}
    theirs = {f.name for f in FUNCTIONS if expected(f, arguments(dtype)) is not None}
    assert theirs - taken == REFUSED[dtype]
    assert taken - theirs == BEYOND[dtype]


def check(functions: list[Function], arrays: tuple[np.ndarray, ...], level: str) -> None:
    """One program of all of them, interpreted and compiled."""

    def every(*xs):
        return tuple(f.ours(*xs[: f.operands]) for f in functions)

    graph = bg.trace(every, *(bg.Tensor(a.shape, a.dtype) for a in arrays)).graph
    compiled = bg.build(graph, fusion=level)(*arrays)
    meant = run(graph, dict(zip((i.name for i in graph.inputs), arrays, strict=True))).outputs
    for f, ours, meaning in zip(functions, compiled, meant, strict=True):
        theirs = expected(f, arrays)
        wanted = meaning if theirs is None else theirs
        assert_few_ulps(meaning, wanted, f"{f.name}, interpreted", each=True)
        assert_few_ulps(ours, wanted, f"{f.name}, compiled", each=True)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("part", range(5))
@pytest.mark.parametrize("dtype", VALUES)
def test_every_function(dtype, part, level):
    taken = [f for f in FUNCTIONS if accepted(f, dtype)]
    check(taken[part::5], arguments(dtype), level)


def _maps(dtype: str) -> np.ndarray:
    """Feature maps of odd extents, some of them all -inf, with NaN and infinities elsewhere."""
    if dtype == "bool":
        return np.random.default_rng(0).random((2, 5, 6, 7)) > 0.5
    if dtype in INTEGERS:
        return np.resize(np.array(VALUES[dtype], dtype), (2, 5, 6, 7))
    x = np.random.default_rng(0).standard_normal((2, 5, 6, 7)).astype(dtype)
    x[:, 0], x[0, 1, 2, 3], x[0, 2, 0, 0] = -inf, nan, inf
    return x


NHW = (0, 2, 3)
ON_MAPS = [
    Function("amax of a channel", lambda x: bg.amax(x, NHW), lambda x: torch.amax(x, NHW)),
    Function("amax of a map", lambda x: bg.amax(x, (2, 3)), lambda x: torch.amax(x, (2, 3))),
    Function("sum of a channel", lambda x: bg.sum(x, NHW), lambda x: torch.sum(x, NHW)),
    Function("sum of an image", lambda x: bg.sum(x, (1, 2, 3)), lambda x: x.sum((1, 2, 3))),
    Function("cat", lambda x: bg.cat([x, x + x], 1), lambda x: torch.cat([x, x + x], 1)),
    same("slices", lambda x: x[:, 1:4] * x[:, 0:3]),
    same("broadcast", lambda x: x + x[:1, :, :1, :1]),
    same("compared with its maximum", lambda x: x >= x[:, 1:2]),
    same("with a conversion", lambda x: x.float().relu() + x),
    same("reshape", lambda x: x.reshape(10, 42) + x.reshape(10, 42)),
]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", VALUES)
def test_feature_maps(dtype, level):
    """Their channels lie in blocks, whatever they hold."""
    check(ON_MAPS, (_maps(dtype),), level)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_that_an_algebra_of_reals_would_fold(dtype):
    functions = [same(f"mul {s}", lambda x, s=s: x * s) for s in (0, 0.0, -0.0, False, 1e-46)]
    check([*functions, same("eq", lambda x: x == x)], arguments(dtype), "icf")


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "bool"])
def test_numbers_at_the_ends_of_floats(dtype):
    """What a type cannot hold is infinite, subnormal or rounded, as in PyTorch."""
    numbers = (1e300, -3.5e38, 1e-40, inf, -inf, nan, float(2**24 + 1))
    operators = (operator.add, operator.mul, operator.truediv, operator.lt)
    functions = [
        same(f"{fn.__name__} {number}", lambda x, f=fn, s=number: f(x, s))
        for fn in operators
        for number in numbers
    ]
    check(functions, arguments(dtype), "icf")


def test_numbers_that_no_type_holds_are_refused():
    for number, dtype in ((10**400, "float32"), (2**64, "int64"), (-1, "uint8")):
        compare = Function("gt", lambda x, s=number: x > s, None)
        assert not accepted(compare, dtype)


# --- gradients ----------------------------------------------------------------------------------

POINTS = [
    0.0, -0.0, 1, -1, 0.5, -2.5, 3, 6, -1e-6, 1e-12, 1e-30, 1e30, inf, -inf, nan, 88, -88, 100,
    20, -20, 1e-40, 89, 4, 9.5,
]  # fmt: skip
ROWS = [
    [0, 1, nan, 2], [inf, 1, 2, 3], [-inf] * 4, [-inf, 1, 1, 1], [1, 1, 1, 1], [3, -inf, 3, 0],
    [inf, inf, 0, 1], [nan] * 4, [5, 0, 5, 0],
]  # fmt: skip
SMOOTH = (
    "log1p", "erf", "sin", "floor", "round", "sign", "square", "reciprocal", "clamp", "threshold",
    "softplus", "softsign", "neg", "abs", "exp", "log", "sqrt", "rsqrt", "tanh", "sigmoid", "relu",
    "relu6", "hardtanh", "leaky_relu", "silu", "pow 0", "pow 2", "pow 3", "pow -1", "pow -2",
    "pow 0.5", "2 pow", "truediv 3", "mul -1.5", "-1.5 truediv",
)  # fmt: skip
FOLDS = ("sum1", "mean1", "amax1", "amin1", "softmax", "log_softmax")
PAIRS = ("add", "sub", "mul", "truediv", "maximum", "minimum")
PAIRED = [0.0, -0.0, 1, -1, 2, -2.5, inf, -inf, nan, 0.5, 3]


def points(name: str, dtype: str) -> list[np.ndarray]:
    if name in PAIRS:
        return [g.ravel().astype(dtype) for g in np.meshgrid(PAIRED, PAIRED)]
    return [np.array(ROWS if name in FOLDS else POINTS, dtype)]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("names", [SMOOTH, FOLDS, PAIRS], ids=["smooth", "folds", "pairs"])
def test_gradients(names, dtype, level):
    """At kinks, ties, infinities and NaN, where PyTorch's conventions decide."""
    functions = [next(f for f in FUNCTIONS if f.name == n) for n in names]
    given = [points(f.name, dtype) for f in functions]
    flat = [a for arrays in given for a in arrays]

    def every(*xs):
        rest = iter(xs)
        return tuple(f.ours(*(next(rest) for _ in range(f.operands))) for f in functions)

    module = bg.build(
        bg.trace(every, *(bg.Tensor(a.shape, dtype) for a in flat)), fusion=level, grad=True
    )
    outputs = module(*flat)
    rng = np.random.default_rng(zlib.crc32(repr(names).encode()))
    cotangents = [rng.standard_normal(y.shape).astype(dtype) for y in outputs]
    gradients = iter(module.backward(*cotangents).values())
    for f, arrays, y, dy in zip(functions, given, outputs, cotangents, strict=True):
        leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
        result = f.theirs(*leaves)
        result.backward(torch.tensor(dy))
        assert_few_ulps(y, result.detach(), f.name, each=True)
        for leaf in leaves:
            theirs = leaf.grad.numpy()
            eps, tiny = DTYPES[dtype].ulp, np.finfo(dtype).smallest_subnormal
            # Both are one less what is close to one: of that the last digit may be another.
            lost = eps * np.abs(dy).max() if f.name == "tanh" else 0
            loose = 2**10 if f.name in ("tanh", "log_softmax", "softmax") else 8
            np.testing.assert_allclose(
                next(gradients), theirs, rtol=loose * eps, atol=loose * tiny + 2 * lost,
                err_msg=f"gradient of {f.name}",
            )  # fmt: skip


def test_signs_of_zero():
    """Where PyTorch keeps the sign of a zero, so does bngen."""
    names = ("neg", "abs", "sqrt", "tanh", "relu", "leaky_relu", "silu", "hardtanh", "detach")
    functions = [next(f for f in FUNCTIONS if f.name == n) for n in names]
    x = np.array([0.0, -0.0] * 9, "float32")
    ours = bg.build(bg.trace(lambda t: tuple(f.ours(t) for f in functions), bg.Tensor(18)))(x)
    for f, y in zip(functions, ours, strict=True):
        theirs = f.theirs(torch.tensor(x)).numpy()
        np.testing.assert_array_equal(np.signbit(y), np.signbit(theirs), err_msg=f.name)


# --- graphs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64"])
@pytest.mark.parametrize(
    "op", ["bn_stats", "bn_mean", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "batch_norm"]
)
def test_ops_on_feature_maps_take_floats(op, dtype):
    attrs = {
        "max_pool2d": {"kernel": (2, 2), "stride": (2, 2)},
        "avg_pool2d": {"kernel": (2, 2), "stride": (2, 2)},
        "adaptive_avg_pool2d": {"output_size": (1, 1)},
    }
    b = GraphBuilder()
    x = b.input("x", TensorType((1, 2, 4, 4), dtype))
    with pytest.raises(ShapeError, match="floating-point"):
        b.emit(op, x, **attrs.get(op, {}))
