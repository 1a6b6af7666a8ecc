"""In-place calls made functional: bit for bit what eager gives, and followed where eager's are."""

import copy

import pytest
import torch
from torch import fx

from bngen.torch_bridge.evaluation import evaluate
from bngen.torch_bridge.functional import functionalize
from bngen.torch_bridge.places import CALLS, called

X = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
DOUBLE = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64).view(3, 1, 1)


def subtracted(x):
    y = x * 1
    y -= DOUBLE
    return y


def cut_off(x):
    y = x * 2
    z = y + 1
    y.detach_()
    return y * 3, z


FUNCTIONAL = {
    "of another type": subtracted,
    "a comparison": lambda x: (x.detach() * 1).gt_(0) * x,
    "of integers": lambda x: x.round().long().eq_(1),
    "logic": lambda x: x.detach().relu().logical_not_(),
    "division": lambda x: (x.detach() * 1).div_(0.3, rounding_mode="floor"),
    "axes": lambda x: (x * 1).transpose_(2, 3).unsqueeze_(0) + 1,
    "cut off": cut_off,
    "drawn": lambda x: x * torch.zeros(4, 1, 1, 1).bernoulli_(0.3),
    "drawn by name": lambda x: x * torch.zeros(4, 1, 1, 1).bernoulli_(p=0.3),
}
IN_PLACE = {
    "a comparison that is followed": lambda x: (x * 1).le_(0) * x,
    "drawn by halves": lambda x: x * torch.ones(4, 1, 1, 1).bernoulli_(),
    "drawn by a tensor": lambda x: x * torch.zeros(4, 1, 1, 1).bernoulli_(torch.tensor(0.3)),
}
"""What has no functional form that is the same."""


def functional(function, x):
    """The function's graph, and whether all of it is functional."""
    found = []

    def keep(module, given):
        found.append((copy.deepcopy(module), given))
        return module

    torch._dynamo.reset()
    torch.compile(function, backend=keep)(x)
    ((module, given),) = found
    evaluate(module, given)
    functionalize(module.graph)
    calls = [n for n in module.graph.nodes if n.op in CALLS]
    changes = any(n.meta.get("writes") or called(n).endswith("_") for n in calls)
    return fx.GraphModule(module, module.graph), given, not changes


@pytest.mark.parametrize("name", [*FUNCTIONAL, *IN_PLACE])
def test_what_changes_in_place(name):
    function, x = {**FUNCTIONAL, **IN_PLACE}[name], X.clone().requires_grad_()
    module, given, pure = functional(function, x)
    assert pure == (name in FUNCTIONAL)
    torch.manual_seed(0)
    expected = function(x)
    torch.manual_seed(0)
    found = module(*given)
    for ours, theirs in zip(found, [expected] if len(found) == 1 else expected, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
        assert ours.requires_grad == theirs.requires_grad
