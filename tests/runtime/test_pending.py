"""Calls that wait: users change what they hold, others run; gradients are right or refused."""

from __future__ import annotations

import copy
import gc
import resource
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import bngen as bg
from bngen.errors import CallError
from bngen.ir.interp import run
from bngen.passes.autodiff import differentiate
from tests import networks
from tests.oracle import assert_few_ulps


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
        assert_few_ulps(found[name], expected, name)


def shown_to_numpy(array):
    tensor = torch.tensor(array)
    tensor.numpy()
    return tensor


def made_in_inference(array):
    with torch.inference_mode():
        return torch.tensor(array)


class Wrapped:
    """Another library's array: what it hands to NumPy is the memory that it has itself."""

    dtype = np.dtype("float32")

    def __init__(self, array):
        self.held = array.copy()

    def __array__(self, dtype=None, copy=None):
        return self.held

    def __setitem__(self, key, value):
        self.held[key] = value


LAYOUTS = {
    "plain": lambda a: a.copy(),
    "strided": lambda a: np.repeat(a, 2, -1)[..., ::2],
    "byte-swapped": lambda a: a.astype(">f4"),
    "channels last": lambda a: torch.tensor(a).contiguous(memory_format=torch.channels_last),
    "tensor of an array": lambda a: torch.from_numpy(a.copy()),
    "tensor that NumPy has": shown_to_numpy,
    "inference tensor": made_in_inference,
    "another library's": Wrapped,
    "list": lambda a: a.tolist(),
}
"""What is copied: by NumPy's memory, or since kernels cannot read it as it lies."""


def scribble(*held):
    for array in held:
        if isinstance(array, list):
            array.clear()
        elif isinstance(array, torch.Tensor):
            with torch.inference_mode(array.is_inference()):
                array[...] = 1e30
        else:
            array[...] = 1e30


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arguments_may_be_used_again_before_backward(module, layout):
    x, w = LAYOUTS[layout](X), LAYOUTS[layout](W)
    module(x, w)
    scribble(x, w)
    assert_right(module.backward(*COTANGENTS))


class Tagged(torch.Tensor):
    """A subclass without a behaviour of its own."""


TENSORS = {
    "tensor": lambda a: torch.tensor(a),
    "view": lambda a: torch.tensor(np.stack([a, a]))[1],
    "parameter": lambda a: torch.nn.Parameter(torch.tensor(a)),
    "subclass": lambda a: torch.tensor(a).as_subclass(Tagged),
}
"""What is read where it lies."""
IN_PLACE = {
    "add": lambda t: t.add_(1),
    "through a view": lambda t: t[0].zero_(),
    "through detach": lambda t: t.detach().mul_(2),
    "storage given up": lambda t: t.untyped_storage().resize_(0),
}


@pytest.fixture(scope="module")
def product():
    """Backward reads both arguments where they lie."""
    module = bg.build(bg.trace(lambda x, y: x * y, bg.Tensor[4, 6], bg.Tensor[4, 6]), grad=True)
    assert set(module.signature.call("backward").reads) == {"x", "y"}
    return module


FACTORS = normal(4, 6), normal(4, 6, seed=1)
SEED = normal(4, 6, seed=2)


def assert_products(module):
    found = module.backward(SEED)
    np.testing.assert_array_equal(found["x"], SEED * FACTORS[1])
    np.testing.assert_array_equal(found["y"], SEED * FACTORS[0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arguments_that_are_copied_may_be_changed(product, layout):
    if layout == "channels last":
        x, y = (torch.tensor(a.T.copy()).T for a in FACTORS)
    else:
        x, y = map(LAYOUTS[layout], FACTORS)
    product(x, y)
    scribble(x, y)
    assert_products(product)


@pytest.mark.parametrize("kind", TENSORS)
def test_a_tensor_whose_memory_is_made_anew_is_read_there(product, kind):
    """As parameters in shards have it, which are gathered again for backward."""
    tensors = [TENSORS[kind](a) for a in FACTORS]
    values, before = tensors[0].detach().clone(), tensors[0].data_ptr()
    with torch.no_grad():
        product(*tensors)
    storage = tensors[0].untyped_storage()
    storage.resize_(0)
    between = torch.full_like(values, torch.nan)
    storage.resize_(1 << 20)
    with torch.autograd._unsafe_preserve_version_counter(tensors[0]), torch.no_grad():
        tensors[0].copy_(values)
    assert tensors[0].data_ptr() != before
    assert_products(product)
    assert between.isnan().all()


@pytest.mark.parametrize("change", IN_PLACE)
@pytest.mark.parametrize("kind", TENSORS)
def test_a_tensor_changed_before_backward_is_refused(product, kind, change):
    for changed in (0, 1):
        tensors = [TENSORS[kind](a) for a in FACTORS]
        with torch.no_grad():
            product(*tensors)
            IN_PLACE[change](tensors[changed])
            with pytest.raises(
                CallError, match="which backward reads, (was modified|has given up)"
            ):
                product.backward(SEED)
    tensors = [TENSORS[kind](a) for a in FACTORS]
    with torch.no_grad():
        product(*tensors)
    for tensor in tensors:
        tensor.data = torch.zeros(1)  # other memory from now on; what was lent stays
    del tensors, tensor
    assert_products(product)


def test_a_tensor_is_not_copied_and_stays_as_it_was(product):
    x, y = map(torch.tensor, FACTORS)
    product(x, y)
    (kept,) = product.last_call._kept
    assert kept.slots["in:x"].address == x.data_ptr() and len(kept.loans) == 2
    assert x.untyped_storage().resizable()
    product(*FACTORS)
    (kept,) = product.last_call._kept
    assert not kept.loans and not np.shares_memory(kept.slots["in:x"].array, FACTORS[0])


def test_an_update_beside_a_tensor_that_is_read_is_no_change_of_it():
    def net(x, y):
        product = x * y
        bg.update(y, y * 0.5)
        return product

    module = bg.build(bg.trace(net, bg.Tensor[4, 6], bg.Tensor[4, 6]), grad=True)
    x, y = torch.tensor(np.stack(FACTORS)).unbind()
    module(x, y)
    np.testing.assert_array_equal(y, 0.5 * FACTORS[1])
    assert_products(module)


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
    assert_few_ulps(module.backward(*cotangents)["x"], expected)


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
    assert_few_ulps(module.backward(ONES)["x"], expected)


# --- several calls at once --------------------------------------------------------------------


def siamese(x):
    """Running statistics, a step counter that the mask is drawn from, a weight that decays."""
    y = bg.layers.conv2d(x, "conv", 8, 3, padding=1, bias=False)
    y = bg.relu(bg.layers.batch_norm(y, "norm"))
    step = bg.buffer("step", (), bg.int64)
    y = bg.dropout(y, 0.5, seed=step)
    bg.update(step, step + 1)
    w = bg.parameter("last", (4, 8, 1, 1), init=("constant", 0.5))
    bg.update(w, w * 0.75)
    return bg.conv2d(y, w).mean((2, 3))


@pytest.fixture(scope="module", params=["icf", "none"])
def twin(request):
    program = bg.trace(siamese, bg.Tensor[2, 3, 6, 6])
    return bg.build(program, grad=True, fusion=request.param), program.graph


TWINS = [(normal(2, 3, 6, 6, seed=i), normal(2, 4, seed=10 + i)) for i in range(3)]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_several_forwards_wait_for_their_backwards(twin, order):
    module, graph = twin
    module.init(3)
    expected, alone = [], copy.deepcopy(module)
    joint = differentiate(graph)
    for x, seed in TWINS:
        state = alone.state_dict()
        result = alone(x)
        expected.append((result, alone.backward(seed)))
        exact = run(joint, {**state, "x": x, "grad_0": seed}, "float64")
        for ours, reference in zip((result, *expected[-1][1].values()), exact.outputs, strict=True):
            assert_few_ulps(ours, reference.astype(ours.dtype))
    recorded = [module.record(x) for x, _ in TWINS]
    found = {i: module.backward(TWINS[i][1], call=recorded[i][1]) for i in order}
    for i, (result, gradients) in enumerate(expected):
        np.testing.assert_array_equal(recorded[i][0], result)
        for name, gradient in gradients.items():
            np.testing.assert_array_equal(found[i][name], gradient, err_msg=f"{i} {name}")
    for name, array in alone.state_dict().items():
        np.testing.assert_array_equal(module.state_dict()[name], array)


def test_a_changed_parameter_is_refused_by_every_call_that_reads_it(trained):
    state = trained.state_dict()
    calls = [trained.record(X, LABELS)[1] for _ in range(2)]
    trained.load_state_dict({"fc.weight": state["fc.weight"]}, strict=False)
    calls.append(trained.record(X, LABELS)[1])
    for call in calls[:2]:
        with pytest.raises(CallError, match="'fc.weight', which backward reads, was changed"):
            trained.backward(call=call)
    assert trained.backward(call=calls[2])


def test_a_call_has_one_backward_and_is_of_one_module(trained):
    call = trained.record(X, LABELS)[1]
    assert call is trained.last_call and call.pending and repr(call) == "<bngen call, pending>"
    other = copy.deepcopy(trained)
    with pytest.raises(CallError, match="this call is another module's"):
        other.backward(call=call)
    with pytest.raises(CallError, match="call='that' is no call of a module"):
        trained.backward(call="that")
    first = trained.backward(call=call)
    for again in (call, None):
        with pytest.raises(CallError, match="one (backward )?for each (forward|backward)"):
            trained.backward(call=again)
    assert not call.pending
    trained(X, LABELS)
    for name, gradient in trained.backward().items():
        np.testing.assert_array_equal(gradient, first[name])
    call = trained.record(X, LABELS)[1]
    call.release()
    call.release()
    with pytest.raises(CallError, match="this call was released"):
        trained.backward(call=call)
    with pytest.raises(CallError, match="needs a forward call first"):
        trained.backward()


def test_a_call_that_is_retained_has_another_backward(module):
    call = module.record(X, W)[1]
    free = frames(module)
    for _ in range(2):
        assert_right(module.backward(*COTANGENTS, call=call, retain=True))
        assert call.pending and frames(module) == free + 1  # of the copy, for the next one
    # What runs in between takes other memory.
    module.record(2 * X, W)
    assert_right(module.backward(*COTANGENTS, call=call))
    assert not call.pending
    with pytest.raises(CallError, match="has had its backward"):
        module.backward(*COTANGENTS, call=call, retain=True)


def test_without_a_gradient_no_call_is_kept():
    module = bg.build(bg.trace(lambda x: bg.exp(x), bg.Tensor[4]))
    module(normal(4))
    assert module.last_call is None
    with pytest.raises(CallError, match="built without gradients"):
        module.record(normal(4))


def frames(module):
    """How many frames the pool of a module holds now."""
    return len(module._calls.pending.pool._free)


def test_who_drops_a_call_gives_its_memory_back():
    module = bg.build(bg.trace(lambda x: (x * x).sum(), bg.Tensor[6]), grad=True)
    assert frames(module) == 1
    module(normal(6))
    assert frames(module) == 0
    module(normal(6))  # takes what the last one had
    assert frames(module) == 0
    held = [module.record(normal(6, seed=i))[1] for i in range(3)]
    module.backward()
    assert frames(module) == 1  # the two others wait
    cycle = [held]
    cycle.append(cycle)
    del held, cycle
    gc.collect()
    assert frames(module) == 3
    with ThreadPoolExecutor(1) as pool:
        pool.submit(module, normal(6)).result()
        assert frames(module) == 2
    gc.collect()
    assert frames(module) == 3  # with its thread
    with pytest.raises(CallError):
        module(normal(5))
    assert frames(module) == 3
    module.record(normal(6))[1].release()
    assert frames(module) == 3


@pytest.mark.parametrize("pending", [1, 3])
def test_steady_state_touches_no_fresh_pages(pending):
    """Megabytes in the arena, and in the copy of the argument; gradients into arrays that stay."""

    def net(x):
        w = bg.parameter("w", (16, 16, 1, 1))
        return bg.sigmoid(bg.conv2d(bg.exp(bg.conv2d(x, w)), w)).mean()

    shape = (4, 16, 96, 96)
    module = bg.build(bg.trace(net, bg.Tensor[shape]), grad=True).init(0)
    assert module.memory["arena"] > 4 << 20
    x, out = (
        normal(*shape),
        {"x": np.zeros(shape, np.float32), "w": np.zeros((16, 16, 1, 1), np.float32)},
    )

    def steps(count):
        for _ in range(count):
            calls = [module.record(x)[1] for _ in range(pending)]
            for call in reversed(calls):
                module.backward(call=call, out=out, accumulate=True)

    steps(3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    steps(10)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < 10 * pending, faults
    assert frames(module) == pending - 1 + (
        module.last_call is None or not module.last_call.pending
    )


# --- a backward in parts --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chain():
    def net(x, w0, w1, w2):
        for w in (w0, w1, w2):
            x = bg.relu(x @ w)
        return bg.sum(x * x)

    weight = bg.Tensor[16, 16]
    return bg.build(bg.trace(net, bg.Tensor[50, 16], weight, weight, weight), grad=True)


def _links():
    shapes = ((50, 16), *((16, 16),) * 3)
    return [torch.from_numpy(normal(*s)).clone() for s in shapes]


def test_what_a_complete_gradient_is_of_may_be_changed_at_once(chain):
    chain(*_links())
    expected = chain.backward()
    tensors = dict(zip(("x", "w0", "w1", "w2"), _links(), strict=True))
    begun, gradients = chain.begin_backward(call=chain.record(*tensors.values())[1])
    found = {}
    for spec in sorted(chain.signature.gradients, key=lambda spec: spec.done):
        chain.advance(begun, spec.done)
        found[spec.name] = gradients[spec.name].clone()
        tensors[spec.name].fill_(float("nan"))
    for name, gradient in expected.items():
        np.testing.assert_array_equal(found[name], gradient)


def test_what_the_parts_that_follow_read_must_stay(chain):
    tensors = _links()
    begun, _ = chain.begin_backward(call=chain.record(*tensors)[1])
    first, *_, last = sorted(chain.signature.gradients, key=lambda spec: spec.done)
    assert first.done < last.done
    chain.advance(begun, first.done)
    tensors[1].mul_(2)
    with pytest.raises(CallError, match="'w0', which backward reads, was modified"):
        chain.advance(begun)
    assert begun.is_over
