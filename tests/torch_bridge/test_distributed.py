"""DistributedDataParallel around a compiled model, and a compiled one around it: as in eager."""

import copy
import os
import subprocess
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import bngen
from bngen.torch_bridge.backend import backend
from bngen.torch_bridge.region import Region
from tests.torch_bridge.eager import compare, outcome
from tests.torch_bridge.small import Net

RANKS = 2
WAYS = {
    "inside": lambda net: DistributedDataParallel(torch.compile(net, backend=backend)),
    "outside": lambda net: torch.compile(DistributedDataParallel(net), backend=backend),
    "in place": lambda net: DistributedDataParallel(bngen.compile(net)),
}


def script(model, x):
    """Two steps; gradients add up."""
    for _ in range(2):
        model(x).square().sum().backward()


def run(net, wrap, x):
    """Parameters, gradients and statistics after the script."""
    wrapped = wrap(net)
    return outcome(net, (x,), lambda _, x: script(wrapped, x), 0)


def process(rank, folder):
    """What each process does; it fails by an exception."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS
    )
    torch.manual_seed(0)
    net, x = Net(), torch.randn(RANKS, 4, 3, 8, 8)[rank]
    eager = run(copy.deepcopy(net), DistributedDataParallel, x)
    exact = run(copy.deepcopy(net).double(), DistributedDataParallel, x.double())
    alone = outcome(copy.deepcopy(net), (x,), script, 0)
    assert not torch.allclose(alone["fc.weight.grad"], eager["fc.weight.grad"])
    calls, forward = [], Region.forward
    Region.forward = lambda *args: calls.append(rank) or forward(*args)
    for name, wrap in WAYS.items():
        ours = run(copy.deepcopy(net), wrap, x)
        compare(ours, eager, exact, [])
        assert calls.count(rank) == 2, f"{name}: {len(calls)} calls of regions"
        calls.clear()
    dist.destroy_process_group()


def test_gradients_are_averaged_as_in_eager(tmp_path):
    job = "from tests.torch_bridge import test_distributed as t; t.process({}, {!r})"
    env = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "BNGEN_CACHE_DIR": str(tmp_path / "cache")}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", job.format(rank, str(tmp_path))],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env,
        )
        for rank in range(RANKS)
    ]  # fmt: skip
    try:
        for p in started:
            text, _ = p.communicate(timeout=120)
            assert p.returncode == 0, text
    finally:
        for p in started:
            p.kill()
            p.wait()
