"""Autocast spelled out: without autocast, the casts compute what autocast computes, bit for bit."""

import copy
import logging
import operator

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from bngen.torch_bridge.autocasts import spell_out
from bngen.torch_bridge.evaluation import UnknownUntilRunError, evaluate
from bngen.torch_bridge.functional import functionalize

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
W = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 3])


def conv(x, w=W):
    return torch.conv2d(x, w, padding=1)


CALLS = {
    "a convolution": lambda x: conv(x),
    "one without a bias, twice": lambda x: conv(conv(x)),
    "one of one axis": lambda x: F.conv1d(x.flatten(2), W[:, :, 0]),
    "a transposed one": lambda x: F.conv_transpose2d(x, W),
    "a linear layer": lambda x: F.linear(x.flatten(1), W.reshape(1, -1)),
    "a product": lambda x: x.flatten(1) @ W.reshape(-1, 1),
    "batch normalization": lambda x: F.batch_norm(conv(x), None, None, training=True),
    "group normalization": lambda x: F.group_norm(conv(x), 2),
    "a change in place": lambda x: F.relu(conv(x), inplace=True) + 1,
    "a sum of two types in place": lambda x: operator.iadd(conv(x), x) * 2,
    "a method in place of two types": lambda x: conv(x).mul_(W[:, 0, :1, :1]).add_(x, alpha=2),
    "a comparison in place": lambda x: conv(x).gt_(0) + 1,
    "a sum of two types": lambda x: x + conv(x),
    "a concatenation of two types": lambda x: conv(torch.cat([x, conv(x)], 1)[:, 2:6]),
    "an activation": lambda x: F.gelu(conv(x)),
    "prelu": lambda x: F.prelu(x, W[:, 0, 0, 0]),
    "pools": lambda x: F.adaptive_avg_pool2d(F.max_pool2d(conv(x), 2), 1),
    "bicubic interpolation": lambda x: F.interpolate(conv(x), scale_factor=2, mode="bicubic"),
    "interpolation": lambda x: F.interpolate(conv(x), scale_factor=2, mode="bilinear"),
    "cross entropy": lambda x: F.cross_entropy(conv(x).mean((2, 3)), LABELS),
    "soft labels": lambda x: F.cross_entropy(conv(x).mean((2, 3)), conv(x).amax((2, 3)).float()),
    "softmax": lambda x: F.softmax(conv(x), 1),
    "squares": lambda x: F.mse_loss(conv(x), x),
    "an own cast": lambda x: conv(conv(x).float()),
    "double precision": lambda x: torch.conv2d(x.double(), W.double()),
    "a comparison": lambda x: torch.where(conv(x) > 0, conv(x), x),
}


def captured(function, inputs):
    """The evaluated graph of a function, under whatever autocast there is."""
    found = []

    def keep(module, given):
        found.append((copy.deepcopy(module), given))
        return module

    torch._dynamo.reset()
    torch.compile(function, backend=keep)(*inputs)
    ((module, given),) = found
    evaluate(module, given)
    functionalize(module.graph)
    spell_out(module.graph)
    return fx.GraphModule(module, module.graph), given


@pytest.mark.parametrize("kind", CALLS)
def test_casts_are_those_of_autocast(kind):
    with torch.autocast("cpu", torch.bfloat16):
        expected = CALLS[kind](X)
        module, given = captured(CALLS[kind], (X,))
    (found,) = module(*given)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def test_what_is_tried_is_not_logged(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("torch._subclasses.fake_tensor"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("torch"), "propagate", True)
    with torch.autocast("cpu", torch.bfloat16):
        captured(lambda x: conv(x).flatten(1) @ W.reshape(-1, 1), (X,))
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def test_a_weight_is_cast_once_and_one_that_changes_anew():
    def function(x, w):
        y = conv(conv(x, w), w)
        w.mul_(2)
        return conv(y, w)

    with torch.autocast("cpu", torch.bfloat16):
        expected = function(X, W.clone())
        changing, given = captured(function, (X, W.clone()))
        steady, _ = captured(lambda x, w: conv(conv(x, w), w), (X, W))
    fresh = [W.clone() if g.shape == W.shape else g for g in given]
    assert torch.equal(changing(*fresh)[0], expected)
    assert [n.target for n in steady.graph.nodes].count("to") == 2
    assert [n.target for n in changing.graph.nodes].count("to") == 4


def test_a_weight_that_is_first_used_without_gradients_has_its_own():
    weight = nn.Parameter(W.clone())

    def function(x):
        with torch.no_grad():
            goal = conv(x, weight)
        return conv(x, weight) - goal

    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        module, given = captured(function, (X,))
        function(X).sum().backward()
    expected, weight.grad = weight.grad, None
    module(*given)[0].sum().backward()
    assert torch.equal(weight.grad, expected)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        return 2 * dy * x


def test_a_function_with_a_gradient_of_its_own_runs_between_two_regions():
    def train(function):
        model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
        model.load_state_dict(STATE)
        with torch.autocast("cpu", torch.bfloat16):
            y = function(lambda x: model[1:](Square.apply(model[0](x))))(X)
        y.float().square().sum().backward()
        return y, [p.grad for p in model.parameters()]

    torch._dynamo.reset()
    STATE = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).state_dict()
    y, gradients = train(lambda f: torch.compile(f, backend="bngen"))
    expected, theirs = train(lambda f: f)
    assert y.dtype == expected.dtype
    torch.testing.assert_close(y, expected, rtol=0.05, atol=0.05)
    for mine, wanted in zip(gradients, theirs, strict=True):
        assert (mine - wanted).norm() <= 0.05 * wanted.norm() + 0.05


def test_a_graph_that_cannot_be_evaluated_leaves_autocast_as_it_was():
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.call_function(torch.amp.autocast_mode._enter_autocast, ("cpu", torch.bfloat16, True))
    graph.output((graph.call_function(torch.nonzero, (x,)),))
    with pytest.raises(UnknownUntilRunError):
        evaluate(fx.GraphModule({}, graph), (X,))
    assert not torch.is_autocast_enabled("cpu")


def test_what_is_outside_stays_as_it_is():
    def function(x):
        y = conv(x)
        with torch.autocast("cpu", torch.bfloat16):
            z = conv(y)
        return y, conv(z.float())

    module, given = captured(function, (X,))
    with torch.no_grad():
        for found, expected in zip(module(*given), function(X), strict=True):
            assert torch.equal(found, expected)
    assert [n.meta["autocast"] for n in module.graph.nodes if n.target is torch.conv2d] == [
        None, torch.bfloat16, None,
    ]  # fmt: skip


def test_gradients_flow_through_the_casts():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with torch.autocast("cpu", torch.bfloat16):
        module, given = captured(model, (X,))
        model(X).float().sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    module(*given)[0].float().sum().backward()
    for found, wanted in zip((p.grad for p in model.parameters()), expected, strict=True):
        assert torch.equal(found, wanted)
