"""Activations in networks: right at kinks and in tails, and no map of memory dearer than ReLU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import bngen as bg
from tests.compiled import check
from tests.oracle import assert_close, assert_same

ACTIVATIONS = {
    "hardsigmoid": (bg.hardsigmoid, lambda x: F.relu6(x + 3) / 6),
    "hardswish": (bg.hardswish, F.hardswish),
    "gelu": (bg.gelu, F.gelu),
    "gelu tanh": (lambda x: bg.gelu(x, "tanh"), lambda x: F.gelu(x, approximate="tanh")),
    "elu": (lambda x: bg.elu(x, 0.5), lambda x: F.elu(x, 0.5)),
    "celu": (lambda x: bg.celu(x, 2.0), lambda x: F.celu(x, 2.0)),
    "selu": (bg.selu, F.selu),
    "softplus": (lambda x: bg.softplus(x, 2, 5), lambda x: F.softplus(x, 2, 5)),
    "logsigmoid": (bg.logsigmoid, F.logsigmoid),
    "mish": (bg.mish, F.mish),
    "prelu": (
        lambda x: bg.prelu(x, bg.constant([0.25], x.dtype)),
        lambda x: F.prelu(x, torch.tensor([0.25], dtype=x.dtype)),
    ),
    "clamp": (lambda x: bg.clamp(x, -1, 3), lambda x: torch.clamp(x, -1, 3)),
    "softsign": (bg.softsign, F.softsign),
    "tanhshrink": (bg.tanhshrink, F.tanhshrink),
    "hardshrink": (lambda x: bg.hardshrink(x, 1.0), lambda x: F.hardshrink(x, 1.0)),
    "softshrink": (lambda x: bg.softshrink(x, 1.0), lambda x: F.softshrink(x, 1.0)),
    "expm1": (bg.expm1, torch.expm1),
}
"""bngen's and PyTorch's; of hardsigmoid PyTorch's own float64 gradient is a float32 sixth."""

KINKS = (0.0, -0.0, 1.0, -1.0, 3.0, -3.0, 0.5, -0.5, 6.0, 2.5, 1e-30, -1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_at_kinks_and_in_tails(dtype):
    """Function and gradient, by the tolerance rule on each stretch of arguments."""
    rng = np.random.default_rng(0)
    ranges = ((-1, 1), (-8, -2), (2, 8), (-60, -20), (20, 60))
    x = np.stack([KINKS, *(rng.uniform(a, b, len(KINKS)) for a, b in ranges)]).astype(dtype)

    def every(t):
        return tuple(ours(t) for ours, _ in ACTIVATIONS.values())

    module = bg.build(bg.trace(every, bg.Tensor(x.shape, dtype)), grad=True)
    for i, (name, (_, theirs)) in enumerate(ACTIVATIONS.items()):
        y = module(x)[i]
        cotangents = [np.full(x.shape, float(j == i), dtype) for j in range(len(ACTIVATIONS))]
        (dx,) = module.backward(*cotangents).values()
        results = []
        for kind in (torch.float32, torch.float64):
            leaf = torch.tensor(x, dtype=kind, requires_grad=True)
            out = theirs(leaf)
            out.sum().backward()
            results.append((out.detach().numpy(), leaf.grad.numpy()))
        for row in range(len(x)):
            for ours, single, double in zip((y, dx), *results, strict=True):
                what = f"{name} of {x[row]}"
                if dtype == "float32":
                    assert_close(ours[row], single[row], double[row], what)
                else:  # of which nothing more exact says how far PyTorch is off
                    assert_same(ours[row], double[row], what, rtol=1e-11)


def network(activations):
    """One activation after another between convolutions, normalized."""

    def net(x):
        for i, activation in enumerate(activations):
            with bg.scope(f"block{i}"):
                x = bg.layers.conv2d(x, "conv", 20, 1, bias=False)
                x = activation(bg.layers.batch_norm(x, "norm"))
        return bg.layers.conv2d(x, "last", 4, 1)

    return bg.trace(net, bg.Tensor[2, 20, 6, 6])


def prelu(x):
    return bg.prelu(x, bg.parameter("slope", x.shape[1], init=0.25))


FUSED = [bg.hardswish, bg.gelu, bg.elu, bg.mish, prelu]


def test_none_keeps_a_map_of_its_own():
    memory = [bg.build(network([f] * 2), grad=True).memory for f in (bg.relu, bg.gelu)]
    assert memory[0]["saved"] == memory[1]["saved"]


def test_fused_between_normalization_and_convolutions():
    graph = network(FUSED).graph
    rng = np.random.default_rng(0)
    args = {i.name: rng.standard_normal(i.value.shape).astype(i.value.dtype) for i in graph.inputs}
    args |= {n: np.abs(a) + 0.5 for n, a in args.items() if n.endswith("running_var")}
    args |= {n: np.abs(a) for n, a in args.items() if n.endswith("num_batches_tracked")}
    check(graph, args)
