"""``torch.compile(model, backend="bngen")`` is eager PyTorch, whatever the model and its use."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import bngen
from bngen.torch_bridge.backend import backend
from bngen.torch_bridge.stages import UnderWay
from tests.torch_bridge.eager import assert_as_eager, step
from tests.torch_bridge.small import Net, images

pytestmark = pytest.mark.usefixtures("compiling")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("needs", [True, False])
def test_forward_and_backward(training, needs):
    assert_as_eager(Net().train(training), (images(requires_grad=needs),), regions=1)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("training", [True, False])
def test_without_gradients(mode, training):
    def script(model, x):
        with mode():
            return model(x)

    assert_as_eager(Net().train(training), (images(),), script, regions=1)


def test_train_and_eval_by_turns():
    def script(model, x):
        first = step(model, x)
        model.eval()
        with torch.no_grad():
            second = model(x)
        model.train()
        return first, second, step(model, x)

    assert_as_eager(Net(), (images(),), script, regions=3)


NORMS = {
    "cumulative": lambda c: nn.BatchNorm2d(c, momentum=None),
    "no affine": lambda c: nn.BatchNorm2d(c, affine=False),
    "no statistics": lambda c: nn.BatchNorm2d(c, track_running_stats=False),
    "own momentum and epsilon": lambda c: nn.BatchNorm2d(c, momentum=0.7, eps=0.3),
    "evaluated in training": lambda c: nn.BatchNorm2d(c).eval(),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("training", [True, False])
def test_kinds_of_batch_normalization(name, training):
    model = Net(norm=NORMS[name])
    if name != "evaluated in training":
        model.train(training)

    def script(model, x):
        return step(model, x), step(model, x)

    assert_as_eager(model, (images(),), script)


class Counted(Net):
    """Counters that nobody reads, one of them counted twice, and one that the model reads."""

    def __init__(self):
        super().__init__()
        self.bn3, self.bn4 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x):
        y = self.bn2(self.bn4(self.features(x)))
        return self.bn3(y) * self.bn3.num_batches_tracked


def test_counters_of_batches_are_counted_together():
    assert_as_eager(Counted(), (images(),), lambda model, x: (model(x), model(x)), regions=4)
    compiled = bngen.compile(Counted())
    compiled(images())
    with torch.profiler.profile() as profile:
        compiled(images())
    counts = [int(n) for name, n in compiled.state_dict().items() if name.endswith("tracked")]
    assert counts == [2, 4, 2, 2]
    calls = {event.key: event.count for event in profile.key_averages()}
    assert calls["aten::_foreach_add_"] == 1
    assert calls["aten::add_"] == 1 + 4  # the one that is read; and inside of the other


def test_frozen_parameters_cost_no_kernels():
    whole, frozen = Net(), Net()
    for p in (*frozen.conv1.parameters(), *frozen.bn1.parameters()):
        p.requires_grad_(False)
    kernels = []
    for model in (whole, frozen):
        assert_as_eager(model, (images(),), regions=1)
        kernels.append(_kernels(model, images()))
    assert kernels[1] < kernels[0]
    for p in frozen.parameters():
        p.requires_grad_(False)
    assert_as_eager(frozen, (images(),), regions=1)
    with torch.no_grad():
        assert _kernels(whole, images()) == _kernels(frozen, images()) < kernels[1]


def _kernels(model, x):
    """How many kernels a model's regions have."""
    found = []

    def note(captured, inputs):
        def run(*inputs):
            made = backend_module.finished(cut(captured, inputs))
            regions = [m for m in made.modules() if isinstance(m, Region)]
            found.extend(len(r.built.manifest()["kernels"]) for r in regions)
            return captured(*inputs)

        return run

    from bngen.torch_bridge import backend as backend_module
    from bngen.torch_bridge.region import Region
    from bngen.torch_bridge.regions import cut

    torch.compile(copy.deepcopy(model), backend=note)(x)
    return sum(found)


def test_requires_grad_switched_off_and_on():
    def script(model, x):
        results = []
        for wanted in (True, False, True):
            for p in (*model.conv1.parameters(), *model.bn1.parameters()):
                p.requires_grad_(wanted)
            model.zero_grad()
            results.append(step(model, x))
            results.append([p.grad for p in model.parameters()])
        return results

    assert_as_eager(Net(), (images(),), script)


class Shared(nn.Module):
    """One convolution and one batch normalization, used twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(F.relu(self.bn(self.conv(x)))))


def test_shared_modules():
    def script(model, x):
        return step(model, x), step(model.eval(), x)

    assert_as_eager(Shared(), (images(2, 4, 6, 6),), script)


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, a, b):
        return (self.net(a) - self.net(b)).abs()


def test_siamese_in_one_graph():
    assert_as_eager(Siamese(), (images(requires_grad=True), images()))


def test_several_forwards_before_their_backwards():
    def script(model, *inputs):
        results = [model(x) for x in inputs]
        for r in reversed(results):
            r.square().sum().backward()
        return results, [x.grad for x in inputs]

    assert_as_eager(Net(), tuple(images(requires_grad=True) for _ in range(3)), script, regions=3)


def test_a_forward_without_its_backward():
    def script(model, x):
        model(x)
        return step(model, x)

    assert_as_eager(Net(), (images(),), script, regions=2)


def test_gan():
    class Gan(nn.Module):
        def __init__(self):
            super().__init__()
            self.g = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh())
            self.d = Net()

        def forward(self, x):
            return self.g(x)

    def script(model, x, real):
        d, g = (torch.optim.SGD(m.parameters(), 0.01) for m in (model.d, model.g))
        critic = torch.compile(model.d, backend=backend) if model._compiled_call_impl else model.d
        fake = model(x)
        (critic(real).mean() - critic(fake.detach()).mean()).backward()
        d.step()
        d.zero_grad()
        critic(fake).mean().backward()
        g.step()
        return fake

    assert_as_eager(Gan(), (images(), images()), script)


@pytest.mark.parametrize("changed", ["input", "weight"])
def test_a_change_before_backward_is_refused_as_in_eager(changed):
    model = Net()
    x = images(requires_grad=True)
    for m in (model, bngen.compile(copy.deepcopy(model))):
        used = x * 1
        out = m(used)
        with torch.no_grad():
            (used if changed == "input" else m.conv2.weight).add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()


def test_what_backward_does_not_read_may_change():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def forward(self, x, late):
            return self.net.features(x) + late

    def script(model, x, late):
        out = model(x, late)
        late.add_(1)
        out.square().sum().backward()
        return out

    assert_as_eager(Scaled(), (images(), images(4, 8, 8, 8)), script, regions=1)


@pytest.mark.parametrize("loss", [lambda y: y.square().sum(), lambda y: y.sum()])
def test_double_backward_is_refused(loss):
    x = images(requires_grad=True)
    out = bngen.compile(Net())(x)
    (grad,) = torch.autograd.grad(loss(out), x, create_graph=True)
    # A penalty must not be dropped from a sum whose other terms can be differentiated.
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (grad.square().sum() + loss(out)).backward()


def test_a_graph_that_is_retained():
    class Maps(Net):
        def forward(self, x):
            y = self.features(x)
            return y, F.max_pool2d(y, 2)

    def script(model, x):
        a, b = model(x)
        losses, weights = (a.square().sum(), b.sin().sum()), list(model.conv1.parameters())
        found = [torch.autograd.grad(loss, weights, retain_graph=True) for loss in losses]
        found.append(torch.autograd.grad(losses[0], model.bn2.weight, retain_graph=True))
        for loss in (sum(losses), losses[1]):
            loss.backward(retain_graph=True)
        model(x + 1)  # in between, with memory of its own
        sum(losses).backward()
        return found

    assert_as_eager(Maps(), (images(),), script, regions=4)


def test_a_second_backward_is_refused_unless_retained():
    out = bngen.compile(Net())(images()).sum()
    out.backward(retain_graph=True)
    out.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        out.backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint_around_the_model(reentrant):
    def script(model, x):
        out = checkpoint(model, x, use_reentrant=reentrant)
        out.square().sum().backward()
        return out, x.grad

    assert_as_eager(Net(), (images(requires_grad=True),), script, regions=2)


def test_saved_tensors_on_the_way():
    def script(model, x):
        with torch.autograd.graph.save_on_cpu():
            out = model(x)
        out.square().sum().backward()
        return out, x.grad

    assert_as_eager(Net(), (images(requires_grad=True),), script, regions=1)


def test_hooks():
    def script(model, x):
        seen = []
        model.bn1.register_forward_hook(lambda m, i, o: o * 2)
        model.conv2.register_forward_pre_hook(lambda m, i: (i[0] + 1,))
        model.conv1.weight.register_hook(lambda g: g * 3)
        handle = model.register_forward_hook(lambda m, i, o: seen.append(o.detach()))
        result = step(model, x)
        handle.remove()
        return result, seen

    assert_as_eager(Net(), (images(),), script)


def test_backward_hooks():
    def script(model, x):
        seen = []
        model.bn2.register_full_backward_hook(lambda m, i, o: seen.append((i[0], o[0])))
        return step(model, x), seen

    assert_as_eager(Net(), (images(requires_grad=True),), script)


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("features", [True, False])
def test_channels_last(weights, features):
    class Maps(Net):
        def forward(self, x):
            return self.features(x)

    model = (Maps if features else Net)()
    if weights:
        model.to(memory_format=torch.channels_last)
    x = images().to(memory_format=torch.channels_last).requires_grad_()
    assert_as_eager(model, (x,), regions=1)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_handed_over_without_a_copy(memory_format, monkeypatch):
    begin, made = UnderWay.begin, set()

    def noting(*args, **named):
        gradients = begin(*args, **named)
        made.update(g.data_ptr() for g in gradients.values())
        return gradients

    monkeypatch.setattr(UnderWay, "begin", noting)
    model = Net().to(memory_format=memory_format)
    torch.compile(model, backend=backend)(images()).sum().backward()
    assert {p.grad.data_ptr() for p in model.parameters()} <= made


def test_state_is_the_models_own(tmp_path):
    model = Net()
    keys = list(model.state_dict())
    assert bngen.compile(model) is model
    x = images()
    out = model(x)
    assert list(model.state_dict()) == keys
    torch.save(model.state_dict(), tmp_path / "state")
    other = Net()
    other.load_state_dict(torch.load(tmp_path / "state"))
    for again in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(again(x), out)
    # Weights loaded in place are seen.
    model.load_state_dict(Net().state_dict())
    assert not torch.allclose(model(x), out)
