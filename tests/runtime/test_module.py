"""Compiled modules as users hold them: calls, state, backward, and what they refuse."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import bngen as bg
from bngen.binding import SMALL
from bngen.errors import CallError, ProgramError
from tests.oracle import assert_few_ulps

N, C, H, W, K, CLASSES = 4, 3, 6, 5, 5, 4


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def network(ignore_index=-100, training=True):
    """conv - BN - ReLU - mean - linear - cross-entropy, with parameters of its own."""

    def net(x, labels):
        y = bg.layers.conv2d(x, "conv", K, 3, padding=1, bias=False)
        y = bg.relu(bg.layers.batch_norm(y, "norm", training))
        logits = bg.layers.linear(y.mean((2, 3)), "fc", CLASSES)
        return bg.cross_entropy(logits, labels, ignore_index=ignore_index)

    return bg.trace(net, bg.Tensor[N, C, H, W], bg.Tensor[N, bg.int64])


@pytest.fixture(scope="module")
def trained():
    return bg.build(network(), grad=True).init(0)


@pytest.fixture(scope="module")
def pair():
    """Two arguments, two results."""

    def f(x, w):
        y = bg.conv2d(x, w)
        return y, y.mean((2, 3))

    return bg.build(bg.trace(f, bg.Tensor[2, 3, 4, 4], bg.Tensor[5, 3, 1, 1]), grad=True)


X = normal(N, C, H, W)
LABELS = np.arange(N) % CLASSES
PAIR = normal(2, 3, 4, 4), normal(5, 3, 1, 1, seed=1)


def torch_gradients(module, x, labels):
    """Loss and gradients of `network` by PyTorch, from the module's weights."""
    state = {n: torch.tensor(a) for n, a in module.state_dict().items()}
    x = torch.tensor(x, requires_grad=True)
    leaves = {"x": x}
    for name, tensor in state.items():
        if name.rpartition(".")[2] in ("weight", "bias"):
            leaves[name] = tensor.requires_grad_()
    y = F.conv2d(x, state["conv.weight"], padding=1)
    y = F.batch_norm(y, None, None, state["norm.weight"], state["norm.bias"], training=True)
    logits = F.linear(F.relu(y).mean((2, 3)), state["fc.weight"], state["fc.bias"])
    loss = F.cross_entropy(logits, torch.tensor(labels))
    found = torch.autograd.grad(loss, list(leaves.values()))
    return loss.item(), {n: g.numpy() for n, g in zip(leaves, found, strict=True)}


def assert_gradients(module, x=X, labels=LABELS):
    """The module computes PyTorch's loss and gradients: it is usable, and right."""
    expected_loss, expected = torch_gradients(module, x, labels)
    loss = module(x, labels)
    assert_few_ulps(loss, np.float32(expected_loss))
    gradients = module.backward()
    assert list(gradients) == list(expected)
    for name, gradient in gradients.items():
        assert_few_ulps(gradient, expected[name], name)


# --- calls ------------------------------------------------------------------------------------


def test_arguments_by_name(pair):
    x, w = PAIR
    y, mean = pair(x, w)
    for again in (pair(x, w=w), pair(w=w, x=x), pair.forward(x, w)):
        np.testing.assert_array_equal(again[0], y)
        np.testing.assert_array_equal(again[1], mean)
    assert_few_ulps(y, F.conv2d(*map(torch.tensor, PAIR)))


@pytest.mark.parametrize(
    ("args", "named", "got"),
    [
        (PAIR[:1], {}, "got 1"),
        ((*PAIR, PAIR[0]), {}, "got 3"),
        (PAIR[:1], {"v": PAIR[1]}, r"got 1 and \['v'\]"),
        (PAIR, {"w": PAIR[1]}, r"got 2 and \['w'\]"),
        (PAIR[:1], {"x": PAIR[1]}, r"got 1 and \['x'\]"),
    ],
)
def test_wrong_arguments(pair, args, named, got):
    with pytest.raises(CallError, match=rf"f takes 2 arguments \(x, w\), {got}"):
        pair(*args, **named)


@pytest.mark.parametrize(
    ("x", "what"),
    [
        (normal(2, 3, 4, 5), "argument 'x' has shape (2, 3, 4, 5), expected (2, 3, 4, 4)"),
        (PAIR[0].astype(np.float64), "argument 'x' is float64, expected float32"),
        ("image.png", "argument 'x' is a str, expected float32[2, 3, 4, 4]"),
    ],
)
def test_unusable_arguments(pair, x, what):
    with pytest.raises(CallError, match=re.escape(what)):
        pair(x, PAIR[1])


def test_tensors_in_tensors_out(pair):
    x, w = map(torch.tensor, PAIR)
    y, mean = pair(x, w)
    assert isinstance(y, torch.Tensor) and isinstance(mean, torch.Tensor)
    gradients = pair.backward(torch.ones_like(y), torch.ones_like(mean))
    assert all(isinstance(g, torch.Tensor) for g in gradients.values())
    y, _ = pair(*PAIR)
    assert isinstance(y, np.ndarray)


def test_results_would_come_back_detached(pair):
    """Autograd would train without what lies behind the module, and not say so."""
    x, w = map(torch.tensor, PAIR)
    x, w = x.requires_grad_(), torch.nn.Parameter(w)
    for args in ((x, w.detach()), (x.detach(), w), (x * 2, w)):
        with pytest.raises(CallError, match="requires grad, but autograd does not see through"):
            pair(*args)
    with torch.no_grad():
        y, mean = pair(x, w)
    ones = torch.ones_like(y), torch.ones_like(mean)
    with pytest.raises(CallError, match="argument 'grad_0' requires grad"):
        pair.backward(ones[0].requires_grad_(), ones[1])
    assert pair.backward(ones[0].detach(), ones[1])["x"].shape == x.shape


def test_results_are_the_callers_own(pair):
    first = pair(*PAIR)[0]
    kept = first.copy()
    second = pair(2 * PAIR[0], PAIR[1])[0]
    np.testing.assert_array_equal(first, kept)
    assert not np.array_equal(second, kept)


def test_a_dict_of_results():
    program = bg.trace(lambda x: {"double": x * 2.0, "half": x * 0.5}, bg.Tensor[3])
    results = bg.build(program)(np.ones(3, np.float32))
    assert list(results) == ["double", "half"]
    np.testing.assert_array_equal(results["half"], np.full(3, 0.5))


def test_an_argument_returned_as_it_is():
    x = np.ones(3, np.float32)
    returned, _ = bg.build(bg.trace(lambda x: (x, x + 1.0), bg.Tensor[3]))(x)
    np.testing.assert_array_equal(returned, x)
    assert not np.shares_memory(returned, x)


# --- state ------------------------------------------------------------------------------------


def test_parameters_need_values():
    module = bg.build(network())
    with pytest.raises(CallError, match="net: parameters have no values yet .*init"):
        module(X, LABELS)
    module.init(0)
    assert module.state_dict()["norm.weight"].tolist() == [1.0] * K
    module(X, LABELS)


def test_state_goes_in_and_out(trained):
    state = trained.state_dict()
    state["norm.bias"] = np.full(K, 7, np.float32)
    assert trained.state_dict()["norm.bias"].tolist() != [7.0] * K
    other = bg.build(network()).load_state_dict({k: torch.tensor(v) for k, v in state.items()})
    for name, array in other.state_dict().items():
        np.testing.assert_array_equal(array, state[name])


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda s: s.pop("fc.bias"), "1 names of the state do not match: missing ['fc.bias']"),
        (lambda s: s.update(extra=s["fc.bias"]), "do not match: unknown ['extra']"),
        (lambda s: s.update({"fc.bias": normal(3)}), "'fc.bias' is float32[3], not float32[4]"),
        (
            lambda s: s.update({"fc.bias": s["fc.bias"].astype(np.float64)}),
            "'fc.bias' is float64[4], not float32[4]",
        ),
        (lambda s: s.update({"fc.bias": "text"}), "'fc.bias' is <U4[], not float32[4]"),
        (lambda s: s.update({"fc.bias": [[1.0], 2.0]}), "'fc.bias' cannot become an array"),
        (
            lambda s: s.update({"fc.bias": torch.zeros(4, device="meta")}),
            "'fc.bias' cannot become an array",
        ),
        (
            lambda s: s.update({"fc.bias": torch.zeros(4, dtype=torch.bfloat16)}),
            "'fc.bias' is bfloat16[4], not float32[4]",
        ),
        (lambda s: s.update({"fc.bias": np.ma.zeros(4, np.float32)}), "'fc.bias' is masked"),
        (lambda s: s.update({3: s["fc.bias"]}), "do not match: unknown ['3']"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(trained, change, what):
    before = trained.state_dict()
    state = {name: array + 1 for name, array in before.items()}
    change(state)
    with pytest.raises(CallError, match=re.escape(what)):
        trained.load_state_dict(state)
    for name, array in trained.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("state", [None, 5, [1, 2], "weights.pt"])
def test_what_is_no_state(trained, state):
    with pytest.raises(CallError, match="a state is a dict of arrays by name"):
        trained.load_state_dict(state)


@pytest.mark.parametrize("seed", ["one", -1, 1.5, object()])
def test_what_is_no_seed(trained, seed):
    with pytest.raises(CallError, match="is no seed"):
        trained.init(seed)


def test_a_state_of_parameters_that_require_grad(trained):
    state = trained.state_dict()
    trained.load_state_dict({n: torch.tensor(a) for n, a in state.items()})
    leaves = {n: torch.tensor(a, requires_grad=a.dtype.kind == "f") for n, a in state.items()}
    trained.load_state_dict(leaves)


def test_a_part_of_the_state():
    module = bg.build(network()).init(0)
    before = module.state_dict()
    module.load_state_dict({"fc.bias": normal(4), "unknown": normal(1)}, strict=False)
    np.testing.assert_array_equal(module.state_dict()["fc.bias"], normal(4))
    np.testing.assert_array_equal(module.state_dict()["fc.weight"], before["fc.weight"])


# --- labels -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [CLASSES, -1, -99, 2**40])
def test_labels_out_of_range(trained, bad):
    before = trained.state_dict()
    labels = LABELS.copy()
    labels[1] = bad
    what = f"net: 'labels' holds {bad}, but there are 4 classes"
    with pytest.raises(CallError, match=f"{what} .*run from 0 to 3, and -100 is ignored"):
        trained(X, labels)
    assert trained.state_dict()["norm.num_batches_tracked"] == before["norm.num_batches_tracked"]
    np.testing.assert_array_equal(
        trained.state_dict()["norm.running_mean"], before["norm.running_mean"]
    )
    assert_gradients(trained)


def test_ignored_labels(trained):
    labels = LABELS.copy()
    labels[2] = -100
    assert_gradients(trained, labels=labels)


def test_another_ignored_label():
    module = bg.build(network(ignore_index=255)).init(0)
    labels = LABELS.copy()
    labels[0] = 255
    expected = torch_gradients(module, X, np.where(labels == 255, -100, labels))[0]
    assert_few_ulps(module(X, labels), np.float32(expected))
    labels[0] = -100
    with pytest.raises(CallError, match="holds -100"):
        module(X, labels)


def test_labels_that_the_program_converts():
    def net(x, labels, other):
        ignored = (other != 9).to(bg.float32).sum()
        return bg.cross_entropy(x, labels.to(bg.int32).reshape(2)) + ignored

    types = bg.Tensor[2, 3], bg.Tensor[2, 1, bg.int64], bg.Tensor[2, bg.int64]
    module = bg.build(bg.trace(net, *types))
    x, other = normal(2, 3), np.array([9, 1])
    expected = float(F.cross_entropy(torch.tensor(x), torch.tensor([0, 2]))) + 1
    assert_few_ulps(module(x, np.array([[0], [2]]), other), np.float32(expected))
    with pytest.raises(CallError, match="'labels' holds 9, but there are 3 classes"):
        module(x, np.array([[0], [9]]), other)


# --- backward ---------------------------------------------------------------------------------


def test_gradients(trained):
    assert_gradients(trained)


def test_backward_out_of_turn(pair):
    ones = np.ones((2, 5, 4, 4), np.float32), np.ones((2, 5), np.float32)
    pair(*PAIR)
    first = pair.backward(*ones)
    with pytest.raises(CallError, match="backward needs a forward call first"):
        pair.backward(*ones)
    pair(*PAIR)
    again = pair.backward(*ones)
    for name, gradient in first.items():
        np.testing.assert_array_equal(again[name], gradient)


def test_backward_before_forward():
    module = bg.build(bg.trace(lambda x: (x * x).sum(), bg.Tensor[3]), grad=True)
    with pytest.raises(CallError, match="backward needs a forward call first"):
        module.backward()
    module(np.ones(3, np.float32))
    np.testing.assert_array_equal(module.backward()["x"], np.full(3, 2))


@pytest.mark.parametrize(
    ("grads", "what"),
    [
        ((), "backward takes 2 gradients, got 0"),
        ((np.ones((2, 5, 4, 4), np.float32),), "backward takes 2 gradients, got 1"),
        (
            (np.ones((2, 5, 4, 4), np.float32), np.ones((5, 2), np.float32)),
            "'grad_1' has shape (5, 2), expected (2, 5)",
        ),
        (
            (np.ones((2, 5, 4, 4)), np.ones((2, 5), np.float32)),
            "'grad_0' is float64, expected float32",
        ),
    ],
)
def test_gradients_that_do_not_fit(pair, grads, what):
    pair(*PAIR)
    with pytest.raises(CallError, match=re.escape(what)):
        pair.backward(*grads)
    # The call before is not lost.
    ones = np.ones((2, 5, 4, 4), np.float32), np.zeros((2, 5), np.float32)
    expected = F.conv_transpose2d(torch.ones(2, 5, 4, 4), torch.tensor(PAIR[1]))
    assert_few_ulps(pair.backward(*ones)["x"], expected)


def test_a_refused_call_leaves_the_one_before(pair):
    ones = np.ones((2, 5, 4, 4), np.float32), np.ones((2, 5), np.float32)
    pair(*PAIR)
    expected = pair.backward(*ones)
    pair(*PAIR)
    with pytest.raises(CallError):
        pair(PAIR[0], normal(4))
    found = pair.backward(*ones)
    np.testing.assert_array_equal(found["w"], expected["w"])


def test_no_gradients_built():
    module = bg.build(bg.trace(lambda x: x * 2.0, bg.Tensor[3]))
    module(np.ones(3, np.float32))
    with pytest.raises(CallError, match=re.escape("built without gradients (bngen.build(")):
        module.backward()


def test_chosen_gradients():
    module = bg.build(network(), grad=True, wrt=["norm.bias"]).init(0)
    expected = torch_gradients(module, X, LABELS)[1]["norm.bias"]
    module(X, LABELS)
    gradients = module.backward()
    assert list(gradients) == ["norm.bias"]
    assert_few_ulps(gradients["norm.bias"], expected)


@pytest.mark.parametrize(
    ("wrt", "what"),
    [
        (["fc.wieght"], "which is no input of it (did you mean 'fc.weight'"),
        (["labels"], "only floating-point inputs have gradients"),
        (["x", "x"], "wrt names an input twice"),
    ],
)
def test_gradients_by_what_is_no_input(wrt, what):
    with pytest.raises(ProgramError, match=re.escape(what)):
        bg.build(network(), grad=True, wrt=wrt)


def test_independent_inputs_have_zero_gradients():
    program = bg.trace(lambda x, y: (x * x).sum(), bg.Tensor[3], bg.Tensor[2, 2])
    with pytest.warns(UserWarning, match="no output depends on 'y'") as caught:
        module = bg.build(program, grad=True)
    assert [w.filename for w in caught] == [__file__]
    module(np.ones(3, np.float32), normal(2, 2))
    gradients = module.backward()
    np.testing.assert_array_equal(gradients["x"], np.full(3, 2))
    np.testing.assert_array_equal(gradients["y"], np.zeros((2, 2)))


def test_statistics_of_a_single_element():
    def f(x):
        return bg.batch_norm(x, None, None, training=True)

    with pytest.raises(ProgramError, match=r"single value per channel.*larger batch"):
        bg.build(bg.trace(f, bg.Tensor[1, 8, 1, 1]), grad=True)


# --- updates ----------------------------------------------------------------------------------


def test_a_mask_drawn_from_a_counter_is_the_same_in_backward():
    """The counter moves on when forward ends; backward draws the mask of the step it belongs to."""

    def net(x):
        step = bg.buffer("step", (), bg.int64)
        y = bg.dropout(x, 0.5, seed=step)
        bg.update(step, step + 1)
        return y

    module = bg.build(bg.trace(net, bg.Tensor[2, 4, 5, 5]), grad=True).init(0)
    x = np.ones((2, 4, 5, 5), np.float32)
    masks = []
    for step in range(3):
        assert module.state_dict()["step"] == step
        masks.append(module(x))
        np.testing.assert_array_equal(module.backward(x)["x"], masks[-1])
    assert not np.array_equal(masks[0], masks[1])


def test_a_weight_that_is_updated_and_needed_by_backward():
    def net(x, w):
        bg.update(w, w * 0.5)
        return bg.conv2d(x, w)

    x, w = PAIR
    module = bg.build(bg.trace(net, bg.Tensor[2, 3, 4, 4], bg.Tensor[5, 3, 1, 1]), grad=True)
    held, ones = w.copy(), np.ones((2, 5, 4, 4), np.float32)
    module(x, held)
    np.testing.assert_array_equal(held, w * np.float32(0.5))
    expected = F.conv_transpose2d(torch.tensor(ones), torch.tensor(w))
    assert_few_ulps(module.backward(ones)["x"], expected)


def test_old_values_are_returned_and_exchanged():
    def swap(a, b):
        bg.update(a, b)
        bg.update(b, a)
        return a

    a, b = normal(4), normal(4, seed=1)
    held_a, held_b = a.copy(), b.copy()
    returned = bg.build(bg.trace(swap, bg.Tensor[4], bg.Tensor[4]))(held_a, held_b)
    np.testing.assert_array_equal(returned, a)
    np.testing.assert_array_equal(held_a, b)
    np.testing.assert_array_equal(held_b, a)


def test_a_new_value_that_is_also_returned():
    def count(n):
        bg.update(n, n + 1.0)
        return n + 1.0, n * 2.0

    n = np.zeros(3, np.float32)
    new, double = bg.build(bg.trace(count, bg.Tensor[3]))(n)
    np.testing.assert_array_equal(n, np.ones(3))
    np.testing.assert_array_equal(new, np.ones(3))
    np.testing.assert_array_equal(double, np.zeros(3))
    assert not np.shares_memory(new, n)


@pytest.fixture(scope="module")
def normalizing():
    def net(x, mean, var):
        return bg.batch_norm(x, mean, var, training=True, momentum=0.3)

    return bg.build(bg.trace(net, bg.Tensor[4, 7, 3, 3], bg.Tensor[7], bg.Tensor[7]))


def misaligned(shape):
    buffer = np.zeros(4 * int(np.prod(shape)) + 1, np.uint8)
    return buffer[1:].view(np.float32).reshape(shape)


def strided(shape):
    return np.zeros((*shape, 2), np.float32)[..., 0]


def swapped(shape):
    return np.zeros(shape, np.dtype(np.float32).newbyteorder())


@pytest.mark.parametrize("lay", [misaligned, strided, swapped], ids=lambda f: f.__name__)
def test_running_statistics_in_awkward_memory(normalizing, lay):
    x = normal(4, 7, 3, 3)
    mean, var = np.full(7, 0.5, np.float32), np.full(7, 2.0, np.float32)
    expected_mean, expected_var = torch.tensor(mean), torch.tensor(var)
    expected = F.batch_norm(
        torch.tensor(x), expected_mean, expected_var, training=True, momentum=0.3
    )
    arrays = [lay(a.shape) for a in (x, mean, var)]
    for array, values in zip(arrays, (x, mean, var), strict=True):
        array[...] = values
    y = normalizing(*arrays)
    assert_few_ulps(y, expected)
    assert_few_ulps(arrays[1].astype(np.float32), expected_mean)
    assert_few_ulps(arrays[2].astype(np.float32), expected_var)


def test_running_statistics_of_strided_tensors(normalizing):
    x = torch.tensor(normal(4, 7, 3, 3)).to(memory_format=torch.channels_last)
    mean, var = torch.zeros(7, 2)[:, 1], torch.ones(7, 3)[:, 2]
    expected_mean, expected_var = mean.clone(), var.clone()
    expected = F.batch_norm(x, expected_mean, expected_var, training=True, momentum=0.3)
    assert_few_ulps(normalizing(x, mean, var), expected)
    assert_few_ulps(mean, expected_mean)
    assert_few_ulps(var, expected_var)


def test_read_only_arrays(normalizing):
    x, mean, var = normal(4, 7, 3, 3), np.zeros(7, np.float32), np.ones(7, np.float32)
    x.flags.writeable = False
    normalizing(x, mean, var)
    assert mean.any()
    mean.flags.writeable = False
    with pytest.raises(CallError, match="'mean' is updated in place, but it is read-only"):
        normalizing(x, mean, var)


def test_statistics_that_share_memory(normalizing):
    both = np.ones(7, np.float32)
    with pytest.raises(CallError, match="'mean' and 'var' share memory"):
        normalizing(normal(4, 7, 3, 3), both, both)


# --- what it is -------------------------------------------------------------------------------


def test_memory_is_told_by_use():
    maps, wide = bg.Tensor[2, 16, 16, 16], 2 * 32 * 16 * 16 * 4

    def net(x):
        y = bg.layers.conv2d(x, "conv1", 32, 1, bias=False)
        y = bg.relu(bg.layers.batch_norm(y, "norm"))
        return bg.layers.conv2d(y, "conv2", 16, 3, padding=1, bias=False)

    memory = {f: bg.build(bg.trace(net, maps), grad=True, fusion=f).memory for f in ("none", "icf")}
    parameters = 4 * (32 * 16 + 16 * 32 * 9 + 4 * 32) + 8  # and the count of batches
    for m in memory.values():
        assert m["parameters"] == parameters
        assert m["saved"] + m["scratch"] == m["arena"]
        results = 4 * (32 * 16 + 16 * 32 * 9 + 2 * 32) + 2 * 4 * (2 * 16 * 16 * 16)
        assert m["peak"] == m["parameters"] + m["arena"] + results
    # The raw output of conv1, x and a weight in the kernels' layouts, and vectors of 32 channels;
    # without fusion what BN and ReLU made, too.
    relaid = 4 * (2 * 16 * 16 * 16 + 16 * 32 * 9)
    assert wide <= memory["icf"]["saved"] <= wide + relaid + 32 * 32 * 4
    assert memory["none"]["saved"] >= 2 * wide


def test_memory_without_backward(pair):
    forward_only = bg.build(network())
    assert forward_only.memory["saved"] == 0
    assert forward_only.memory["scratch"] == forward_only.memory["arena"]


def test_objects_of_the_distinct_kernels(tmp_path, trained):
    trained.save_objects(tmp_path)
    manifest = trained.manifest()
    names = {k["symbol"] for k in manifest["kernels"]}
    assert {p.name for p in tmp_path.iterdir()} == {f"{n}.o" for n in names}
    assert len(names) == manifest["counts"]["distinct"]
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        assert content.startswith(b"\x7fELF") and path.stem.encode() in content


def test_no_warnings_without_a_reason():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bg.build(network(), grad=True)


def test_the_thread_pool_is_installed_before_code_is_loaded(monkeypatch):
    """Loaded code keeps the pool it finds: installed later, everything runs on one thread."""
    import bngen.compiler
    from bngen.runtime import native

    order = []
    install, load = bngen.compiler.thread_pool.install, native.load
    monkeypatch.setattr(
        bngen.compiler.thread_pool, "install", lambda: (order.append("install"), install())[1]
    )
    monkeypatch.setattr(native, "load", lambda *library: (order.append("load"), load(*library))[1])
    bngen.build(bngen.trace(lambda x: bngen.relu(x), bngen.Tensor((2, 16, 4, 4)), name="p"))
    assert order[:2] == ["install", "load"]


def test_results_of_a_call_stay_what_they_were(trained):
    """Small results share memory within a call, and with no other call."""

    def gradients():
        trained.forward(X, LABELS)
        return trained.backward()

    first = gradients()
    before = {name: g.copy() for name, g in first.items()}
    second = gradients()
    for name, g in first.items():
        np.testing.assert_array_equal(g, before[name])
        assert not np.shares_memory(g, second[name])
        assert g.flags.writeable and g.ctypes.data % 64 == 0
    for name, other in zip(first, list(first)[1:], strict=False):
        assert not np.shares_memory(first[name], first[other])
    small = [g for g in first.values() if g.nbytes <= SMALL]
    assert len(small) > 1 and len({id(g.base) for g in small}) < len(small)
