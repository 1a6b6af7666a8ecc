"""What well-known networks are made of, in a few lines each: one region, and eager's results."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bngen
from bngen.torch_bridge import backend as backend_module
from bngen.torch_bridge.region import Region, is_channels_last
from tests.torch_bridge.eager import assert_as_eager
from tests.torch_bridge.small import Net, images

pytestmark = pytest.mark.usefixtures("compiling")


class Ghost(nn.Module):
    """A slice of a concatenation, added to in place, as in GhostNet; views of several extents."""

    def __init__(self):
        super().__init__()
        self.net, self.cheap = Net(), nn.Conv2d(8, 8, 3, padding=1, groups=8)

    def forward(self, x):
        y = self.net.features(x)
        z = torch.cat([y, self.cheap(y)], 1)[:, 2:10]
        z += y
        n, c, h, w = z.shape
        rows = z.view(n, c, h * w)
        return self.net.conv2((rows * rows.mean(2, keepdim=True)).view_as(z))


def test_a_slice_changed_in_place_and_views_of_several_extents():
    model = Ghost()
    left = bngen.explain_model(model, images()).left
    assert {call.what for call in left} == {"Tensor.add_"}
    assert_as_eager(model, (images(requires_grad=True),), regions=1)


class Classifier(Net):
    """A view of what was pooled, changed in place, as before the classifier of EfficientNet."""

    def forward(self, x):
        pooled = F.adaptive_avg_pool2d(self.features(x), 1)
        return self.fc(torch.flatten(pooled, 1).sub_(0.5).relu_())


def test_a_view_changed_in_place_of_what_is_read_no_more():
    model = Classifier()
    assert not bngen.explain_model(model.eval(), images()).left
    assert_as_eager(model.train(), (images(requires_grad=True),), regions=1)


class Standardized(nn.Module):
    """A convolution whose weight is standardized, as timm's networks without normalization do."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x):
        weight = self.conv.weight
        rows = weight.reshape(1, weight.shape[0], -1)
        rows = F.batch_norm(rows, None, None, training=True, momentum=0.0, eps=1e-6)
        return F.conv2d(x, rows.reshape_as(weight), self.conv.bias, 1, self.conv.padding)


def test_weight_standardization_lies_in_the_region_of_its_convolution():
    assert_as_eager(Standardized(), (images(requires_grad=True),), regions=1)


def test_a_container_is_one_graph(monkeypatch):
    calls, forward = [], Region.forward
    monkeypatch.setattr(
        Region, "forward", lambda region, *t: calls.append(1) or forward(region, *t)
    )
    # More of them than Dynamo keeps versions of one function.
    monkeypatch.setattr(backend_module, "_MOST_GRAPHS", 1)
    with torch._dynamo.config.patch(recompile_limit=1):
        for _ in range(2):
            model = bngen.compile(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1)))
            model(images())
    assert len(calls) == 2
    assert copy.deepcopy(model).state_dict().keys() == model.state_dict().keys()


class ChangedUnseen(Net):
    """What is changed under ``no_grad`` has the gradient of what it was."""

    def forward(self, x):
        y = self.conv2(self.features(x))
        with torch.no_grad():
            y.mul_(2)
        return y.square()


def test_a_change_without_gradients_of_what_has_one():
    assert_as_eager(ChangedUnseen(), (images(requires_grad=True),))


def test_a_view_is_channels_last_where_its_copy_is():
    x = images(2, 8, 6, 6)
    last = x.to(memory_format=torch.channels_last)
    assert all(map(is_channels_last, (last, last[:, 2:6], last[:, :, ::2])))
    assert not any(map(is_channels_last, (x, x[:, 2:6], x[:, :, ::2], last[:, :1], last[0])))


class ChangesOne(nn.Module):
    """The first argument is changed in place between two uses of the second."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(3, 8, 3, padding=1) for _ in range(2))

    def forward(self, changed, kept):
        before = self.conv1(kept)
        changed.add_(1)
        return before + self.conv2(kept)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_arguments_that_share_memory_in_some_calls_alone(mode):
    def script(model, x, y):
        with mode():
            return [model(x, y), model(y, y[:]), model(x, x.view(x.shape)), model(x, y)]

    assert_as_eager(ChangesOne(), (images(), images()), script)


def test_arguments_that_share_memory_when_it_is_compiled():
    def script(model, x):
        with torch.inference_mode():
            made = x * 2
            return model(made, made[:])

    assert_as_eager(ChangesOne(), (images(),), script, regions=0)


class Queue(Net):
    """A queue of keys that changes once a copy of it is read, as in momentum contrast."""

    def __init__(self):
        super().__init__()
        self.register_buffer("queue", torch.randn(5, 12))

    def forward(self, x):
        found = super().forward(x)
        similar = (found.view(4, 5, 1) * self.queue.clone()).sum(1)
        with torch.no_grad():
            self.queue[:, :4] = found.T
        return similar


def test_a_buffer_that_changes_after_it_is_copied():
    assert_as_eager(Queue(), (images(),))


class Attended(Net):
    """Feature maps beside what is computed of them, as pictures of what a network sees want."""

    def forward(self, x):
        maps = self.features(x)
        return maps, self.conv2(maps)


def _retained(maps, result):
    maps.retain_grad()
    result.sum().backward()
    return maps.grad


def _asked(maps, result):
    return torch.autograd.grad(result.square().sum(), maps)[0]


def _hooked(maps, result):
    maps.register_hook(lambda gradient: 2 * gradient)
    (maps.sum() + result.sum()).backward()


@pytest.mark.parametrize("ask", [_retained, _asked, _hooked])
def test_gradients_of_a_result_that_another_is_computed_of(ask):
    def script(model, x):
        maps, result = model(x)
        return [maps, result, ask(maps, result)]

    assert_as_eager(Attended(), (images(requires_grad=True),), script, regions=2)
