"""What two ranks check of synchronized layers: copies, options and types in eager PyTorch.

Each has a share of the same images; what it should have is what one process has of all of them.
"""

import contextlib
import copy
import pickle

import torch
import torch.distributed as dist
from torch import nn

import bngen
from bngen.torch_bridge import builds
from bngen.torch_bridge.sync_layers import synchronize

AUTOCAST, BFLOAT16 = "autocast", "bfloat16"


def check_copies(model, x, want, pickled=True):
    """A model's layers meet in its copies as they do in itself."""
    copies = [model, copy.deepcopy(model)]
    if pickled:
        copies.append(pickle.loads(pickle.dumps(model)))
    for each in copies:
        torch.testing.assert_close(each(x), want)


class Activated(nn.BatchNorm2d):
    """What `SyncActivated` is in one process."""

    def forward(self, x):
        return super().forward(x).relu()


class SyncActivated(nn.SyncBatchNorm):
    """As timm converts its layers."""

    def forward(self, x):
        return super().forward(x).relu()


def layers():
    """Names, layers of one process, layers that are to be synchronized, and element types."""
    for options in ({"affine": False}, {"bias": False}, {"momentum": None}):
        yield str(options), nn.BatchNorm2d(4, **options), nn.BatchNorm2d(4, **options), None
    for kind in (AUTOCAST, BFLOAT16):
        yield kind, nn.BatchNorm2d(4), nn.BatchNorm2d(4), kind
    yield "a class of its own", Activated(4), SyncActivated(4), None


def check_eager(rank):
    """Results, gradients and statistics of layers that run in PyTorch."""
    torch.manual_seed(1)
    x, slopes = torch.randn(2, 3, 3, 6, 6), torch.randn(2, 3, 4, 6, 6)
    for name, plain, layer, kind in layers():
        conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        one = nn.Sequential(conv, plain)
        met = synchronize(nn.Sequential(copy.deepcopy(conv), layer))
        found = stepped(met, x[rank], slopes[rank], kind)
        want = stepped(one, x.flatten(0, 1), slopes.flatten(0, 1), kind)
        near(f"{name}: result", found, want[3 * rank :][:3], kind)
        for p, q in zip(met.parameters(), one.parameters(), strict=True):
            dist.all_reduce(p.grad)
            near(f"{name}: gradient", p.grad, q.grad, kind)
        for p, q in zip(met.buffers(), one.buffers(), strict=True):
            near(f"{name}: statistics", p, q, kind)


def stepped(model, x, slopes, kind):
    """A result, with gradients."""
    if kind == BFLOAT16:
        model, x = model.bfloat16(), x.bfloat16()
    autocast = torch.autocast("cpu", torch.bfloat16)
    with autocast if kind == AUTOCAST else contextlib.nullcontext():
        y = model(x)
    (y.float() * slopes).sum().backward()
    return y.detach()


def near(name, found, want, kind):
    """Whether two tensors are equal but for what their type rounds."""
    assert found.dtype == want.dtype, f"{name}: {found.dtype}, {want.dtype}"
    error = (found.double() - want.double()).abs().max().item()
    scale = want.double().abs().max().item()
    assert error <= (2e-2 if kind else 1e-5) * scale, f"{name}: error {error} of {scale}"


def check_cumulative(rank):
    """Statistics that average all batches: another factor in each step, and the same program."""
    torch.manual_seed(2)
    x, made, build = torch.randn(3, 2, 3, 3, 6, 6), [], builds.build
    builds.build = lambda *given, **options: made.append(given) or build(*given, **options)
    one = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=None))
    met = bngen.compile(copy.deepcopy(one), sync_bn=True)
    for shares in x:
        found, want = met(shares[rank]), one(shares.flatten(0, 1))
        near("cumulative: result", found, want[3 * rank :][:3], None)
        found.square().sum().backward()
    builds.build = build
    assert len(made) == 1
    for p, q in zip(met.buffers(), one.buffers(), strict=True):
        near("cumulative: statistics", p, q, None)
