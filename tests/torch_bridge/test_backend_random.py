"""Random models: branches, shortcuts, unknown ops, shared and frozen modules, in-place ops."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from tests.torch_bridge.eager import assert_as_eager, outcome

pytestmark = pytest.mark.usefixtures("compiling")

# A failure is told as it was drawn: each step of making it smaller compiles a model.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
EXAMPLES = max(6, settings.default.max_examples // 3)


def half_set(x):
    x[:, :1] = x[:, -1:] * 0.5
    return x


def view_added(x):
    x.flatten(2)[:, 0].add_(1)
    return x


def added_twice(x):
    y = x
    y += 1
    x *= 0.5
    return x + y


def aliased(x):
    y = x.view(x.shape)
    z = x * 2
    y.add_(1)
    return z + x


def detached_change(x):
    y = x + 0
    y.detach().add_(1)
    return y * 2


def without_gradients(x):
    with torch.no_grad():
        y = F.relu(x) * 2
    return x + y


FUNCTIONS = {
    # what bngen takes
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "scale": lambda x: x * 0.5 + 1,
    "max_pool": lambda x: F.max_pool2d(x, 3, 1, 1),
    "avg_pool": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "halves": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "mean": lambda x: x - x.mean((2, 3), keepdim=True),
    "without_gradients": without_gradients,
    # what it does not
    "cumsum": lambda x: torch.cumsum(x, 1),
    "roll": lambda x: torch.roll(x, 1, 2),
    "softplus": F.softplus,
    "transpose": lambda x: x.transpose(2, 3),
    # what changes something in place
    "relu_": lambda x: F.relu(x, inplace=True),
    "add_": lambda x: x.add_(0.5),
    "clamp_": lambda x: x.clamp_(-1, 1),
    "half_set": half_set,
    "view_added": view_added,
    "added_twice": added_twice,
    "aliased": aliased,
    "detached_change": detached_change,
}


class Drawn(nn.Module):
    """Steps one after the other; every tensor has the same number of channels and pixels."""

    def __init__(self, steps, modules):
        super().__init__()
        self.steps = steps
        self.own = nn.ModuleList(modules)

    def forward(self, x):
        return self.run(self.steps, x)

    def run(self, steps, x):
        for kind, what in steps:
            if kind == "function":
                x = FUNCTIONS[what](x)
            elif kind == "module":
                x = self.own[what](x)
            elif kind == "residual":
                x = x + self.run(what, x)
            elif kind == "iadd":
                y = self.run(what, x)
                y += x
                x = y
            else:
                a, b = what
                x = torch.cat([self.run(a, x)[:, :2], self.run(b, x)[:, 2:]], 1)
        return x


CHANNELS = 4


def drawn_module(kind):
    if kind == "conv":
        return nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
    if kind == "pointwise":
        return nn.Conv2d(CHANNELS, CHANNELS, 1)
    if kind == "depthwise":
        return nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS)
    return nn.BatchNorm2d(CHANNELS)


KINDS = ("conv", "pointwise", "depthwise", "norm", "norm")
STEP = st.recursive(
    st.one_of(
        st.tuples(st.just("module"), st.integers(0, len(KINDS) - 1)),
        st.tuples(st.just("function"), st.sampled_from(sorted(FUNCTIONS))),
    ),
    lambda step: st.one_of(
        st.tuples(st.sampled_from(("residual", "iadd")), st.lists(step, min_size=1, max_size=3)),
        st.tuples(st.just("branches"), st.tuples(*[st.lists(step, min_size=1, max_size=3)] * 2)),
    ),
    max_leaves=6,
)


def script(model, x):
    given = x * 1  # may be changed in place
    result = model(given)
    (result * torch.linspace(0.5, 1.5, 6, dtype=x.dtype)).sum().backward()
    return result, given, x.grad


@settings(max_examples=EXAMPLES, phases=PHASES)
@given(
    steps=st.lists(STEP, min_size=2, max_size=5),
    frozen=st.sets(st.integers(0, len(KINDS) - 1), max_size=2),
    training=st.booleans(),
    seed=st.integers(0, 100),
)
def test_random_models(steps, frozen, training, seed):
    torch._dynamo.reset()
    torch.manual_seed(seed)
    model = Drawn(steps, map(drawn_module, KINDS)).train(training)
    for i in frozen:
        for p in model.own[i].parameters():
            p.requires_grad_(False)
    x = torch.randn(2, CHANNELS, 6, 6, requires_grad=True)
    try:
        outcome(copy.deepcopy(model), (x.detach().requires_grad_(),), script, seed)
    except RuntimeError:  # changed in place what backward needs
        assume(False)
    assert_as_eager(model, (x,), script, regions=-1, runs=(5, seed))
