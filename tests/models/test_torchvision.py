"""The built-in networks are torchvision's: names and shapes of their state, and what they compute.

Digests and logits of torchvision's own models are in `known`; where torchvision is installed, the
models themselves are asked, for all results and for the running statistics.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from bngen.ir.interp import run
from bngen.models import MODELS, PUBLIC, make
from tests.models import known
from tests.oracle import assert_same

OTHERS = {name for name in PUBLIC if name.startswith("unet")}
"""Networks that torchvision does not have."""


def _held(graph):
    return {i.name: i.value.shape for i in graph.inputs if i.kind != "input"}


@cache
def _computed(name, training):
    graph = make(name, **known.settings(name, training)).graph
    args = {**known.state_of(_held(graph)), "x": known.images(name, training)}
    return run(graph, args, dtype="float64")


def test_every_model_is_torchvisions_or_tiny():
    assert {*PUBLIC} == {*known.STATES, *OTHERS}
    assert {*MODELS} - {*PUBLIC} == {name for name in MODELS if name.startswith("tiny_")}


@pytest.mark.parametrize("name", known.STATES)
@pytest.mark.parametrize("training", [True, False])
def test_state_is_named_and_shaped_as_in_torchvision(name, training):
    count, entries, digest = known.STATES[name]
    program = make(name, batch=2, training=training)
    trained = [i.value.type.size for i in program.graph.inputs if i.kind == "parameter"]
    assert sum(trained) == count
    assert len(program.parameters) == entries
    assert known.digest((n, t.shape, t.dtype) for n, t in program.parameters.items()) == digest


@pytest.mark.parametrize(("name", "training"), known.LOGITS)
def test_logits_are_those_of_torchvision(name, training):
    logits = known.some_of(_computed(name, training).outputs[0])
    np.testing.assert_allclose(logits, known.LOGITS[name, training], rtol=1e-6)


@pytest.mark.parametrize(("name", "training"), known.LOGITS)
def test_results_are_those_of_the_installed_torchvision(name, training):
    zoo_models = pytest.importorskip("tests.zoo_models")
    try:
        results, state = known.computed_by_torchvision(name, training)
    except zoo_models.NotInstalledError as missing:
        pytest.skip(str(missing))
    ours = _computed(name, training)
    for at, (mine, theirs) in enumerate(zip(ours.outputs, results, strict=True)):
        assert_same(theirs, mine, f"{name}: result {at}")
    assert bool(ours.updates) is (training and any("running_mean" in key for key in state))
    for key, value in ours.updates.items():
        assert_same(state[key], value, f"{name}: {key}")


@pytest.mark.parametrize(
    ("model", "name", "shape"),
    [
        ("densenet121", "features.conv0.weight", (64, 3, 7, 7)),
        ("densenet121", "features.denseblock4.denselayer16.conv2.weight", (32, 128, 3, 3)),
        ("densenet121", "classifier.weight", (1000, 1024)),
        ("resnet50", "layer1.0.downsample.0.weight", (256, 64, 1, 1)),
        ("resnet50", "layer4.2.bn3.num_batches_tracked", ()),
        ("resnext50_32x4d", "layer1.0.conv2.weight", (128, 4, 3, 3)),
        ("mobilenet_v2", "features.1.conv.0.0.weight", (32, 1, 3, 3)),
        ("efficientnet_b0", "features.1.0.block.1.fc1.weight", (8, 32, 1, 1)),
        ("regnet_y_400mf", "trunk_output.block1.block1-0.f.se.fc1.bias", (8,)),
        ("convnext_tiny", "features.1.0.layer_scale", (96, 1, 1)),
        ("googlenet", "aux2.fc2.weight", (1000, 1024)),
        ("inception_v3", "AuxLogits.conv1.conv.weight", (768, 128, 5, 5)),
        ("vgg16_bn", "features.41.running_var", (512,)),
    ],
)
def test_names_one_knows_by_heart(model, name, shape):
    assert make(model).parameters[name].shape == shape
