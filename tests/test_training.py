"""Training steps: the same network from the same weights on the same batches, here and in PyTorch.

Two correct programs that round differently drift apart, since each step starts from weights that
already differ. How far is measured, not guessed: PyTorch trains in double precision, the truth, and
in single precision several times, from weights at most one unit in the last place apart. At each
step bngen's distance from the truth may be four times the largest that any of those runs had so
far, plus a few units in the last place: the tolerance rule.

Over a hundred steps this wants an activation without a kink. With ReLU an element now and then is
within rounding of zero and falls on the other side: one of eight such runs of PyTorch itself then
left the others by four orders of magnitude, and for good. Short runs use ReLU.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import bngen as bg
from bngen.errors import ProgramError
from bngen.ir.interp import run
from bngen.verification import tolerance
from tests.oracle import assert_close, assert_few_ulps
from tests.profiles import some

BATCH, STEPS = 32, 100


class Network(nn.Module):
    """Two composite layers, a strided one and a residual sum between them."""

    def __init__(self, activation=F.relu):
        super().__init__()
        self.activation = activation
        self.stem = nn.Conv2d(1, 10, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(10)
        self.down = nn.Conv2d(10, 24, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(24)
        self.branch = nn.Conv2d(24, 24, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(24, momentum=0.3)
        self.fc = nn.Linear(24, 10)

    def forward(self, x, labels):
        x = self.activation(self.norm1(self.stem(x)))
        x = self.activation(self.norm2(self.down(x)))
        x = self.activation(x + self.norm3(self.branch(x)))
        return F.cross_entropy(self.fc(x.mean((2, 3))), labels)


def program(activation=bg.relu):
    """The same in bngen."""

    def network(x, labels):
        layers = bg.layers
        x = layers.conv2d(x, "stem", 10, 3, padding=1, bias=False)
        x = activation(layers.batch_norm(x, "norm1"))
        x = layers.conv2d(x, "down", 24, 3, stride=2, padding=1, bias=False)
        x = activation(layers.batch_norm(x, "norm2"))
        y = layers.conv2d(x, "branch", 24, 3, padding=1, bias=False)
        x = activation(x + layers.batch_norm(y, "norm3", momentum=0.3))
        return bg.cross_entropy(layers.linear(x.mean((2, 3)), "fc", 10), labels)

    return bg.trace(network, bg.Tensor[BATCH, 1, 8, 8], bg.Tensor[BATCH, bg.int64])


@pytest.fixture(scope="module")
def batches():
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    picks = [order[i * BATCH % 1700 :][:BATCH] for i in range(STEPS)]
    return [(images[p], labels[p].astype(np.int64)) for p in picks]


def fresh(activation=F.relu):
    torch.manual_seed(0)
    return Network(activation)


def nudged(network_, seed):
    """A copy some of whose weights are a unit in the last place away."""
    moved = copy.deepcopy(network_)
    held = {name: p.detach().numpy() for name, p in network_.named_parameters()}
    near = tolerance.nudged(held, np.random.default_rng(seed))
    moved.load_state_dict({n: torch.from_numpy(a) for n, a in near.items()}, strict=False)
    return moved


def torch_training(
    network_, batches, rate=lambda step: 0.1, dtype=torch.float32, kind="SGD", clip=None, **settings
):
    """Losses, and what the network and its optimizer hold in the end."""
    network_ = copy.deepcopy(network_).to(dtype)
    optimizer = getattr(torch.optim, kind)(network_.parameters(), lr=rate(0), **settings)
    losses = []
    for step, (x, labels) in enumerate(batches):
        optimizer.param_groups[0]["lr"] = rate(step)
        optimizer.zero_grad()
        loss = network_(torch.tensor(x, dtype=dtype), torch.tensor(labels))
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(network_.parameters(), clip)
        optimizer.step()
        losses.append(loss.item())
    held = {n: t.detach().numpy() for n, t in network_.state_dict().items()}
    for name, p in network_.named_parameters():
        for what, kept in optimizer.state[p].items():
            if what != "step" and kept is not None:
                held[f"{what}.{name}"] = kept.numpy()
    return np.array(losses), held


def our_training(network_, batches, rate=None, kind="SGD", clip=None, **settings):
    """The same by one compiled program a step."""
    ours = program(getattr(bg, network_.activation.__name__))
    optimizer = getattr(bg, kind)(lr=None if rate else 0.1, **settings)
    step = bg.build(bg.training_step(ours, optimizer, max_norm=clip)).init(0)
    step.load_state_dict(network_.state_dict(), strict=False)
    losses = []
    for i, (x, labels) in enumerate(batches):
        lr = [np.float32(rate(i))] if rate else []
        losses.append(float(step(x, labels, *lr)))
    held = step.state_dict()
    held.pop("optimizer.steps", None)
    return np.array(losses), held


def compare(batches, rate=None, activation=F.relu, **settings):
    start = fresh(activation)
    ours = our_training(start, batches, rate, **settings)
    settings["rate"] = rate or (lambda step: 0.1)
    truth = torch_training(start, batches, dtype=torch.float64, **settings)
    starts = [start, *(nudged(start, seed) for seed in range(3))]
    theirs = [torch_training(s, batches, **settings) for s in starts]
    drift = np.max([np.abs(losses - truth[0]) for losses, _ in theirs], axis=0)
    limit = tolerance.allowed(np.maximum.accumulate(drift), np.abs(truth[0]), "float32")
    error = np.abs(ours[0] - truth[0])
    worst = int(np.argmax(error - limit))
    assert (error <= limit).all(), (worst, error[worst], limit[worst])
    assert ours[1].keys() == truth[1].keys()
    for name, array in truth[1].items():
        if array.dtype.kind == "i":
            assert ours[1][name] == array, name
        else:
            assert_close(ours[1][name], [h[name] for _, h in theirs], array, name)
    return ours[0]


def cosine(step):
    return 0.1 * 0.5 * (1 + np.cos(np.pi * step / STEPS))


def test_loss_curves_agree_and_fall(batches):
    losses = compare(batches, cosine, F.silu, momentum=0.9, weight_decay=5e-4)
    assert len(losses) == STEPS
    assert losses[-10:].mean() < 0.2 < 2 < losses[0]


@pytest.mark.parametrize(
    "settings",
    some(
        [
            {"momentum": 0.8, "nesterov": True, "weight_decay": 0.01},
            {},
            {"weight_decay": 0.05},
            {"momentum": 0.9, "dampening": 0.5},
        ],
        1,
    ),
    ids=str,
)
def test_sgd_is_that_of_torch(batches, settings):
    compare(batches[:6], **settings)


@pytest.mark.parametrize(
    ("kind", "settings"),
    some(
        [
            ("AdamW", {"clip": 0.5}),
            ("RMSprop", {"centered": True, "momentum": 0.5}),
            ("Adam", {"amsgrad": True, "weight_decay": 0.01}),
        ],
        1,
    ),
    ids=str,
)
def test_adaptive_optimizers_are_those_of_torch(batches, kind, settings):
    # Their steps are quotients of small numbers at first, so that losses of few steps count.
    compare(batches[:4], lambda step: 0.01 / (step + 1), kind=kind, eps=1e-3, **settings)


def test_a_step_is_forward_backward_and_update():
    """Against the forward and backward halves of a module built with ``grad=True``."""
    start, rng = fresh(), np.random.default_rng(0)
    x, labels = rng.standard_normal((BATCH, 1, 8, 8), np.float32), np.arange(BATCH) % 10
    step = bg.build(bg.training_step(program(), bg.SGD(lr=0.5)))
    halves = bg.build(program(), grad=True)
    for module in (step, halves):
        module.load_state_dict(start.state_dict())
    before = halves.state_dict()
    assert_few_ulps(step(x, labels), halves(x, labels))
    gradients, after = halves.backward(), step.state_dict()
    for name, array in halves.state_dict().items():
        expected = array
        if name in gradients:
            expected = before[name] - np.float32(0.5) * gradients[name]
        scale = np.abs(before[name]).max() + np.abs(gradients.get(name, 0)).max()
        assert_few_ulps(after[name], expected, name, least=scale)


# --- programs made of programs ----------------------------------------------------------------


def quadratic(x):
    w = bg.parameter("w", 3)
    return (w * x * x).sum()


def test_gradients_as_programs():
    x, w = np.array([1, 2, 3], np.float32), np.array([2, 3, 4], np.float32)
    source = bg.trace(quadratic, bg.Tensor[3])
    by_x = bg.build(bg.grad(source, ["x"])).load_state_dict({"w": w})
    np.testing.assert_allclose(by_x(x)["x"], 2 * w * x)
    both = bg.build(bg.value_and_grad(source)).load_state_dict({"w": w})
    value, gradients = both(x)
    np.testing.assert_allclose(value, 2 + 12 + 36)
    assert list(gradients) == ["x", "w"]
    np.testing.assert_allclose(gradients["w"], x * x)


def test_gradients_inside_another_program():
    """A step written by hand, with a penalty on the gradient's size and a clipped update."""

    def step(x):
        value, gradients = bg.value_and_grad(bg.trace(quadratic, bg.Tensor[3]), ["w"])(x)
        (w,) = bg.parameters().values()
        bg.update(w, w - bg.minimum(gradients["w"], 5.0))
        return {"loss": value, **bg.grad(bg.trace(quadratic, bg.Tensor[3]), ["x"])(x)}

    traced = bg.trace(step, bg.Tensor[3])
    x, w = np.array([1, 2, 3], np.float32), np.array([2, 3, 4], np.float32)
    module = bg.build(traced).load_state_dict({"w": w})
    results = module(x)
    np.testing.assert_allclose(results["loss"], 50)
    np.testing.assert_allclose(results["x"], 2 * w * x)
    np.testing.assert_allclose(module.state_dict()["w"], w - [1, 4, 5])
    assert run(traced.graph, {"x": x, "w": w}).outputs[0] == 50


def test_parameters_the_loss_does_not_depend_on_stay():
    def net(x):
        unused, cut = bg.parameter("unused", 3), bg.parameter("cut", 3)
        return (bg.parameter("w", 3) * x).sum() + cut.detach().sum() + (unused > 0).sum() * 0

    step = bg.training_step(bg.trace(net, bg.Tensor[3]), bg.SGD(0.1, weight_decay=0.5))
    held = {n: np.ones(3, np.float32) for n in ("w", "cut", "unused")}
    module = bg.build(step).load_state_dict(held)
    module(np.ones(3, np.float32))
    after = module.state_dict()
    np.testing.assert_allclose(after["w"], 1 - 0.1 * (1 + 0.5))
    assert after["cut"].tolist() == after["unused"].tolist() == [1, 1, 1]


VECTOR = bg.Tensor[3]


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (
            lambda: bg.grad(quadratic),
            "grad: quadratic is a function, not a program (write bg.trace(it, *types)",
        ),
        (lambda: bg.grad(bg.trace(lambda x: x * x, VECTOR)), "must return a single scalar"),
        (
            lambda: bg.value_and_grad(bg.trace(quadratic, VECTOR), ["v"]),
            "with respect to 'v', which is no input of it",
        ),
        (
            lambda: bg.training_step(bg.trace(lambda x: x.sum(), VECTOR), bg.SGD()),
            "the result of program depends on no parameter",
        ),
        (
            lambda: bg.training_step(bg.trace(quadratic, VECTOR), 0.1),
            "training_step: optimizer is float (pass bg.SGD(lr=0.1))",
        ),
        (
            lambda: bg.training_step(
                bg.trace(lambda lr: (bg.parameter("w", 3) * lr).sum(), VECTOR), bg.SGD(lr=None)
            ),
            "has an argument 'lr' of its own",
        ),
        (lambda: bg.SGD(lr=-1), "SGD: lr must be a number, 0 or more, got -1"),
        (lambda: bg.SGD(nesterov=True), "SGD: nesterov needs a momentum and no dampening"),
    ],
)
def test_what_cannot_be_trained(make, what):
    with pytest.raises(ProgramError) as caught:
        make()
    assert what in str(caught.value)
    if "is no input" not in what and "scalar" not in what:
        assert str(caught.value).startswith(f"{__file__}:")
