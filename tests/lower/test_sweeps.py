"""Kernels that no convolution is in: copies, packed weights, plain values, reductions.

Each strategy on shapes that fill no vectors, on each width of vectors, between guard pages, and its
results against the meaning.
"""

import numpy as np
import pytest

import bngen as bg
from bngen.codegen.nests import choose
from bngen.ir.build import GraphBuilder
from bngen.ir.interp import run
from bngen.ir.types import TensorType
from bngen.passes.prepare import Joint, join_gradient, prepare
from bngen.plan.formats import Formats
from bngen.target.parse import Target
from tests.compiled import compiled
from tests.guarded_programs import examine, targets
from tests.strategies import random_args

WIDTHS = pytest.mark.parametrize("width", range(len(targets())), ids=targets().__getitem__)


def kinds(graph, *, gradient=False):
    """The strategy of each kernel, in order."""
    target = Target.parse()
    joint = join_gradient(graph) if gradient else Joint(graph, graph)
    plan = prepare(joint, target.channel_block).planned.plan
    return [choose(k, plan.layouts, target.machine).strategy.kind for k in plan.kernels]


def program(op, *shapes, dtype="float32", **attrs):
    """One op."""
    b = GraphBuilder(name="one_op")
    inputs = [b.input(f"x{i}", TensorType(shape, dtype)) for i, shape in enumerate(shapes)]
    results = b.emit(op, *inputs, **attrs)
    return b.finish(results if isinstance(results, tuple) else [results])


def in_blocks(op, *shapes, before="relu", after="relu", **attrs):
    """One op between two convolutions, so that its maps lie in channel blocks."""
    b = GraphBuilder(name="in_blocks")
    maps = []
    for i, shape in enumerate(shapes):
        x, w = (
            b.input(f"x{i}", TensorType(shape)),
            b.input(f"w{i}", TensorType((shape[1],) * 2 + (1, 1))),
        )
        maps.append(b.emit(before, b.emit("conv2d", x, w)) if before else b.emit("conv2d", x, w))
    return b.finish([b.emit(op, *maps, **attrs)])


COLUMNS = [
    program("sum", (37, 21), axes=(0,), keepdims=False),
    program("mean", (3, 5, 40), axes=(0, 1), keepdims=True),
    program("amax", (4, 9, 33), axes=(1,), keepdims=False),
    program("sum", (2100, 130), axes=(0,), keepdims=False),
    program("sum", (5, 7, 19), axes=(1,), keepdims=True, dtype="int32"),
]


@WIDTHS
@pytest.mark.parametrize("graph", COLUMNS, ids=lambda g: str(g.outputs[0].type))
def test_columns(graph, width):
    assert kinds(graph) == ["columns"]
    assert not examine(graph, "icf", targets()[width], 1, grad=False)


STATISTICS = [(37, 21), (2, 5), (2100, 40)]
"""Rows that fill no register, two alone, and more of them than a task takes."""


@WIDTHS
@pytest.mark.parametrize("shape", STATISTICS, ids=str)
def test_statistics_of_rows(shape, width):
    vector = shape[1:]
    for op, others in (("bn_stats", ()), ("bn_mean", ()), ("bn_var", (vector,)),
                       ("bn_grad_sums", (shape, vector))):  # fmt: skip
        graph = program(op, shape, *others)
        assert kinds(graph) == ["column_statistics"]
        assert not examine(graph, "icf", targets()[width], 1, grad=False)


def test_statistics_are_exact_whatever_the_first_row_is():
    """Deviations are taken from it: it may lie far away, be all there is, or be no number."""
    x = np.random.default_rng(0).standard_normal((300, 40)).astype(np.float32)
    x[:, 1] += 1e4
    x[:, 2] = 3.7
    x[0, 3], x[0, 4], x[5, 5], x[0, 6], x[9, 7] = 1e6, np.inf, -np.inf, np.nan, np.nan
    mean, var = compiled(program("bn_stats", x.shape), grad=False)(x)
    with np.errstate(invalid="ignore"):
        wanted = x.mean(0, dtype="float64"), x.var(0, dtype="float64")
    for ours, exact in zip((mean, var), wanted, strict=True):
        np.testing.assert_allclose(ours, exact, rtol=1e-7)
    assert mean[2] == np.float32(3.7) and var[2] == 0


ROWS = [
    program("sum", (3, 7, 9), axes=(1, 2), keepdims=False),
    program("mean", (70, 61), axes=(0, 1), keepdims=False),
    program("amax", (9, 5, 111), axes=(0, 1, 2), keepdims=True),
    program("sum", (1 << 17,), axes=(0,), keepdims=False),
]


@pytest.mark.parametrize("graph", ROWS, ids=lambda g: str(g.inputs[0].value.type))
def test_rows_of_several_axes(graph):
    assert kinds(graph)[0] == "rows"
    assert not examine(graph, "icf", targets()[-1], 1, grad=False)


@WIDTHS
@pytest.mark.parametrize("channels", [20, 48])
@pytest.mark.parametrize(("op", "keep"), [("mean", True), ("amax", False)])
def test_pixels(op, keep, channels, width):
    graph = in_blocks(op, (2, channels, 5, 7), axes=(1,), keepdims=keep)
    assert "pixels" in kinds(graph)
    assert not examine(graph, "icf", targets()[width], 1, grad=False)


def test_lanes_without_a_channel_are_no_largest_element():
    graph = in_blocks("amax", (1, 20, 3, 3), before="sigmoid", axes=(1,), keepdims=False)
    args = random_args(graph, 3)
    args["w0"] = np.full_like(args["w0"], -1.0)
    args["x0"] = np.abs(args["x0"]) + 1
    assert "pixels" in kinds(graph)
    exact = run(graph, args).outputs[0]
    np.testing.assert_allclose(compiled(graph, grad=False)(*args.values()), exact, rtol=1e-5)


def between(shape, move):
    """A map that a convolution has made, moved."""

    def fn(x, w):
        return move(bg.relu(bg.conv2d(x, w)))

    return bg.trace(fn, bg.Tensor[shape], bg.Tensor[(shape[1],) * 2 + (1, 1)]).graph


MOVES = {
    "to plain": lambda y: y,
    "parts that fill no blocks": lambda y: bg.cat([y[:, :7], y[:, 3:20]], 1),
    "turned over": lambda y: bg.permute(y, (0, 2, 3, 1)) + 1.0,
    "of a row": lambda y: bg.cat([y[:, :, 1:], y[:, :, :2]], 2),
}


@pytest.mark.parametrize(
    ("shape", "move"),
    [((2, 20, 7, 7), "to plain"), ((1, 32, 5, 26), "to plain"), ((2, 24, 1, 1), "to plain"),
     ((2, 20, 3, 3), "parts that fill no blocks"), ((1, 32, 4, 9), "turned over"),
     ((1, 20, 4, 5), "of a row")],
    ids=str,
)  # fmt: skip
def test_copies_of_maps(shape, move):
    graph = between(shape, MOVES[move])
    assert "copies" in kinds(graph)
    assert not examine(graph, "icf", targets()[-1], 1, grad=False)


def test_copies_to_channels_last():
    graph = between((2, 20, 5, 6), MOVES["to plain"])
    formats = Formats(frozenset({"x"}), frozenset({0}))
    assert not examine(graph, "icf", targets()[-1], 1, formats=formats, grad=False)


PACKED = {
    "one tap, few lanes": ((2, 20, 3, 3), (9, 20, 1, 1), 1),
    "several taps": ((2, 18, 4, 4), (17, 18, 1, 3), 1),
    "padded groups": ((2, 24, 3, 3), (48, 12, 1, 3), 2),
    "shuffled groups": ((2, 32, 3, 3), (32, 4, 1, 3), 8),
}


@pytest.mark.parametrize("case", PACKED.values(), ids=PACKED)
def test_packed_weights(case):
    x, w, groups = case
    b = GraphBuilder(name="packed")
    x, w = b.input("x", TensorType(x)), b.input("w", TensorType(w), "parameter")
    y = b.emit("conv2d", x, w, stride=(1, 1), padding=(1,) * 4, dilation=(1, 1), groups=groups)
    graph = b.finish([b.emit("relu", y)])
    assert kinds(graph, gradient=True).count("packing") == 2
    assert not examine(graph, "icf", targets()[-1], 1)


def halves(x, y):
    """Two results, of which one needs the other, and both a third value."""
    z = bg.exp(x) * y
    return z + 1.0, bg.sqrt(z * z + 1.0) - y


@pytest.mark.parametrize(
    ("x", "y"),
    [((5, 7, 3), (5, 7, 3)), ((40000,), (40000,)), ((3, 4, 21), (21,)), ((9, 130), (9, 1))],
    ids=str,
)
def test_plain_values(x, y):
    graph = bg.trace(halves, bg.Tensor[x], bg.Tensor[y]).graph
    assert "plain" in kinds(graph)
    assert not examine(graph, "icf", targets()[-1], 1, grad=False)


def test_an_update_of_weights_is_written_where_they_lie():
    b = GraphBuilder(name="update")
    x, w, m = (b.input(n, TensorType((33, 17, 3, 3)), k)
               for n, k in (("x", "input"), ("w", "parameter"), ("m", "buffer")))  # fmt: skip
    moved = b.emit("add", b.emit("mul", m, 0.9), x)
    new = b.emit("sub", w, b.emit("mul", moved, 0.1))
    graph = b.finish([b.emit("sum", b.emit("mul", new, x), axes=(0, 1, 2, 3))],
                     updates=[(m, moved), (w, new)])  # fmt: skip
    assert "plain" in kinds(graph)
    assert not examine(graph, "icf", targets()[-1], 1, grad=False)


@pytest.mark.parametrize(
    "move",
    [lambda x: bg.cat([x, x * 2.0], 1), lambda x: bg.cat([x[1:], x[:2]], 0)[:, :, 1:],
     lambda x: bg.flip(x, (2,)) * 1.0],
    ids=["joined", "cut", "flipped"],
)  # fmt: skip
def test_moves_in_plain_order(move):
    graph = bg.trace(lambda x: move(x), bg.Tensor[3, 4, 35]).graph
    assert "fallback" not in kinds(graph)
    assert not examine(graph, "icf", targets()[-1], 1, grad=False)


def whole(x, w):
    """Sums of maps, channels included."""
    y = bg.relu(bg.conv2d(x, w))
    return (y * y).sum(), y.mean((1, 2, 3)), y.amax((0, 1, 2, 3))


def test_sums_of_whole_maps_are_taken_where_they_are_made():
    graph = bg.trace(whole, bg.Tensor[3, 20, 4, 8], bg.Tensor[20, 20, 1, 1]).graph
    assert kinds(graph)[:3].count("conv") == 1
    assert not examine(graph, "icf", targets()[-1], 1, grad=False)
