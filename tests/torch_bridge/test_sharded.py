"""Parameters in shards, one a rank (``torch.distributed.fsdp.fully_shard``): as in eager."""

import copy

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

import bngen
from bngen.torch_bridge.region import Region
from bngen.torch_bridge.sync_layers import synchronize
from tests.profiles import takes_long
from tests.torch_bridge.eager import compare
from tests.torch_bridge.processes import Started, joined
from tests.torch_bridge.small import Net


def eager(net):
    return fully_shard(net)


def compiled_before(net):
    return fully_shard(bngen.compile(net))


def compiled_after(net):
    return bngen.compile(fully_shard(net))


def outside(net):
    return torch.compile(fully_shard(net), backend="bngen")


def layer_by_layer(net):
    """Sharded layers gather their weights in hooks, which cut the model."""
    fully_shard(net.conv2), fully_shard(net.fc)
    return bngen.compile(fully_shard(net))


def trained(net, wrap, x):
    """Losses, gradients and statistics of two steps; of parameters all of them."""
    model = wrap(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    found = {}
    for i in range(2):
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        found[f"{i}.loss"] = loss.detach()
        found |= {f"{i}.{n}.grad": p.grad.full_tensor() for n, p in net.named_parameters()}
        optimizer.step()
    found |= {n: p.full_tensor().detach() for n, p in net.named_parameters()}
    return found | {n: b.clone() for n, b in net.named_buffers()}


def process(rank, folder):
    """What each rank does; it fails by an exception."""
    joined(rank, 2, folder)
    calls, forward = [], Region.forward
    Region.forward = lambda region, *args: calls.append(region) or forward(region, *args)
    torch.manual_seed(0)
    net, x = Net(), torch.randn(2, 4, 3, 8, 8)[rank]
    met = synchronize(copy.deepcopy(net))
    for model, ways in ((net, (compiled_before, compiled_after, outside, layer_by_layer)),
                        (met, (compiled_before,))):  # fmt: skip
        plain = trained(copy.deepcopy(model), eager, x)
        exact = trained(copy.deepcopy(model).double(), eager, x.double())
        for wrap in ways:
            calls.clear()
            compare(trained(copy.deepcopy(model), wrap, x), plain, exact, [])
            assert len(calls) >= 2, f"{wrap.__name__}: {len(calls)} calls of regions"
    dist.destroy_process_group()


@takes_long("compiles models for two ranks")
def test_as_in_eager(tmp_path):
    job = f"import {__name__} as t; t.process({{}}, {str(tmp_path)!r})"
    with Started(job, 2, tmp_path / "cache") as started:
        started.all_well()
