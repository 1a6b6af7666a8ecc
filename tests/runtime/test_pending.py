"""Between forward and backward users change what they hold; gradients stay right or are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import bngen as bg
from bngen.errors import CallError
from tests import networks


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


X, W = normal(2, 3, 6, 6), normal(5, 3, 3, 3, seed=1)
ONES = np.ones((2, 5, 6, 6), np.float32)


def activated(x, w):
    """Backward reads both arguments, and both results."""
    y = bg.sigmoid(bg.conv2d(x, w, padding=1))
    return y, y.exp().mean((2, 3))


@pytest.fixture(scope="module", params=["icf", "none"])
def module(request):
    program = bg.trace(activated, bg.Tensor[2, 3, 6, 6], bg.Tensor[5, 3, 3, 3])
    return bg.build(program, grad=True, fusion=request.param)


def gradients(cotangents):
    x, w = (torch.tensor(a, requires_grad=True) for a in (X, W))
    y = torch.sigmoid(F.conv2d(x, w, padding=1))
    outputs = y, y.exp().mean((2, 3))
    found = torch.autograd.grad(outputs, (x, w), [torch.tensor(c) for c in cotangents])
    return dict(zip("xw", (g.numpy() for g in found), strict=True))


COTANGENTS = normal(2, 5, 6, 6, seed=2), normal(2, 5, seed=3)


def assert_right(found):
    for name, expected in gradients(COTANGENTS).items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found[name], expected, atol=2e-5 * scale, err_msg=name)


LAYOUTS = {
    "plain": lambda a: a.copy(),
    "strided": lambda a: np.repeat(a, 2, -1)[..., ::2],
    "byte-swapped": lambda a: a.astype(">f4"),
    "tensor": lambda a: torch.tensor(a),
    "channels last": lambda a: torch.tensor(a).contiguous(memory_format=torch.channels_last),
    "tensor of an array": lambda a: torch.from_numpy(a.copy()),
    "list": lambda a: a.tolist(),
}


def scribble(*held):
    for array in held:
        if isinstance(array, list):
            array.clear()
        else:
            array[...] = 1e30


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arguments_may_be_used_again_before_backward(module, layout):
    x, w = LAYOUTS[layout](X), LAYOUTS[layout](W)
    module(x, w)
    scribble(x, w)
    assert_right(module.backward(*COTANGENTS))


def test_results_may_be_changed_before_backward(module):
    results = module(X, W)
    scribble(*results)
    assert_right(module.backward(*COTANGENTS))


def test_a_refused_call_with_other_arguments_changes_nothing(module):
    module(X, W)
    with pytest.raises(CallError):
        module(X + 1, W[:4])
    assert_right(module.backward(*COTANGENTS))


def test_small_results_share_memory_with_nothing_that_backward_reads():
    def f(x):
        a, b = bg.exp(x), bg.sigmoid(x)
        return a, b, a * b

    module = bg.build(bg.trace(f, bg.Tensor[6]), grad=True)
    x = normal(6)
    a, b, product = module(x)
    expected = a + 2 * b * (1 - b) + 3 * product * (2 - b)
    scribble(a, b, product)
    cotangents = (np.full(6, k, np.float32) for k in (1, 2, 3))
    np.testing.assert_allclose(module.backward(*cotangents)["x"], expected, 1e-5)


@pytest.fixture(scope="module")
def trained():
    return bg.build(networks.small(), grad=True).init(0)


LABELS = np.array([1, 3])


def test_labels_may_be_used_again_before_backward(trained):
    trained(X, LABELS)
    expected = trained.backward()
    labels = LABELS.copy()
    trained(X, labels)
    labels[...] = 0
    for name, gradient in trained.backward().items():
        np.testing.assert_array_equal(gradient, expected[name], err_msg=name)


@pytest.mark.parametrize("change", ["load", "load a part", "init"])
def test_parameters_that_backward_reads_are_not_changed_before_it(trained, change):
    state = trained.state_dict()
    trained(X, LABELS)
    if change == "init":
        trained.init(1)
    elif change == "load":
        trained.load_state_dict(state)
    else:
        trained.load_state_dict({"fc.weight": state["fc.weight"]}, strict=False)
    with pytest.raises(CallError, match="which backward reads, was changed by load_state_dict"):
        trained.backward()
    trained.load_state_dict(state)
    trained(X, LABELS)
    trained.load_state_dict({"norm.running_mean": normal(5)}, strict=False)  # read by nobody
    assert trained.backward()["fc.bias"].shape == (4,)


@pytest.mark.parametrize("kind", ["parameter", "argument"])
def test_updates_of_the_program_leave_what_its_gradient_reads(kind):
    """SGD inside of a differentiated program: gradients are those at the old weights."""

    def net(x, w=None):
        w = bg.parameter("w", (5, 3, 3, 3)) if w is None else w
        y = bg.conv2d(x, w, padding=1)
        bg.update(w, w - 0.5 * w)
        return y

    types = [bg.Tensor[2, 3, 6, 6], bg.Tensor[5, 3, 3, 3]]
    module = bg.build(bg.trace(net, *types[: 2 if kind == "argument" else 1]), grad=True)
    held = W.copy()
    if kind == "parameter":
        module.load_state_dict({"w": W})(X)
        held = module.state_dict()["w"]
    else:
        module(X, held)
    np.testing.assert_array_equal(held, 0.5 * W)
    expected = F.conv_transpose2d(torch.tensor(ONES), torch.tensor(W), padding=1)
    np.testing.assert_allclose(module.backward(ONES)["x"], expected, atol=1e-4)
