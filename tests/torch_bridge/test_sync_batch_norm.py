"""Synchronized batch normalization on CPUs: shares of a batch against one process with it all."""

import copy
import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
from hypothesis import settings
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import bngen
from bngen.torch_bridge.explain import explain_model
from bngen.torch_bridge.region import Region
from bngen.torch_bridge.sync_batch_norm import SyncBatchNorm, synchronize
from tests.torch_bridge.eager import compare, outcome
from tests.torch_bridge.processes import Started, joined
from tests.torch_bridge.small import Net


class Dense(nn.Module):
    """Two layers of a dense block."""

    def __init__(self):
        super().__init__()
        self.conv0 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm1, self.conv1 = nn.BatchNorm2d(8), nn.Conv2d(8, 5, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(13), nn.Conv2d(13, 4, 1, bias=False)

    def forward(self, x):
        x = self.conv0(x)
        x = torch.cat([x, self.conv1(self.norm1(x).relu())], 1)
        return self.conv2(self.norm2(x).relu())


class Mobile(nn.Module):
    """An inverted residual, and a normalization that averages all batches."""

    def __init__(self):
        super().__init__()
        self.conv0, self.norm0 = nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8, momentum=0.3)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.norm1 = nn.BatchNorm2d(8, affine=False, momentum=None)

    def forward(self, x):
        x = nn.functional.relu6(self.norm0(self.conv0(x)))
        return x + self.norm1(self.deep(x))


def script(model, x, share):
    """Two steps, whose losses are sums over images; a third in evaluation."""
    for _ in range(2):
        y = model(x)
        y.square().sum().mul(share).backward()
    model.eval()
    with torch.no_grad():
        return model(x)


def run(net, wrap, x, share=1.0):
    wrapped = wrap(net)
    return outcome(net, (x,), lambda _, x: script(wrapped, x, share), 0)


def by_argument(net):
    return DistributedDataParallel(bngen.compile(net, sync_bn=True))


def converted(net):
    return DistributedDataParallel(bngen.compile(nn.SyncBatchNorm.convert_sync_batchnorm(net)))


def eager(net):
    synchronize(net)
    return DistributedDataParallel(net)


CASES = (
    (Dense, by_argument, 1),
    (Dense, eager, 0),
    (Net, converted, 1),
    (Mobile, by_argument, 1),
)


def process(rank, shares, folder):
    """What each rank does; it fails by an exception."""
    joined(rank, len(shares), folder)
    calls, forward = [], Region.forward
    Region.forward = lambda region, *args: calls.append(region) or forward(region, *args)
    for model, wrap, regions in CASES:
        torch.manual_seed(0)
        net, images = model(), torch.randn(sum(shares), 3, 8, 8)
        whole = run(copy.deepcopy(net), lambda net: net, images)
        exact = run(copy.deepcopy(net).double(), lambda net: net, images.double())
        # DistributedDataParallel takes the mean of what is the sum here.
        ours = run(copy.deepcopy(net), wrap, images.split(shares)[rank], len(shares))
        for found in (whole, exact):
            found["result"] = found["result"].split(shares)[rank]
        compare(ours, whole, exact, [])
        synced = [c for c in calls if c.built.groups]
        assert bool(synced) == bool(regions), f"{wrap.__name__}: {len(synced)} regions exchange"
        calls.clear()
    check_small_groups(rank)
    check_empty_shares(rank)
    dist.destroy_process_group()


def check_empty_shares(rank):
    """In eager PyTorch a rank without images takes part; compiled, all are told who does not."""
    torch.manual_seed(0)
    net, images = Dense(), torch.randn(3, 3, 8, 8)
    x = images[: 0 if rank else 3]
    layers = synchronize(copy.deepcopy(net))
    y = layers(x)
    y.sum().backward()
    torch.testing.assert_close(y, net(images)[: len(x)])
    with pytest.raises(bngen.BngenError, match=r"in PyTorch \(norm1\).*rank \d has another"):
        bngen.compile(layers)(x)


def check_small_groups(rank):
    """A group of one rank is plain batch normalization; without DDP layers meet, too."""
    alone = [dist.new_group([r]) for r in range(dist.get_world_size())][rank]
    torch.manual_seed(0)
    net, x = Dense(), torch.randn(3, 3, 8, 8)
    want = Dense.forward(net, x)
    other = bngen.compile(copy.deepcopy(net), sync_bn=alone)
    torch.testing.assert_close(other(x), want)
    # All ranks have the same images: their statistics are those of each.
    met = torch.compile(synchronize(copy.deepcopy(net)), backend="bngen")
    torch.testing.assert_close(met(x), want)


@pytest.mark.parametrize("shares", [(2, 3)], ids=str)
def test_shares_of_a_batch_are_that_batch(tmp_path, shares):
    module = "tests.torch_bridge.test_sync_batch_norm"
    job = f"import {module} as t; t.process({{}}, {shares}, {str(tmp_path)!r})"
    with Started(job, len(shares), tmp_path / "cache") as started:
        started.all_well()


# --- faults -----------------------------------------------------------------------------------

SECONDS = 8.0


@bngen.program
def faulty(x: bngen.Tensor[2, 3, 8, 8], w: bngen.Tensor[4, 3, 3, 3]):
    y = bngen.batch_norm(
        bngen.conv2d(x, w), None, None, training=True, group="all", layer="features.norm0"
    )
    return bngen.mean(y * y * y)


FAULTS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hang": lambda: time.sleep(300),
}


def faulty_process(rank, how, folder):
    """The second rank fails in the middle of the second step, once it has begun."""
    joined(rank, 2, folder, SECONDS if how == "hang" else 60.0)
    module = bngen.connect(bngen.build(faulty, grad=True, threads=1))
    x, w = torch.ones(2, 3, 8, 8), torch.ones(4, 3, 3, 3)
    x[0] *= rank + 1
    module(x, w)
    print(module.backward()["w"].sum().item(), flush=True)
    module.forward(x, w)
    if rank == 1:
        FAULTS[how]()
    module.backward()


@pytest.mark.parametrize("how", FAULTS if settings.default.max_examples > 100 else ["kill"])
def test_a_rank_that_fails_ends_the_others_with_one_line(tmp_path_factory, tmp_path, how):
    module = "tests.torch_bridge.test_sync_batch_norm"
    job = f"import {module} as t; t.faulty_process({{}}, {how!r}, {str(tmp_path)!r})"
    cache = tmp_path_factory.getbasetemp() / "faulty"
    with Started(job, 2, cache) as started:
        text = started.text(0)
        assert started.ranks[0].returncode == 1, text
        last = text.strip().splitlines()[-1]
        assert "faulty: rank 0 of 2 waited for the sum over ranks of 'features.norm0'" in last, text
        assert "and it failed: " in last
        assert ("Timed out" if how == "hang" else "eer") in last


# --- what is refused --------------------------------------------------------------------------


def test_without_a_process_group_it_says_what_to_do():
    with pytest.raises(bngen.BngenError, match="torch.distributed is not initialized"):
        bngen.compile(Net(), sync_bn=True)
    module = bngen.build(bngen.trace(lambda x: bngen.all_reduce(x), bngen.Tensor[3]))
    with pytest.raises(bngen.BngenError, match="torch.distributed is not initialized"):
        bngen.connect(module)
    with pytest.raises(bngen.BngenError, match="connect takes a module of bngen, not a Net"):
        bngen.connect(Net())


def test_layers_of_classes_made_of_batch_normalization_are_not_replaced():
    class Activated(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    with pytest.raises(bngen.BngenError, match="sync_bn: 0 is a Activated, of which"):
        synchronize(nn.Sequential(Activated(3)))


def test_layers_stay_what_they_are_but_for_their_class():
    net = Net()
    before = dict(net.named_modules()), list(net.state_dict())
    synchronize(net)
    assert all(before[0][name] is module for name, module in net.named_modules())
    assert list(net.state_dict()) == before[1]
    assert isinstance(net.bn1, SyncBatchNorm) and not isinstance(net.bn1, nn.SyncBatchNorm)
    # In one process it is batch normalization.
    x = torch.randn(4, 3, 8, 8)
    torch.manual_seed(0)
    plain = Net()
    plain.load_state_dict(net.state_dict())
    torch.testing.assert_close(net(x), plain(x))
    assert str(explain_model(net, x)).startswith("bngen takes")
