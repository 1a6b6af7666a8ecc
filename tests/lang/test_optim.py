"""Optimizers and clipping as functions of the program against PyTorch's, several steps."""

from inspect import signature

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
    {"momentum": 0.9, "maximize": True, "weight_decay": 0.01},
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


ADAPTIVE = [
    ("Adam", {}),
    ("Adam", {"betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1, "maximize": True}),
    ("Adam", {"amsgrad": True, "betas": (0.0, 0.3)}),
    ("Adam", {"decoupled_weight_decay": True, "weight_decay": 0.1}),
    ("AdamW", {}),
    ("AdamW", {"amsgrad": True, "weight_decay": 0.5, "maximize": True}),
    ("RMSprop", {}),
    ("RMSprop", {"alpha": 0.5, "eps": 1e-3, "weight_decay": 0.1, "maximize": True}),
    ("RMSprop", {"centered": True, "momentum": 0.9}),
]


HOW = {"params", "foreach", "fused", "capturable", "differentiable"}
"""Options of PyTorch's that say how a step is computed, not what."""


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_options_are_those_of_pytorch(kind):
    ours, theirs = (signature(getattr(room, kind)).parameters for room in (bg, torch.optim))
    assert ours.keys() == theirs.keys() - HOW
    assert all(ours[name].default == theirs[name].default for name in ours)


@pytest.mark.parametrize("lr_is_tensor", [False, True])
@pytest.mark.parametrize(("kind", "settings"), ADAPTIVE, ids=str)
def test_adaptive_optimizers(kind, settings, lr_is_tensor):
    """As `training_step` uses them: state by name, steps counted."""
    ours = getattr(bg, kind)(lr=None if lr_is_tensor else 0.1, **settings)

    def f(w, grad, lr):
        kept = {n: bg.buffer(n, w.shape, w.dtype) for n in ours.keeps}
        taken = bg.buffer("steps", (), bg.int64)
        new, made = ours.step(w, grad, kept, lr if lr_is_tensor else 0.1, taken)
        assert made.keys() == kept.keys()
        for target, value in ((w, new), (taken, taken + 1), *((kept[n], made[n]) for n in made)):
            bg.update(target, value)
        return new

    matrix = bg.Tensor[4, 3, bg.float64]
    graph = bg.trace(f, matrix, matrix, bg.Tensor[bg.float64]).graph
    held = {i.name: np.zeros(i.value.shape, i.value.dtype) for i in graph.inputs}
    held |= {"w": normal(4, 3), "lr": np.float64(0.1)}
    parameter = torch.nn.Parameter(torch.tensor(held["w"]))
    optimizer = getattr(torch.optim, kind)([parameter], lr=0.1, **settings)
    for step in range(5):
        held["grad"] = normal(4, 3, seed=step + 1)
        held |= run(graph, held).updates
        parameter.grad = torch.tensor(held["grad"])
        optimizer.step()
        assert_few_ulps(held["w"], parameter.detach(), each=True, least=1.0)
    for name, kept in optimizer.state[parameter].items():
        if name in ours.keeps:
            assert_few_ulps(held[name], kept, name, each=True, least=1.0)
    assert held["steps"] == 5


@pytest.mark.parametrize("order", [2.0, 1.0, np.inf])
@pytest.mark.parametrize("most", [0.5, 1e3])
def test_clipping(order, most):
    given = {"a": normal(4, 3, 2), "b": normal(5), "c": normal()}
    types = {n: bg.Tensor(g.shape, bg.float64) for n, g in given.items()}

    def f(a, b, c):
        grads = {"a": a, "b": b, "c": c}
        scaled, norm = bg.clip_grad_norm(grads, most, order)
        return *scaled.values(), *bg.clip_grad_value(grads, most).values(), norm

    *ours, norm = run(bg.trace(f, *types.values()).graph, given).outputs
    for i, clip in enumerate((torch.nn.utils.clip_grad_norm_, torch.nn.utils.clip_grad_value_)):
        leaves = [torch.zeros(g.shape, dtype=torch.float64) for g in given.values()]
        for leaf, g in zip(leaves, given.values(), strict=True):
            leaf.grad = torch.tensor(g)
        total = clip(leaves, most, **({"norm_type": order} if i == 0 else {}))
        for clipped, leaf in zip(ours[3 * i :][:3], leaves, strict=True):
            np.testing.assert_allclose(clipped, leaf.grad, rtol=3e-7)  # by a float32 norm
        if i == 0:
            np.testing.assert_allclose(norm, total, rtol=1e-7)


def test_the_last_update_holds_and_latest_tells_it():
    def count(total, x):
        bg.update(total, bg.latest(total) + x)

    def f(x):
        total = bg.buffer("total", ())
        count(total, x)
        count(total, x * 2)
        return total, bg.latest(total)

    result = run(bg.trace(f, bg.Tensor[()]).graph, {"x": np.float32(3), "total": np.float32(1)})
    assert [float(y) for y in result.outputs] == [1.0, 10.0]
    assert float(result.updates["total"]) == 10.0
