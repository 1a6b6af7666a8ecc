"""What random numbers never hit: infinities and NaN in pools and statistics, sums of very many
terms, seeds of random masks, labels of every type. Compiled, against PyTorch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import bngen as bg
from bngen.ir.interp import run
from bngen.verification.tolerance import allowed
from tests.oracle import assert_few_ulps
from tests.profiles import LEVELS, some

FLOATS = ("float32", "float64")
nan, inf = np.nan, np.inf


def forward_and_backward(ours, *arrays, level="icf"):
    """Result and gradients of the floating-point arguments, for a cotangent of a constant 0.1."""
    types = [bg.Tensor(a.shape, a.dtype) for a in arrays]
    module = bg.build(bg.trace(ours, *types), fusion=level, grad=True)
    result = module(*arrays)
    return result, list(module.backward(np.full_like(result, 0.1)).values())


def in_torch(theirs, *arrays, dtype=None):
    """The same by PyTorch; floats as ``dtype``."""
    leaves = [torch.tensor(a) for a in arrays]
    leaves = [t.to(dtype or t.dtype) if t.is_floating_point() else t for t in leaves]
    leaves = [t.requires_grad_() if t.is_floating_point() else t for t in leaves]
    result = theirs(*leaves)
    result.backward(torch.full_like(result, 0.1))
    return result.detach().numpy(), [t.grad.numpy() for t in leaves if t.is_floating_point()]


# --- pools --------------------------------------------------------------------------------------


def maps_with_infinities() -> np.ndarray:
    """Whole maps and corners of -inf, of inf and of NaN, and ties."""
    x = np.random.default_rng(0).standard_normal((2, 5, 7, 9))
    x[0, 0] = x[0, 1, :3, :3] = -inf
    x[1, 1, 2:5, 2:5] = x[1, 0, 0, 0] = x[1, 3] = nan
    x[1, 2], x[0, 4] = inf, 1
    return x


POOLS = [
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 2},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "ceil_mode": True},
]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_max_pools_choose_as_pytorch(dtype, level):
    x = maps_with_infinities().astype(dtype)
    for pool in POOLS:
        y, (dx,) = forward_and_backward(lambda t, p=pool: bg.max_pool2d(t, **p), x, level=level)
        theirs, (dx_theirs,) = in_torch(lambda t, p=pool: F.max_pool2d(t, **p), x)
        np.testing.assert_array_equal(y, theirs)
        assert_few_ulps(dx, dx_theirs, str(pool))


def test_a_windows_winner_is_no_padding():
    """The interpreter's index, too."""
    graph = bg.trace(lambda t: bg.max_pool2d(t, 3, 2, 1), bg.Tensor[2, 5, 7, 9]).graph
    env = run(graph, {graph.inputs[0].name: maps_with_infinities()}, keep=True).env
    index = env[graph.nodes[0].outputs[1].name]
    below = [1, 0, 0, 0, 0]
    assert index[0, 0].tolist() == [[4, 3, 3, 3, 3], below, below, below]


# --- statistics ---------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((4, 6, 20, 20), "float32"), ((2, 6, 8, 8), "float64"), ((8, 6), "float32")],
)
def test_an_infinity_in_a_channel(shape, dtype, level):
    """Its mean is infinite, its variance is not a number; its neighbours do not notice."""
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    for (image, channel), value in {
        (0, 0): inf, (1, 1): -inf, (0, 2): inf, (1, 2): -inf, (1, 3): nan
    }.items():  # fmt: skip
        x[image, channel].flat[0] = value
    t, mean, var = torch.tensor(x), torch.zeros(6).to(torch.tensor(x)), torch.ones(6).double()
    var = var.to(t.dtype)
    theirs = F.batch_norm(t, mean, var, training=True)

    def net(x, mean, var):
        return bg.batch_norm(x, mean, var, training=True)

    types = bg.Tensor(shape, dtype), bg.Tensor(6, dtype), bg.Tensor(6, dtype)
    module = bg.build(bg.trace(net, *types), fusion=level)
    held = np.zeros(6, dtype), np.ones(6, dtype)
    y = module(x, *held)
    assert_few_ulps(held[0], mean, each=True, least=0.1)
    assert_few_ulps(held[1], var, each=True)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(theirs.numpy()))


# --- float64 ------------------------------------------------------------------------------------


def network(lib, x, w, v, depthwise, gamma, beta, fc, labels):
    """Every kind of layer, in either library."""
    cat, sigmoid = (bg.cat, bg.sigmoid) if lib is bg else (torch.cat, torch.sigmoid)
    y = lib.conv2d(x, w, padding=1)
    y = lib.relu(lib.batch_norm(y, None, None, gamma, beta, training=True))
    y = lib.max_pool2d(y, 3, 2, 1)
    z = lib.silu(lib.conv2d(y, depthwise, padding=1, groups=24))
    z = lib.relu6(lib.conv2d(z, v, padding=1)) + y
    z = lib.conv2d(z, v, padding=1, stride=2)
    z = cat([lib.avg_pool2d(z, 3, 1, 1), lib.adaptive_avg_pool2d(z, (4, 4)), sigmoid(z)], 1)
    return lib.cross_entropy(lib.linear(z.mean((2, 3)), fc), labels, label_smoothing=0.1)


@pytest.mark.parametrize("level", LEVELS[-1:])
def test_a_network_in_double_precision(level):
    """No kernel of any kind rounds to float32 on the way."""
    rng = np.random.default_rng(0)
    shapes = (4, 20, 14, 14), (24, 20, 3, 3), (24, 24, 3, 3), (24, 1, 3, 3), (24,), (24,), (10, 72)
    arrays = [rng.standard_normal(s) * (0.3 if s[-1] == 3 else 1) for s in shapes]
    labels = rng.integers(0, 10, 4)
    y, gradients = forward_and_backward(lambda *xs: network(bg, *xs), *arrays, labels, level=level)
    theirs, exact = in_torch(lambda *xs: network(F, *xs), *arrays, labels)
    assert_few_ulps(y, theirs)
    for ours, reference in zip(gradients, exact, strict=True):
        assert_few_ulps(ours, reference)


# --- long sums ----------------------------------------------------------------------------------


def constant(*shape):
    return np.full(shape, 0.1, np.float32)


def spread(*shape):
    return (np.random.default_rng(0).random(shape) + 0.1).astype(np.float32)


LONG = {
    "adaptive_avg_pool2d": (lambda x: bg.adaptive_avg_pool2d(x, 1),
                            lambda x: F.adaptive_avg_pool2d(x, 1), constant(1, 3, 224, 224)),
    "uneven adaptive_avg_pool2d": (lambda x: bg.adaptive_avg_pool2d(x, (3, 2)),
                                   lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
                                   constant(1, 3, 100, 91)),
    "avg_pool2d": (lambda x: bg.avg_pool2d(x, 224), lambda x: F.avg_pool2d(x, 224),
                   constant(1, 3, 224, 224)),
    "sum": (lambda x: bg.sum(x), lambda x: x.sum(), constant(4, 16, 50, 50)),
    "mean by channel": (lambda x: bg.mean(x, (0, 2, 3)), lambda x: x.mean((0, 2, 3)),
                        constant(4, 16, 112, 112)),
    "sum of a long row": (lambda x: bg.sum(x, (0, 2, 3)), lambda x: x.sum((0, 2, 3)),
                          constant(1, 3, 1, 100_000)),
    "matmul": (lambda a, b: a @ b, lambda a, b: a @ b, constant(2, 100_001), constant(100_001, 8)),
    "linear": (bg.linear, F.linear, constant(2, 100_352), constant(8, 100_352)),
    "linear over a large batch": (bg.linear, F.linear, constant(60_000, 8), constant(4, 8)),
    "gradient of a bias": (lambda x, b: x + b.view(1, -1, 1, 1),
                           lambda x, b: x + b.view(1, -1, 1, 1), constant(8, 8, 56, 56),
                           constant(8)),
    "softmax": (lambda x: bg.softmax(x, 1), lambda x: torch.softmax(x, 1), spread(2, 100_000)),
    "batch_norm of a long row": (
        lambda x, w: bg.batch_norm(x, None, None, w, w, training=True),
        lambda x, w: F.batch_norm(x, None, None, w, w, training=True), spread(1, 3, 1, 50_000),
        constant(3)),
    "overlapping avg_pool2d": (lambda x: bg.avg_pool2d(x, 32, 4, 16),
                               lambda x: F.avg_pool2d(x, 32, 4, 16), constant(1, 3, 64, 64)),
    "overlapping max_pool2d": (lambda x: bg.max_pool2d(x, 31, 1, 15),
                               lambda x: F.max_pool2d(x, 31, 1, 15), constant(1, 3, 40, 40)),
}  # fmt: skip


@pytest.mark.parametrize("level", some(["icf", "none"], 1))
@pytest.mark.parametrize("name", some(list(LONG), len(LONG) - 2))
def test_long_sums_lose_no_more_digits_than_pytorchs(name, level):
    """Four times PyTorch's error and a few roundings, as everywhere."""
    ours, theirs, *arrays = LONG[name]
    y, gradients = forward_and_backward(ours, *arrays, level=level)
    y32, g32 = in_torch(theirs, *arrays)
    y64, g64 = in_torch(theirs, *arrays, dtype=torch.float64)
    for what, a, b, exact in zip(
        itertools.chain(["result"], itertools.repeat("gradient")),
        [y, *gradients], [y32, *g32], [y64, *g64], strict=False,
    ):  # fmt: skip
        scale = np.abs(exact).max()
        # A gradient that is all cancellation is compared with what cancels.
        scale = max(scale, 0.1) if name.startswith(("batch_norm", "softmax")) else scale
        limit = allowed(np.abs(b - exact).max(), scale, "float32")
        assert np.abs(a - exact).max() <= limit, f"{name}: {what}"


# --- random masks -------------------------------------------------------------------------------

SEEDS = (0, 1, 2, 2**32, 2**40, 2**63 - 1, -1, -(2**32), -(2**63))


def masks(seeds, dtype="int64", p=0.5, calls=1, shape=(16, 64, 8, 8), level="icf"):
    def net(x, seed):
        return tuple(bg.dropout(x, p, seed=seed) for _ in range(calls))

    graph = bg.trace(net, bg.Tensor(shape), bg.Tensor((), dtype)).graph
    module, x = bg.build(graph, fusion=level), np.ones(shape, np.float32)
    for seed in seeds:
        given = np.array(seed, dtype)
        ours = module(x, given)
        meant = run(graph, dict(zip((i.name for i in graph.inputs), (x, given), strict=True)))
        for a, b in zip(ours, meant.outputs, strict=True):
            np.testing.assert_array_equal(a, b)
        yield from (y != 0 for y in ours)


def assert_independent(drawn):
    """Correlations of 65,536 independent draws stay within 5 standard deviations."""
    for a, b in itertools.combinations(drawn, 2):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)


@pytest.mark.parametrize("level", LEVELS)
def test_all_bits_of_a_seed_count(level):
    assert_independent(list(masks(SEEDS, level=level)))


def test_sites_and_seeds_do_not_meet():
    """The sites of a program, for neighbouring seeds."""
    assert_independent(list(masks((5, 6, 7), calls=3)))


@pytest.mark.parametrize(("dtype", "seeds"), [("uint8", (0, 255)), ("int32", (-5, 2**31 - 1))])
def test_seeds_of_other_types(dtype, seeds):
    narrow, wide = masks(seeds, dtype), masks(seeds)
    for a, b in zip(narrow, wide, strict=True):
        np.testing.assert_array_equal(a, b)


def test_seeds_written_in_the_program():
    def net(x):
        return tuple(bg.dropout(x, seed=s) for s in (0, 2**32, 2**40, -1, 2**64 - 2))

    drawn = bg.build(bg.trace(net, bg.Tensor[16, 64, 8, 8]))(np.ones((16, 64, 8, 8), np.float32))
    assert_independent([y != 0 for y in drawn])


@pytest.mark.parametrize("p", [1e-9, 1e-6, 0.1, 0.9, 1 - 1e-6, 1 - 1e-12])
def test_masks_drop_their_share(p):
    """Of 4 million draws; a rare event neither vanishes nor becomes frequent."""
    size = 1 << 22
    y = bg.build(bg.trace(lambda x: bg.dropout(x, p, seed=1), bg.Tensor[size]))(
        np.ones(size, np.float32)
    )
    dropped = int((y == 0).sum())
    deviation = np.sqrt(size * p * (1 - p))
    assert abs(dropped - size * p) <= 5 * deviation + 1
    assert_few_ulps(y[y != 0], np.full(size - dropped, 1 / (1 - p), np.float32))


# --- losses -------------------------------------------------------------------------------------


def logits(*shape, dtype="float32"):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def unlikely():
    """Infinities and NaN among the logits."""
    x = logits(6, 5)
    x[0, 0] = x[2, 3] = -inf
    x[1, 1], x[3, 0] = inf, nan
    return x


LABELS = np.array([0, -100, 4, 2, 2, 3])
LOSSES = {
    "uint8": (logits(6, 5), np.uint8([0, 1, 4, 2, 2, 3]), {}),
    "uint8 of many classes": (logits(3, 300), np.uint8([0, 44, 255]), {}),
    "uint8, one ignored": (logits(6, 5), np.uint8([0, 1, 4, 2, 2, 3]), {"ignore_index": 2}),
    "int32": (logits(6, 5), LABELS.astype("int32"), {}),
    "int64": (logits(6, 5, dtype="float64"), LABELS, {}),
    "all ignored": (logits(6, 5), np.full(6, -100), {}),
    "smoothed": (logits(6, 5), LABELS, {"label_smoothing": 0.3}),
    "smoothed wholly": (logits(6, 5), LABELS, {"label_smoothing": 1.0, "reduction": "sum"}),
    "infinities": (unlikely(), LABELS, {"reduction": "none"}),
    "infinities, smoothed": (unlikely(), LABELS, {"reduction": "none", "label_smoothing": 0.1}),
    "images": (logits(2, 5, 3, 4), np.arange(24).reshape(2, 3, 4) % 5, {}),
}


@pytest.mark.parametrize("name", LOSSES)
def test_cross_entropy(name):
    x, labels, options = LOSSES[name]
    y, (dx,) = forward_and_backward(lambda x, n: bg.cross_entropy(x, n, **options), x, labels)

    def theirs(x, n):
        return F.cross_entropy(x, n.long(), **options)

    y_theirs, (dx_theirs,) = in_torch(theirs, x, labels)
    assert_few_ulps(y, y_theirs)
    assert_few_ulps(dx, dx_theirs)


def test_a_computed_label_that_is_no_class_makes_the_loss_nan():
    def net(x, labels):
        return bg.cross_entropy(x, labels + 1, reduction="none")

    module = bg.build(bg.trace(net, bg.Tensor[6, 5], bg.Tensor[6, bg.int64]))
    loss = module(logits(6, 5), np.array([0, 4, -2, 3, -101, 1]))
    np.testing.assert_array_equal(np.isnan(loss), [False, True, True, False, False, False])
    assert loss[4] == 0
