"""PyTorch's side of `bngen verify` against the op table, and against PyTorch's own layers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bngen import models
from bngen.errors import ProgramError, SourceLoc
from bngen.ir import interp
from bngen.ir.build import GraphBuilder
from bngen.ir.types import TensorType
from bngen.torch_bridge import reference
from tests.ir.op_cases import CASES, case, normal

FORWARD = [c for c in CASES if c.op in reference.OPERATORS]


def comparable(graph):
    """Without a max pool's indices, which are bngen's own."""
    (node,) = graph.nodes
    return replace(graph, outputs=graph.outputs[:1]) if node.op == "max_pool2d" else graph


def assert_same(ours, theirs):
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    scale = np.abs(theirs[np.isfinite(theirs)]).max(initial=1.0)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12 * scale)


@pytest.mark.parametrize("op_case", FORWARD, ids=lambda c: c.id)
@pytest.mark.parametrize("channels_last", [False, True], ids=["", "channels_last"])
def test_ops_mean_what_the_table_says(op_case, channels_last):
    graph, args = comparable(op_case.graph), op_case.args()
    torch_results = reference.run(graph, args, "float64", channels_last=channels_last)
    table_results = interp.run(graph, args, "float64")
    for ours, theirs in zip(torch_results.outputs, table_results.outputs, strict=True):
        assert_same(ours, theirs)


def test_every_operator_has_a_case():
    assert set(reference.OPERATORS) == {c.op for c in FORWARD}


def test_what_models_contain_is_covered():
    for name in models.MODELS:
        ops = {node.op for node in models.make(name, batch=2, image=64, loss=True).graph.nodes}
        assert ops <= set(reference.OPERATORS), name


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

    np.testing.assert_allclose(results.outputs[0], y, rtol=1e-12)
    np.testing.assert_allclose(results.updates["mean"], layer.running_mean, rtol=1e-12)
    np.testing.assert_allclose(results.updates["var"], layer.running_var, rtol=1e-12)


def test_arguments_are_not_touched():
    graph = case("relu", normal(3)).graph
    x = np.array([-1.0, 0.0, 2.0], np.float32)
    x.flags.writeable = False
    assert reference.run(graph, {"x": x}).outputs[0].tolist() == [0.0, 0.0, 2.0]


def test_an_op_without_a_row_is_named():
    graph = next(c.graph for c in CASES if c.op not in reference.OPERATORS)
    (node,) = graph.nodes
    graph = replace(graph, nodes=(replace(node, loc=SourceLoc("net.py", 7)),))
    args = {i.name: np.ones(i.value.shape) for i in graph.inputs}
    with pytest.raises(ProgramError, match=rf"^net\.py:7: op {node.op} has no PyTorch reference"):
        reference.run(graph, args)
