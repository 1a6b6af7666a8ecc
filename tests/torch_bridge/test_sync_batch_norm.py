"""Synchronized batch normalization on CPUs: shares of a batch against one process with it all."""

import copy
import gc
import os
import signal
import time
import weakref

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses import FakeTensorMode

import bngen
from bngen.runtime.agreement import Agreement, Planned
from bngen.runtime.steps import MOMENTS
from bngen.torch_bridge.explain import explain_model
from bngen.torch_bridge.sync_batch_norm import name_layers, sync_batch_norm
from bngen.torch_bridge.sync_layers import SyncBatchNorm, synchronize
from tests.profiles import THOROUGH, takes_long
from tests.torch_bridge.processes import Started, joined
from tests.torch_bridge.small import Net
from tests.torch_bridge.sync_checks import (
    Activated,
    SyncActivated,
    check_copies,
    check_cumulative,
    check_eager,
)


def process(rank, folder):
    """Two ranks; each fails by an exception."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net, x = Net(), torch.randn(2, 3, 3, 8, 8)
    whole, x = net(x.flatten(0, 1)).split(3)[rank], x[rank]
    want = net(x)
    # A model that was tried before there were others meets them, DistributedDataParallel or not.
    met = torch.compile(synchronize(copy.deepcopy(net)), backend="bngen")
    torch.testing.assert_close(met(x), want)
    joined(rank, 2, folder)
    # One rank is in more groups than the other.
    alone = [dist.new_group([r]) for r in (0, 1, 0)][rank]
    torch.testing.assert_close(met(x), whole)
    # A group of one rank is plain batch normalization, and who was named last counts.
    other = bngen.compile(copy.deepcopy(net), sync_bn=True)
    check_copies(other, x, whole)
    check_copies(bngen.compile(other, sync_bn=alone), x, want, pickled=False)
    check_eager(rank)
    check_cumulative(rank)
    # What a group's ranks met in is given up with it.
    pair = dist.new_group([0, 1])
    synchronize(nn.BatchNorm2d(3), pair)(x)
    gone = weakref.ref(pair)
    dist.destroy_process_group(pair)
    del pair
    gc.collect()  # a layer and its class refer to each other
    assert gone() is None
    if rank == 0:  # and nobody waits for it
        assert str(explain_model(met, x)).startswith("bngen takes")
    # Nobody has an image, in whatever way it runs.
    for layers in (synchronize(copy.deepcopy(net)), met):
        with pytest.raises(bngen.BngenError, match="bn1.*|a layer.*: no rank has an image of this"):
            layers(x[:0])
    summed = bngen.connect(bngen.build(bngen.trace(bngen.all_reduce, bngen.Tensor[3])))
    ones = np.ones(3, np.float32)
    assert summed(ones).tolist() == [2, 2, 2]
    held = dist.group.WORLD
    dist.destroy_process_group()
    # Alone again, and with others again; a program has no way to be alone.
    torch.testing.assert_close(met(x), want)
    for _ in range(2):
        with pytest.raises(bngen.BngenError, match="process group of these ranks has been destr"):
            summed(ones)
    joined(rank, 2, folder, store="again")
    torch.testing.assert_close(met(x), whole)
    with pytest.raises(bngen.BngenError, match="process group of these ranks has been destroyed"):
        summed(ones)
    assert bngen.connect(summed)(ones).tolist() == [2, 2, 2]
    dist.destroy_process_group()
    del held


def test_groups_of_one_rank_and_of_all(tmp_path):
    job = f"import {__name__} as t; t.process({{}}, {str(tmp_path)!r})"
    with Started(job, 2, tmp_path / "cache") as started:
        started.all_well()


class Plain(nn.modules.batchnorm._BatchNorm):
    """Made of what PyTorch's layers are made of."""

    def _check_input_dim(self, input):
        pass


def test_whatever_is_a_batch_normalization_is_synchronized():
    net = synchronize(nn.Sequential(nn.BatchNorm2d(2), Plain(2), nn.InstanceNorm2d(2, affine=True)))
    assert [isinstance(layer, SyncBatchNorm) for layer in net] == [True, True, False]
    again = synchronize(copy.deepcopy(net))
    assert [type(layer) for layer in again] == [type(layer) for layer in net]
    x = torch.randn(3, 2, 4, 4)
    torch.testing.assert_close(net[1](x), nn.BatchNorm2d(2)(x))


def test_a_layer_that_has_seen_no_input_is_refused():
    net = nn.Sequential(nn.LazyBatchNorm2d())
    with pytest.raises(bngen.BngenError, match=r"^sync_bn: 0 is a LazyBatchNorm2d that has seen"):
        synchronize(net)
    net(torch.randn(2, 3, 4, 4))
    assert isinstance(synchronize(net)[0], SyncBatchNorm)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["L['self'].module.bn1", "L['self'].module.bn2"], ["bn1", "bn2"]),
        (["L.bn", "L._modules.module.bn"], ["L.bn", "L._modules.module.bn"]),
        (["L['self'].bn", "L['self'].bn"], ["bn", "bn"]),
    ],
)  # fmt: skip
def test_two_layers_have_two_names(paths, names):
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    for path in paths:
        node = graph.call_function(sync_batch_norm, (x,))
        node.meta["nn_module_stack"] = {"": (path, nn.BatchNorm2d)}
    name_layers(graph)
    found = [n.kwargs["layer"] for n in graph.nodes if n.target is sync_batch_norm]
    assert found == names


class Two:
    """One of two ranks that meet in this process."""

    size, names = 2, (0, 1)

    def __init__(self, rank, sent):
        self.rank, self.sent = rank, sent

    def gather(self, array):
        self.sent.append(array)
        return self

    def result(self):
        return np.stack(self.sent[:2])


def test_ranks_in_more_groups_than_others_agree_all_the_same():
    sent = []
    plans = [[Planned("forward", MOMENTS, 8, "float32", "bn", groups=n)] for n in (1, 2)]
    agreements = [Agreement("", Two(rank, sent), plan) for rank, plan in enumerate(plans)]
    for agreement, plan in zip(agreements, plans, strict=True):
        assert agreement.settled() == (tuple(plan), ())


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


@pytest.mark.parametrize("shares", ["1", "0"])
@pytest.mark.parametrize("how", FAULTS if THOROUGH else ["kill"])
def test_a_rank_that_fails_ends_the_others_with_one_line(
    tmp_path_factory, tmp_path, monkeypatch, how, shares
):
    monkeypatch.setenv("BNGEN_SHARED_MEMORY", shares)
    module = "tests.torch_bridge.test_sync_batch_norm"
    job = f"import {module} as t; t.faulty_process({{}}, {how!r}, {str(tmp_path)!r})"
    cache = tmp_path_factory.getbasetemp() / "faulty"
    with Started(job, 2, cache) as started:
        text = started.text(0)
        assert started.ranks[0].returncode == 1, text
        last = text.strip().splitlines()[-1]
        assert "faulty: rank 0 of 2 waited for the sum over ranks of 'features.norm0'" in last, text
        assert "and it failed: " in last
        words = {"1": ("took longer than 8 s", "rank 1 has ended"), "0": ("Timed out", "eer")}
        assert words[shares][how == "kill"] in last


class Fault:
    """What the second rank does instead of the second step, and what the first one then says."""

    def __init__(self, words, do):
        self.words, self.do = words, do


def _evaluates(model, net, x):
    net.eval()
    model(x)
    time.sleep(300)


def _differs(model, net, x):
    net.conv1.weight.requires_grad_(False)
    step(model, x)


def _raises(model, net, x):
    model(x)
    raise ValueError("the user's own")


def _dies_of_no_image(model, net, x):
    model(x[:0])
    os.kill(os.getpid(), signal.SIGKILL)


SUM = "waited for the sum over ranks of 'bn2', and it failed: "
HOSTILE = {
    "evaluates": Fault(
        "waited for what ranks are going to exchange, first the batch statistics of all ranks of "
        "16 float32 in forward (bn1), and it failed: ", _evaluates,
    ),
    "differs": Fault(
        "rank 0 exchanges 4 values, where another exchanges 3; one more is the sum over ranks of "
        "16 float32 in backward (bn1) (rank 1 has another model", _differs,
    ),
    "raises": Fault(SUM, _raises),
    "dies without an image": Fault(SUM, _dies_of_no_image),
}  # fmt: skip


def step(model, x):
    model(x).square().sum().backward()


def hostile_process(rank, how, folder):
    """One step together; then the second rank does something else."""
    joined(rank, 2, folder, SECONDS if how == "evaluates" else 60.0)
    torch.manual_seed(0)
    net, x = Net(), torch.randn(3, 3, 8, 8)
    model = bngen.compile(net, sync_bn=True)
    step(model, x)
    if rank == 1:
        HOSTILE[how].do(model, net, x)
    else:
        step(model, x)


@takes_long("takes minutes")
@pytest.mark.parametrize("how", HOSTILE)
def test_a_compiled_model_says_what_it_waited_for(tmp_path_factory, tmp_path, how):
    job = f"import {__name__} as t; t.hostile_process({{}}, {how!r}, {str(tmp_path)!r})"
    with Started(job, 2, tmp_path_factory.getbasetemp() / "hostile") as started:
        text = started.text(0)
        assert started.ranks[0].returncode == 1, text
        assert HOSTILE[how].words in text.strip().splitlines()[-1], text


# --- what is refused --------------------------------------------------------------------------


def test_without_a_process_group_it_says_what_to_do():
    with pytest.raises(bngen.BngenError, match="torch.distributed is not initialized"):
        bngen.compile(Net(), sync_bn=True)
    module = bngen.build(bngen.trace(lambda x: bngen.all_reduce(x), bngen.Tensor[3]))
    with pytest.raises(bngen.BngenError, match="torch.distributed is not initialized"):
        bngen.connect(module)
    with pytest.raises(bngen.BngenError, match="connect takes a module of bngen, not a Net"):
        bngen.connect(Net())


def test_layers_of_classes_made_of_batch_normalization_do_what_they_do_besides():
    for kind in (Activated, SyncActivated):
        model, x = nn.Sequential(kind(3)), torch.randn(2, 3, 4, 4)
        synchronize(model)
        assert type(model[0]).__name__ == kind.__name__
        assert not isinstance(model[0], nn.SyncBatchNorm)  # which DistributedDataParallel refuses
        check_copies(model, x, Activated(3)(x))

    class Alone(nn.BatchNorm2d):
        def forward(self, x):
            return nn.functional.batch_norm(x, None, None, training=True)

    with pytest.raises(bngen.BngenError, match="sync_bn: 0 is a Alone, whose forward does not"):
        synchronize(nn.Sequential(Alone(3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_share_may_be_one_row(dtype):
    with FakeTensorMode():
        x, weight = torch.empty(1, 4, dtype=dtype), torch.empty(4, requires_grad=True)
        y = sync_batch_norm(x, None, None, weight, group="0")
    assert (y.shape, y.dtype, y.requires_grad) == (x.shape, dtype, True)


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
