"""What `bngen verify` feeds to a program, and that it follows from the seed."""

import numpy as np

import bngen as bg
from bngen import models
from bngen.verification import inputs
from bngen.verification.inputs import Case
from tests.verification.programs import inputs_of, two_norms


def test_roles():
    assert inputs.roles(two_norms.graph) == {
        "x": "data",
        "w": "weight",
        "mean": "mean",
        "var": "variance",
        "gamma": "gamma",
        "beta": "bias",
    }


def test_cases_are_what_their_names_say():
    cases = {case.name: inputs_of(case) for case in inputs.CASES}
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
    labels = inputs.make_inputs(graph, Case("usual", {}), state, 0)["labels"]
    assert labels.dtype == np.int64
    assert (labels.min(), labels.max()) == (0, 6)


def test_cases_without_an_effect_are_left_out():
    @bg.program
    def plain(x: bg.Tensor[2, 3, 4, 4]):
        return bg.relu(x)

    names = [case.name for case in inputs.cases_for(plain.graph)]
    assert "gamma zero and negative" not in names
    assert "NaN in the input" in names
