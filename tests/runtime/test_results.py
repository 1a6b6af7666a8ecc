"""Gradients where the caller wants them: written or added, in any memory, or refused at once."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import bngen as bg
from bngen.binding import SMALL
from bngen.errors import CallError
from bngen.ir.text import parse_graph
from bngen.runtime.memory import empty_aligned

ROWS, COLUMNS = 96, 64  # more than what shares memory with others


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.fixture(scope="module")
def module():
    """Two large gradients, and two that share memory with others of their call."""

    def net(x, y, v, z):
        return x * y * v + 2.0 * z.sum().reshape(1, 1), y

    types = [bg.Tensor[ROWS, COLUMNS]] * 2 + [bg.Tensor[COLUMNS], bg.Tensor[3]]
    return bg.build(bg.trace(net, *types), grad=True)


ARGS = normal(ROWS, COLUMNS), normal(ROWS, COLUMNS, seed=1), normal(COLUMNS, seed=2), normal(3)
SEEDS = normal(ROWS, COLUMNS, seed=3), normal(ROWS, COLUMNS, seed=4)
SHAPES = {"x": (ROWS, COLUMNS), "y": (ROWS, COLUMNS), "v": (COLUMNS,), "z": (3,)}


@pytest.fixture(scope="module")
def gradients(module):
    assert 4 * ROWS * COLUMNS > SMALL
    module(*ARGS)
    found = module.backward(*SEEDS)
    np.testing.assert_allclose(found["x"], SEEDS[0] * ARGS[1] * ARGS[2], rtol=1e-5)
    assert list(found) == list(SHAPES)
    return found


def aligned(shape):
    return empty_aligned(shape, "float32")


def misaligned(shape):
    return np.empty(4 * int(np.prod(shape)) + 1, np.uint8)[1:].view(np.float32).reshape(shape)


def strided(shape):
    return np.empty((*shape, 2), np.float32)[..., 1]


def reversed_(shape):
    return np.empty(shape, np.float32)[::-1]


def swapped(shape):
    return np.empty(shape, np.dtype("float32").newbyteorder())


def tensor(shape):
    return torch.empty(shape)


def transposed(shape):
    return torch.empty(shape[::-1]).permute(*reversed(range(len(shape))))


def parameter(shape):
    return torch.nn.Parameter(torch.empty(shape), requires_grad=False)


KINDS = [aligned, misaligned, strided, reversed_, swapped, tensor, transposed, parameter]


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("names", [("x",), ("v", "z"), ("x", "y", "v", "z")], ids="-".join)
@pytest.mark.parametrize("kind", KINDS, ids=lambda f: f.__name__)
def test_gradients_go_where_the_caller_wants_them(module, gradients, kind, names, accumulate):
    out = {name: kind(SHAPES[name]) for name in names}
    for array in out.values():
        array[...] = np.nan if not accumulate else 0.5
        if isinstance(array, torch.Tensor):
            version = array._version
    for times in (1, 2):
        module(*ARGS)
        found = module.backward(*SEEDS, out=out, accumulate=accumulate)
        for name, gradient in gradients.items():
            expected = gradient
            if name in out:
                assert found[name] is out[name]
                for _ in range(times if accumulate else 0):
                    expected = (np.float32(0.5) if expected is gradient else expected) + gradient
            np.testing.assert_array_equal(np.asarray(found[name]), expected, err_msg=name)
    if isinstance(array, torch.Tensor):
        assert array._version > version


def test_kernels_write_straight_into_the_callers_memory(module, gradients):
    module._calls._gradients._scratch.clear()
    out = {"x": aligned(SHAPES["x"]), "y": aligned(SHAPES["y"])}
    module(*ARGS)
    module.backward(*SEEDS, out=out)
    assert not module._calls._gradients._scratch
    out["x"] = strided(SHAPES["x"])
    module(*ARGS)
    module.backward(*SEEDS, out={"v": aligned(SHAPES["v"]), **out}, accumulate=True)
    scratch = dict(module._calls._gradients._scratch)
    assert scratch
    module(*ARGS)
    module.backward(*SEEDS, out=out, accumulate=True)
    assert all(module._calls._gradients._scratch[slot] is a for slot, a in scratch.items())


def test_an_array_that_is_also_read_is_written_last(module, gradients):
    """Out over a tensor that backward reads, and over a gradient that it is given."""
    x, y, v, z = map(torch.tensor, ARGS)
    first, second = map(torch.tensor, SEEDS)
    module(x, y, v, z)
    module.backward(first, second, out={"x": y, "y": first})
    np.testing.assert_array_equal(y, gradients["x"])
    np.testing.assert_array_equal(first, gradients["y"])


def test_another_call_that_has_borrowed_what_is_written_is_refused(module, gradients):
    tensors = [torch.tensor(a) for a in ARGS]
    (_, waiting), (_, other) = (module.record(*tensors) for _ in range(2))
    module.backward(*SEEDS, call=other, out={"x": tensors[1]})
    np.testing.assert_array_equal(tensors[1], gradients["x"])
    with pytest.raises(CallError, match="'y', which backward reads, was modified by an inplace"):
        module.backward(*SEEDS, call=waiting)


def frozen(shape):
    array = np.zeros(shape, np.float32)
    array.flags.writeable = False
    return array


REFUSED = {
    "no dict": ([1], "out is a dict of arrays by name, not a list"),
    "no gradient": ({"w": normal(3)}, "out names 'w', of which there is no gradient"),
    "a shape": ({"x": normal(3)}, "'out[x]' has rank 1, shape (3,); expected rank 2"),
    "a type": ({"z": np.zeros(3)}, "'out[z]' is float64, expected float32"),
    "read-only": ({"z": frozen(3)}, "'out[z]' is updated in place, but it is read-only"),
    "a list": ({"z": [0.0] * 3}, "'out[z]' is updated in place, which a list cannot be"),
    "itself": (
        {"z": np.broadcast_to(np.zeros(1, np.float32), 3)},
        "'out[z]' is updated in place, but it is read-only",
    ),
    "one element": (
        {"z": torch.zeros(1).expand(3)},
        "'out[z]' is updated in place, but its elements share memory",
    ),
    "a leaf": ({"z": torch.zeros(3, requires_grad=True)}, "'out[z]' requires grad"),
    "elsewhere": ({"z": torch.zeros(3, device="meta")}, "'out[z]' is on meta"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_take_a_gradient_is_refused_before_anything_runs(module, gradients, case):
    out, what = REFUSED[case]
    good = aligned(SHAPES["v"])
    good[:] = 7
    module(*ARGS)
    with pytest.raises(CallError, match=re.escape(what)):
        module.backward(*SEEDS, out={"v": good, **out} if isinstance(out, dict) else out)
    assert (good == 7).all()
    np.testing.assert_array_equal(module.backward(*SEEDS)["x"], gradients["x"])


def test_arrays_that_share_memory_are_refused(module):
    both = np.zeros((ROWS + 1, COLUMNS), np.float32)
    module(*ARGS)
    with pytest.raises(CallError, match=re.escape("'out[x]' and 'out[y]' share memory")):
        module.backward(*SEEDS, out={"x": both[:-1], "y": both[1:]})
    assert not both.any()


def test_accumulating_onto_nothing_is_refused(module):
    module(*ARGS)
    with pytest.raises(CallError, match="accumulate onto what"):
        module.backward(*SEEDS, accumulate=True)


# --- gradients of results that are left out ---------------------------------------------------


def test_none_is_zeros(module):
    zeros = np.zeros((ROWS, COLUMNS), np.float32)
    for given in ((None, SEEDS[1]), (SEEDS[0], None), (None, None)):
        module(*ARGS)
        expected = module.backward(*(zeros if seed is None else seed for seed in given))
        module(*ARGS)
        found = module.backward(*given)
        for name, gradient in found.items():
            np.testing.assert_array_equal(gradient, expected[name])
    module(*ARGS)
    with pytest.raises(CallError, match=r"takes 2 gradients, got 1 .*None for zeros"):
        module.backward(None)
    made = dict(module._calls._cotangents._constants)
    module.backward(None, None)
    assert all(module._calls._cotangents._constants[key] is array for key, array in made.items())


def test_a_result_that_is_returned_twice_and_is_a_gradient_too():
    """Each is memory of its own: what the caller does to one is seen in no other."""

    def net(x):
        half = x * 0.0 + 0.5
        return x, x, half, half, x.sum()

    module = bg.build(bg.trace(net, bg.Tensor[4]), grad=True)
    x = normal(4)
    results = module(x)
    for i, result in enumerate(results[:4]):
        np.testing.assert_array_equal(result, [x, x, 0.5, 0.5][i])
        result[...] = i
    assert [float(r[0]) for r in results[:4]] == [0, 1, 2, 3]
    seeds = [np.full(4, i, np.float32) for i in range(4)]
    gradient = module.backward(*seeds, np.float32(10))["x"]
    np.testing.assert_array_equal(gradient, np.full(4, 11))


# --- programs of which there is little to differentiate ---------------------------------------


def test_no_gradients_are_asked_for():
    program = bg.trace(lambda x: (bg.exp(x), (x > 0.0)), bg.Tensor[4])
    module = bg.build(program, grad=True, wrt=[])
    x = normal(4)
    result, call = module.record(x)
    np.testing.assert_allclose(result[0], np.exp(x), rtol=1e-6)
    assert module.backward(x, call=call) == {}
    with pytest.raises(CallError, match="one backward for each"):
        module.backward(x, call=call)
    module(x)
    assert module.backward(None, out={}) == {}


def test_a_program_without_floating_point_results():
    with pytest.warns(UserWarning, match="no output depends on 'x'"):
        module = bg.build(bg.trace(lambda x: x > 0.0, bg.Tensor[4]), grad=True)
    module(normal(4))
    out = np.ones(4, np.float32)
    assert module.backward(out={"x": out}, accumulate=True)["x"] is out
    np.testing.assert_array_equal(out, np.ones(4))
    module(normal(4))
    np.testing.assert_array_equal(module.backward()["x"], np.zeros(4))


def test_cotangents_that_do_not_matter():
    program = bg.trace(lambda x, y: (x * 1.0, bg.stop_gradient(y)), bg.Tensor[4], bg.Tensor[4])
    module = bg.build(program, grad=True, wrt=["x"])
    module(normal(4), normal(4))
    ones = np.ones(4, np.float32)
    np.testing.assert_array_equal(module.backward(ones, normal(4))["x"], ones)


@pytest.mark.parametrize("make, empty", [(bg.grad, {}), (bg.value_and_grad, (10.0, {}))])
def test_programs_of_no_gradients(make, empty):
    program = make(bg.trace(lambda x: x.sum(), bg.Tensor[4]), wrt=[])
    assert bg.build(program)(np.full(4, 2.5, np.float32)) == empty
    again = bg.trace(lambda x: (x, program(x))[0], bg.Tensor[4])
    assert len(again.graph.outputs) == 1
    read = bg.Program.from_graph(parse_graph(str(program.graph)))
    assert bg.build(read)(np.full(4, 2.5, np.float32)) == empty


def test_a_program_whose_only_result_is_called_value():
    program = bg.trace(lambda x: {"value": x * 2.0}, bg.Tensor[2])
    assert list(bg.build(program)(np.ones(2, np.float32))) == ["value"]
