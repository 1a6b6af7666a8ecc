"""The PyTorch modules of the bench are the built-in programs: their names, results and calls."""

import numpy as np
import pytest
import torch

import bngen as bg
from bngen import models
from bngen.errors import UsageError
from bngen.ir import interp
from bngen.lang.init import fill
from bngen.torch_bridge.modules import module_of
from bngen.torch_bridge.networks import loss_of, make_network
from tests.models import known
from tests.oracle import assert_same


@pytest.mark.parametrize("name", [*known.TRAINED, "convnext_tiny", "squeezenet1_1", "vgg16_bn"])
def test_names_and_shapes_are_the_programs(name):
    graph = models.make(name, batch=2).graph
    held = [(i.name, i.value.shape) for i in graph.inputs if i.kind != "input"]
    with torch.device("meta"):
        state = make_network(name, batch=2).state_dict()
    assert [(k, tuple(v.shape)) for k, v in state.items()] == held


@pytest.mark.parametrize(
    "name", [*(n for n in models.MODELS if n.startswith("tiny_")), "googlenet"]
)
def test_a_step_is_the_programs(name):
    """Results, running statistics and the loss, which a backward pass can follow."""
    network = models.MODELS[name]
    sizes = {"batch": 3, "image": 32, "num_classes": 7}
    dropout = 0.0 if network.has_dropout else None
    graph = models.make(name, **sizes, dropout=dropout).graph
    rng = np.random.default_rng(1)
    state = {i.name: fill(i, rng) for i in graph.inputs if i.kind != "input"}
    x = rng.standard_normal((3, 3, 32, 32)).astype(np.float32)
    labels = rng.integers(0, 7, (3, *(32, 32) * network.per_pixel))
    module = make_network(name, **sizes).double()
    module.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
    found = module(torch.from_numpy(x).double())
    exact = interp.run(graph, {**state, "x": x}, "float64")
    results = found.values() if isinstance(found, dict) else [found]
    for result, wanted in zip(results, exact.outputs, strict=True):
        assert_same(result.detach().numpy(), wanted, name)
    held = module.state_dict()
    for key, wanted in exact.updates.items():
        assert_same(held[key].numpy(), wanted, f"{name}: {key}")
    loss = loss_of(name, found, torch.from_numpy(labels))
    with_loss = models.make(name, **sizes, dropout=dropout, loss=True).graph
    (wanted,) = interp.run(with_loss, {**state, "x": x, "labels": labels}, "float64").outputs
    assert_same(loss.detach().numpy(), wanted, f"{name}: loss")
    loss.backward()
    assert all(p.grad is not None for p in module.parameters())


def calls(graph):
    return [str(getattr(n.target, "__name__", n.target)) for n in module_of(graph).graph.nodes]


def test_a_module_makes_the_calls_that_a_model_of_pytorch_makes():
    graph = models.make("tiny_resnet", batch=2, image=32).graph
    found = calls(graph)
    convolutions = sum(n.op == "conv2d" for n in graph.nodes)
    assert found.count("conv2d") == found.count("batch_norm") == convolutions
    assert found.count("add_") == convolutions
    assert found.count("iadd") == 3 and "add" not in found
    inplace = [n.kwargs["inplace"] for n in module_of(graph).graph.nodes if "inplace" in n.kwargs]
    assert inplace == [True] * found.count("relu")


def test_padding_and_resizing_are_calls_of_their_own():
    graph = models.make("tiny_unet_bilinear", batch=2, image=22, num_classes=3).graph
    found = calls(graph)
    assert found.count("interpolate") == 2 and "pad" in found and "resize_bilinear" not in found
    state = known.state_of({i.name: i.value.shape for i in graph.inputs if i.kind != "input"})
    x = known.numbers((2, 3, 22, 22), 1 << 20)
    module = module_of(graph).double()
    module.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
    logits = module(torch.from_numpy(x)).detach().numpy()
    assert_same(logits, interp.run(graph, {**state, "x": x}, "float64").outputs[0], "logits")


def test_statistics_that_are_used_elsewhere_are_computed_once_more():
    @bg.program
    def f(x: bg.Tensor[4, 3, 2, 2]):
        mean, var = bg.buffer("mean", 3), bg.buffer("var", 3, init=1.0)
        y = bg.batch_norm(x, mean, var, training=True)
        bg.update(mean, bg.parameter("w", 3) * 2.0)
        return y

    module = module_of(f.graph)
    torch.nn.init.ones_(module.w)
    module.var.fill_(1.0)
    x = torch.randn(4, 3, 2, 2)
    y = torch.nn.functional.batch_norm(x, None, None, training=True)
    torch.testing.assert_close(module(x), y)
    torch.testing.assert_close(module.mean, torch.full((3,), 2.0))
    torch.testing.assert_close(module.var, 0.9 + 0.1 * x.transpose(0, 1).reshape(3, -1).var(1))


def test_a_result_that_is_needed_again_is_not_overwritten():
    @bg.program
    def f(x: bg.Tensor[2, 3]):
        w = bg.parameter("w", (3, 3))
        y = bg.linear(x, w)
        return bg.relu(y) + y, bg.cat([bg.relu(x + 1.0), x], dim=1) * 2.0

    module = module_of(f.graph)
    x = torch.randn(2, 3)
    torch.nn.init.normal_(module.w)
    before = x.clone()
    first, second = module(x)
    y = x @ module.w.T
    torch.testing.assert_close(first, y.relu() + y)
    torch.testing.assert_close(second, torch.cat([(x + 1).relu(), x], 1) * 2)
    assert torch.equal(x, before)


def test_what_depends_on_declared_types_is_refused():
    @bg.program
    def f(x: bg.Tensor[2, 3]):
        return bg.dropout(x, 0.5, seed=1)

    with pytest.raises(bg.ProgramError, match="op random_uniform has no call in PyTorch"):
        module_of(f.graph)


def test_programs_of_ones_own_have_no_module():
    with pytest.raises(UsageError, match="net.py:make has no PyTorch module"):
        make_network("net.py:make")
