"""Convolution, pools, normalization, reductions, shapes and the loss against PyTorch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import bngen as bg
from bngen.ir.interp import run
from tests.lang.meaning import agree, evaluate, normal, traced
from tests.oracle import assert_few_ulps


def both(name, *args, **kwargs):
    """The same call on our function and on PyTorch's, as two functions of the tensors."""
    theirs = getattr(F, name, None) or getattr(torch, name)
    ours = getattr(bg, name)
    return (lambda *t: ours(*t, *args, **kwargs)), (lambda *t: theirs(*t, *args, **kwargs))


@pytest.mark.parametrize(
    ("weight", "kwargs"),
    [
        ((4, 6, 3, 3), {}),
        ((4, 6, 3, 2), {"stride": 2, "padding": 1}),
        ((4, 6, 1, 1), {"stride": (2, 3)}),
        ((4, 6, 3, 3), {"padding": (2, 0), "dilation": (2, 1)}),
        ((4, 6, 3, 3), {"padding": "valid"}),
        ((4, 6, 4, 3), {"padding": "same", "dilation": (1, 2)}),
        ((4, 3, 3, 3), {"groups": 2}),
        ((12, 1, 3, 3), {"groups": 6, "padding": 1}),
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_conv2d(weight, kwargs):
    x, w, b = normal(2, 6, 9, 8), normal(*weight), normal(weight[0])
    agree(*both("conv2d", **kwargs), x, w, sums=True)
    agree(*both("conv2d", **kwargs), x, w, b, sums=True)


def test_conv2d_takes_its_arguments_in_pytorchs_order():
    x, w, b = normal(2, 6, 9, 8), normal(4, 3, 3, 3), normal(4)
    agree(*both("conv2d", 2, 1, 2, 2), x, w, b, sums=True)


@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 6), (6,)])
def test_linear(shape):
    agree(*both("linear"), normal(*shape), normal(4, 6), normal(4))
    agree(*both("linear"), normal(*shape), normal(4, 6))


def test_matmul():
    agree(lambda a, b: (a @ b, bg.matmul(a, b)), lambda a, b: (a @ b, a @ b), normal(2, 3),
          normal(3, 4))  # fmt: skip


@pytest.mark.parametrize(
    "args",
    [(2,), (3, 2, 1), ((2, 3), (1, 2), (1, 0)), (3, None, 1), (2, 2, 0, 2), (3, 2, 1, 1, True)],
)
def test_max_pool2d(args):
    agree(*both("max_pool2d", *args), normal(2, 3, 10, 7))


@pytest.mark.parametrize(
    "args",
    [(2,), (3, 2, 1), ((2, 3), (1, 2), (1, 0)), (3, 2, 1, True), (3, 2, 1, True, False),
     (3, 2, 1, False, False)],
)  # fmt: skip
def test_avg_pool2d(args):
    agree(*both("avg_pool2d", *args), normal(2, 3, 10, 7))


@pytest.mark.parametrize("size", [1, 3, (2, 5), (None, 2), (12, None)])
def test_adaptive_avg_pool2d(size):
    agree(*both("adaptive_avg_pool2d", size), normal(2, 3, 10, 7))


# --- batch normalization ----------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (2, 3, 4, 5), (2, 3, 2, 2, 2)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [0, 1, 2])
def test_batch_norm(shape, training, affine):
    x, mean, var = 3 * normal(*shape) + 2, normal(3), np.abs(normal(3, seed=1))
    weight_bias = [normal(3, seed=2), normal(3, seed=3)][:affine]
    kwargs = {"training": training, "momentum": 0.3, "eps": 1e-3}
    agree(*both("batch_norm", **kwargs), x, mean, var, *weight_bias)


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0])
def test_batch_norm_updates_running_statistics_as_pytorch(momentum):
    x, mean, var = 3 * normal(2, 3, 4, 5) + 2, normal(3), np.abs(normal(3, seed=1))

    def ours(x, mean, var):
        return bg.batch_norm(x, mean, var, training=True, momentum=momentum)

    _, updates = evaluate(ours, x, mean, var)
    m, v = torch.tensor(mean), torch.tensor(var)
    F.batch_norm(torch.tensor(x), m, v, training=True, momentum=momentum)
    assert_few_ulps(updates["mean"], m)
    assert_few_ulps(updates["var"], v)


@pytest.mark.parametrize("momentum", [None, 0.2])
def test_batch_norm_layer_applied_twice_is_pytorchs(momentum):
    """The second application goes on from the statistics and the count the first one left."""
    x, z = normal(4, 3, 5, 5), 2 * normal(2, 3, 4, 4) + 1

    def ours(x, z):
        with bg.scope("net"):
            return tuple(bg.layers.batch_norm(t, "bn", momentum=momentum) for t in (x, z))

    module = torch.nn.BatchNorm2d(3, momentum=momentum, dtype=torch.float64)
    expected = [module(torch.tensor(t)) for t in (x, z)]
    program = traced(ours, x, z)
    state = torch.nn.BatchNorm2d(3, dtype=torch.float64).state_dict()
    args = {f"net.bn.{k}": v.numpy() for k, v in state.items()} | {"x": x, "z": z}
    result = run(program.graph, args, dtype="float64")
    for got, want in zip(result.outputs, expected, strict=True):
        assert_few_ulps(got, want.detach())
    assert set(result.updates) == {f"net.bn.{k}" for k in state if k not in ("weight", "bias")}
    for name, new in result.updates.items():
        assert_few_ulps(new, module.state_dict()[name[7:]])


def test_batch_norm_without_running_statistics():
    agree(*both("batch_norm", None, None, training=True), normal(2, 3, 4, 4))


def test_split_form_is_batch_norm():
    x, w, b = 5 * normal(2, 3, 4, 4) - 1, normal(3), normal(3, seed=1)

    def split(x, w, b):
        mean, var = bg.bn_stats(x)
        return bg.bn_normalize(x, mean, var, w, b, 1e-3), mean, var

    def whole(x, w, b):
        y = F.batch_norm(x, None, None, w, b, True, eps=1e-3)
        return y, x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)

    agree(split, whole, x, w, b)


# --- reductions and shapes --------------------------------------------------------------------


@pytest.mark.parametrize("dim", [None, 0, -1, (0, 2), (-1, 1), [1]])
@pytest.mark.parametrize("keepdim", [False, True])
def test_reductions(dim, keepdim):
    x = normal(2, 3, 4)
    for name in ("sum", "mean"):
        agree(*both(name, dim=dim, keepdim=keepdim), x)
    dims = () if dim is None else dim
    agree(lambda t: bg.amax(t, dim, keepdim), lambda t: torch.amax(t, dims, keepdim), x)
    agree(lambda t: bg.max(t, dim, keepdim), lambda t: torch.amax(t, dims, keepdim), x)
    agree(lambda t: t.max(dim, keepdim), lambda t: t.amax(dims, keepdim), x)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "int64"])
def test_integers_sum_as_int64(dtype):
    agree(*both("sum"), np.full((300,), 1, dtype))


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_softmax(dim):
    x = 300 * normal(3, 4, 5)
    agree(*both("softmax", dim=dim), x)
    agree(*both("log_softmax", dim=dim), x)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_cat(dim):
    agree(lambda a, b: bg.cat([a, b, a], dim), lambda a, b: torch.cat([a, b, a], dim),
          normal(2, 3, 4), normal(2, 3, 4, seed=1))  # fmt: skip


def test_cat_of_a_growing_list_is_flat():
    def f(x):
        features = [x, x * 2]
        first = bg.cat(features)
        features.append(bg.relu(first))
        return bg.cat(features)

    joined = [n for n in traced(f, normal(2, 3)).graph.nodes if n.op == "cat"]
    assert [len(n.inputs) for n in joined] == [2, 3]
    assert joined[1].inputs[:2] == joined[0].inputs


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x.reshape(6, 4),
        lambda x: x.reshape((4, -1)),
        lambda x: x.view(-1),
        lambda x: x.flatten(1),
        lambda x: x.flatten(0, 1),
        lambda x: x.flatten(),
        lambda x: x[1],
        lambda x: x[:, 1:],
        lambda x: x[..., -1],
        lambda x: x[0, ..., 1:3],
        lambda x: x[-1, 2, 3],
    ],
)
def test_shapes(fn):
    agree(fn, fn, normal(2, 3, 4))


def test_shape_functions():
    x = normal(2, 3, 4)
    agree(lambda t: bg.reshape(t, (6, -1)), lambda t: torch.reshape(t, (6, -1)), x)
    agree(lambda t: bg.flatten(t, 1), lambda t: torch.flatten(t, 1), x)


def test_shapes_are_python_values_while_tracing():
    def f(x):
        assert (x.shape, x.ndim, x.dim(), x.size(), x.size(-1)) == ((2, 3), 2, 2, (2, 3), 3)
        assert (x.dtype, x.numel(), len(x), x.name) == ("float64", 6, 2, "x")
        return x

    assert traced(f, normal(2, 3)).graph.outputs[0].name == "x"


# --- cross entropy ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 5), (2, 5, 3, 4)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("ignore", [-100, 2])
def test_cross_entropy(shape, reduction, weighted, smoothing, ignore):
    logits = 20 * normal(*shape)
    labels = np.random.default_rng(0).integers(0, 5, (shape[0], *shape[2:]))
    labels.ravel()[:2] = ignore
    weight = [np.abs(normal(5))] if weighted else []
    kwargs = {"reduction": reduction, "label_smoothing": smoothing, "ignore_index": ignore}
    agree(*both("cross_entropy", **kwargs), logits, labels, *weight)


def test_cross_entropy_of_hopeless_logits():
    """A class that is ruled out by -inf costs nothing unless it is the label."""
    logits = np.array([[0.0, -np.inf, 1.0], [0.0, -np.inf, 1.0], [1e4, -1e4, 0.0]])
    agree(*both("cross_entropy", reduction="none"), logits, np.array([2, 1, 1]))


def test_cross_entropy_of_nothing_is_nan():
    agree(*both("cross_entropy"), normal(2, 3), np.full(2, -100))


def test_cross_entropy_in_float32():
    agree(*both("cross_entropy"), normal(8, 10).astype("float32"), np.arange(8))
