"""The PyTorch modules of the bench are the built-in programs: same names, same logits."""

import numpy as np
import pytest
import torch

from bngen import models
from bngen.errors import UsageError
from bngen.ir import interp
from bngen.lang.init import fill
from bngen.torch_bridge.networks import make_network
from tests.oracle import assert_same


@pytest.mark.parametrize("name", [n for n in models.MODELS if not n.startswith("tiny_")])
def test_names_and_shapes_are_the_programs(name):
    graph = models.make(name, batch=1, image=64).graph
    held = {i.name: i.value.shape for i in graph.inputs if i.kind != "input"}
    with torch.device("meta"):
        state = make_network(name).state_dict()
    assert {k: tuple(v.shape) for k, v in state.items()} == held


@pytest.mark.parametrize("name", [n for n in models.MODELS if n.startswith("tiny_")])
def test_logits_are_the_programs(name):
    dropout = 0.0 if models.MODELS[name].has_dropout else None
    graph = models.make(name, batch=3, image=32, num_classes=7, dropout=dropout).graph
    rng = np.random.default_rng(1)
    state = {i.name: fill(i, rng) for i in graph.inputs if i.kind != "input"}
    x = rng.standard_normal((3, 3, 32, 32)).astype(np.float32)
    network = make_network(name, num_classes=7).double()
    network.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
    logits = network(torch.from_numpy(x).double()).detach().numpy()
    exact = interp.run(graph, {**state, "x": x}, "float64").outputs[0]
    assert_same(logits, exact, name)


def test_programs_of_ones_own_have_no_module():
    with pytest.raises(UsageError, match="net.py:make has no PyTorch module"):
        make_network("net.py:make")
