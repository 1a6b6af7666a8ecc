"""PyTorch's side of `bngen verify`: whole graphs, their types, and PyTorch's own layers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bngen.errors import ProgramError, SourceLoc
from bngen.ir import interp
from bngen.ir.build import GraphBuilder
from bngen.ir.types import TensorType
from bngen.torch_bridge import reference
from tests.ir.op_cases import CASES, case, normal
from tests.oracle import assert_few_ulps, assert_same

MAPS = [c for c in CASES if any(o and len(o.type.shape) == 4 for o in c.operands)]


@pytest.mark.parametrize("op_case", MAPS, ids=lambda c: c.id)
def test_the_layout_of_feature_maps_changes_no_meaning(op_case):
    graph, args = op_case.graph, op_case.args()
    theirs = reference.run(graph, args, "float64", channels_last=True)
    ours = interp.run(graph, args, "float64")
    for i, (a, b) in enumerate(zip(ours.outputs, theirs.outputs, strict=True)):
        assert a.dtype == b.dtype
        assert_same(a, b, f"{op_case.op} result {i}", rtol=1e-12)


def test_declared_types_are_kept_without_a_dtype():
    graph, args = case("add", normal(3), normal(3)).graph, {"a": np.ones(3), "b": np.ones(3)}
    assert reference.run(graph, args).outputs[0].dtype == np.float32
    assert reference.run(graph, args, "float64").outputs[0].dtype == np.float64


def test_running_statistics_are_those_of_the_layer():
    layer = torch.nn.BatchNorm2d(3, momentum=0.3).double()
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = layer(x).detach().numpy()

    b = GraphBuilder(name="bn")
    data = b.input("x", TensorType((4, 3, 5, 5)))
    held = [b.input(n, TensorType((3,)), kind="buffer") for n in ("mean", "var")]
    out, mean, var = b.emit("batch_norm", data, None, None)
    new = b.emit("bn_update", *held, mean, var, None, momentum=0.3, count=100)
    graph = b.finish((out,), updates=tuple(zip(held, new, strict=True)))
    args = {"x": x.numpy(), "mean": np.zeros(3), "var": np.ones(3)}
    results = reference.run(graph, args, "float64")

    assert_few_ulps(results.outputs[0], y)
    assert_few_ulps(results.updates["mean"], layer.running_mean)
    assert_few_ulps(results.updates["var"], layer.running_var)


def test_arguments_are_not_touched():
    graph = case("relu", normal(3)).graph
    x = np.array([-1.0, 0.0, 2.0], np.float32)
    x.flags.writeable = False
    assert reference.run(graph, {"x": x}).outputs[0].tolist() == [0.0, 0.0, 2.0]


def test_values_are_freed_after_their_last_use(monkeypatch):
    b = GraphBuilder()
    y = b.input("x", TensorType((10,)))
    for _ in range(20):
        y = b.emit("add", y, y)
    alive, most, evaluate_node = [], [], reference._evaluate_node

    def counting(*args):
        import weakref

        results = evaluate_node(*args)
        alive.extend(weakref.ref(r) for r in results)
        most.append(sum(r() is not None for r in alive))
        return results

    monkeypatch.setattr(reference, "_evaluate_node", counting)
    reference.run(b.finish((y,)), {"x": np.ones(10)})
    assert max(most) <= 2


def test_an_op_without_a_row_is_named(monkeypatch):
    graph = case("relu", normal(3)).graph
    (node,) = graph.nodes
    graph = replace(graph, nodes=(replace(node, loc=SourceLoc("net.py", 7)),))
    monkeypatch.setattr(reference, "TORCH_OPS", {})
    with pytest.raises(ProgramError, match=r"^net\.py:7: op relu has no PyTorch reference"):
        reference.run(graph, {"x": np.ones(3)})
