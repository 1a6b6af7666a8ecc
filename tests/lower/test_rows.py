"""Reductions along the last axis of plain values: rows of any length, special values, int types."""

import numpy as np
import pytest

import bngen as bg
from bngen.codegen.nests import choose
from bngen.ir.build import GraphBuilder
from bngen.ir.types import TensorType
from bngen.passes.prepare import Joint, prepare
from bngen.target.parse import Target
from tests.compiled import compiled
from tests.guarded_programs import examine, targets


def reduction(op, shape, *, keep=True, inner="exp", dtype="float32"):
    b = GraphBuilder(name="reduction")
    x = b.input("x", TensorType(shape, dtype))
    y = b.emit(inner, x) if inner else x
    return b.finish([b.emit(op, y, axes=(-1,), keepdims=keep)])


def kind(graph):
    target = Target.parse()
    plan = prepare(Joint(graph, graph), target.channel_block).planned.plan
    return choose(plan.kernels[0], plan.layouts, target.machine).strategy.kind


@pytest.mark.parametrize("width", range(len(targets())), ids=targets().__getitem__)
@pytest.mark.parametrize(
    ("op", "shape", "keep"), [("sum", (3, 33), True), ("mean", (2, 5, 77), False)], ids=str
)
def test_touches_its_operands_alone(width, op, shape, keep):
    graph = reduction(op, shape, keep=keep)
    assert kind(graph) == "rows"
    assert not examine(graph, "icf", targets()[width], 1, grad=False)


def test_short_rows_are_left():
    assert kind(reduction("sum", (300, 8))) == "fallback"
    assert kind(reduction("sum", (100,), inner=None)) == "rows"


def test_the_largest_of_a_row_is_a_number_only_if_all_are():
    x = np.linspace(-3, -2, 5 * 50, dtype=np.float32).reshape(5, 50)
    x[1, 49], x[2, 3], x[3, 48] = np.nan, np.inf, -np.inf
    graph = reduction("amax", x.shape, keep=False, inner=None)
    assert kind(graph) == "rows"
    np.testing.assert_array_equal(compiled(graph, grad=False)(x), x.max(axis=1))


def test_integers():
    x = np.arange(3 * 40, dtype=np.int32).reshape(3, 40) - 50
    for op, fold in (("sum", np.sum), ("amax", np.max)):
        graph = reduction(op, x.shape, inner=None, dtype="int32")
        found = compiled(graph, grad=False)(x)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, fold(x, axis=1, keepdims=True))


def test_a_loss_keeps_to_rows():
    def loss(x, labels):
        return bg.cross_entropy(x, labels)

    graph = bg.trace(loss, bg.Tensor[32, 1000], bg.Tensor[32, bg.int64]).graph
    target = Target.parse()
    plan = prepare(Joint(graph, graph), target.channel_block).planned.plan
    chosen = [choose(k, plan.layouts, target.machine).strategy.kind for k in plan.kernels]
    assert chosen.count("rows") == 5
