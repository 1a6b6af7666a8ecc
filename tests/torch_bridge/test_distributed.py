"""DistributedDataParallel around a compiled model, and a compiled one around it: as in eager."""

import contextlib
import copy

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import bngen
from bngen.torch_bridge import stages
from bngen.torch_bridge.backend import backend
from bngen.torch_bridge.region import Region
from tests.torch_bridge.eager import compare, outcome
from tests.torch_bridge.processes import Started, joined
from tests.torch_bridge.small import Net

RANKS = 2


def inside(net, **options):
    return DistributedDataParallel(torch.compile(net, backend=backend), **options)


def outside(net, **options):
    return torch.compile(DistributedDataParallel(net, **options), backend=backend)


def in_place(net, **options):
    return DistributedDataParallel(bngen.compile(net), **options)


def in_place_around(net, **options):
    """Of a container, too, whose forward is PyTorch's own."""
    return bngen.compile(DistributedDataParallel(torch.nn.Sequential(net), **options))


WAYS = (
    (inside, {}),
    (outside, {}),
    (in_place, {}),
    (in_place_around, {}),
    (inside, {"find_unused_parameters": True, "gradient_as_bucket_view": True}),
    (in_place, {"static_graph": True, "broadcast_buffers": False}),
)


class Unused(torch.nn.Module):
    """A model with a layer that it does not use."""

    def __init__(self, net):
        super().__init__()
        self.net, self.unused = net, torch.nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.net(x)


def script(model, x, apart):
    """Two steps; gradients add up, and those of the first are not exchanged by itself."""
    for i in range(2):
        with model.no_sync() if apart and not i else contextlib.nullcontext():
            model(x).square().sum().backward()


def run(net, wrap, x, options):
    """Parameters, gradients and statistics after the script."""
    wrapped = wrap(net, **options)
    apart = not options.get("static_graph")
    return outcome(net, (x,), lambda _, x: script(wrapped, x, apart), 0)


def process(rank, folder):
    """What each process does; it fails by an exception."""
    joined(rank, RANKS, folder)
    torch.manual_seed(0)
    net, x = Net(), torch.randn(RANKS, 4, 3, 8, 8)[rank]
    stages.LEAST = 1  # so that as small a model has stages, too
    calls, forward, parts = [], Region.forward, []
    advance = stages.UnderWay.advance
    Region.forward = lambda *args: calls.append(rank) or forward(*args)
    stages.UnderWay.advance = lambda *args: parts.append(rank) or advance(*args)
    for wrap, options in WAYS:
        model = Unused(net) if "find_unused_parameters" in options else net
        eager = run(copy.deepcopy(model), DistributedDataParallel, x, options)
        double = copy.deepcopy(model).double()
        exact = run(double, DistributedDataParallel, x.double(), options)
        ours = run(copy.deepcopy(model), wrap, x, options)
        compare(ours, eager, exact, [])
        assert calls.count(rank) == 2, f"{wrap.__name__}: {len(calls)} calls of regions"
        assert len(parts) >= 4, f"{wrap.__name__}: {len(parts)} parts of backward"
        calls.clear(), parts.clear()
    alone = outcome(copy.deepcopy(net), (x,), lambda net, x: script(net, x, False), 0)
    assert not torch.allclose(alone["fc.weight.grad"], ours["fc.weight.grad"])
    check_order(copy.deepcopy(net), x)
    check_changes(copy.deepcopy(net), x)
    dist.destroy_process_group()


def check_order(net, x):
    """A gradient is handed over before the kernels of later ones have run."""
    bngen.compile(net)
    reached, order = {}, []

    def note(name):
        return lambda p, name=name: order.append((name, dict(reached)))

    advance = stages.UnderWay.advance

    def told(under_way, stop):
        advance(under_way, stop)
        reached["step"] = under_way._begun.step

    stages.UnderWay.advance = told
    for name, p in net.named_parameters():
        p.register_post_accumulate_grad_hook(note(name))
    net(x).square().sum().backward()
    stages.UnderWay.advance = advance
    steps = {name: at["step"] for name, at in order}
    assert len(set(steps.values())) > 1
    assert list(steps.values()) == sorted(steps.values())
    assert steps["fc.weight"] == min(steps.values()), steps
    assert steps["conv1.weight"] == max(steps.values()), steps


def check_changes(net, x):
    """A parameter may change as soon as its gradient is there."""

    def change(p):
        p.data.fill_(torch.nan)

    bngen.compile(net)
    net(x).square().sum().backward()
    want = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    for p in net.parameters():
        p.register_post_accumulate_grad_hook(change)
    net(x).square().sum().backward()
    for name, p in net.named_parameters():
        assert torch.equal(p.grad, want[name]), name


def test_gradients_are_averaged_as_in_eager(tmp_path):
    job = (
        f"from tests.torch_bridge import test_distributed as t; t.process({{}}, {str(tmp_path)!r})"
    )
    with Started(job, RANKS, tmp_path / "cache") as started:
        started.all_well()
