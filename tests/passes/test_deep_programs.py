"""Long and deep programs: no recursion, and work that grows with the number of nodes.

Work is counted in calls of functions, Python's and C's, for programs of one and of two lengths: a
count is the same on every machine. Twice the nodes take twice the calls; what compares every node
with every other takes four times as many.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest

from bngen import tanh
from bngen.compiler import build
from bngen.ir.build import GraphBuilder
from bngen.ir.interp import run
from bngen.ir.node import Graph
from bngen.ir.text import parse_graph
from bngen.ir.types import TensorType, Value
from bngen.lang.program import trace
from bngen.passes.fusion.profit import MOST_OPS, MOST_OPS_AGAIN
from bngen.passes.pipeline import Planned
from bngen.passes.prepare import Joint, join_gradient, prepare
from tests.profiles import some, takes_long

MAP = TensorType((2, 16, 4, 4))


LONG = 3 * MOST_OPS


def chain(n: int) -> Graph:
    b = GraphBuilder()
    x = b.input("x", MAP)
    for i in range(n):
        x = b.emit(("tanh", "sigmoid", "neg")[i % 3], x)
    return b.finish([x])


def fan(n: int) -> Graph:
    """Many readers of one map."""
    b = GraphBuilder()
    x = b.emit("tanh", b.input("x", MAP))
    return b.finish([b.emit("tanh", b.emit("add", x, float(i))) for i in range(n // 2)])


def tree(n: int) -> Graph:
    """Many maps, summed in pairs."""
    b = GraphBuilder()
    inputs = [b.input(f"x{i}", MAP) for i in range(8)]
    row = [b.emit("tanh", b.emit("add", inputs[i % 8], float(i))) for i in range(n // 3)]
    while len(row) > 1:
        pairs = zip(row[::2], row[1::2], strict=False)
        row = [b.emit("add", *pair) for pair in pairs] + row[len(row) & ~1 :]
    return b.finish(row)


def residual(n: int) -> Graph:
    b = GraphBuilder()
    x = b.input("x", MAP)
    for _ in range(n // 2):
        x = b.emit("add", x, b.emit("tanh", x))
    return b.finish([x])


def running_sum(n: int) -> Graph:
    """Each of many maps is read by the next and by a sum."""
    b = GraphBuilder()
    x = total = b.input("x", MAP)
    for _ in range(n // 2):
        x = b.emit("tanh", x)
        total = b.emit("add", total, x)
    return b.finish([total])


def layers(n: int, join: Callable[[GraphBuilder, Value, Value], Value]) -> Graph:
    """Convolution, normalization, ReLU; ``join`` makes a layer's result of its operand and that."""
    b = GraphBuilder()
    x = b.input("x", MAP)
    for i in range(n // 3):
        w = b.input(f"w{i}", TensorType((16, x.shape[1], 1, 1)), "parameter")
        gamma, beta = (b.input(f"{p}{i}", TensorType((16,)), "parameter") for p in "gb")
        y, _, _ = b.emit("batch_norm", b.emit("conv2d", x, w), gamma, beta)
        x = join(b, x, b.emit("relu", y))
    return b.finish([x])


def plain_layers(n: int) -> Graph:
    return layers(n, lambda b, x, y: y)


def residual_layers(n: int) -> Graph:
    return layers(n, lambda b, x, y: b.emit("add", x, y))


def dense_layers(n: int) -> Graph:
    """Concatenations within concatenations."""
    return layers(n, lambda b, x, y: b.emit("cat", x, y, axis=1))


def wide(n: int) -> Graph:
    """One concatenation of many parts."""
    b = GraphBuilder()
    x = b.input("x", TensorType((n, 3)))
    parts = [b.emit("slice", x, axis=0, start=i, stop=i + 1) for i in reversed(range(n))]
    return b.finish([b.emit("cat", *parts, axis=0)])


FAMILIES = [chain, fan, tree, residual, running_sum, plain_layers, residual_layers, dense_layers]


def planned(graph: Graph, level: str, *, gradient: bool = True) -> Planned:
    return prepare(join_gradient(graph) if gradient else Joint(graph, graph), 16, level).planned


def calls(work: Callable[[], object]) -> int:
    """How many functions are called."""
    count = 0

    def profile(frame: object, event: str, arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("level", some(["icf", "none"], 1))
@pytest.mark.parametrize("family", FAMILIES)
def test_work_grows_with_the_number_of_nodes(family, level):
    once, twice = (calls(lambda n=n: planned(family(n), level)) for n in (48, 96))
    assert twice < 2.3 * once


@pytest.mark.parametrize("level", some(["icf", "none"], 1))
@takes_long("test_three_hundred_layers_are_planned is like it")
def test_a_chain_of_two_thousand_is_planned(level):
    plan = planned(chain(2000), level).plan
    longest = max(len(k.nodes) for k in plan.kernels)
    assert longest <= MOST_OPS + MOST_OPS_AGAIN
    assert longest > MOST_OPS // 2 or level != "icf"


def test_three_hundred_layers_are_planned():
    assert planned(plain_layers(900), "icf").plan.kernels


def test_a_long_program_is_traced_printed_read_and_interpreted():
    def deep(x):
        for _ in range(2000):
            x = tanh(x)
        return x

    graph = trace(deep, MAP).graph
    assert len(graph.nodes) == 2000
    assert parse_graph(str(graph)) == graph
    (y,) = run(graph, {"x": np.full(MAP.shape, 3.0, np.float32)}).outputs
    assert 0 < y.max() < 0.1


@pytest.mark.parametrize(("family", "n"), [(chain, LONG), (running_sum, LONG), (wide, 500)])
def test_a_long_program_is_compiled_and_right(family, n):
    """Longer than one kernel holds; gradients cross the borders between kernels."""
    graph = family(n)
    joint = join_gradient(graph)
    module = build(graph, grad=True)
    rng = np.random.default_rng(0)
    shape = graph.input_values()[0].shape
    x, dy = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    cotangent = next(iter(set(i.name for i in joint.graph.inputs) - {"x"}))
    wanted = run(joint.graph, {"x": x, cotangent: dy}, "float64").outputs
    found = module.forward(x)
    gradient = module.backward(dy)["x"]
    np.testing.assert_allclose(np.asarray(found), wanted[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.asarray(gradient), wanted[1], rtol=1e-3, atol=1e-5)
