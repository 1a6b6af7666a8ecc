"""Methods of tensors: they are the functions of their names, and `torch.Tensor` has them, too."""

import inspect

import numpy as np
import pytest
import torch

import bngen as bg
from bngen.ir.interp import run
from bngen.lang.methods import METHODS
from bngen.lang.tensor import Tensor

NOT_METHODS = {"equal": "of whole tensors there", "grad": "an attribute there"}


def functions():
    """Names of the language's functions whose first argument is a tensor."""
    for name in bg.__all__:
        made = getattr(bg, name)
        if inspect.isfunction(made) and made.__module__.startswith("bngen.lang."):
            yield name


def test_what_is_a_method_in_pytorch_is_one_here():
    own = {n for n in dir(Tensor) if not n.startswith("_")}
    theirs = {n for n in functions() if hasattr(torch.Tensor, n)}
    assert theirs - own - METHODS.keys() == NOT_METHODS.keys()
    assert not {n for n in METHODS if not hasattr(torch.Tensor, n)}
    assert not own & METHODS.keys(), "defined twice"


CALLS = {
    "permute": lambda x: x.permute(2, 0, 1),
    "flip": lambda x: x.flip(1, 2),
    "chunk": lambda x: x.chunk(2, 1)[1],
    "expand": lambda x: x.unsqueeze(0).expand(3, -1, -1, -1),
    "compare": lambda x: x.gt(0).logical_and(x.ne(1)),
    "where": lambda x: x.where(x.lt(0.5), 2.0),
    "clamp": lambda x: x.clamp(-0.5, max=0.5),
    "softmax": lambda x: x.softmax(1).argmax(1),
    "split": lambda x: x.split([1, 3], dim=2)[1],
    "prod": lambda x: x.prod(1, True),
    "fmod": lambda x: x.fmod(0.3),
    "matmul": lambda x: x.narrow(0, 0, 1).squeeze(0).matmul(x.unbind(0)[1].t()),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_calls_mean_what_they_do_in_pytorch(call):
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    graph = bg.trace(call, bg.Tensor(x.shape, "float64")).graph
    (found,) = run(graph, {graph.inputs[0].name: x}).outputs
    np.testing.assert_allclose(found, call(torch.tensor(x)).numpy(), rtol=1e-12)


def test_the_product_of_zeros_has_a_gradient():
    x = np.array([[2.0, 0.0, 3.0], [0.0, 0.0, 5.0], [1.0, 2.0, 4.0]])
    joint = bg.grad(bg.trace(lambda x: x.prod(1).sum(), bg.Tensor((3, 3), bg.float64)))
    (grads,) = run(joint.graph, {joint.graph.inputs[0].name: x}).outputs
    theirs = torch.tensor(x, requires_grad=True)
    theirs.prod(1).sum().backward()
    np.testing.assert_array_equal(grads, theirs.grad.numpy())


def test_a_method_that_is_not_there():
    with pytest.raises(bg.ProgramError, match="no attribute 'permut'.*did you mean permute"):
        _ = bg.trace(lambda x: x.permut(1, 0), bg.Tensor[2, 2]).graph
