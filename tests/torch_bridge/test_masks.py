"""Dropout and drop-path: for one seed, eager's own masks; no region waits for one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import bngen
from tests.torch_bridge.eager import assert_as_eager, step
from tests.torch_bridge.small import Net, images

pytestmark = pytest.mark.usefixtures("compiling")


def drop_path(x, keep=0.5):
    """As timm has it."""
    mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
    mask.div_(keep)
    return x * mask


def stochastic_depth(x, survival=0.7):
    """As torchvision has it, for a whole batch."""
    noise = torch.empty([1] * x.ndim, dtype=x.dtype, device=x.device)
    noise = noise.bernoulli_(survival)
    noise.div_(survival)
    return x * noise


class Dropping(nn.Module):
    """One of each kind, and PyTorch's own random numbers in between."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.drop, self.drop_maps = nn.Dropout(0.3, inplace=True), nn.Dropout2d(0.4)

    def forward(self, x):
        x = F.relu(self.drop(self.conv1(x)))
        x = x + drop_path(self.drop_maps(self.conv2(x))) + torch.rand_like(x)
        return F.dropout(stochastic_depth(x), 0.1, self.training)


def twice(model, x):
    return step(model, x), step(model, x)


def test_masks_are_eagers_own():
    assert_as_eager(Dropping(), (images(2, 3, 8, 8),), twice, regions=2)
    assert_as_eager(Dropping().eval(), (images(2, 3, 8, 8),), twice)


class InOrder(nn.Module):
    """Draws that PyTorch makes by itself, each before one that bngen is handed."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        y = F.alpha_dropout(self.conv1(x), 0.5, True)
        y = F.dropout2d(self.conv2(y), 0.3) * torch.ones(len(x), 1, 1, 1).bernoulli_()
        z = y * 1
        z[:, 0] = 0
        return F.dropout(y, 0.2) + F.dropout(z, 0.4) * torch.zeros(8, 1, 1).bernoulli_(p=0.3)


def test_draws_keep_their_order():
    model, x = InOrder(), images(4, 3, 8, 8)
    compiled = bngen.compile(InOrder())
    compiled.load_state_dict(model.state_dict())
    results = []
    for run in (model, compiled):
        torch.manual_seed(0)
        results.append((run(x), torch.rand(3)))
    (theirs, last), (ours, own_last) = results
    assert torch.equal(ours == 0, theirs == 0) and torch.equal(own_last, last)
    torch.testing.assert_close(ours, theirs)


class Last(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.ones(8, 1, 1))

    def forward(self, x):
        return F.dropout(self.conv1(x) * self.factor, 0.5)


def test_masks_lie_as_eagers_do():
    x = images(2, 3, 8, 8)
    assert_as_eager(Last(), (x.to(memory_format=torch.channels_last),), regions=1)
    assert_as_eager(Last().double(), (x.double(),))


def test_what_is_dropped_is_multiplied_by_zero():
    model, x = Last(), images(2, 3, 8, 8)
    model.factor[0], model.factor[1] = torch.inf, torch.nan
    torch.manual_seed(0)
    expected = model(x)
    torch.manual_seed(0)
    found = bngen.compile(model)(x)
    assert expected.isnan().any() and expected.isinf().any()
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_draws_the_same_masks_again(reentrant):
    def script(model, x):
        out = checkpoint(model, x, use_reentrant=reentrant)
        out.square().sum().backward()
        return out, x.grad, torch.rand(2)

    assert_as_eager(Last(), (images(2, 3, 8, 8, requires_grad=True),), script, regions=2)


KINDS = {
    "all": lambda x: F.dropout(x, 1.0) + F.dropout(x, 0.0),
    "builtin": lambda x: torch.feature_dropout(torch.dropout(x, 0.5, train=True), 0.5, True),
    "evaluated": lambda x: F.alpha_dropout(F.dropout2d(torch.dropout(x, 0.5, False), 0.5, False)),
    "likes": lambda x: x * torch.zeros_like(x) + x.new_full((1,), 2.0) + torch.full_like(x, 3.0),
    "alpha": lambda x: F.alpha_dropout(x, 0.5, training=True),
    "3-d": lambda x: F.dropout3d(x, 0.5),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_splits_a_model(name):
    class Between(Net):
        def forward(self, x):
            return self.bn2(self.conv2(KINDS[name](self.bn1(self.conv1(x)))))

    regions = bngen.explain_model(Between(), images()).regions
    assert len(regions) == (2 if name in ("alpha", "3-d") else 1)


def test_the_reason_is_told():
    text = str(bngen.explain_model(Last(), images()))
    assert "keep_mask at " in text and "PyTorch's generator draws random numbers" in text
