"""``torch.compile(model, backend="bngen")`` in all that users do with a model and its results."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bngen
from bngen.torch_bridge import region
from bngen.torch_bridge.backend import backend
from tests.torch_bridge.eager import assert_as_eager, step
from tests.torch_bridge.small import Net, images

pytestmark = pytest.mark.usefixtures("compiling")


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


@pytest.mark.parametrize("what", ["the optimizer", "the whole step"])
def test_more_than_the_model_is_compiled(what):
    def losses(compiled):
        torch.manual_seed(0)
        model, x = Net(), images()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)

        def change():
            optimizer.step()

        def whole():
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            change()
            return loss.detach()

        if compiled and what == "the optimizer":
            change = torch.compile(change, backend=backend)
        if compiled and what == "the whole step":
            whole = torch.compile(whole, backend=backend)
        return torch.stack([whole() for _ in range(5)])

    torch.testing.assert_close(losses(compiled=True), losses(compiled=False))


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

    assert_as_eager(Maps(), (images(),), script, regions=2)


def test_inputs_of_any_strides():
    x = images(4, 8, 8, 3).permute(0, 3, 1, 2)[:, :, ::2].repeat_interleave(2, 2)
    wide = images(4, 6, 8, 16)[:, ::2, :, ::2]
    spread = images(1, 3, 1, 8).expand(4, 3, 8, 8)
    for given in (x, wide, spread):
        torch._dynamo.reset()
        assert_as_eager(Net(), (given,), regions=1)


def test_results_lie_in_any_order_of_axes_that_eager_leaves_them_in():
    class Turned(Net):
        def forward(self, x):
            y = self.features(x.transpose(2, 3))
            return y.transpose(2, 3) * 2, y.permute(3, 2, 0, 1) + 1, y[:, :, ::2] * 3

    def script(model, x):
        results = model(x)
        sum(r.square().sum() for r in results).backward()
        with torch.no_grad():
            return *results, *model(x)

    assert_as_eager(Turned(), (images(4, 3, 8, 6),), script, regions=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_normalized_map_lies_as_eager_leaves_it(dtype):
    given = {
        "turned": (nn.BatchNorm2d(3), images(4, 3, 8, 6).transpose(2, 3)),
        "channels last": (nn.BatchNorm2d(3), images(4, 8, 6, 3).permute(0, 3, 1, 2)),
        "batch in the middle": (nn.BatchNorm2d(4), images(3, 4, 8, 6).permute(2, 1, 0, 3)),
        "sequences": (nn.BatchNorm1d(8), images(4, 6, 8).transpose(1, 2)),
    }
    for layer, x in given.values():
        torch._dynamo.reset()
        model = nn.Sequential(layer, nn.ReLU()).to(dtype)
        expected = copy.deepcopy(model)(x.to(dtype))
        assert bngen.compile(model)(x.to(dtype)).stride() == expected.stride()


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


def test_how_many_threads_there_are(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.delenv("BNGEN_NUM_THREADS", raising=False)
    assert region._threads() == 3
    monkeypatch.setenv("BNGEN_NUM_THREADS", "2")
    assert region._threads() == 2


def test_two_models_of_one_class():
    x = images()
    for width in (8, 4, 8):
        assert_as_eager(Net(width), (x,), regions=1)


def test_double_precision():
    """Which bngen takes as it takes single: differences of results are its gradients."""
    model, x = Net().double(), images(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert_as_eager(model, (x,), regions=1)
    compiled = bngen.compile(model)
    weights = list(model.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: compiled(x), (x, *weights), fast_mode=True)
