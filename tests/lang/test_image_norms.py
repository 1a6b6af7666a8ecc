"""Normalizations of each image by itself against PyTorch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import bngen as bg
from bngen.ir.interp import run
from tests.lang.meaning import agree, evaluate, normal
from tests.oracle import assert_few_ulps


def both(name, *args, **kwargs):
    ours, theirs = getattr(bg, name), getattr(F, name)
    return (lambda *t: ours(t[0], *args, *t[1:], **kwargs)), (
        lambda *t: theirs(t[0], *args, *t[1:], **kwargs)
    )


@pytest.mark.parametrize("shape", [(2, 6), (2, 6, 5), (2, 6, 4, 3), (2, 6, 2, 2, 3)])
@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("affine", [0, 1, 2])
def test_group_norm(shape, groups, affine):
    vectors = [normal(6, seed=1), normal(6, seed=2)][:affine]
    agree(*both("group_norm", groups, eps=1e-3), 3 * normal(*shape) + 2, *vectors, sums=True)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("affine", [0, 1, 2])
def test_layer_norm(shape, affine):
    vectors = [normal(*shape, seed=1), normal(*shape, seed=2)][:affine]
    agree(*both("layer_norm", shape), 3 * normal(2, 3, 4) + 2, *vectors, sums=True)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 3), (2, 3, 2, 2, 2)])
def test_instance_norm(shape, training):
    x, mean, var = 3 * normal(*shape) + 2, normal(3), np.abs(normal(3, seed=1))
    kwargs = {"use_input_stats": training, "momentum": 0.3, "eps": 1e-3}
    agree(*both("instance_norm", **kwargs), x, mean, var, normal(3, seed=2), sums=True)
    _, updates = evaluate(lambda x, m, v: bg.instance_norm(x, m, v, **kwargs), x, mean, var)
    m, v = torch.tensor(mean), torch.tensor(var)
    F.instance_norm(torch.tensor(x), m, v, **kwargs)
    assert set(updates) == ({"m", "v"} if training else set())
    for name, new in updates.items():
        assert_few_ulps(new, {"m": m, "v": v}[name])


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_local_response_norm(size):
    agree(*both("local_response_norm", size, 0.3, 0.6, 2.0), normal(2, 6, 3, 4), sums=True)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_normalize(dim):
    x = normal(3, 4, 5)
    x[0] = 0
    agree(*both("normalize", dim=dim), x)


def test_the_gradient_of_a_vector_of_zeros_is_pytorchs():
    x = normal(3, 4)
    x[1] = 0
    program = bg.trace(lambda x: (bg.normalize(x) * 2).sum(), bg.Tensor(x.shape, "float64"))
    ours = run(bg.value_and_grad(program).graph, {"x": x}).outputs[-1]
    t = torch.tensor(x, requires_grad=True)
    (F.normalize(t) * 2).sum().backward()
    assert_few_ulps(ours, t.grad)


@pytest.mark.parametrize("shape", [(2, 3, 6), (2, 3, 2, 2, 2)])
def test_batch_norm_of_other_ranks_goes_over_a_map(shape):
    fn = bg.trace(
        lambda x: bg.batch_norm(x, None, None, training=True), bg.Tensor(shape, "float64")
    )
    (node,) = (n for n in fn.graph.nodes if n.op == "batch_norm")
    assert len(node.inputs[0].shape) == 4
