"""Models of many kinds: what bngen takes of them is right, and what it leaves is."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bngen
from bngen.torch_bridge.backend import backend
from tests.oracle import assert_few_ulps
from tests.profiles import THOROUGH
from tests.torch_bridge.eager import assert_as_eager, step
from tests.torch_bridge.small import Net, images

pytestmark = pytest.mark.usefixtures("compiling")


class Around(nn.Module):
    """Something between two convolutions with batch normalization."""

    def __init__(self, middle, channels=(8, 8)):
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(3, channels[0], 3, padding=1), nn.BatchNorm2d(channels[0])
        )
        self.last = nn.Sequential(nn.Conv2d(channels[1], 4, 1, bias=False), nn.BatchNorm2d(4))
        self.middle = middle

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


class Does(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        y = x.flatten(2).transpose(1, 2)
        y = self.inner(y, y, y, need_weights=False)[0]
        return y.transpose(1, 2).reshape(x.shape)


class SqueezeExcite(nn.Module):
    def __init__(self, gate):
        super().__init__()
        self.down, self.up, self.gate = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1), gate

    def forward(self, x):
        s = F.relu(self.down(x.mean((2, 3), keepdim=True)))
        return x * self.gate(self.up(s))


def set_rows(x):
    y = x.clone()
    y[:, 1] = x[:, 0] * 2
    y[:, ::2] += 1
    return y


def change_view(x):
    y = x * 2
    flat = y.view(y.shape[0], -1)
    flat.mul_(2)
    flat[:, 3].add_(1)
    return y + y.mean()


def change_twice(x):
    y = x * 2
    z = y
    y += x
    z.relu_()
    return y * z


def read_before(x):
    y = x * 2
    before = y.sum(1, keepdim=True)
    y.add_(1)
    after = y.sum(1, keepdim=True)
    return y + before * after


def change_a_detached_one(x):
    y = x * 1
    y.detach().mul_(2)
    return y + 1


def shuffle(x):
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def chunks(x):
    pairs = zip(x.chunk(4, 1), x.split(2, 1), strict=True)
    return torch.cat([a * b for a, b in pairs], 1)


def einsum(x):
    return torch.einsum("nchw,ndhw->ncd", x, x)[..., None] * x.mean(3)[:, :, None]


def indices(x):
    y, at = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(y, at, 2)


def mask(x):
    return torch.where(x > 0, x, x * 0.1) * (x.abs() < 1).to(x.dtype)


MIDDLES = {
    "in-place ReLU": (lambda: nn.ReLU(inplace=True), 8, 8),
    "+=": (lambda: Does(change_twice), 8, 8),
    "setitem": (lambda: Does(set_rows), 8, 8),
    "a view changed": (lambda: Does(change_view), 8, 8),
    "read before a change": (lambda: Does(read_before), 8, 8),
    "a detached one changed": (lambda: Does(change_a_detached_one), 8, 8),
    "out=": (lambda: Does(lambda x: x + torch.add(x.detach(), 1, out=torch.empty_like(x))), 8, 8),
    "grouped": (lambda: nn.Conv2d(8, 8, 3, padding=1, groups=2), 8, 8),
    "wide groups": (lambda: nn.Conv2d(32, 32, 3, padding=1, groups=2), 32, 32),
    "depthwise": (lambda: nn.Conv2d(8, 16, 3, padding=1, groups=8), 8, 16),
    "dilated": (lambda: nn.Conv2d(8, 8, 3, padding=2, dilation=2), 8, 8),
    "strided": (lambda: nn.Conv2d(8, 8, 3, stride=2, padding=1), 8, 8),
    "same": (lambda: nn.Conv2d(8, 8, (3, 5), padding="same"), 8, 8),
    "same, even": (lambda: nn.Conv2d(8, 8, 4, padding="same"), 8, 8),
    "unequal": (lambda: nn.Conv2d(8, 8, (3, 1), padding=(2, 0)), 8, 8),
    "reflect": (lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), 8, 8),
    "circular": (lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), 8, 8),
    "zero pad": (lambda: nn.ZeroPad2d((1, 2, 0, 1)), 8, 8),
    "transposed": (lambda: nn.ConvTranspose2d(8, 8, 2, 2), 8, 8),
    "1-d": (lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(8, 8, 3, padding=1),
                                  nn.BatchNorm1d(8), nn.Unflatten(2, (8, 8))), 8, 8),
    "3-d": (lambda: nn.Sequential(nn.Unflatten(1, (8, 1)), nn.Conv3d(8, 8, (1, 3, 3)),
                                  nn.BatchNorm3d(8), nn.Flatten(1, 2)), 8, 8),
    "pools": (lambda: nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2, ceil_mode=True)), 8, 8),
    "max pool with indices": (lambda: Does(indices), 8, 8),
    "adaptive": (lambda: nn.AdaptiveAvgPool2d(3), 8, 8),
    "adaptive max": (lambda: nn.AdaptiveMaxPool2d(3), 8, 8),
    "interpolate": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), 8, 8),
    "nearest": (lambda: nn.Upsample(scale_factor=2), 8, 8),
    "group norm": (lambda: nn.GroupNorm(2, 8), 8, 8),
    "instance norm": (lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True), 8, 8),
    "layer norm": (lambda: nn.LayerNorm(8), 8, 8),
    "attention": (Attention, 8, 8),
    "squeeze and excite": (lambda: SqueezeExcite(nn.Sigmoid()), 8, 8),
    "hard gate": (lambda: SqueezeExcite(nn.Hardsigmoid()), 8, 8),
    "shuffle": (lambda: Does(shuffle), 8, 8),
    "chunks": (lambda: Does(chunks), 8, 8),
    "unbind": (lambda: Does(lambda x: torch.stack(x.unbind(1), 1)), 8, 8),
    "uneven split": (lambda: Does(lambda x: torch.cat(x.split([3, 5], 1)[::-1], 1)), 8, 8),
    "slices": (lambda: Does(lambda x: x[:, 2:6]), 8, 4),
    "indexed": (lambda: Does(lambda x: x[:, [3, 1, 0, 2]]), 8, 4),
    "comparisons": (lambda: Does(mask), 8, 8),
    "sorted": (lambda: Does(lambda x: x + x.sort(dim=1)[0]), 8, 8),
    "activations": (lambda: nn.Sequential(nn.SiLU(), nn.Hardswish(), nn.LeakyReLU(0.2), nn.GELU(),
                                          nn.ReLU6(), nn.ELU(), nn.Tanh(), nn.PReLU()), 8, 8),
    "softmax": (lambda: nn.Softmax2d(), 8, 8),
    "clamp": (lambda: Does(lambda x: x.clamp(-1, 1) + x.clamp(min=0).clamp_(max=1)), 8, 8),
    "numbers": (lambda: Does(lambda x: (2 - x) / 3 + x ** 2 - (-x) * x.mean()), 8, 8),
    "another type": (lambda: Does(lambda x: (x.double() * 2).to(x.dtype).contiguous()), 8, 8),
    "half": (lambda: Does(lambda x: x + 0 * x.half().to(x.dtype)), 8, 8),
    "complex": (lambda: Does(lambda x: x + torch.fft.fft2(x).abs()), 8, 8),
    "einsum": (lambda: Does(einsum), 8, 8),
}  # fmt: skip


@pytest.mark.parametrize("name", MIDDLES if THOROUGH else list(MIDDLES)[::3])
def test_something_between(name):
    make, *channels = MIDDLES[name]
    assert_as_eager(Around(make(), channels), (images(2, 3, 8, 8, requires_grad=True),))


def test_values_that_lie_on_a_bound_hand_their_gradient_on():
    class Clamped(Net):
        def forward(self, x):
            return self.conv1(x.clamp(-1.0, 1.0)).clamp(min=-9.0)

    # Not by the rule, which moves inputs by a unit in the last place: none would lie on a bound.
    model, whole = Clamped(), torch.randint(-2, 3, (2, 3, 8, 8)).float()
    gradients = []
    for run in (model, torch.compile(model, backend=backend)):
        x = whole.clone().requires_grad_()
        run(x).sum().backward()
        gradients.append(x.grad)
    assert_few_ulps(gradients[1], gradients[0])


def test_a_buffer_changed_in_place():
    class Counting(Net):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(8))

        def forward(self, x):
            y = self.bn1(self.conv1(x))
            before = self.seen * 1
            self.seen.mul_(0.9).add_(y.detach().mean((0, 2, 3)))
            return self.bn2(self.conv2(y)) + (before - self.seen).view(1, 8, 1, 1), self.seen * 2

    def script(model, x):
        return step(model, x), step(model, x)

    assert_as_eager(Counting(), (images(),), script)


def own_call(bn, x):
    return torch.batch_norm(
        x, bn.weight, bn.bias, bn.running_mean, bn.running_var, True, 0.1, bn.eps, False
    )


@pytest.mark.parametrize("normalized", [lambda bn, x: bn(x), own_call])
def test_statistics_read_around_their_update(normalized):
    class Reading(Net):
        def forward(self, x):
            before = self.bn1.running_mean * 1
            y = normalized(self.bn1, self.conv1(x))
            after = self.bn1.running_mean - before
            return self.conv2(y) * 2 + (y * after.view(1, -1, 1, 1)).mean()

    def script(model, x):
        return step(model, x), step(model, x)

    assert_as_eager(Reading(), (images(),), script)


def test_a_branch_that_depends_on_data():
    class Branching(Net):
        def forward(self, x):
            y = self.features(x)
            if y.mean() > 0:
                return self.bn2(self.conv2(y)) * 2
            return y - 1

    assert_as_eager(Branching(), (images(requires_grad=True),))


def test_integer_inputs():
    class Embedded(Net):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(5, 8)

        def forward(self, x, labels):
            y = (
                self.features(x.to(self.fc.weight.dtype) / 255)
                * self.table(labels)[:, :, None, None]
            )
            return y, labels + 1

    x = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    assert_as_eager(Embedded(), (x, torch.arange(4)))


@pytest.mark.parametrize("dtype", [torch.float16])
def test_small_types_run_in_pytorch(dtype):
    model = Net().to(dtype)
    x = images(dtype=dtype)
    ours = bngen.compile(Net().to(dtype))
    ours.load_state_dict(model.state_dict())
    assert torch.equal(ours(x), model(x))


def as_exact(ours, model, state, x):
    """Whether gradients are no further from double precision than eager's, over all parameters."""
    exact = Net().double()
    exact.load_state_dict(state)
    exact(x.double()).square().sum().backward()
    errors = []
    for m in (ours, model):
        pairs = [*zip(m.parameters(), exact.parameters(), strict=True)]
        assert all(p.grad.dtype == p.dtype for p, _ in pairs)
        apart = [(p.grad.double() - e.grad).norm() / e.grad.norm() for p, e in pairs]
        errors.append(torch.stack(apart).norm())
    return errors[0] <= 1.5 * errors[1]


def test_a_model_of_bfloat16():
    torch.manual_seed(0)
    model, x = Net().bfloat16(), images().bfloat16()
    state = {n: t.clone() for n, t in model.state_dict().items()}
    ours = bngen.compile(Net().bfloat16())
    ours.load_state_dict(state)
    assert len(bngen.explain_model(Net().bfloat16(), x).regions) == 1
    outs = [m(x) for m in (ours, model)]
    torch.testing.assert_close(*outs, rtol=0.02, atol=0.02)
    for out in outs:
        out.float().square().sum().backward()
    assert as_exact(ours, model, state, x)
    for a, b in zip(ours.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)


def test_autocast():
    torch.manual_seed(0)
    model, ours, x = Net(), bngen.compile(Net()), images()
    state = {n: t.clone() for n, t in model.state_dict().items()}
    ours.load_state_dict(state)
    for _ in range(2):
        outs = []
        for m in (model, ours):
            m.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                outs.append(m(x))
                if m is ours:
                    assert len(bngen.explain_model(Net(), x).regions) == 1
            outs[-1].float().square().sum().backward()
        assert outs[0].dtype == outs[1].dtype == torch.bfloat16
        torch.testing.assert_close(*outs, rtol=0.02, atol=0.02)
        assert as_exact(ours, model, state, x)
    # Without it the model is compiled anew, and exact again.
    model.zero_grad()
    assert_as_eager(model, (x,), regions=1)


def test_autocast_inside_the_model():
    class Mixed(Net):
        def forward(self, x):
            y = self.features(x)
            with torch.autocast("cpu", torch.bfloat16):
                z = self.conv2(y)
            return y, z

    torch.manual_seed(0)
    model = Mixed()
    x, ours = images(), bngen.compile(Mixed())
    ours.load_state_dict(model.state_dict())
    (a, b), (c, d) = model(x), ours(x)
    assert d.dtype == b.dtype == torch.bfloat16
    torch.testing.assert_close(a, c)
    torch.testing.assert_close(b, d, rtol=0.05, atol=0.05)


def test_the_loss_inside():
    class Loss(Net):
        def forward(self, x, labels):
            return F.cross_entropy(super().forward(x), labels, label_smoothing=0.1)

    assert_as_eager(Loss(), (images(), torch.tensor([0, 1, 4, 2])), regions=1)


def test_checkpoint_inside_the_model():
    class Inside(Net):
        def forward(self, x):
            y = self.conv1(x)
            y = torch.utils.checkpoint.checkpoint(self.conv2, F.relu(y), use_reentrant=False)
            # What is computed again has the same mask, and changes its buffers.
            return torch.utils.checkpoint.checkpoint(self.again, y, use_reentrant=False)

        def again(self, x):
            return self.bn2(x) * (torch.rand(x.shape) < 0.5)

    assert_as_eager(Inside(), (images(requires_grad=True),))


def test_a_sparse_input():
    class Mixed(Net):
        def forward(self, x, m):
            return self.features(x).flatten(1) + torch.sparse.mm(m, torch.ones(4, 512))

    m = torch.eye(4).to_sparse()
    model = Mixed()
    expected = model(images(), m)
    assert bngen.compile(model)(images(), m).shape == expected.shape
