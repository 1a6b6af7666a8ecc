"""Parameters, buffers, scopes, layers, and how they are filled."""

import math
import re

import numpy as np
import pytest
import torch

import bngen as bg
from bngen.ir import interp
from bngen.ir.interp import run
from bngen.ir.node import Input
from bngen.ir.text import parse_graph
from bngen.ir.types import TensorType, Value
from bngen.lang.init import fill


def _declared(fn, *types):
    return {i.name: i for i in bg.trace(fn, *(types or [bg.Tensor[4, 6]])).graph.inputs}


def test_scopes_nest_and_join_with_dots():
    def f(x):
        with bg.scope("block1"):
            with bg.scope("0"):
                x = x * bg.parameter("w", 6)
            x = x + bg.buffer("b", 6)
        return x * bg.parameter("w", 6)

    inputs = _declared(f)
    assert {n: i.kind for n, i in inputs.items()} == {
        "x": "input", "block1.0.w": "parameter", "block1.b": "buffer", "w": "parameter",
    }  # fmt: skip


def test_same_name_is_the_same_tensor():
    def f(x):
        first, again = (bg.parameter("w", 6, init=v) for v in (2.0, 3.0))
        assert first.value is again.value
        return x * first * again

    assert _declared(f)["w"].init == ("constant", 2.0)


def test_parameters_lists_what_was_declared():
    def f(x):
        with bg.scope("net"):
            y = bg.layers.linear(x, "fc", 3) + bg.buffer("b", 3)
        assert [t.name for t in bg.parameters().values()] == ["net.fc.weight", "net.fc.bias"]
        return y

    assert list(_declared(f)) == ["x", "net.fc.weight", "net.fc.bias", "net.b"]


def test_program_parameters_have_types():
    program = bg.trace(lambda x: bg.layers.linear(x, "fc", 3, bias=False), bg.Tensor[4, 6])
    assert program.parameters == {"fc.weight": TensorType((3, 6))}


def test_a_temporary_steps_aside_for_an_argument():
    graph = bg.trace(lambda relu_0: bg.relu(relu_0), bg.Tensor[3]).graph
    assert graph.inputs[0].name == "relu_0"
    assert graph.outputs[0].name != "relu_0"


@pytest.mark.parametrize(
    ("layer", "module"),
    [
        (lambda x: bg.layers.conv2d(x, "m", 8, 3), torch.nn.Conv2d(6, 8, 3)),
        (lambda x: bg.layers.conv2d(x, "m", 8, (3, 1), groups=2, bias=False),
         torch.nn.Conv2d(6, 8, (3, 1), groups=2, bias=False)),
        (lambda x: bg.layers.conv_transpose2d(x, "m", 8, 3, 2, groups=2),
         torch.nn.ConvTranspose2d(6, 8, 3, 2, groups=2)),
        (lambda x: bg.layers.conv_transpose2d(x, "m", 8, (3, 1), bias=False),
         torch.nn.ConvTranspose2d(6, 8, (3, 1), bias=False)),
        (lambda x: bg.layers.linear(x, "m", 7), torch.nn.Linear(5, 7)),
        (lambda x: bg.layers.linear(x, "m", 7, bias=False), torch.nn.Linear(5, 7, bias=False)),
        (lambda x: bg.layers.batch_norm(x, "m"), torch.nn.BatchNorm2d(6)),
        (lambda x: bg.layers.batch_norm(x, "m", affine=False),
         torch.nn.BatchNorm2d(6, affine=False)),
        (lambda x: bg.layers.batch_norm(x, "m", group="all"), torch.nn.SyncBatchNorm(6)),
        (lambda x: bg.layers.batch_norm(x, "m", track_running_stats=False, training=False),
         torch.nn.BatchNorm2d(6, track_running_stats=False)),
    ],
)  # fmt: skip
def test_layers_hold_what_pytorchs_hold(layer, module):
    inputs = _declared(layer, bg.Tensor[2, 6, 5, 5])
    state = {f"m.{k}": v for k, v in module.state_dict().items()}
    assert list(inputs) == ["x", *state]
    trained = {f"m.{k}" for k, _ in module.named_parameters()}
    rng = np.random.default_rng(0)
    for name, tensor in state.items():
        assert inputs[name].kind == ("parameter" if name in trained else "buffer")
        values = fill(inputs[name], rng)
        assert values.shape == tuple(tensor.shape)
        assert values.dtype.name == str(tensor.dtype).removeprefix("torch.")
        if len(tensor.unique()) == 1:
            np.testing.assert_array_equal(values, tensor)
        else:
            # Both drawn from U(-1/sqrt(fan_in), 1/sqrt(fan_in)); fan_in of the layer's weight
            bound = 1 / math.sqrt(module.weight[0].numel())
            assert np.abs(values).max() <= bound
            assert np.abs(values).max() > bound / 2


@pytest.mark.parametrize(
    ("layer", "module", "given"),
    [
        (bg.layers.conv_transpose2d, torch.nn.ConvTranspose2d, (8, 3, 2, 1, 1, 2, True, (1, 2))),
        (bg.layers.conv2d, torch.nn.Conv2d, (8, 3, 2, (2, 1), 1, 2, True, "reflect")),
        (bg.layers.conv2d, torch.nn.Conv2d, (8, (2, 3), 1, "same", (1, 2), 1, False, "circular")),
        (bg.layers.conv2d, torch.nn.Conv2d, (8, 3, 1, 3, 1, 1, True, "replicate")),
    ],
)
def test_convolutions_take_the_arguments_of_pytorchs_modules(layer, module, given):
    module = module(6, *given)
    graph = bg.trace(lambda x: layer(x, "m", *given), bg.Tensor[2, 6, 5, 5])
    args = {f"m.{k}": v.detach().numpy() for k, v in module.state_dict().items()}
    args["x"] = np.random.default_rng(0).standard_normal((2, 6, 5, 5))
    (y,) = interp.run(graph.graph, args, "float64").outputs
    wanted = module.double()(torch.from_numpy(args["x"])).detach().numpy()
    np.testing.assert_allclose(y, wanted, rtol=1e-9, atol=1e-12)


def _fill(init, shape=(300, 20, 5, 5), dtype="float32"):
    return fill(Input(Value("w", TensorType(shape, dtype)), "parameter", init),
                np.random.default_rng(0))  # fmt: skip


def _kolmogorov_smirnov(a, b):
    """Largest distance between two empirical distribution functions.

    Samples of one distribution exceed 1.95 * sqrt(2 / n) once in a thousand times.
    """
    points = np.sort(np.concatenate([a, b]))
    ranks = [np.searchsorted(np.sort(s), points, "right") / s.size for s in (a, b)]
    return np.abs(ranks[0] - ranks[1]).max()


@pytest.mark.parametrize(
    ("init", "theirs"),
    [
        (("kaiming_uniform", math.sqrt(5), 500),
         lambda t: torch.nn.init.kaiming_uniform_(t, a=math.sqrt(5))),
        (("kaiming_normal_fan_in",), torch.nn.init.kaiming_normal_),
        (("kaiming_normal_fan_out",),
         lambda t: torch.nn.init.kaiming_normal_(t, mode="fan_out", nonlinearity="relu")),
        (("uniform", 0.3), lambda t: torch.nn.init.uniform_(t, -0.3, 0.3)),
        (("normal", 0.01), lambda t: torch.nn.init.normal_(t, std=0.01)),
    ],
)  # fmt: skip
def test_initializers_have_pytorchs_distribution(init, theirs):
    torch.manual_seed(0)
    ours, reference = _fill(init), theirs(torch.empty(300, 20, 5, 5)).numpy()
    assert _kolmogorov_smirnov(ours.ravel(), reference.ravel()) < 1.95 * (2 / ours.size) ** 0.5
    assert ours.dtype == np.float32
    assert _fill(init, dtype="float64").dtype == np.float64


def test_constants_and_the_absence_of_an_initializer():
    assert (_fill(("constant", 2.5), (3,)) == 2.5).all()
    assert _fill(("constant", 3), (), "int64") == 3
    assert not _fill((), (3,)).any()


def test_default_initializers():
    def f(x):
        for name, shape in (("conv", (8, 3, 3, 3)), ("weight", 4), ("bias", 4)):
            bg.parameter(name, shape)
        bg.buffer("b", (2, 3))
        return x

    inits = {n: i.init for n, i in _declared(f).items()}
    assert inits == {
        "x": (),
        "conv": ("kaiming_uniform", math.sqrt(5), 27),
        "weight": ("constant", 1.0),
        "bias": ("constant", 0.0),
        "b": ("constant", 0),
    }


def test_filling_follows_the_generator():
    same = [_fill(("normal", 1.0)) for _ in range(2)]
    np.testing.assert_array_equal(*same)


def test_names_with_dashes_go_wherever_names_go(tmp_path):
    """As torchvision's RegNets have them; names that differ in the dash alone are two."""

    def net(x):
        with bg.scope("block-1"):
            return x * bg.parameter("a-b", 3, init=2) + bg.parameter("a_b", 3, init=1)

    graph = bg.trace(net, bg.Tensor[2, 3]).graph
    assert parse_graph(str(graph)) == graph
    bg.build(graph).bundle.save(tmp_path / "saved")
    module, x = bg.load(tmp_path / "saved").init(0), np.ones((2, 3), np.float32)
    assert [*module.state_dict()] == ["block-1.a-b", "block-1.a_b"]
    np.testing.assert_array_equal(module(x), np.full((2, 3), 3.0))


def test_constants_are_no_state(tmp_path):
    """They survive saving, calls of programs in one another, and gradients."""
    table = np.array([[1.0, -np.inf, 0.5]], np.float32)

    def part(x):
        return x * bg.constant([2.0, 3.0, 4.0])

    inner = bg.trace(part, bg.Tensor[2, 3])

    def net(x):
        with bg.scope("outer"):
            y = inner(x) + bg.parameter("p", 3, init=1)
        mask = bg.constant(table > 0)
        return bg.where(mask, y + bg.constant([2, 3, 4], bg.float32), bg.constant(0.5)).sum()

    program = bg.trace(net, bg.Tensor[2, 3])
    assert parse_graph(str(program.graph)) == program.graph
    assert len(program.graph.constants()) == 2
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    y = x * [2, 3, 4] + 1 + [2, 3, 4]
    expected = y[:, [0, 2]].sum() + 1.0
    assert float(run(program.graph, {"x": x, "outer.p": np.ones(3)}).outputs[0]) == expected
    bg.build(program, grad=True).bundle.save(tmp_path / "saved")
    module = bg.load(tmp_path / "saved").load_state_dict({"outer.p": np.ones(3, np.float32)})
    assert float(module(x)) == expected
    np.testing.assert_array_equal(module.backward()["x"], [[2.0, 0.0, 4.0]] * 2)
    assert [*module.init(0).state_dict()] == ["outer.p"]


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x: bg.constant([[1.0], [2.0, 3.0]]), "constant: setting an array element"),
        (lambda x: bg.constant(["a"]), "constant: list holds no numbers"),
        (lambda x: bg.constant([1.0, np.nan]), "constant: f32[2] holds NaN"),
        (lambda x: bg.constant(np.zeros(2**16 + 1)), "constant: f64[65537] has more than 65536"),
        (lambda x: bg.update(bg.constant([1.0]), x), "is a constant (declare it with bg.buffer"),
        (lambda x: bg.buffer("b", 1, init=("values", 1.0)), "b: 'values' are a constant's"),
    ],
)
def test_what_is_no_constant(fn, message):
    with pytest.raises(bg.ProgramError, match=re.escape(message)):
        bg.trace(fn, bg.Tensor[1]).graph  # noqa: B018
