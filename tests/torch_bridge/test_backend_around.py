"""What is done to a compiled model between its steps, around it and with it is as in eager."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._higher_order_ops import while_loop
from torch.utils.checkpoint import checkpoint

import bngen
from bngen.torch_bridge.backend import backend
from tests.torch_bridge.eager import assert_as_eager, step
from tests.torch_bridge.small import Net, images

pytestmark = pytest.mark.usefixtures("compiling")


@pytest.mark.parametrize("given", [{"mode": "max-autotune"}, {"options": {"epilogue": True}}])
def test_modes_and_options_are_refused(given):
    model = torch.compile(Net(), backend=backend, **given)
    with pytest.raises(Exception, match="torch.compile was given (mode|options)=.*bngen has no"):
        model(images())


def test_a_whole_graph_is_captured():
    assert_as_eager(Net(), (images(),), regions=1, fullgraph=True)


def test_weights_changed_between_steps_in_all_ways():
    def script(model, x):
        averaged = {k: v.clone() for k, v in model.state_dict().items()}
        results = []

        def change_data():
            for p in model.parameters():
                p.data = p.data - 0.01 * p.grad

        def swap_gradients():
            for p in model.parameters():
                p.grad = p.grad * 0.5
            torch.optim.SGD(model.parameters(), 0.01).step()

        def average():
            with torch.no_grad():
                for k, v in model.state_dict().items():
                    if v.is_floating_point():
                        v.copy_(averaged[k].lerp_(v, 0.5))

        def load():
            model.load_state_dict({k: v * 0.9 for k, v in averaged.items()})

        def assign():
            model.load_state_dict({k: v.clone() for k, v in averaged.items()}, assign=True)

        def reorder():
            model.to(memory_format=torch.channels_last)

        for change in (change_data, swap_gradients, average, load, assign, reorder):
            results.append(step(model, x))
            change()
            model.zero_grad()
        return results, step(model, x)

    assert_as_eager(Net(), (images(),), script)


def test_tied_weights():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
            self.b.weight, self.norm = self.a.weight, nn.BatchNorm2d(4)

        def forward(self, x):
            return self.b(F.relu(self.norm(self.a(x))))

    def script(model, x):
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        first = step(model, x)
        optimizer.step()
        return first, step(model, x)

    assert_as_eager(Tied(), (images(2, 4, 6, 6),), script, regions=2)


def test_hooks_of_tensors_inside():
    class Hooked(Net):
        def forward(self, x):
            y = self.features(x)
            if y.requires_grad:
                y.register_hook(lambda g: g * 2)
            return self.conv2(y)

    assert_as_eager(Hooked(), (images(requires_grad=True),))


FUNCTIONAL = {
    "functional_call": lambda model, x: torch.func.functional_call(
        model, {k: v.detach() * 1.5 for k, v in model.named_parameters()}, (x,)
    ),
    "vmap": lambda model, x: torch.vmap(model)(torch.stack([x, 2 * x])),
    "grad": lambda model, x: torch.func.grad(lambda x: model(x).square().sum())(x),
    "jvp": lambda model, x: torch.func.jvp(model, (x,), (torch.ones_like(x),)),
}


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_functional_transforms(name):
    model, x = Net().eval(), images()
    expected = FUNCTIONAL[name](model, x)
    found = FUNCTIONAL[name](bngen.compile(model), x)
    torch.testing.assert_close(found, expected)


class Inside(nn.Module):
    """A model that asks for derivatives itself."""

    def __init__(self, way):
        super().__init__()
        self.conv, self.head, self.way = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), way

    def forward(self, x):
        y = torch.relu(self.conv(x))
        return self.head(y + self.way(y))


INSIDE = {
    "grad": torch.func.grad(lambda t: (t**3).sum()),
    "vmap": torch.vmap(lambda t: t * t.sum()),
    "jvp": lambda y: torch.func.jvp(torch.sin, (y,), (torch.ones_like(y),))[1],
}


@pytest.mark.parametrize("name", INSIDE)
def test_functional_transforms_inside_a_model_are_pytorchs(name):
    assert_as_eager(Inside(INSIDE[name]), (images(),), regions=0)
    # What a transform forbids while it lasts is allowed again.
    x = images(requires_grad=True)
    checkpoint(torch.relu, x, use_reentrant=False).sum().backward()


class Detached(Net):
    def forward(self, x):
        y = self.features(x)
        return y - y.data.mean()


def test_a_tensors_data_cuts_no_more_than_itself():
    assert_as_eager(Detached(), (images(),), regions=1)


class Looping(Net):
    def forward(self, x):
        y = self.features(x)
        (y,) = while_loop(lambda y: y.sum() > 1e3, lambda y: (y * 0.5,), (y,))
        return y


class Vanishing(Net):
    def forward(self, x):
        return F.interpolate(self.features(x), scale_factor=(0.01, 1.0))


def test_what_cannot_be_evaluated_on_types_is_left_to_pytorch():
    model, x = Looping().eval(), images()
    with torch.no_grad():
        assert torch.equal(bngen.compile(copy.deepcopy(model))(x), model(x))
    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match="sizes should be greater than 0") as eager:
        Vanishing()(x)
    with pytest.raises(RuntimeError, match="sizes should be greater than 0") as found:
        bngen.compile(Vanishing())(x)
    assert type(found.value) is type(eager.value)


OTHERS = {
    "half": (lambda: Net().half(), lambda: images(dtype=torch.half), "no torch.float16"),
    "complex": (
        lambda: nn.Conv2d(3, 4, 3, dtype=torch.complex64),
        lambda: images(dtype=torch.complex64), "no torch.complex64",
    ),
    "meta": (lambda: Net().to("meta"), lambda: images(device="meta"), "a tensor on meta"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_what_pytorch_runs_has_a_reason(name):
    make, given, reason = OTHERS[name]
    explanation = bngen.explain_model(make(), given())
    assert not explanation.regions and reason in str(explanation)
    model, x = make().eval(), given()
    expected = model(x)
    found = bngen.compile(model)(x)
    assert (found.shape, found.dtype, found.device) == (
        expected.shape, expected.dtype, expected.device,
    )  # fmt: skip
    assert found.is_meta or torch.equal(found, expected)
