"""SGD as a function of the program against torch.optim.SGD, several steps."""

import numpy as np
import pytest
import torch

import bngen as bg
from bngen.ir.interp import run
from tests.lang.meaning import normal
from tests.oracle import assert_few_ulps

SETTINGS = [
    {},
    {"weight_decay": 0.1},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
]


def _step(lr_is_tensor, **settings):
    """A program that updates ``w`` and ``buf`` in place; the rate is its argument or a number."""

    def f(w, buf, grad, lr):
        buffer = buf if settings.get("momentum") else None
        new, new_buffer = bg.sgd(w, grad, buffer, lr if lr_is_tensor else 0.1, **settings)
        bg.update(w, new)
        if new_buffer is not None:
            bg.update(buf, new_buffer)
        return new

    shape = bg.Tensor[4, 3, bg.float64]
    return bg.trace(f, shape, shape, shape, bg.Tensor[bg.float64]).graph


def _compare(graph, settings, buf):
    w = normal(4, 3)
    parameter = torch.nn.Parameter(torch.tensor(w))
    optimizer = torch.optim.SGD([parameter], lr=0.1, **settings)
    for step in range(4):
        grad = normal(4, 3, seed=step + 1)
        result = run(graph, {"w": w, "buf": buf, "grad": grad, "lr": np.float64(0.1)})
        w, buf = result.updates["w"], result.updates.get("buf", buf)
        parameter.grad = torch.tensor(grad)
        optimizer.step()
        assert_few_ulps(w, parameter.detach(), each=True, least=1.0)


@pytest.mark.parametrize("lr_is_tensor", [False, True])
@pytest.mark.parametrize("settings", SETTINGS)
def test_sgd(settings, lr_is_tensor):
    _compare(_step(lr_is_tensor, **settings), settings, np.zeros((4, 3)))


def test_sgd_with_dampening_from_the_documented_start():
    settings = {"momentum": 0.8, "dampening": 0.5}
    _compare(_step(False, **settings), settings, 0.5 / 0.8 * normal(4, 3, seed=1))


def test_sgd_in_float32_stays_float32():
    def f(w, g, lr):
        return bg.sgd(w, g, lr=lr)[0]

    vector = bg.Tensor[3]
    assert bg.trace(f, vector, vector, bg.Tensor[bg.float64]).graph.outputs[0].dtype == "float32"
