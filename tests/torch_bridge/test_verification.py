"""The judge of `bngen verify`: what it lets pass, what it does not, and what it feeds."""

import numpy as np
import pytest

import bngen as bg
from bngen import models
from bngen.ir import interp
from bngen.ir.types import TensorType, Value
from bngen.torch_bridge import verification
from bngen.torch_bridge.verification import FEW_ULPS, TIMES_TORCH, ULP, Case, Tensor

NETWORKS = ["tiny_densenet", "tiny_resnet", "tiny_mobilenet", "tiny_vgg"]


def tensor(kind="output", partner=None):
    return Tensor("t", kind, Value("t", TensorType((3,))), partner)


def judged(ours, torch, exact, which=None, **more):
    arrays = ({"t": np.asarray(a, np.float64), **more} for a in (ours, exact))
    ours, exact = arrays
    runs = [{"t": np.asarray(t, np.float64), **more} for t in torch]
    (finding,) = verification.judge("case", [which or tensor()], ours, runs, exact)
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


# --- what is compared, on what ----------------------------------------------------------------


@bg.program
def two_norms(
    x: bg.Tensor[2, 3, 4, 4],
    w: bg.Tensor[5, 3, 1, 1],
    mean: bg.Tensor[5],
    var: bg.Tensor[5],
    gamma: bg.Tensor[5],
    beta: bg.Tensor[5],
):
    y = bg.batch_norm(bg.conv2d(x, w), mean, var, gamma, beta, training=True)
    m, v = bg.bn_stats(y)
    return bg.bn_normalize(y, m, v), m


def test_every_batch_statistic_and_update_is_compared():
    graph, tensors = verification.instrument(two_norms.graph)
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
    graph, tensors = verification.instrument(plain)
    rng = np.random.default_rng(0)
    args = {i.name: np.abs(rng.standard_normal(i.value.shape)) for i in plain.inputs}
    before, after = interp.run(plain, args), interp.run(graph, args)
    np.testing.assert_array_equal(before.outputs[0], after.outputs[0])
    collected = verification.collect(graph, tensors, after)
    assert set(collected) == {t.value.name for t in tensors}
    norms = [n for n in plain.nodes if n.op == "batch_norm"]
    assert sum(t.kind == "variance" for t in tensors) == len(norms)
    weights = [n.inputs[1].name.removesuffix("weight") for n in norms]
    assert [t.name for t in tensors if t.kind == "variance"] == [f"{w}var" for w in weights]


def test_roles():
    assert verification.roles(two_norms.graph) == {
        "x": "data",
        "w": "weight",
        "mean": "mean",
        "var": "variance",
        "gamma": "gamma",
        "beta": "bias",
    }


def inputs_of(case, graph=two_norms.graph, seed=0):
    return verification.make_inputs(graph, case, {}, seed)


def test_cases_are_what_their_names_say():
    cases = {case.name: inputs_of(case) for case in verification.CASES}
    far = cases["mean 1e4 times the spread"]["x"]
    assert 3e3 < abs(far.mean()) / far.std() < 3e4
    constant = cases["constant channel"]["x"]
    assert np.ptp(constant[:, 0]) == 0
    assert np.ptp(constant[:, 1]) > 0
    gamma = cases["gamma zero and negative"]["gamma"]
    assert (gamma == 0).any() and (gamma < 0).any()
    assert np.isnan(cases["NaN in the input"]["x"]).sum() == 1
    for arrays in cases.values():
        assert (arrays["var"] > 0).all()
        assert all(a.dtype == np.float32 for a in arrays.values())


def test_inputs_follow_from_the_seed():
    case = Case("usual", {})
    first, again, other = inputs_of(case), inputs_of(case), inputs_of(case, seed=1)
    assert all(np.array_equal(first[k], again[k]) for k in first)
    assert not np.array_equal(first["x"], other["x"])


def test_labels_name_classes():
    graph = models.make("tiny_vgg", batch=64, image=32, num_classes=7, loss=True).graph
    state = {i.name: np.zeros(i.value.shape) for i in graph.inputs if i.kind != "input"}
    labels = verification.make_inputs(graph, Case("usual", {}), state, 0)["labels"]
    assert labels.dtype == np.int64
    assert (labels.min(), labels.max()) == (0, 6)


def test_cases_without_an_effect_are_left_out():
    @bg.program
    def plain(x: bg.Tensor[2, 3, 4, 4]):
        return bg.relu(x)

    names = [case.name for case in verification.cases_for(plain.graph)]
    assert "gamma zero and negative" not in names
    assert "NaN in the input" in names


def test_nudged_moves_each_float_by_one_ulp():
    x = np.array([1.0, -1.5, 0.0, np.nan, 1e-20], np.float32)
    moved = verification.nudged({"x": x, "i": np.arange(3)}, 0)
    assert moved["x"].dtype == np.float32
    floats = [0, 1, 4]
    relative = np.abs(moved["x"][floats] / x[floats] - 1)
    assert (relative > 0).all() and (relative < 3 * ULP).all()
    assert moved["x"][2] == 0 and np.isnan(moved["x"][3])
    assert np.array_equal(moved["i"], np.arange(3))


def test_a_variance_from_squares_is_caught():
    """E[x^2] - E[x]^2 in float32 is what the rule must not let through."""
    graph, tensors = verification.instrument(two_norms.graph)
    case = next(c for c in verification.CASES if c.name.startswith("mean 1e4"))
    inputs = inputs_of(case)
    exact = verification.collect(graph, tensors, interp.run(graph, inputs, "float64"))
    good = verification.collect(graph, tensors, interp.run(graph, inputs))
    conv = next(n for n in graph.nodes if n.op == "conv2d")
    x = interp.run(graph, inputs, keep=True).env[conv.out.name]
    variance = next(t for t in tensors if t.kind == "variance")
    naive = (x * x).mean(axis=(0, 2, 3)) - np.square(x.mean(axis=(0, 2, 3)))
    bad = {**good, variance.value.name: naive}
    findings = verification.judge(case.name, tensors, bad, [good], exact)
    assert [f.tensor for f in findings if not f.ok] == [variance]
