"""At kinks, bounds and ties, zeros, infinities and NaN: eager's values, and eager's gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bngen.torch_bridge.backend import backend
from tests.torch_bridge.single import single

VALUES = torch.tensor(
    [-math.inf, -7, -6, -3, -2, -1, -0.5, -1e-40, -0.0, 0, 1e-40, 0.5, 1, 2, 3, 6, 7, math.inf,
     math.nan]
)  # fmt: skip
"""Where functions have their bends; a number too small for a whole significand; no numbers."""
TIES = torch.tensor(
    [[1, 1, 2, 2, math.nan, 1], [1, 1, 2, 2, 0, 0],
     [-math.inf, -math.inf, math.inf, math.inf, 3, 3],
     [-math.inf, -math.inf, math.inf, 1, 3, 3],
     [0, -0.0, math.nan, math.inf, 1, 1], [0, 0, math.inf, math.nan, 1, 1.0]]
)[None, None]  # fmt: skip

ONE = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hardtanh": lambda x: F.hardtanh(x, -2.0, 3.0),
    "leaky_relu": F.leaky_relu,
    "leaky_relu upwards": lambda x: F.leaky_relu(x, -0.5),
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "silu": F.silu,
    "abs": torch.abs,
    "neg": torch.neg,
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "clamp": lambda x: torch.clamp(x, -2.0, 6.0),
    "clamp below": lambda x: torch.clamp(x, min=0.0),
    "clamp above": lambda x: torch.clamp(x, max=3.0),
    "clamp to nothing": lambda x: torch.clamp(x, 3.0, -1.0),
    "square": lambda x: x**2,
    "cube": lambda x: x**3,
    "inverse": lambda x: x**-1,
    "power of two": lambda x: 2.0**x,
}
TWO = {
    "maximum": torch.maximum, "minimum": torch.minimum, "add": torch.add, "sub": torch.sub,
    "mul": torch.mul, "div": torch.div, "pow": torch.pow,
}  # fmt: skip
WINDOWS = {
    "max_pool2d": lambda x: F.max_pool2d(x, 2),
    "max_pool2d overlapping": lambda x: F.max_pool2d(x, 3, 1, 1),
    "max_pool2d to the border": lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "max_pool2d dilated": lambda x: F.max_pool2d(x, 2, 1, dilation=2),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "amax": lambda x: torch.amax(x, 3),
    "mean": lambda x: torch.mean(x, 3),
    "softmax": lambda x: F.softmax(x, 3),
}
PAIRS = VALUES.repeat_interleave(len(VALUES)), VALUES.repeat(len(VALUES))
UNDECIDED = ("relu6", "hardtanh", "hardsigmoid", "hardswish")
"""PyTorch's loops for vectors and for what is left over disagree about gradients at NaN."""
CASES = {
    **{name: (f, (VALUES,)) for name, f in ONE.items()},
    **{name: (f, PAIRS) for name, f in TWO.items()},
    **{name: (f, (TIES,)) for name, f in WINDOWS.items()},
}


def assert_alike(ours, theirs, name):
    """The same but for rounding, which takes no zero for another number, nor NaN for any."""
    assert torch.equal(torch.signbit(ours[theirs == 0]), torch.signbit(theirs[theirs == 0])), name
    tiny = torch.finfo(theirs.dtype).tiny
    torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=tiny, equal_nan=True, msg=lambda m:
                               f"{name}: {m}")  # fmt: skip


def assert_gradients_alike(ours, theirs, given, name):
    """Of 1 - y * y, where y is nearly 1, all is rounding."""
    if name in UNDECIDED:
        ours, theirs = ours[~given.isnan()], theirs[~given.isnan()]
    rounding = (ours - theirs).abs() < 2e-7
    assert_alike(torch.where(rounding, theirs, ours), theirs, f"gradient of {name}")


def slopes(result):
    return torch.linspace(1, 2, result.numel()).view(result.shape)


@pytest.mark.parametrize("name", CASES)
def test_one_call(name):
    function, given = CASES[name]
    leaves = [x.clone().requires_grad_() for x in given]
    theirs = function(*leaves)
    cotangent = slopes(theirs)
    grads = torch.autograd.grad(theirs, leaves, cotangent)
    ours = single(function, *leaves)
    assert not ours.refused
    (result,) = ours.results()
    assert_alike(result, theirs.detach(), name)
    for mine, grad, x in zip(ours.gradients([cotangent]), grads, given, strict=True):
        assert_gradients_alike(mine, grad, x, name)


KINKS = ("relu", "hardtanh", "leaky_relu", "abs", "clamp", "clamp below")
EQUALS = ("maximum", "minimum")
SHARED = ("max_pool2d", "max_pool2d overlapping", "max_pool2d dilated", "amax")


class Passing(nn.Module):
    """A convolution that changes nothing, for which a region pays."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.ones_(self.conv.weight)


@pytest.mark.usefixtures("compiling")
def test_compiled_kernels_agree():
    """All in one region, whose kernels are as other models have them."""

    class All(Passing):
        def forward(self, pairs, ties):
            pairs, ties = self.conv(pairs), self.conv(ties)
            points = [pairs[i : i + 1] for i in range(len(pairs))]
            maps = [ties[i : i + 1] for i in range(len(ties))]
            results = [ONE[n](x[:, :, :1]) for n, x in zip(KINKS, points, strict=False)]
            for n, x in zip(EQUALS, points[len(KINKS) :], strict=True):
                results.append(TWO[n](x[:, :, :1], x[:, :, 1:]))
            results += [WINDOWS[n](x) for n, x in zip(SHARED, maps, strict=True)]
            return torch.cat([r.flatten() for r in results])

    pairs = torch.stack(PAIRS)[None, None].repeat(len(KINKS) + len(EQUALS), 1, 1, 1)
    given = pairs, TIES.repeat(len(SHARED), 1, 1, 1)
    names = iter((*KINKS, *EQUALS, *SHARED))
    (theirs, *grads), (ours, *mine) = (
        (y.detach(), *torch.autograd.grad(y, leaves, slopes(y)))
        for model in (All(), torch.compile(All(), backend=backend))
        for leaves in [[x.clone().requires_grad_() for x in given]]
        for y in [model(*leaves)]
    )
    assert_alike(ours, theirs, "results")
    for parts in zip(mine, grads, given, strict=True):
        for found, grad, x in zip(*parts, strict=True):
            assert_gradients_alike(found, grad, x, next(names))


@pytest.mark.usefixtures("compiling")
def test_what_no_loss_reads_hands_nothing_on():
    """Not zero times the slope of a root at zero, and not where there is another way to it."""

    class Roots(Passing):
        def forward(self, x, late):
            y = self.conv(x)
            return y + late, y.sqrt()

    x, late = torch.zeros(1, 1, 2, 2, requires_grad=True), torch.ones(1, 1, 2, 2)
    compiled = torch.compile(Roots(), backend=backend)
    y, root = compiled(x, late)
    y.sum().backward(retain_graph=True)
    assert torch.equal(x.grad, torch.ones_like(x))
    root.sum().backward()
    assert x.grad.isinf().all()
    # What PyTorch has to read again may not have changed.
    y, _ = compiled(x, late)
    late.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
