"""Trainings of ranks with shares of each batch against one process with all of it.

With synchronized batch normalization they are the same training, whatever the shares are, none at
all included. Without it they are PyTorch's own in a DistributedDataParallel.
"""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import bngen
from bngen.torch_bridge.region import Region
from bngen.torch_bridge.sync_layers import synchronize
from tests.profiles import THOROUGH, takes_long
from tests.torch_bridge.eager import compare, nudge, summed
from tests.torch_bridge.processes import Started, joined
from tests.torch_bridge.small_networks import NETWORKS, batches, dense, mobile, residual, trained

# Of each step, images by rank. Sizes that a rank has had are not compiled again. Of one image alone
# a normalized map has the mean that its bias says: nothing before it has a gradient.
RAGGED = ((2, 3), (2, 0), (2, 3), (0, 3), (2, 3))
SHARES = {
    "two, and none": RAGGED,
    "two even": ((2, 2),) * 5,
    "three": ((1, 2, 3), (1, 2, 0), (1, 0, 3), (0, 2, 3), (1, 2, 3)),
    "three even": ((2, 2, 2),) * 5,
    "four": ((2, 2, 2, 2), (2, 1, 1, 1), (1, 1, 0, 0), (0, 0, 1, 1), (2, 2, 2, 2)),
}


def by_argument(net, **options):
    return DistributedDataParallel(bngen.compile(net, sync_bn=True), **options)


def converted(net, **options):
    layers = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    return DistributedDataParallel(bngen.compile(layers), **options)


def outside(net, **options):
    return torch.compile(DistributedDataParallel(synchronize(net), **options), backend="bngen")


def eager(net, **options):
    return DistributedDataParallel(synchronize(net), **options)


# Statistics of one rank are not sent to the others, so that each has to have its own right.
OWN = {"broadcast_buffers": False}
CASES = (
    (dense, by_argument, OWN),
    (residual, converted, {"find_unused_parameters": True}),
)
MORE = (
    (mobile, by_argument, OWN | {"gradient_as_bucket_view": True}), (dense, eager, OWN),
    (residual, outside, {}), (mobile, eager, OWN),
)  # fmt: skip


def shared(whole, shares, rank):
    """Of each batch, the images and labels of a rank, and how many all of them have."""
    return [
        (*(part.split(sizes)[rank] for part in batch), sum(sizes))
        for batch, sizes in zip(whole, shares, strict=True)
    ]


def synchronized_process(rank, name, folder):
    """What each rank does; it fails by an exception."""
    shares = SHARES[name]
    ranks = len(shares[0])
    joined(rank, ranks, folder)
    calls, forward = [], Region.forward
    Region.forward = lambda region, *args: calls.append(region) or forward(region, *args)
    for network, wrap, options in (*CASES, *(MORE if THOROUGH else ())):
        torch._dynamo.reset()  # which counts versions by code, and has its limit
        torch.manual_seed(0)
        net = network()
        whole = [batches(1, sum(sizes))[0] for sizes in shares]
        steps = [(x, labels, len(x)) for x, labels in whole]
        plain = trained(copy.deepcopy(net), steps)
        nudged = [trained(nudged_copy(net), steps) for _ in range(2)]
        exact, sums = exactly(copy.deepcopy(net).double(), steps)
        own = copy.deepcopy(net)
        found = trained(wrap(own, **options), shared(whole, shares, rank), ranks)
        compare(with_whole_losses(found), plain, exact, nudged, sums)
        here = sum(bool(sizes[rank]) for sizes in shares)
        # One region, or several, each once a step; none where there is no image.
        met = [c for c in calls if c.built.groups]
        assert bool(met) == (wrap is not eager) and len(met) % here == 0, f"{len(met)} calls"
        calls.clear()
    dist.destroy_process_group()


def nudged_copy(net):
    other = copy.deepcopy(net)
    with torch.no_grad():
        for p in other.parameters():
            p.copy_(nudge(p))
    return other


def exactly(model, steps):
    """What a training gives in double precision, and what each step's gradients are summed from."""
    running, sums = summed(model), {}

    def after(i):
        sums.update({f"{i}.{name}": total for name, total in running.items()})
        running.clear()

    doubles = [(x.double(), labels, n) for x, labels, n in steps]
    return trained(model, doubles, after=after), sums


def with_whole_losses(found):
    """The losses of all ranks together."""
    for name, value in found.items():
        if name.endswith(".loss"):
            dist.all_reduce(value)
    return found


def local_process(rank, name, folder):
    """The same without synchronization, against PyTorch's DistributedDataParallel."""
    ranks = len(SHARES[name][0])
    joined(rank, ranks, folder)
    shares = (tuple(range(2, 2 + ranks)),) * 5
    for network in NETWORKS:
        torch._dynamo.reset()
        torch.manual_seed(0)
        net = network()
        steps = shared(batches(5, sum(shares[0])), shares, rank)

        def theirs(net, dtype=torch.float32, steps=steps):
            steps = [(x.to(dtype), labels, n) for x, labels, n in steps]
            return trained(DistributedDataParallel(net.to(dtype), **OWN), steps, ranks)

        plain, exact = theirs(copy.deepcopy(net)), theirs(copy.deepcopy(net), torch.float64)
        torch.manual_seed(1)
        nudged = [theirs(nudged_copy(net)) for _ in range(2)]
        compiled = bngen.compile(copy.deepcopy(net))
        compare(trained(DistributedDataParallel(compiled, **OWN), steps, ranks), plain, exact,
                nudged)  # fmt: skip
    dist.destroy_process_group()


def all_well(process, name, tmp_path, cache):
    ranks = len(SHARES[name][0])
    job = f"import {__name__} as t; t.{process.__name__}({{}}, {name!r}, {str(tmp_path)!r})"
    with Started(job, ranks, cache) as started:
        started.all_well()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("name", SHARES if THOROUGH else ["two, and none"])
def test_shares_of_a_batch_are_that_batch(tmp_path, cache, name):
    all_well(synchronized_process, name, tmp_path, cache)


@takes_long("test_distributed has a smaller one")
@pytest.mark.parametrize("name", ["two, and none", "three"])
def test_without_synchronization_it_is_pytorchs(tmp_path, cache, name):
    all_well(local_process, name, tmp_path, cache)
