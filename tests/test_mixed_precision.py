"""Programs in bfloat16: as exact as PyTorch's autocast, and decided as they are in float32.

What functions compute on bfloat16, element by element, is in `test_element_types`; what lies in
memory, between guard pages, in `guarded_programs`.
"""

from __future__ import annotations

import io

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import bngen as bg
from bngen.compiler import FUSION_LEVELS
from bngen.ir.interp import run
from bngen.ir.text import parse_graph
from bngen.ir.verify import verify
from bngen.passes.fusion.levels import LEVELS
from bngen.passes.pipeline import graph_passes
from bngen.passes.prepare import join_gradient, prepare
from bngen.plan.traffic import kernel_traffic, total
from bngen.torch_bridge.networks import loss_of, make_network
from tests.compiled import compiled, cotangents_for, forward
from tests.oracle import assert_close
from tests.passes.meaning import joint_program, reference, same_results
from tests.strategies import programs, random_args

BF16 = ml_dtypes.bfloat16
LEAST = max(1, settings.default.max_examples // 20)


# --- whole networks -------------------------------------------------------------------------------


HEAD = bg.layers


@bg.program
def before_a_mean(x: bg.Tensor[3, 12, 16, 16], labels: bg.Tensor[3, bg.int64]):
    y = bg.relu(HEAD.batch_norm(HEAD.conv2d(x, "c", 9, 3, padding=1), "n"))
    y = bg.flatten(bg.adaptive_avg_pool2d(y, 1), 1)
    return bg.cross_entropy(HEAD.linear(y, "fc", 10), labels)


@pytest.mark.parametrize("level", FUSION_LEVELS)
def test_what_is_rounded_in_a_gradient_still_cancels(level):
    """A bias that is normalized away has no gradient, but for what is rounded."""
    rng = np.random.default_rng(0)
    module = compiled(bg.autocast(before_a_mean).graph, level).init(0)
    module(rng.standard_normal((3, 12, 16, 16), np.float32), rng.integers(0, 10, 3))
    gradients = module.backward()
    left, whole = (np.abs(gradients[name]).max() for name in ("c.bias", "n.bias"))
    assert left < 1e-3 * whole


SATURATED = {
    "sigmoid": lambda x: bg.sigmoid(x + 7),
    "tanh": lambda x: bg.tanh(x * 0.4 + 3),
    "softmax": lambda x: bg.softmax(x * 4 + 7, 1),
    "deviations": lambda x: (x - x.mean((2, 3), keepdim=True)) / (x * x).sum((2, 3), keepdim=True),
}


@pytest.mark.parametrize("kind", SATURATED)
def test_slopes_of_what_is_rounded_for_a_reader_are_not_rounded(kind):
    """PyTorch keeps what was computed in float32, though a convolution reads it in bfloat16."""

    @bg.program
    def before(x: bg.Tensor[4, 6, 12, 12], w: bg.Tensor[6, 6, 3, 3]):
        return bg.conv2d(SATURATED[kind](x).to(bg.bfloat16), w.to(bg.bfloat16), padding=1)

    @bg.program
    def exact(x: bg.Tensor[4, 6, 12, 12], w: bg.Tensor[6, 6, 3, 3]):
        return bg.conv2d(SATURATED[kind](x), w, padding=1)

    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(s).astype(np.float32) for s in ((4, 6, 12, 12), (6, 6, 3, 3)))
    dy = rng.standard_normal((4, 6, 12, 12)).astype(np.float32)
    gradients = []
    for program, arrived in ((before, dy.astype(BF16)), (exact, dy)):
        module = compiled(program.graph)
        module(x, w)
        gradients.append(np.asarray(module.backward(arrived)["x"], np.float64))
    rounded, wanted = gradients
    assert np.linalg.norm(rounded - wanted) < 0.02 * np.linalg.norm(wanted)


@pytest.mark.parametrize("name", ["tiny_densenet", "tiny_resnet", "tiny_mobilenet"])
@pytest.mark.parametrize("level", FUSION_LEVELS)
def test_conversions_cost_no_kernel_and_no_sweep(name, level):
    graph = bg.models.make(name, 2, 32, loss=True).graph
    plans = [
        prepare(join_gradient(g), 16, level).planned.plan for g in (graph, bg.autocast(graph).graph)
    ]
    kernels = [len(plan.kernels) for plan in plans]
    wide, narrow = (total(kernel_traffic(plan)) for plan in plans)
    assert kernels[0] == kernels[1]
    assert (wide.sweeps_read, wide.sweeps_written) == (narrow.sweeps_read, narrow.sweeps_written)
    # Images and their gradient stay float32, and the indices of a pool what they are.
    assert 0.5 <= narrow.nbytes / wide.nbytes < 0.65


def gradients_in_torch(name, state, x, labels, dtype, cast) -> dict[str, np.ndarray]:
    network = make_network(name, *x.shape[::3]).to(dtype)
    network.load_state_dict({k: torch.tensor(v) for k, v in state.items()})
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        loss = loss_of(name, network(torch.tensor(x, dtype=dtype)), torch.tensor(labels))
    loss.backward()
    return {n: p.grad.double().numpy() for n, p in network.named_parameters()}


def test_a_network_is_as_exact_as_autocast():
    """Against float64: the median over parameters and batches, and no batch far off."""
    name, shape = "tiny_densenet", (4, 3, 32, 32)
    graph = bg.autocast(bg.models.make(name, shape[0], shape[2], loss=True)).graph
    trained = [i.name for i in graph.inputs if i.kind == "parameter"]
    module = bg.build(graph, grad=True, wrt=trained)
    shares = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        state = {k: np.array(v) for k, v in module.init(seed).state_dict().items()}
        x, labels = rng.standard_normal(shape, np.float32), rng.integers(0, 10, shape[0])
        loss = module(x, labels)
        assert loss.dtype == np.float32
        ours = module.backward()
        assert {a.dtype.name for a in ours.values()} == {"float32"}
        exact, theirs = (
            gradients_in_torch(name, state, x, labels, dtype, cast)
            for dtype, cast in ((torch.float64, False), (torch.float32, True))
        )
        # The gradient of a bias before BN is zero, and only roundings are left of it.
        errors = [
            [np.linalg.norm(g[n] - exact[n]) for n in trained if np.linalg.norm(exact[n]) > 1e-6]
            for g in (ours, theirs)
        ]
        shares.append(np.median(np.divide(*errors)))
    assert np.median(shares) < 1.2 and max(shares) < 1.5, shares


# --- random programs ------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["none", "icf"])
def test_random_programs(level):
    """Compiled: what the interpreter rounds down another order of summation may round up."""

    @settings(max_examples=LEAST)
    @given(programs(max_layers=4), st.integers(0, 2**31))
    def body(graph, seed):
        graph = bg.autocast(graph).graph
        verify(graph)
        assert parse_graph(str(graph)) == graph
        args = random_args(graph, seed)
        module = compiled(graph, level)
        outputs, held = forward(module, args)
        meant, exact = run(graph, args), run(graph, args, "float64")
        for i, ours in enumerate(outputs):
            wanted = exact.outputs[i].astype(np.float64)
            assert ours.dtype == graph.outputs[i].dtype
            assert_close(ours, meant.outputs[i], wanted, f"output {i}")
        for name, wanted in exact.updates.items():
            assert_close(held[name], meant.updates[name], wanted, name)
        gradients = module.backward(*(
            c.astype(v.dtype) for c, v in zip(
                cotangents_for(graph, seed), [v for v in graph.outputs if v.type.is_float],
                strict=True,
            )
        ))  # fmt: skip
        assert {n: g.dtype.name for n, g in gradients.items()} == {
            i.name: i.value.dtype for i in graph.inputs if i.name in gradients
        }

    body()


def test_each_stage_preserves_meaning():
    """In double precision, where casts change nothing: casts hide nothing that a pass must see."""

    @settings(max_examples=LEAST)
    @given(programs(max_layers=4), st.integers(0, 2**31))
    def body(graph, seed):
        stage = joint_program(bg.autocast(graph).graph)[0]
        args = random_args(stage, seed)
        before = reference(stage, args)
        for name, apply in graph_passes(LEVELS["icf"]):
            stage = apply(stage)
            verify(stage, name)
            after = reference(stage, args)
            same_results(after, before)
            before = after

    body()


# --- what is what ---------------------------------------------------------------------------------


def types(graph) -> dict[str, set[str]]:
    return {
        op: {v.dtype for n in graph.nodes if n.op == op for v in n.outputs if v.type.is_float}
        for op in {n.op for n in graph.nodes}
    }


@pytest.mark.parametrize("group", [None, "all"])
def test_which_ops_are_in_bfloat16(group):
    def net(x: bg.Tensor[4, 3, 8, 8], y: bg.Tensor[4, bg.int64]):
        x = bg.layers.conv2d(x, "conv", 16, 3)
        x = bg.relu(bg.layers.batch_norm(x, "norm", group=group))
        x = bg.dropout(x + bg.max_pool2d(x, 3, 1, 1), 0.1, seed=0)
        x = bg.layers.linear(bg.flatten(bg.avg_pool2d(x, 6), 1), "fc", 5)
        return bg.cross_entropy(x, y), x

    graph = bg.autocast(bg.program(net)).graph
    assert len(bg.autocast(bg.autocast(bg.program(net))).graph.nodes) == len(graph.nodes)
    assert [v.dtype for v in graph.outputs] == ["float32", "bfloat16"]
    assert {i.value.dtype for i in graph.inputs if i.kind == "parameter"} == {"float32"}
    maps = [n for n in graph.nodes if len(n.out.shape) == 4 and not n.row.rounds]
    assert {n.out.dtype for n in maps if n.op == "relu"} == {"bfloat16"}
    assert types(graph)["exp"] == types(graph)["log"] == {"float32"}
    for node in graph.nodes:
        if node.row.accumulates:
            assert {v.dtype for v in node.operands} == {"bfloat16"}
            assert node.out.dtype == "float32"
    # A bias is added before the sum is rounded, once.
    (bias,) = (n for n in graph.nodes if n.op == "bias_add" and len(n.out.shape) == 2)
    assert graph.producers()[bias.inputs[0]].row.accumulates


def test_what_cannot_be_autocast():
    def loss(x: bg.Tensor[2, 3]):
        return (x * x).sum()

    step = bg.value_and_grad(bg.trace(lambda x: bg.relu(x @ x).sum(), bg.Tensor[3, 3]))
    bg.autocast(bg.program(loss))
    with pytest.raises(bg.ProgramError, match="no program is computed in float64"):
        bg.autocast(bg.program(loss), bg.float64)
    pools = bg.trace(lambda x: bg.avg_pool2d(x, 2).sum(), bg.Tensor[1, 1, 4, 4])
    with pytest.raises(bg.ProgramError, match="holds gradients already"):
        bg.autocast(bg.value_and_grad(pools))
    assert step.graph.outputs


def test_mixed_operands():
    """They meet as in PyTorch, which refuses products of two types."""
    x, w = bg.Tensor[1, 3, 4, 4, torch.bfloat16], bg.Tensor[2, 3, 1, 1]
    wide = bg.trace(lambda a, b: a + b, x, bg.Tensor[1, 3, 4, 4]).graph
    narrow = bg.trace(lambda a, b: a * b, x, bg.Tensor[()]).graph
    assert [g.outputs[0].dtype for g in (wide, narrow)] == ["float32", "bfloat16"]
    with pytest.raises(bg.ProgramError, match="conv2d: input is bf16.* but weight is f32"):
        bg.trace(bg.conv2d, x, w).graph  # noqa: B018


# --- modules --------------------------------------------------------------------------------------


def net_of_bfloat16():
    """All in bfloat16, parameters and running statistics, too, as `model.to(torch.bfloat16)`."""

    def net(x: bg.Tensor[3, 4, 5, 6, bg.bfloat16]):
        x = bg.layers.conv2d(x, "conv", 8, 3, padding=1)
        return bg.relu(bg.layers.batch_norm(x, "norm"))

    return bg.program(net)


def test_arrays_and_tensors_go_in_and_come_out():
    module = bg.build(net_of_bfloat16(), grad=True)
    state = {n: np.array(a) for n, a in module.init(0).state_dict().items()}
    assert {a.dtype.name for a in state.values()} == {"bfloat16", "int64"}
    x = np.random.default_rng(0).standard_normal((3, 4, 5, 6)).astype(BF16)
    y = module(x)
    gradients = module.backward(np.ones(y.shape, BF16))
    assert y.dtype == gradients["conv.weight"].dtype == BF16
    tensor = torch.tensor(x.astype(np.float32)).bfloat16()
    module.load_state_dict(
        {n: torch.tensor(a.astype("f4")).bfloat16() if a.dtype == BF16 else a
         for n, a in state.items()}
    )  # fmt: skip
    again = module(tensor)
    assert again.dtype == torch.bfloat16
    np.testing.assert_array_equal(again.float().numpy(), y.astype(np.float32))
    np.savez(file := io.BytesIO(), **state)  # in which the type has no name
    file.seek(0)
    module.load_state_dict(dict(np.load(file)))
    np.testing.assert_array_equal(module(x), y)
    module(tensor)
    given = torch.zeros(8, 4, 3, 3, dtype=torch.bfloat16)
    module.backward(torch.ones(again.shape, dtype=torch.bfloat16), out={"conv.weight": given})
    np.testing.assert_array_equal(
        given.float().numpy(), gradients["conv.weight"].astype(np.float32)
    )
    with pytest.raises(bg.CallError, match=r"float32, expected bfloat16 .*ml_dtypes.bfloat16"):
        module(x.astype(np.float32))


def test_a_model_of_bfloat16_is_pytorchs():
    program = net_of_bfloat16()
    module = bg.build(program).init(0)
    state = {n: torch.tensor(np.asarray(a, "f4")) for n, a in module.state_dict().items()}
    x = np.random.default_rng(1).standard_normal((3, 4, 5, 6)).astype(BF16)
    ours = module(x)
    low = {n: t.bfloat16() for n, t in state.items()}
    y = F.conv2d(torch.tensor(x.astype("f4")).bfloat16(), low["conv.weight"], low["conv.bias"],
                 padding=1)  # fmt: skip
    y = F.batch_norm(y, low["norm.running_mean"], low["norm.running_var"], low["norm.weight"],
                     low["norm.bias"], True)  # fmt: skip
    held = module.state_dict()
    for a, b in ((ours, F.relu(y)), (held["norm.running_var"], low["norm.running_var"])):
        np.testing.assert_allclose(a.astype(np.float32), b.float().numpy(), rtol=2**-7, atol=2**-7)
    evaluated = bg.trace(
        lambda x, m, v: bg.batch_norm(x, m, v), bg.Tensor[3, 8, 5, 6, bg.bfloat16],
        *[bg.Tensor[8, bg.bfloat16]] * 2,
    )  # fmt: skip
    statistics = [np.asarray(low[f"norm.running_{n}"].float(), "f4").astype(BF16)
                  for n in ("mean", "var")]  # fmt: skip
    theirs = F.batch_norm(y.detach(), low["norm.running_mean"], low["norm.running_var"])
    found = bg.build(evaluated)(np.asarray(y.float(), "f4").astype(BF16), *statistics)
    np.testing.assert_allclose(
        found.astype(np.float32), theirs.float().numpy(), rtol=2**-7, atol=2**-7
    )


def test_what_is_not_finite_stays_so():
    def net(x, w):
        return bg.conv2d(x, w, padding=1), bg.relu(x), x * 2.0

    shapes = (1, 3, 8, 8), (4, 3, 3, 3)
    module = bg.build(bg.trace(net, *(bg.Tensor(s, bg.bfloat16) for s in shapes)))
    x, w = (np.random.default_rng(0).standard_normal(s).astype(BF16) for s in shapes)
    # All ones of a significand: a carry would make another number of them.
    x.view(np.uint16)[0, 0, 0, 0], x[0, 1, 4, 4], x[0, 2, 7, 7] = 0x7FFF, np.inf, -np.inf
    tensors = [torch.tensor(a.view(np.int16)).view(torch.bfloat16) for a in (x, w)]
    # In float32: on some CPUs PyTorch's own sums of bfloat16 make NaN of what is infinite.
    sums = F.conv2d(*(t.float() for t in tensors), padding=1)
    theirs = (sums, F.relu(tensors[0]), tensors[0] * 2.0)
    for ours, t in zip(module(x, w), theirs, strict=True):
        for kind in (np.isnan, np.isposinf, np.isneginf):
            np.testing.assert_array_equal(
                kind(ours.astype(np.float32)), kind(t.float().numpy()), err_msg=kind.__name__
            )


def test_training_in_mixed_precision_keeps_master_weights():
    def net(x: bg.Tensor[8, 3, 6, 6], y: bg.Tensor[8, bg.int64]):
        x = bg.relu(bg.layers.batch_norm(bg.layers.conv2d(x, "conv", 16, 3), "norm"))
        return bg.cross_entropy(bg.layers.linear(bg.flatten(x, 1), "fc", 2), y)

    step = bg.training_step(bg.autocast(bg.program(net)), bg.SGD(lr=1e-3, momentum=0.9))
    module = bg.build(step).init(0)
    before = {n: np.array(a) for n, a in module.state_dict().items()}
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((8, 3, 6, 6), np.float32), rng.integers(0, 2, 8)
    losses = [float(module(x, y)) for _ in range(5)]
    after = module.state_dict()
    assert {a.dtype.name for a in after.values()} == {"float32", "int64"}
    assert losses[-1] < losses[0]
    moved = np.abs(after["conv.weight"] - before["conv.weight"])
    # Steps too small for bfloat16 beside such weights are not lost.
    assert 0 < np.median(moved) < np.median(np.abs(before["conv.weight"])) * 2**-8
