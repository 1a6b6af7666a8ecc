"""The built-in networks against torchvision: names, shapes, order, counts, start values, sizes."""

import numpy as np
import pytest

import bngen as bg
from bngen.ir.interp import run
from bngen.ir.text import parse_graph
from bngen.ir.verify import verify
from bngen.lang.init import fill
from bngen.models import MODELS, make
from bngen.passes.autodiff import differentiate
from tests.models import known
from tests.oracle import assert_few_ulps

TINY = sorted(name for name in MODELS if name.startswith("tiny_"))


def _filled(graph, seed=0):
    """A random batch and freshly initialised state for a graph's inputs, by name."""
    rng = np.random.default_rng(seed)
    args = {i.name: fill(i, rng) for i in graph.inputs if i.kind != "input"}
    for i in graph.inputs:
        if i.kind == "input":
            labels = i.value.dtype == "int64"
            shape = i.value.shape
            args[i.name] = rng.integers(0, 10, shape) if labels else rng.standard_normal(shape)
    return args


@pytest.mark.parametrize("name", [*known.TRAINED, "inception_v3", "squeezenet1_0", *TINY])
@pytest.mark.parametrize("training", [True, False])
def test_graph_is_sound(name, training):
    network = MODELS[name]
    image = max(64, network.smallest(training))
    program = make(name, batch=2, image=image, num_classes=10, training=training)
    verify(program.graph, "trace")
    assert parse_graph(str(program.graph)) == program.graph
    assert program.graph.outputs[0].shape == (2, 10, *(image, image) * network.per_pixel)
    tracked = [i.name for i in program.graph.inputs if i.kind == "buffer"]
    assert {target.name for target, _ in program.graph.updates} == set(tracked if training else ())


@pytest.mark.parametrize("name", ["densenet121", "mobilenet_v2"])
def test_tracing_twice_gives_the_same_graph(name):
    assert str(make(name, image=64).graph) == str(make(name, image=64).graph)


@pytest.mark.parametrize("name", TINY)
def test_tiny_models_compute_a_loss(name):
    graph = make(name, batch=3, image=32, num_classes=10, loss=True).graph
    (loss,) = run(graph, _filled(graph), dtype="float64").outputs
    # Fresh weights know nothing: near the entropy of ten equal classes.
    assert loss.shape == ()
    assert 1.5 < loss < 4


@pytest.mark.parametrize("name", TINY)
def test_loss_is_the_cross_entropy_of_the_logits(name):
    settings = {"batch": 3, "image": 32, "num_classes": 10, "seed": 5}
    graph = make(name, loss=True, **settings).graph
    args = _filled(graph)
    (loss,) = run(graph, args, dtype="float64").outputs
    logits_only = {k: v for k, v in args.items() if k != "labels"}
    (logits,) = run(make(name, **settings).graph, logits_only, dtype="float64").outputs
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    chosen = np.take_along_axis(p, args["labels"][:, None], axis=1)
    assert_few_ulps(loss, -np.log(chosen).mean())


def _logits(args, **settings):
    graph = make("tiny_mobilenet", batch=4, image=16, num_classes=5, **settings).graph
    return run(graph, args).outputs[0]


def test_dropout_draws_anew_each_step_and_follows_the_seed():
    args = _filled(make("tiny_mobilenet", batch=4, image=16, num_classes=5).graph)
    args["classifier.1.weight"] = np.ones((5, 24), "float32")
    later = {**args, "features.0.1.num_batches_tracked": np.int64(1)}
    first = _logits(args)
    np.testing.assert_array_equal(first, _logits(args))
    assert not np.array_equal(first, _logits(later))
    assert not np.array_equal(first, _logits(args, seed=9))
    np.testing.assert_array_equal(_logits(args, dropout=0.0), _logits(later, dropout=0.0))


def test_evaluation_neither_drops_nor_updates():
    graph = make("vgg16_bn", batch=1, image=32, training=False).graph
    assert not graph.updates
    assert "random_uniform" not in {n.op for n in graph.nodes}
    ops = [n.op for n in make("vgg16_bn", batch=1, image=32).graph.nodes]
    assert ops.count("random_uniform") == 2


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_classifiers_are_trained_and_rest_in_evaluation(name):
    auxiliary = dict(MODELS[name].auxiliary)
    graph = make(name, batch=2, dropout=0.0).graph
    assert graph.output_names == ("logits", *auxiliary)
    assert {v.shape for v in graph.outputs} == {(2, 1000)}
    resting = make(name, batch=2, training=False).graph
    assert resting.inputs == graph.inputs
    assert resting.output_names == () and len(resting.outputs) == 1


def test_auxiliary_losses_are_weighted():
    sizes = {"batch": 2, "image": 15, "num_classes": 4, "dropout": 0.0}
    graph = make("googlenet", loss=True, **sizes).graph
    args = _filled(graph) | {"labels": np.array([1, 3])}
    (loss,) = run(graph, args, dtype="float64").outputs
    shown = {k: v for k, v in args.items() if k != "labels"}
    results = run(make("googlenet", **sizes).graph, shown, dtype="float64").outputs
    losses = []
    for logits in results:
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        losses.append(-np.log(p[range(2), args["labels"]]).mean())
    assert_few_ulps(loss, losses[0] + 0.3 * losses[1] + 0.3 * losses[2])


def _branches_kept(name, **settings):
    """Of each image, by what its dropped branches leave of a constant."""
    graph = make(name, batch=64, image=16, num_classes=2, **settings).graph
    args = _filled(graph)
    args["x"] = np.broadcast_to(args["x"][:1], args["x"].shape)  # images differ by masks alone
    if "step" in args:
        args["step"] = np.int64(settings.get("seed", 0))
    return np.unique(np.round(run(graph, args, dtype="float64").outputs[0], 9), axis=0)


def test_residual_branches_are_dropped_image_by_image():
    # Of three branches the first is always kept; of some images one of the others is not, or both.
    assert len(_branches_kept("tiny_convnext")) == 4
    assert len(_branches_kept("tiny_convnext", dropout=0.0)) == 1
    assert len(_branches_kept("tiny_convnext", training=False)) == 1
    assert len(_branches_kept("tiny_efficientnet")) > 2  # dropout, too


def test_a_network_that_counts_no_steps_is_told_them():
    program = make("tiny_squeezenet", batch=2, image=16)
    assert list(program.arguments) == ["x", "step"]
    assert list(make("tiny_squeezenet", batch=2, image=16, loss=True).arguments) == [
        "x", "labels", "step",
    ]  # fmt: skip
    for quiet in ({"dropout": 0.0}, {"training": False}):
        assert list(make("tiny_squeezenet", batch=2, image=16, **quiet).arguments) == ["x"]
    args = _filled(program.graph)
    once, again, later = (
        run(program.graph, args | {"step": np.int64(step)}).outputs[0] for step in (0, 0, 1)
    )
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, later)


# --- start values -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "name", "std"),
    [
        # kaiming_normal over fan_in 64, over fan_out 128 * 9, over fan_out 64 * 9; normal(0.01);
        # a uniform bound of 1 / sqrt(2048) has that bound's standard deviation over sqrt(3).
        ("densenet121", "features.denseblock1.denselayer1.conv1.weight", (2 / 64) ** 0.5),
        ("efficientnet_b0", "features.2.0.block.1.0.weight", (2 / (96 * 9)) ** 0.5),
        ("efficientnet_b0", "classifier.1.weight", (1 / 1000 / 3) ** 0.5),
        ("mnasnet1_0", "classifier.1.weight", (1 / 1000) ** 0.5),
        ("squeezenet1_1", "features.3.squeeze.weight", (2 / 64) ** 0.5),
        ("squeezenet1_1", "classifier.1.weight", 0.01),
        ("shufflenet_v2_x1_0", "conv5.0.weight", (1 / 464 / 3) ** 0.5),
        ("unet", "up1.up.weight", (1 / (512 * 4) / 3) ** 0.5),
        ("deeplabv3_resnet50", "classifier.1.weight", (1 / (256 * 9) / 3) ** 0.5),
        ("deeplabv3_resnet50", "backbone.layer4.2.conv1.weight", (2 / 512) ** 0.5),
        ("regnet_y_400mf", "fc.weight", 0.01),
        ("googlenet", "inception3a.branch2.1.conv.weight", 0.01),
        ("inception_v3", "AuxLogits.fc.weight", 0.001),
        ("convnext_tiny", "features.1.0.block.3.weight", 0.02),
        ("resnet18", "layer2.0.conv1.weight", (2 / (128 * 9)) ** 0.5),
        ("vgg16_bn", "features.3.weight", (2 / (64 * 9)) ** 0.5),
        ("mobilenet_v2", "classifier.1.weight", 0.01),
        ("resnet50", "fc.weight", (1 / 2048 / 3) ** 0.5),
        ("resnet50", "fc.bias", (1 / 2048 / 3) ** 0.5),
    ],
)
def test_start_values_have_torchvisions_spread(model, name, std):
    (declared,) = [i for i in make(model).graph.inputs if i.name == name]
    values = fill(declared, np.random.default_rng(0))
    assert values.dtype == np.float32
    assert values.shape == declared.value.shape
    assert abs(values.std() / std - 1) < 4 / values.size**0.5
    assert abs(values.mean()) < 5 * std / values.size**0.5


def test_batch_norm_starts_neutral():
    args = _filled(make("tiny_resnet", image=32).graph)
    layer = {k.removeprefix("bn1."): v for k, v in args.items() if k.startswith("bn1.")}
    assert {k: (v.ravel()[0], v.dtype.name) for k, v in layer.items()} == {
        "weight": (1, "float32"),
        "bias": (0, "float32"),
        "running_mean": (0, "float32"),
        "running_var": (1, "float32"),
        "num_batches_tracked": (0, "int64"),
    }


def test_densenet_classifier_bias_starts_at_zero():
    args = _filled(make("tiny_densenet", image=32).graph)
    assert not args["classifier.bias"].any()
    assert args["classifier.weight"].any()


# --- sizes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_smallest_image_is_the_smallest(name):
    network = MODELS[name]
    for training in (False, True):
        options = bg.models.Options(10, training, dropout=0.0, seed=0)
        least = network.smallest(training)

        def net(x, options=options):
            return network(x, options)

        assert bg.trace(net, bg.Tensor[2, 3, least, least]).graph.nodes
        if least > 1:
            with pytest.raises(bg.ProgramError, match="window"):
                _ = bg.trace(net, bg.Tensor[2, 3, least - 1, least - 1]).graph


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"name": "densenet12"}, "no built-in model 'densenet12' (did you mean densenet121"),
        ({"name": "densenet121", "image": 28}, "densenet121: image=28 is too small (use 29 or"),
        ({"name": "vgg16_bn", "image": 31}, "vgg16_bn: image=31 is too small (use 32 or more)"),
        ({"name": "resnet18", "batch": 0}, "resnet18: batch=0 is too small (use 1 or more)"),
        ({"name": "resnet18", "batch": 1.5}, "resnet18: batch=1.5 is no integer"),
        ({"name": "resnet18", "dropout": 0.5}, "resnet18: has no dropout (use dropout=None)"),
        (
            {"name": "convnext_tiny", "dropout": 0.5},
            "convnext_tiny: has no dropout (use dropout=None, or 0 against its stochastic depth)",
        ),
        ({"name": "inception_v3", "image": 224}, "inception_v3: image=224 is too small (use 299"),
        ({"name": "squeezenet"}, "(did you mean squeezenet1_1 or squeezenet1_0?)"),
        ({"name": "tiny_squeeze"}, "(did you mean tiny_squeezenet"),
        ({"name": "alexnet"}, "no built-in model 'alexnet' (there are densenet121, densenet161, "),
        ({"name": "efficientnet_b9"}, "did you mean efficientnet_b3 or efficientnet_b2"),
        ({"name": "vgg16_bn", "dropout": 2}, "vgg16_bn: dropout=2 (use 0 to 1)"),
    ],
)
def test_bad_sizes(kwargs, message):
    with pytest.raises(bg.ProgramError) as caught:
        make(**kwargs)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{__file__}:")


def test_a_single_value_per_channel_names_the_layer():
    with pytest.raises(bg.ProgramError, match=r"single value per channel.*\[in features\.") as e:
        _ = make("densenet121", batch=1, image=32).graph
    assert "denseblock4.denselayer1.norm1" in str(e.value)


def test_a_training_step_written_in_the_language_learns():
    """Gradient graph inlined by `Program.from_graph`, every parameter updated by SGD."""
    model = make("tiny_resnet", batch=8, image=16, num_classes=4, loss=True)
    joint = bg.Program.from_graph(differentiate(model.graph, cotangents="ones"))

    def step(x, labels, lr):
        loss, *grads = joint(x, labels).items()
        grads = {label.removeprefix("grad:"): grad for label, grad in grads}
        for name, w in bg.parameters().items():
            buf = bg.buffer(f"momentum.{name}", w.shape)
            new_w, new_buf = bg.sgd(w, grads[name], buf, lr, momentum=0.9, nesterov=True)
            bg.update(w, new_w)
            bg.update(buf, new_buf)
        return loss[1]

    graph = bg.trace(step, *model.arguments.values(), bg.Tensor[bg.float32]).graph
    verify(graph, "trace")
    args = _filled(graph) | {"labels": np.arange(8) % 4, "lr": np.float32(0.05)}
    losses = []
    for _ in range(6):
        result = run(graph, args)
        args |= result.updates
        losses.append(float(result.outputs[0]))
    assert losses[-1] < losses[0] / 3
    assert args["bn1.num_batches_tracked"] == 6
