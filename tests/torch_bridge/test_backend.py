"""``torch.compile(model, backend="bngen")`` is eager PyTorch, whatever the model and its use."""

import copy
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import bngen
from bngen.torch_bridge.backend import backend
from tests.torch_bridge.eager import assert_as_eager, step

pytestmark = pytest.mark.usefixtures("compiling")


def images(*shape, **options):
    return torch.randn(shape or (4, 3, 8, 8), **options)


class Net(nn.Module):
    """Convolutions with a shortcut, a pool and a classifier."""

    def __init__(self, width=8, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, padding=1, bias=False), norm(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), norm(width)
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(width, 5)

    def features(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = x + self.bn2(self.conv2(x))
        return self.relu(x)

    def forward(self, x):
        return self.fc(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


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


def test_double_backward_is_refused():
    x = images(requires_grad=True)
    out = bngen.compile(Net())(x)
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_a_second_backward_is_refused():
    out = bngen.compile(Net())(images()).sum()
    out.backward(retain_graph=True)
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


def test_optimizers():
    def script(model, x):
        optimizers = [
            torch.optim.SGD(model.conv1.parameters(), 0.01, momentum=0.9, weight_decay=0.1),
            torch.optim.Adam([p for n, p in model.named_parameters() if "conv1" not in n], 1e-3),
        ]
        results = []
        for _ in range(3):
            out = model(x)
            out.square().sum().backward()
            for o in optimizers:
                o.step()
                o.zero_grad()
            results.append(out)
        return results

    assert_as_eager(Net(), (images(),), script, regions=3)


def test_gradients_accumulate():
    def script(model, a, b):
        return step(model, a), step(model, b)

    assert_as_eager(Net(), (images(), images()), script, regions=2)


def test_results_changed_by_the_user():
    class Maps(Net):
        def forward(self, x):
            y = self.features(x)
            return y, F.max_pool2d(y, 2)

    def script(model, x):
        a, b = model(x)
        assert a._base is None and b._base is None
        b.mul_(2)
        (b.square().sum() + 1).backward()
        a.detach().zero_()
        return a, b

    assert_as_eager(Maps(), (images(),), script, regions=1)


def test_inputs_of_any_strides():
    x = images(4, 8, 8, 3).permute(0, 3, 1, 2)[:, :, ::2].repeat_interleave(2, 2)
    wide = images(4, 6, 8, 16)[:, ::2, :, ::2]
    spread = images(1, 3, 1, 8).expand(4, 3, 8, 8)
    for given in (x, wide, spread):
        torch._dynamo.reset()
        assert_as_eager(Net(), (given,), regions=1)


def test_nested_inputs_and_results():
    class Nested(Net):
        def forward(self, given, *, scale=None):
            y = self.features(given["x"]) * given["more"][0]
            return {"y": y, "none": None, "rest": (y.mean(), [3, given["more"][1]])}

    def script(model, given):
        result = model(given, scale=None)
        result["y"].sum().backward()
        return result

    labels = torch.arange(4)
    assert_as_eager(Nested(), ({"x": images(), "more": [2.5, labels]},), script, regions=1)


def test_a_result_that_is_the_input():
    class Both(Net):
        def forward(self, x):
            return x, self.features(x), x.view(4, -1)

    def script(model, x):
        same, y, flat = model(x)
        assert same is x and flat.data_ptr() == x.data_ptr()
        y.sum().backward()
        return y

    assert_as_eager(Both(), (images(),), script, regions=1)


def test_results_that_share_memory():
    class Two(Net):
        def forward(self, x):
            y = self.features(x)
            return y, y.flatten(1), y.detach()

    def script(model, x):
        y, flat, held = model(x)
        flat.add_(1)
        assert not held.requires_grad
        return [y, flat, held]

    assert_as_eager(Two(), (images(),), script)


def test_a_result_that_no_loss_reads_gives_no_gradient():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

        def forward(self, x):
            x = F.relu(self.stem(x))
            return self.a(x), self.b(x)

    def script(model, x):
        a, b = model(x)
        a.square().sum().backward()
        return a, b

    ours = assert_as_eager(Heads(), (images(),), script, regions=1)
    assert ours["b.weight.grad"] is None


def test_no_region_at_all():
    assert_as_eager(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), (torch.randn(3, 4),), regions=0)


def test_an_exception_inside_the_model():
    class Broken(Net):
        def forward(self, x):
            y = self.features(x)
            if y.shape[0] > 2:
                raise ValueError("too many")
            return y

    def script(model, x):
        with pytest.raises(ValueError, match="too many"):
            model(x)
        return step(model, x[:2])

    assert_as_eager(Broken(), (images(),), script)


def test_gradients_switched_inside_the_model():
    class Held(Net):
        def forward(self, x):
            y = F.relu(self.bn1(self.conv1(x)))
            with torch.no_grad():
                z = self.bn2(self.conv2(y))
                w = torch.cumsum(z, 1)
            return y + z, w

    assert_as_eager(Held(), (images(requires_grad=True),))


def test_gradients_switched_on_inside_the_model():
    class Asking(Net):
        def forward(self, x):
            with torch.enable_grad():
                return self.features(x)

    def script(model, x):
        with torch.no_grad():
            out = model(x)
        out.square().sum().backward()
        return out

    assert_as_eager(Asking(), (images(),), script)


def test_threads():
    model, x = bngen.compile(Net().eval()), images()
    expected = model(x)
    found, threads = {}, []
    for i in range(4):

        def run(i=i):
            for _ in range(5):
                found[i] = model(x)
                found[i].sum().backward()

        threads.append(threading.Thread(target=run))
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 4
    for value in found.values():
        assert torch.equal(value, expected)


def test_two_models_of_one_class():
    x = images()
    for width in (8, 4, 8):
        assert_as_eager(Net(width), (x,), regions=1)


def test_double_precision():
    def script(model, x):
        return step(model, x)

    assert_as_eager(Net().double(), (images(dtype=torch.float64, requires_grad=True),), script)
