"""Channels-last arrays: passed, updated and delivered as they lie, with no copy between."""

from __future__ import annotations

import copy
import functools
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bngen as bg
from bngen.errors import CallError
from bngen.runtime import arguments, tensors
from bngen.runtime.argspec import ArgSpec
from bngen.runtime.arguments import Arguments, prepare
from bngen.runtime.formats import memory_shape, to_logical_order, to_memory_order

torch = pytest.importorskip("torch")
LAST = "channels_last"
SHAPE = (2, 3, 4, 5)
X = ArgSpec("x", SHAPE, "float32", memory_format=LAST)
STATE = ArgSpec("state", SHAPE, "float32", inplace=True, memory_format=LAST)
one = functools.partial(prepare, alignment=1)


def array_of(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def last(array):
    """The same values, channels-last."""
    return to_logical_order(np.ascontiguousarray(to_memory_order(array, LAST)), LAST)


def tensor_of(shape=SHAPE, seed=0):
    return torch.from_numpy(array_of(shape, seed)).to(memory_format=torch.channels_last)


# --- one argument ---------------------------------------------------------------------------------


def test_what_lies_as_declared_is_shared():
    array, tensor = last(array_of()), tensor_of()
    for value, address in ((array, array.ctypes.data), (tensor, tensor.data_ptr())):
        found, write_back = one(value, X)
        assert found.ctypes.data == address and write_back is None
        assert found.shape == (2, 4, 5, 3) and found.flags.c_contiguous
        np.testing.assert_array_equal(to_logical_order(found, LAST), np.asarray(value))


@pytest.mark.parametrize("kind", ["numpy", "torch", "list", "other strides"])
def test_anything_else_is_converted(kind):
    array = array_of()
    values = {
        "numpy": array,
        "torch": torch.from_numpy(array),
        "list": array.tolist(),
        "other strides": np.repeat(last(array), 2, axis=0)[::2],
    }
    found, write_back = one(values[kind], X)
    assert found.flags.c_contiguous and write_back is None
    assert kind == "list" or not np.shares_memory(found, np.asarray(values[kind]))
    np.testing.assert_array_equal(to_logical_order(found, LAST), array)


def test_a_channels_last_array_where_c_order_is_declared_is_converted():
    spec, array = ArgSpec("x", SHAPE, "float32"), array_of()
    for value in (last(array), tensor_of()):
        found, _ = one(value, spec)
        assert found.flags.c_contiguous and found.shape == SHAPE
        assert not np.shares_memory(found, np.asarray(value))
        np.testing.assert_array_equal(found, array)


extents = st.integers(1, 3)


@given(st.tuples(extents, extents, extents, extents), st.permutations(range(4)), st.booleans())
def test_strides_along_single_elements_do_not_matter(shape, order, in_torch):
    """Dense in PyTorch's sense is shared, whatever else it may be dense in; nothing else is."""
    value = torch.zeros([shape[a] for a in order]).permute([order.index(a) for a in range(4)])
    for memory_format in ("contiguous_format", LAST):
        dense = value.is_contiguous(memory_format=getattr(torch, memory_format))
        spec = ArgSpec("x", shape, "float32", memory_format=memory_format)
        found, _ = one(value if in_torch else value.numpy(), spec)
        assert (found.ctypes.data == value.data_ptr()) == dense
        assert found.shape == memory_shape(shape, memory_format) and found.flags.c_contiguous


@pytest.mark.parametrize("make", [array_of, lambda: last(array_of()), tensor_of])
def test_updates_arrive_whatever_the_strides(make):
    value = make()
    found, write_back = one(value, STATE)
    shared = to_memory_order(np.asarray(value), LAST).flags.c_contiguous
    assert np.shares_memory(found, np.asarray(value)) == shared
    found[...] = np.arange(found.size).reshape(found.shape)
    if write_back:
        write_back()
    np.testing.assert_array_equal(to_memory_order(np.asarray(value), LAST), found)


def test_an_update_over_another_argument_is_refused():
    memory = np.zeros((2, 4, 5, 6), np.float32)
    apart = to_logical_order(memory, LAST)
    with pytest.raises(CallError, match="share memory"):
        Arguments("net", [X, STATE], alignment=1).prepared([apart[:, :3], apart[:, 2:5]])
    Arguments("net", [X, STATE], alignment=1).prepared([apart[:, :3], apart[:, 3:]])


def test_the_wrong_shape_is_told_as_ever():
    with pytest.raises(CallError, match=r"the order is N, C, H, W: transpose it"):
        one(np.zeros((2, 4, 5, 3), np.float32), X)


# --- whole modules --------------------------------------------------------------------------------


def net(x, w, kept):
    """Results of kernels, one that is an argument, and an update in place."""
    y = bg.relu(bg.conv2d(x, w, padding=1))
    bg.update(kept, kept * 0.5 + x)
    return y, bg.max_pool2d(y, 2), x


@pytest.fixture(scope="module")
def module():
    types = bg.Tensor[2, 3, 6, 6], bg.Tensor[20, 3, 3, 3], bg.Tensor[2, 3, 6, 6]
    return bg.build(bg.trace(net, *types), grad=True, wrt=["x", "w"], memory_format=LAST)


@pytest.fixture(scope="module")
def in_c_order():
    types = bg.Tensor[2, 3, 6, 6], bg.Tensor[20, 3, 3, 3], bg.Tensor[2, 3, 6, 6]
    return bg.build(bg.trace(net, *types), grad=True, wrt=["x", "w"])


SHAPES = ((2, 3, 6, 6), (20, 3, 3, 3), (2, 3, 6, 6))
RESULTS = ((2, 20, 6, 6), (2, 20, 3, 3), (2, 3, 6, 6))


def no_copies(monkeypatch):
    """Copies of arguments are an error from here on."""
    for room, name in ((arguments, "_copy"), (tensors, "_dense"), (arguments, "_converted")):
        monkeypatch.setattr(room, name, lambda *_, name=name: pytest.fail(f"{name} was called"))


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_no_argument_is_copied_and_all_results_lie_as_declared(
    library, monkeypatch, module, in_c_order
):
    wrap = torch.from_numpy if library == "torch" else np.asarray
    given_ = [last(array_of(s, i)) for i, s in enumerate(SHAPES)]
    cotangents = [last(array_of(s, i)) for i, s in enumerate(RESULTS)]
    plain_args = [np.ascontiguousarray(a) for a in given_]
    expected = in_c_order(*plain_args)
    expected_gradients = in_c_order.backward(*map(np.ascontiguousarray, cotangents))
    no_copies(monkeypatch)
    kept = given_[2].ctypes.data
    results = module(*map(wrap, given_))
    gradients = module.backward(*map(wrap, cotangents))
    assert given_[2].ctypes.data == kept
    np.testing.assert_array_equal(given_[2], plain_args[2])
    for ours, theirs in zip((*results, *gradients.values()),
                            (*expected, *expected_gradients.values()), strict=True):  # fmt: skip
        np.testing.assert_array_equal(np.asarray(ours), theirs)
        if library == "torch":
            assert ours.is_contiguous(memory_format=torch.channels_last)
        assert to_memory_order(np.asarray(ours), LAST).flags.c_contiguous


def test_zeros_that_stand_for_no_gradient_are_not_converted(module, in_c_order, monkeypatch):
    in_c_order(*(array_of(s, i) for i, s in enumerate(SHAPES)))
    expected = in_c_order.backward(array_of(RESULTS[0]), None, None)
    given_ = [last(array_of(s, i)) for i, s in enumerate(SHAPES)]
    no_copies(monkeypatch)
    module(*given_)
    for name, gradient in module.backward(last(array_of(RESULTS[0])), None, None).items():
        np.testing.assert_array_equal(gradient, expected[name])


@pytest.mark.parametrize("accumulate", [False, True])
def test_gradients_go_straight_into_arrays_that_lie_as_their_inputs(accumulate, module):
    """And into those that lie otherwise by a copy."""
    given_ = [last(array_of(s, i)) for i, s in enumerate(SHAPES)]
    cotangents = [last(array_of(s, i)) for i, s in enumerate(RESULTS)]
    module(*given_)
    expected = module.backward(*cotangents)
    for lay in (np.array, last):
        out = {n: lay(np.ones(s, np.float32)) for n, s in zip("xw", SHAPES, strict=False)}
        module(*given_)
        found = module.backward(*cotangents, out=out, accumulate=accumulate)
        for name, array in out.items():
            assert found[name] is array
            np.testing.assert_array_equal(array, expected[name] + np.float32(accumulate))


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_backward_reads_what_forward_was_given(library, module):
    """What it reads of the arguments is borrowed or copied in their own order."""
    wrap = torch.from_numpy if library == "torch" else np.asarray
    found = []
    for lay in (np.array, last):
        arrays = [lay(array_of(s, i)) for i, s in enumerate(SHAPES)]
        module(*map(wrap, arrays))
        if library == "numpy":
            arrays[0][...] = 7  # as a loader fills it with the next batch
        cotangents = [lay(array_of(s, i)) for i, s in enumerate(RESULTS)]
        found.append(module.backward(*map(wrap, cotangents)))
    for name in found[0]:
        np.testing.assert_array_equal(np.asarray(found[0][name]), np.asarray(found[1][name]))


def test_what_lies_otherwise_gives_the_same(module):
    first = module(*(array_of(s, i) for i, s in enumerate(SHAPES)))
    again = module(*(last(array_of(s, i)) for i, s in enumerate(SHAPES)))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_results_are_the_callers(module):
    given_ = [last(array_of(s, i)) for i, s in enumerate(SHAPES)]
    results = module(*given_)
    assert not any(np.shares_memory(r, a) for r in results for a in given_)


@pytest.mark.parametrize("shape", [(2, 16, 1, 1), (2, 1, 4, 4), (1, 1, 1, 1), (1, 16, 4, 4)])
def test_results_of_single_pixels_and_channels_have_pytorchs_strides(shape):
    """So that what PyTorch makes of them is channels-last again."""
    graph = bg.trace(lambda x: (bg.relu(x), x), bg.Tensor[shape]).graph
    mod = bg.build(graph, memory_format=LAST)
    x = torch.randn(shape)
    for result in mod(x):
        wanted = torch.empty(shape, memory_format=torch.channels_last)
        assert result.stride() == wanted.stride()
    torch.testing.assert_close(mod(x)[0], torch.relu(x), rtol=0, atol=0)


def test_one_format_a_name():
    """Formats that differ from array to array, and results that are an input in another order."""
    graph = bg.trace(lambda x, y: (x, x, x + y), bg.Tensor[2, 9, 4, 5], bg.Tensor[2, 9, 4, 5]).graph
    mod = bg.build(graph, memory_format={"x": LAST, "return.1": LAST})
    x, y = array_of((2, 9, 4, 5), 1), array_of((2, 9, 4, 5), 2)
    first, second, third = mod(last(x), y)
    assert first.flags.c_contiguous and third.flags.c_contiguous
    assert to_memory_order(second, LAST).flags.c_contiguous
    for found, wanted in ((first, x), (second, x), (third, x + y)):
        np.testing.assert_array_equal(found, wanted)


# --- parameters -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    """A training step whose weights are channels-last."""

    def loss(x: bg.Tensor[2, 3, 6, 6], labels: bg.Tensor[2, bg.int64]):
        y = bg.relu(bg.layers.conv2d(x, "few", 12, 3, padding=1, bias=False))
        y = bg.layers.conv2d(y, "many", 7, 3, bias=False)
        return bg.cross_entropy(y.mean((2, 3)), labels)

    step = bg.training_step(bg.program(loss), bg.SGD(lr=0.1, momentum=0.9))
    return [bg.build(step, memory_format=given_) for given_ in (None, LAST)]


def test_a_training_step_updates_channels_last_weights(trained):
    """The same bits as in C order, step after step, from one seed."""
    x, labels = array_of((2, 3, 6, 6)), np.array([1, 4])
    c_order, ours = (mod.init(0) for mod in trained)
    for _ in range(3):
        assert c_order(x, labels) == ours(last(x), labels)
    wanted, state = c_order.state_dict(), ours.state_dict()
    for name, array in state.items():
        np.testing.assert_array_equal(array, wanted[name], err_msg=name)
    weights = [array for array in state.values() if array.ndim == 4]
    assert len(weights) == 4
    assert all(to_memory_order(a, LAST).flags.c_contiguous for a in weights)


def test_a_state_of_any_strides_is_taken(trained):
    c_order, ours = trained
    state = c_order.init(3).state_dict()
    tensors = {
        name: torch.from_numpy(a).to(memory_format=torch.channels_last) if a.ndim == 4 else a
        for name, a in state.items()
    }
    for given_ in (state, tensors):
        ours.init(4).load_state_dict(given_)
        for name, array in ours.state_dict().items():
            np.testing.assert_array_equal(array, state[name], err_msg=name)


@pytest.mark.parametrize("make", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_has_the_same_formats(make, trained):
    x, labels = last(array_of((2, 3, 6, 6))), np.array([1, 4])
    ours = trained[1].init(0)
    copied = make(ours)
    assert copied.signature == ours.signature
    assert copied(x, labels) == ours(x, labels)


# --- as data --------------------------------------------------------------------------------------


def test_the_manifest_lists_formats(module, in_c_order):
    signature = module.manifest()["signature"]
    assert {a["memory_format"] for a in signature["arguments"]} == {LAST}
    assert {o["memory_format"] for o in signature["outputs"]} == {LAST}
    assert {a["memory_format"] for a in in_c_order.manifest()["signature"]["arguments"]} == {
        "contiguous_format"
    }
