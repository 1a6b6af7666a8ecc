"""Compiled programs on several ranks, which are threads here; and what refuses to run."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

import bngen as bg
from bngen.errors import CallError
from bngen.ir.interp import run
from bngen.passes.autodiff import differentiate
from bngen.runtime import bundle_form
from bngen.runtime.agreement import Agreement, Planned
from bngen.runtime.communicator import Alone, waiting_for
from bngen.runtime.plain import PlainError
from bngen.runtime.signature import FORWARD
from bngen.runtime.steps import MOMENTS
from tests.compiled import compiled
from tests.oracle import assert_close, torch_runs
from tests.ranks import GROUP, Ranks, shared_out, synchronized
from tests.strategies import random_args


def dense(batch):
    """Concatenations, a sum, odd channels, running statistics."""

    @bg.program
    def dense(
        x: bg.Tensor[batch, 3, 8, 8], w0: bg.Tensor[10, 3, 3, 3], w1: bg.Tensor[6, 10, 1, 1],
        w2: bg.Tensor[16, 16, 3, 3], g0: bg.Tensor[10], b0: bg.Tensor[10], g1: bg.Tensor[16],
        m: bg.Tensor[16], v: bg.Tensor[16],
    ):  # fmt: skip
        a = bg.conv2d(x, w0, padding=1)
        b = bg.conv2d(bg.relu(bg.batch_norm(a, None, None, g0, b0, training=True)), w1)
        c = bg.cat([a, b], 1)
        d = bg.relu(bg.batch_norm(c, m, v, g1, training=True))
        return bg.conv2d(d, w2, padding=1) + c

    return dense.graph


SHARES = (1, 3)
ARGUMENTS = ["w0", "w1", "w2", "g0", "b0", "g1"]


@pytest.fixture(scope="module")
def modules():
    return [compiled(synchronized(dense(n)), wrt=["x", *ARGUMENTS]) for n in SHARES]


def connected(modules):
    ranks = Ranks(len(modules))
    for module, carrier in zip(modules, ranks.carriers, strict=True):
        module.connect({GROUP: carrier})
    return ranks


def as_arrays(args):
    return {name: np.asarray(a, np.float32) for name, a in args.items()}


def test_uneven_shares_give_what_the_whole_batch_gives(modules):
    whole, ranks = dense(sum(SHARES)), connected(modules)
    args = as_arrays(random_args(whole, 0))
    dy = np.random.default_rng(1).standard_normal((4, 16, 8, 8)).astype(np.float32)
    given = shared_out({**args, "dy": dy}, ["x", "dy"], SHARES)

    def step(rank):
        own = {k: v.copy() for k, v in given[rank].items()}
        out = own.pop("dy"), modules[rank].forward(**{k: own[k] for k in own if k != "dy"})
        return out[1], modules[rank].backward(out[0]), own["m"], own["v"]

    found = ranks.run(step)
    assert not [f for f in found if isinstance(f, Exception)], found
    exact = run(differentiate(whole, ["x", *ARGUMENTS]), {**args, "grad_0": dy}, "float64")
    theirs = torch_runs(whole, args, ["x", *ARGUMENTS], [dy])
    y = np.concatenate([f[0] for f in found])
    assert_close(y, [t.outputs[0] for t in theirs], exact.outputs[0], "y")
    for i, name in enumerate(["x", *ARGUMENTS], 1):
        combine = np.concatenate if name == "x" else np.add.reduce
        got = combine([f[1][name] for f in found])
        assert_close(got, [t.grads[name] for t in theirs], exact.outputs[i], name)
    for i, name in ((2, "m"), (3, "v")):
        for f in found:
            assert_close(f[i], [t.updates[name] for t in theirs], exact.updates[name], name)
    logs = [carrier.log for carrier in ranks.carriers]
    assert logs[0] == logs[1]
    # What ranks are going to do, two maps forward, and backward.
    assert [kind for kind, _ in logs[0]] == ["gather"] * 3 + ["sum"] * 2


def test_one_rank_alone_exchanges_nothing_with_nobody(modules):
    graph, module = dense(SHARES[1]), copy.deepcopy(modules[1]).connect({GROUP: Alone()})
    args = as_arrays(random_args(graph, 0))
    want = run(graph, args, "float64")
    theirs = torch_runs(graph, args)
    y = module.forward(**{k: v.copy() for k, v in args.items()})
    assert_close(y, [t.outputs[0] for t in theirs], want.outputs[0], "y")


def test_a_module_that_nobody_connected_says_so(modules):
    loaded = pickle.loads(pickle.dumps(modules[0]))
    assert loaded.groups == (GROUP,)
    args = as_arrays(random_args(dense(SHARES[0]), 0))
    words = r"dense: exchanges values .* no process group was given for 'all' \(bngen.connect"
    with pytest.raises(CallError, match=words):
        loaded.forward(**args)
    with pytest.raises(CallError, match="nobody was given for the group 'all'"):
        loaded.connect({"another": Alone()})


def layers(channels=3, dtype="float32", first="a", second="b"):
    """Two normalizations, one of them over a concatenation."""

    @bg.program
    def net(x: bg.Tensor[2, channels, 4, 4, getattr(bg, dtype)]):
        y = bg.batch_norm(x, None, None, training=True, group=GROUP, layer=first)
        z = bg.cat([y, bg.relu(y)], 1)
        return bg.batch_norm(z, None, None, training=True, group=GROUP, layer=second)

    return net.graph


OTHERS = {
    "channels": ((layers(5), "icf"), "10 float32 in forward (a)"),
    "a type": ((layers(dtype="float64"), "icf"), "6 float64 in forward (a)"),
    "a level": ((layers(), "none"), "12 float32 in forward (b)"),
    "an order": ((layers(first="b", second="a"), "icf"), "6 float32 in forward (b)"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_ranks_that_would_do_other_things_are_all_told(what):
    """Before anything is exchanged that one of them does not wait for."""
    programs, words = ((layers(), "icf"), OTHERS[what][0]), OTHERS[what][1]
    modules = [compiled(graph, level, grad=False) for graph, level in programs]
    ranks = connected(modules)
    args = [
        np.ones(m.signature.arguments[0].shape, m.signature.arguments[0].dtype) for m in modules
    ]
    found = ranks.run(lambda r: modules[r].forward(args[r]))
    for rank, error in enumerate(found):
        assert isinstance(error, CallError)
        assert f"net: rank {rank} exchanges the batch statistics of all ranks of " in str(error)
        assert "where another exchanges the batch statistics of all ranks of " in str(error)
        assert words in str(error)
        assert f"(rank {1 - rank} has another model or another part of a batch" in str(error)


def test_a_rank_without_images_follows_in_one_group_alone():
    def agreed(count):
        ranks = Ranks(2)
        plans = [Planned(FORWARD, MOMENTS, 8, "float32", "bn", groups=count)], []
        return ranks.run(lambda r: Agreement("net: ", ranks.carriers[r], plans[r]).settled())

    assert agreed(1)[0] == agreed(1)[1]
    for error in agreed(2):  # of both, at once
        assert "net: rank 1 has no image of this batch, and layers meet in 2 process" in str(error)


def test_a_rank_that_is_left_alone_names_what_it_waits_for(modules):
    ranks = connected(modules)
    for carrier in ranks.carriers:
        carrier.timeout = 0.2
    args = shared_out(as_arrays(random_args(dense(4), 0)), ["x"], SHARES)
    dy = np.ones((1, 16, 8, 8), "float32")

    def step(rank):
        modules[rank].forward(**args[rank])
        return modules[rank].backward(dy) if rank == 0 else None

    error, other = ranks.run(step)
    assert other is None
    assert str(error).startswith("dense: rank 0 of 2 waited for the sum over ranks of ")
    assert "and it failed: Timed out waiting (another rank has ended" in str(error)
    # Nothing is left over for the next call.
    test_uneven_shares_give_what_the_whole_batch_gives(modules)


@bg.program
def sums(
    x: bg.Tensor[5, bg.uint8], y: bg.Tensor[2, 3], z: bg.Tensor[()], w: bg.Tensor[3, bg.bfloat16]
):
    return bg.all_reduce(x), bg.all_reduce(y, average=True), bg.all_reduce(z), bg.all_reduce(w)


def test_sums_of_whatever_shape_and_type():
    module = compiled(sums.graph, grad=False)
    assert module.groups == ("",)
    modules, ranks = [module, copy.deepcopy(module)], Ranks(2)
    for m, carrier in zip(modules, ranks.carriers, strict=True):
        m.connect({"": carrier})
    x, y = np.array([1, 2, 200, 4, 5], "uint8"), np.arange(6, dtype="float32").reshape(2, 3)
    w = np.array([1.5, 0.25, -3], ml_dtypes.bfloat16)
    found = ranks.run(lambda r: modules[r].forward(x, y * (r + 1), np.float32(r), w))
    for result in found:
        np.testing.assert_array_equal(result[0], x + x)
        np.testing.assert_array_equal(result[1], y * 1.5)
        assert result[2] == 1.0
        np.testing.assert_array_equal(result[3], w + w)


DAMAGES = {
    "waits for what is not under way": lambda s: replace(s, number=s.number + 1)
    if s.kind == "wait" else s,
    "combines by": lambda s: replace(s, symbol="product") if s.kind == "start" else s,
    "gives other than it takes": lambda s: replace(s, operands=s.operands[:-1])
    if s.kind == "wait" else s,
    "ends before what it has begun": lambda s: replace(s, kind="copy", operands=(0, 0))
    if s.kind == "wait" else s,
}  # fmt: skip


@pytest.mark.parametrize("words", DAMAGES)
def test_a_damaged_bundle_is_refused(modules, words):
    form = bundle_form.loads(modules[0].bundle.files()[bundle_form.DATA])
    with pytest.raises(PlainError, match=words):
        replace(form, steps=tuple(map(DAMAGES[words], form.steps))).built(b"{}")


def test_messages_of_carriers_lose_where_in_their_source_they_are_from():
    with pytest.raises(CallError) as said, waiting_for("it", Alone(), "net: "):
        raise RuntimeError("[a/b.cc:3] Closed [x]:1. Sorry.")
    expected = "net: rank 0 of 1 waited for it, and it failed: Closed [x]:1 (another"
    assert expected in str(said.value)
