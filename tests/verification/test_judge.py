"""The judge of `bngen verify`: what it compares, what it lets pass, and what it does not."""

import numpy as np
import pytest

from bngen import models
from bngen.dtypes import DTYPES
from bngen.ir import interp
from bngen.ir.types import TensorType, Value
from bngen.verification import judge
from bngen.verification.inputs import CASES
from bngen.verification.judge import Tensor
from bngen.verification.tolerance import FEW_ULPS, TIMES_TORCH
from tests.verification.programs import inputs_of, two_norms

ULP = DTYPES["float32"].ulp
NETWORKS = ["tiny_densenet", "tiny_resnet", "tiny_mobilenet", "tiny_vgg"]


def tensor(kind="output", partner=None, dtype="float32"):
    return Tensor("t", kind, Value("t", TensorType((3,), dtype)), partner)


def judged(ours, torch, exact, which=None, **more):
    arrays = ({"t": np.asarray(a, np.float64), **more} for a in (ours, exact))
    ours, exact = arrays
    runs = [{"t": np.asarray(t, np.float64), **more} for t in torch]
    (finding,) = judge.judge("case", [which or tensor()], ours, runs, exact)
    return finding


EXACT = [1.0, 2.0, 4.0]


@pytest.mark.parametrize(("ulps", "ok"), [(0.0, True), (0.9, True), (1.1, False)])
def test_a_few_ulps_of_the_largest_element(ulps, ok):
    ours = [1.0, 2.0 + ulps * FEW_ULPS * ULP * 4.0, 4.0]
    assert judged(ours, [EXACT], EXACT).ok is ok


@pytest.mark.parametrize(("times", "ok"), [(0.9, True), (1.1, False)])
def test_four_times_the_largest_error_of_pytorch(times, ok):
    runs = [[1.0, 2.0, 4.001], [1.0, 2.003, 4.0]]
    ours = [1.0 + times * TIMES_TORCH * 0.003, 2.0, 4.0]
    assert judged(ours, runs, EXACT).ok is ok


@pytest.mark.parametrize(
    ("ours", "torch", "ok"),
    [
        ([np.nan, 2.0, 4.0], [np.nan, 2.0, 4.0], True),
        ([np.nan, 2.0, 4.0], [1.0, 2.0, 4.0], False),
        ([1.0, 2.0, 4.0], [np.nan, 2.0, 4.0], False),
        ([np.inf, 2.0, 4.0], [np.inf, 2.0, 4.0], True),
        ([-np.inf, 2.0, 4.0], [np.inf, 2.0, 4.0], False),
        ([np.nan, 2.0, 5.0], [np.nan, 2.0, 4.0], False),
    ],
)
def test_nan_and_infinity_stand_where_pytorch_has_them(ours, torch, ok):
    exact = [torch[0], 2.0, 4.0]
    assert judged(ours, [torch], exact).ok is ok


def test_shapes_must_agree():
    finding = judged([1.0, 2.0], [EXACT], EXACT)
    assert not finding.ok
    assert "shape [2]" in finding.note


def test_a_channel_of_small_variance_is_held_to_its_own_scale():
    mean = Value("m", TensorType((3,)))
    means = {"m": np.zeros(3)}
    exact, ours = [1e-6, 1.0, 1e6], [1.001e-6, 1.0, 1e6]
    assert not judged(ours, [exact], exact, tensor("variance", mean), **means).ok
    assert judged(ours, [exact], exact).ok  # as any other tensor it would be lost in the noise


def test_a_variance_is_allowed_what_rounding_its_mean_costs():
    mean = Value("m", TensorType((3,)))
    exact = np.ones(3)
    ours = exact + np.array([0.0, 0.0, 2e-5])
    far = {"m": np.array([0.0, 0.0, 1e4])}
    near = {"m": np.zeros(3)}
    assert judged(ours, [exact], exact, tensor("variance", mean), **far).ok
    assert not judged(ours, [exact], exact, tensor("variance", mean), **near).ok
    # The project's own bound at this distance is 1e-4; the judge is stricter.
    too_far = exact + np.array([0.0, 0.0, 1e-4])
    assert not judged(too_far, [exact], exact, tensor("variance", mean), **far).ok


@pytest.mark.parametrize(("dtype", "ok"), [("float32", True), ("float64", False), ("int64", False)])
def test_a_unit_in_the_last_place_is_one_of_the_type(dtype, ok):
    ours = [1.0, 2.0 + ULP, 4.0]
    assert judged(ours, [EXACT], EXACT, tensor(dtype=dtype)).ok is ok
    assert judged(EXACT, [EXACT], EXACT, tensor(dtype=dtype)).ok


# --- what is compared -------------------------------------------------------------------------


def test_every_batch_statistic_and_update_is_compared():
    graph, tensors = judge.instrument(two_norms.graph)
    assert [(t.kind, t.value.shape) for t in tensors] == [
        ("output", (2, 5, 4, 4)),
        ("output", (5,)),
        ("mean", (5,)),
        ("variance", (5,)),
        ("mean", (5,)),
        ("variance", (5,)),
        ("running mean", (5,)),
        ("running variance", (5,)),
    ]
    assert [t.name for t in tensors[-2:]] == ["mean", "var"]
    assert len(graph.outputs) == len(set(graph.outputs)) == 5
    assert graph.tuple_output


@pytest.mark.parametrize("name", NETWORKS)
def test_instrumenting_changes_no_result(name):
    plain = models.make(name, batch=2, image=32).graph
    graph, tensors = judge.instrument(plain)
    rng = np.random.default_rng(0)
    args = {i.name: np.abs(rng.standard_normal(i.value.shape)) for i in plain.inputs}
    before, after = interp.run(plain, args), interp.run(graph, args)
    np.testing.assert_array_equal(before.outputs[0], after.outputs[0])
    collected = judge.collect(graph, tensors, after)
    assert set(collected) == {t.value.name for t in tensors}
    norms = [n for n in plain.nodes if n.op == "batch_norm"]
    assert sum(t.kind == "variance" for t in tensors) == len(norms)
    weights = [n.inputs[1].name.removesuffix("weight") for n in norms]
    assert [t.name for t in tensors if t.kind == "variance"] == [f"{w}var" for w in weights]


def test_a_variance_from_squares_is_caught():
    """E[x^2] - E[x]^2 in float32 is what the rule must not let through."""
    graph, tensors = judge.instrument(two_norms.graph)
    case = next(c for c in CASES if c.name.startswith("mean 1e4"))
    inputs = inputs_of(case)
    exact = judge.collect(graph, tensors, interp.run(graph, inputs, "float64"))
    good = judge.collect(graph, tensors, interp.run(graph, inputs))
    conv = next(n for n in graph.nodes if n.op == "conv2d")
    x = interp.run(graph, inputs, keep=True).env[conv.out.name]
    variance = next(t for t in tensors if t.kind == "variance")
    naive = (x * x).mean(axis=(0, 2, 3)) - np.square(x.mean(axis=(0, 2, 3)))
    bad = {**good, variance.value.name: naive}
    findings = judge.judge(case.name, tensors, bad, [good], exact)
    assert [f.tensor for f in findings if not f.ok] == [variance]
