"""Activations, reductions and losses of PyTorch under ``torch.compile(backend="bngen")``.

Many calls share a region: each compiles in milliseconds, a region does not.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bngen
from bngen.torch_bridge.support import COPY
from tests.torch_bridge.eager import assert_as_eager
from tests.torch_bridge.small import images

pytestmark = pytest.mark.usefixtures("compiling")

ACTIVATIONS = (
    lambda: nn.Hardswish(inplace=True), nn.Hardsigmoid, nn.GELU, lambda: nn.GELU("tanh"),
    lambda: nn.ELU(0.5, inplace=True), lambda: nn.CELU(2.0), lambda: nn.SELU(inplace=True),
    lambda: nn.Softplus(2), lambda: nn.Mish(inplace=True), lambda: nn.PReLU(4), nn.PReLU,
    nn.LogSigmoid, nn.Softsign, nn.Tanhshrink, nn.Hardshrink, nn.Softshrink,
    lambda: nn.Threshold(0.1, 0.2, inplace=True),
)  # fmt: skip


class Activated(nn.Module):
    """Every activation of a convolution's result."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.activations = nn.ModuleList([make() for make in ACTIVATIONS])

    def forward(self, x):
        x, total = self.conv(x), 0.0
        for i, activation in enumerate(self.activations):
            total = total + activation(x * (0.5 + 0.1 * i)) * (1.0 - 0.1 * i)
        return total


class Computed(nn.Module):
    """Functions and methods, in place and not, logic, and folds."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.first(x)
        y = F.elu_(x + 0.1) + torch.selu_(x - 0.1) + F.leaky_relu_(x + 0.2) + (x * 2).neg_()
        y = y.clamp(-1, 2).clamp_(min=-0.5) + torch.clip(x, max=1.0) + x.clamp_min(y.detach())
        inside = (y > 0) & (y < 1) | ~(y == 2) ^ y.isnan() | torch.logical_not(y)
        y = torch.where(inside, y, y.square())
        y = y + torch.erf(y) + y.expm1() + y.exp().log1p() + y.sin() + torch.cos(y) * y.sign()
        y = y + y.round() - y.floor() + torch.ceil(y) + (y.abs() + 1).reciprocal()
        spread = y.var(dim=(2, 3), keepdim=True) + y.std((2, 3), False, keepdim=True)
        y = y * torch.sigmoid(spread + torch.linalg.vector_norm(y, dim=1, keepdim=True))
        y = F.normalize(y, dim=1) + y.norm(dim=1, keepdim=True) + y.logsumexp(1, keepdim=True)
        return self.last(y + y.amin(dim=(2, 3), keepdim=True)), y.argmax(1)


class Composed(nn.Module):
    """What the language has no word for, but the parts of."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        y = self.first(x)
        value, index = y.max(1, keepdim=True)  # as CBAM has it
        y = y * torch.cat([value, y.mean(axis=1, keepdims=True)], 1).sigmoid().repeat(1, 4, 1, 1)
        y = torch.max(y, y * 0.5) + torch.add(y, y.relu(), alpha=0.5) - y.min()
        y = y.masked_fill(y > 2, 1.0).where(y > -2, y * 0.1).to(x.device).to(y)
        y = torch.cat([F.glu(y, 1)] * 2, 1).repeat_interleave(2, 2)[:, :, ::2]
        y = y.double().mul(2).float().type_as(x).lerp(y.relu(), 0.3) + F.rms_norm(y, y.shape[1:])
        y = y + F.softmin(y, 1) + F.cosine_similarity(y, y.relu(), dim=1).unsqueeze(1)
        y = y + torch.mm(y.flatten(1), y.flatten(1).t()).mean() + y.exp2().log2().nan_to_num(0.0)
        alone = F.max_pool2d(F.conv2d(y[0], self.last.weight), 2).tile(1, 2, 2)
        return self.last(F.rrelu(y)) + alone, index


class Copied(nn.Module):
    """Copies of an input, and of what is computed."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        y = self.conv(x.to(x.dtype, copy=True))
        return y.to(y.dtype, copy=True) * 2 + self.conv(x.to(x.dtype, False, True))


class Lossy(nn.Module):
    """The losses, of a classifier whose outputs are a map."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)

    def forward(self, x, soft, labels, weight):
        y = self.conv(x)
        log_p = F.log_softmax(y, 1)
        return (
            F.cross_entropy(y, soft, weight, label_smoothing=0.1)
            + F.cross_entropy(y, labels, weight, ignore_index=1)
            + F.nll_loss(log_p, labels, weight) + F.kl_div(log_p, soft, reduction="batchmean")
            + F.binary_cross_entropy_with_logits(y, soft, pos_weight=weight.view(5, 1, 1))
            + F.mse_loss(y, soft) + F.l1_loss(y, soft, reduction="sum")
            + F.smooth_l1_loss(y, soft, beta=0.5) + F.huber_loss(y, soft, delta=0.5)
        )  # fmt: skip


@pytest.mark.parametrize("model", [Activated, Computed])
def test_networks_of_them(model):
    torch.manual_seed(0)
    assert_as_eager(model(), (images(2, 3, 6, 6, requires_grad=True),), regions=1)


def test_what_the_language_has_the_parts_of_is_taken():
    told = bngen.explain_model(Composed(), images(2, 3, 6, 6))
    assert len(told.regions) == 1 and not told.left
    told = bngen.explain_model(Copied(), images(2, 3, 6, 6))
    assert [call.reason for call in told.left] == [COPY, COPY]


def test_losses():
    torch.manual_seed(0)
    soft, labels = torch.softmax(torch.randn(2, 5, 6, 6), 1), torch.randint(0, 5, (2, 6, 6))
    inputs = images(2, 3, 6, 6, requires_grad=True), soft, labels, torch.rand(5) + 0.5
    assert_as_eager(Lossy(), inputs, regions=1)
