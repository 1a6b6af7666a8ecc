"""Each op's NumPy meaning against PyTorch, in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bngen.dtypes import DTYPES
from bngen.ir.build import GraphBuilder
from bngen.ir.interp import run
from bngen.ir.ops import OPS, complete_attrs, infer
from bngen.ir.ops.row import ShapeError
from bngen.ir.types import TensorType
from bngen.ir.verify import verify
from bngen.torch_bridge import reference
from bngen.verification.tolerance import few_ulps
from tests.ir.op_cases import CASES, Case, normal
from tests.oracle import assert_few_ulps, assert_same, torch_run

NEED_CONSISTENT_OPERANDS = {"batch_norm_grad", "bn_grad_input", "sync_batch_norm_grad"}


def test_every_op_and_every_attribute_has_a_case():
    assert {c.op for c in CASES} | NEED_CONSISTENT_OPERANDS == set(OPS)
    for op in OPS.keys() - NEED_CONSISTENT_OPERANDS:
        for key, default in OPS[op].defaults.items():
            given = [c.attrs[key] for c in CASES if c.op == op and key in c.attrs]
            assert any(value != default for value in given), f"{op}: {key}"


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_meaning_is_pytorchs(case: Case):
    graph, args = case.graph, case.args()
    verify(graph)
    ours = run(graph, args, "float64").outputs
    theirs = torch_run(graph, args, torch.float64).outputs
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.dtype == b.dtype
        assert_same(a, b, f"{case.op} result {i}", rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_meaning_is_pytorchs_on_every_element_type(dtype: str):
    """As far as an op takes it: small numbers, in each type as it is."""
    rng, taken = np.random.default_rng(0), set()
    for case in CASES:
        b = GraphBuilder(name=case.op)
        types = [o and TensorType(o.type.shape, dtype) for o in case.operands]
        values = [t and b.input(f"x{i}", t) for i, t in enumerate(types)]
        try:
            results = b.emit(case.op, *values, **case.attrs)
        except ShapeError:
            continue
        graph = b.finish(results if isinstance(results, tuple) else (results,))
        args = {i.name: rng.integers(1, 4, i.value.shape).astype(dtype) for i in graph.inputs}
        ours, theirs = run(graph, args).outputs, reference.run(graph, args).outputs
        for i, (a, t) in enumerate(zip(ours, theirs, strict=True)):
            assert_few_ulps(a, t, f"{case.id} result {i}", least=1.0)
        taken.add(case.op)
    assert {"add", "cast", "cat"} <= taken


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_result_types_are_the_declared_ones_in_single_precision(case: Case):
    graph, args = case.graph, case.args()
    wide = run(graph, args, "float64").outputs
    for value, narrow, exact in zip(graph.outputs, run(graph, args).outputs, wide, strict=True):
        assert (narrow.dtype.name, narrow.shape) == (value.dtype, value.shape)
        assert_few_ulps(narrow, np.asarray(exact, narrow.dtype), case.op, least=1.0)


@pytest.mark.parametrize("weight", [True, False])
def test_gradient_of_batch_norm(weight: bool):
    b = GraphBuilder(name="batch_norm_grad")
    x, dy = (b.input(n, TensorType((4, 3, 5, 2))) for n in ("x", "dy"))
    gamma = b.input("gamma", TensorType((3,))) if weight else None
    mean, var = b.emit("bn_stats", x)
    coarse = b.emit("batch_norm_grad", dy, x, mean, var, gamma, eps=1e-2)
    sums = b.emit("bn_grad_sums", dy, x, mean)
    split = b.emit("bn_grad_input", dy, x, mean, var, gamma, *sums, eps=1e-2, count=40)
    graph = b.finish((*coarse, split))
    rng = np.random.default_rng(0)
    args = {i.name: rng.standard_normal(i.value.shape) for i in graph.inputs}
    ours = run(graph, args, "float64").outputs
    for a, t in zip(ours, torch_run(graph, args, torch.float64).outputs, strict=True):
        assert_same(a, t, "batch_norm_grad", rtol=1e-12)


def test_nan_passes_through_as_in_pytorch():
    bad = normal(1, 2, 4, 4)
    ops = {
        "relu": {}, "hardtanh": {}, "leaky_relu": {}, "silu": {}, "sigmoid": {}, "abs": {},
        "max_pool2d": {"kernel": (2, 2), "stride": (2, 2)}, "amax": {"axes": (2, 3)},
    }  # fmt: skip
    for op, attrs in ops.items():
        graph = Case(op, (bad,), attrs).graph
        x = np.random.default_rng(0).standard_normal((1, 2, 4, 4))
        x[0, 1, 2, 3], x[0, 0, 0, 1], x[0, 0, 3, 3] = np.nan, np.inf, -np.inf
        x[0, 1, 2, 2] = np.inf  # in one window with the NaN, and before it
        ours = run(graph, {"x": x}, "float64").outputs
        for a, t in zip(ours, torch_run(graph, {"x": x}, torch.float64).outputs, strict=True):
            assert np.isnan(a).any() or a.dtype.kind == "i"
            assert_few_ulps(a, t.astype(a.dtype), op)


def test_sigmoid_keeps_its_digits_in_the_tails():
    graph = Case("sigmoid", (normal(4),)).graph
    x = np.array([-80.0, -20.0, 20.0, 80.0])
    (y,) = run(graph, {"x": x}).outputs
    exact = 1 / (1 + np.exp(-x))
    assert (np.abs(y - exact) <= few_ulps(exact, "float32")).all()


def test_an_element_type_follows_pytorchs_promotion():
    def result(a: TensorType, b: TensorType) -> str:
        return infer("add", [a, b], complete_attrs("add", {}))[0].dtype

    for a in ("bool", "uint8", "int32", "int64", "float32", "float64"):
        for b in ("bool", "uint8", "int32", "int64", "float32", "float64"):
            for shape in ((), (2,)):
                theirs = torch.zeros(2, dtype=getattr(torch, a)) + torch.zeros(
                    shape, dtype=getattr(torch, b)
                )
                ours = result(TensorType((2,), a), TensorType(shape, b))
                assert f"torch.{ours}" == str(theirs.dtype), (a, b, shape)


BAD = [
    ("conv2d", [(1, 3, 5, 5), (4, 2, 3, 3)], {}, "second axis must be 3"),
    ("conv2d", [(1, 3, 5, 5), (4, 3, 7, 7)], {}, "exceeds padded"),
    ("conv2d", [(1, 3, 5, 5), (4, 1, 3, 3)], {"groups": 2}, "must divide"),
    ("conv2d", [(3, 5, 5), (4, 3, 3, 3)], {}, "needs x"),
    ("add", [(2, 3), (4,)], {}, "do not broadcast"),
    ("matmul", [(2, 3), (4, 5)], {}, "inner extents 3 and 4"),
    ("cat", [(2, 3), (3, 4)], {}, "cannot be joined"),
    ("slice", [(2, 3)], {"start": 2, "stop": 2}, "out of range"),
    ("reshape", [(2, 3)], {"shape": (4,)}, "6 elements"),
    ("sum", [(2, 3)], {"axes": (2,)}, "out of range for rank 2"),
    ("batch_norm", [(2, 3, 4, 4), (4,)], {}, r"shape \[3\]"),
    ("max_pool2d", [(1, 3, 5, 5)], {"kernel": (2, 2), "stride": (1, 1), "padding": (2, 2)}, "half"),
    ("max_pool2d", [(1, 3, 5, 5)], {"kernel": (2, 2)}, "missing"),
    ("exp", [(2,)], {"axis": 1}, "unknown attributes"),
    ("rellu", [(2,)], {}, "did you mean relu"),
    ("exp", [(2,), (2,)], {}, "takes"),
    ("add", [(2,)], {}, "takes"),
]


@pytest.mark.parametrize("op, shapes, attrs, message", BAD)
def test_operands_that_do_not_fit_are_refused(op, shapes, attrs, message):
    b = GraphBuilder()
    values = [b.input("x", TensorType(s)) for s in shapes]
    with pytest.raises(ShapeError, match=message):
        b.emit(op, *values, **attrs)


@pytest.mark.parametrize("op", ["exp", "div", "mean"])
def test_floating_point_functions_refuse_integers(op):
    b = GraphBuilder()
    x = b.input("x", TensorType((2, 2), "int32"))
    with pytest.raises(ShapeError, match="floating-point"):
        b.emit(op, *[x] * len(OPS[op].operands), **({"axes": (0,)} if op == "mean" else {}))
