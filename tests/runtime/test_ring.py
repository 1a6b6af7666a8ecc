"""Collectives of a compiled step through memory: the same bits as the interpreter's, in any case.

Ranks are threads, which share an array as processes share a file.
"""

import functools
import os
import time
from types import SimpleNamespace

import numpy as np
import pytest

import bngen as bg
from bngen.errors import CallError
from bngen.runtime import ring
from bngen.runtime.shared_memory import Shared
from tests.compiled import compiled
from tests.ranks import GROUP, Ranks

pytestmark = pytest.mark.skipif(ring.library() is None, reason="without a C compiler")
SIZE = 3


@pytest.fixture
def pipe():
    """Of a process that lives."""
    ends = os.pipe()
    yield ends[0]
    for end in ends:
        os.close(end)


def sharing(alive: int, timeout: float = 60.0, size: int = SIZE):
    """Ranks in threads, which share memory."""
    ranks = Ranks(size)
    memory = SimpleNamespace(content=np.zeros(ring.bytes_of(size), np.uint8), name="")
    for i, far in enumerate(ranks.carriers):
        others = {rank: os.dup(alive) for rank in range(size) if rank != i}
        ranks.carriers[i] = Shared(far, memory, others, timeout)
    return ranks


def interpreted(ranks):
    """The same ranks, whose calls exchange nothing by themselves."""
    for carrier in ranks.carriers:
        carrier.address = 0
    return ranks


def several(count, channels, many, dtype):
    """A rank's program: sums and averages, all begun before the first is read; statistics."""

    @bg.program
    def several(x: bg.Tensor[count, channels, 2, 2, dtype]):
        found = []
        for i in range(many):
            found.append(bg.all_reduce(bg.tanh(x * (i + 1)).mean((0, 2, 3)), i % 2 == 0, GROUP))
        y = bg.batch_norm(x, None, None, training=True, group=GROUP)
        z = bg.batch_norm(bg.relu(y) - 3, None, None, training=True, group=GROUP)
        return (y * z, *reversed(found))

    return several.graph


def results(modules, ranks, given, before=lambda rank: None):
    """Each rank's outputs and gradient, and how many messages its calls have sent by themselves."""
    for module, carrier in zip(modules, ranks.carriers, strict=True):
        module.connect({GROUP: carrier})

    def step(rank):
        sent, messages = [], ranks.carriers[rank].ring
        send = messages.send
        messages.send = lambda message: sent.append(number := send(message)) or number
        before(rank)
        outputs = modules[rank].forward(given[rank].copy())
        before(rank)
        gradients = modules[rank].backward(*(np.cos(o) for o in outputs))
        by_calls = messages.next - sum(number >= 0 for number in sent)
        return [*outputs, *gradients.values()], by_calls

    found = ranks.run(step)
    assert not [f for f in found if isinstance(f, Exception)], found
    return zip(*found, strict=True)


def assert_same_bits(one, other):
    for mine, theirs in zip(one, other, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert a.tobytes() == b.tobytes()


def drawn(counts, channels, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(3, 2, (n, channels, 2, 2)).astype(dtype) for n in counts]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("channels", "many"), [(1, 2), (19, 3), (4, 13)])
def test_calls_exchange_the_same_bits_by_themselves(pipe, dtype, channels, many):
    counts = (2, 1, 5)
    modules = [compiled(several(n, channels, many, getattr(bg, dtype))) for n in counts]
    given = drawn(counts, channels, dtype)
    # What there is besides means: no number, infinity, one that is constant.
    given[1][0, 0, 0, 0], given[2][:, -1] = np.inf, np.nan
    given[0][:, channels // 2] = 1e30
    by_calls, messages = results(modules, sharing(pipe), given)
    by_interpreter, none = results(modules, interpreted(sharing(pipe)), given)
    assert_same_bits(by_calls, by_interpreter)
    # Not the first of forward; nor those for which there is no place, as is with many under way.
    assert none == (0,) * SIZE
    assert all(0 < n < 2 * (many + 2) for n in messages)


def test_sums_are_added_one_after_the_other(pipe):
    """Not in pairs, as NumPy adds what has but one column: calls do not."""
    rows = np.random.default_rng(0).standard_normal((9, 1)).astype(np.float32)
    ranks = sharing(pipe, size=9)
    for found in ranks.run(lambda rank: ranks.carriers[rank].sum(rows[rank]).result()):
        assert found.tobytes() == functools.reduce(np.add, rows).tobytes()


def test_a_forked_process_writes_nothing(pipe):
    ranks = sharing(pipe)
    ranks.carriers[0].leave()
    module = compiled(several(2, 3, 2, bg.float32)).connect({GROUP: ranks.carriers[0]})
    with pytest.raises(CallError, match=r"rank 0 of 3 .* this process was forked"):
        module.forward(drawn((2,), 3, "float32")[0])
    assert not ranks.carriers[0].memory.content.any()


def test_who_comes_late_is_waited_for_by_the_interpreter(pipe):
    counts = (2, 2, 2)
    modules = [compiled(several(n, 3, 2, bg.float32)) for n in counts]
    given = drawn(counts, 3, "float32")
    in_time, _ = results(modules, sharing(pipe), given)
    late, messages = results(
        modules, sharing(pipe), given, before=lambda rank: time.sleep(0.15 * rank)
    )
    assert_same_bits(in_time, late)
    assert all(messages)


def test_calls_of_other_types_go_the_other_way(pipe):
    """Integers, and what is too long for the memory, beside what is not."""

    @bg.program
    def mixed(x: bg.Tensor[4, 5], many: bg.Tensor[1000, 20]):
        whole = bg.all_reduce(bg.round(x * 10).to(bg.int32), group=GROUP)
        wide = bg.all_reduce(many + x.reshape(20), group=GROUP)
        return bg.all_reduce(x, group=GROUP), whole, wide

    modules = [compiled(mixed.graph, grad=False) for _ in range(SIZE)]
    ranks = sharing(pipe)
    given = [np.random.default_rng(i).standard_normal((4, 5)).astype(np.float32) for i in range(3)]
    for module, carrier in zip(modules, ranks.carriers, strict=True):
        module.connect({GROUP: carrier})
    many = np.ones((1000, 20), np.float32)
    for own, whole, wide in ranks.run(lambda rank: modules[rank].forward(given[rank], many)):
        np.testing.assert_array_equal(own, given[0] + given[1] + given[2])
        np.testing.assert_allclose(wide, many * (own.reshape(20) + 3), rtol=1e-6, atol=1e-6)
        assert whole.tolist() == sum(np.round(g * 10) for g in given).astype(int).tolist()


def test_a_rank_that_never_comes_ends_the_others_in_time(pipe):
    modules = [compiled(several(2, 3, 2, bg.float32)) for _ in range(SIZE)]
    ranks, given = sharing(pipe, timeout=0.5), drawn((2, 2, 2), 3, "float32")
    for module, carrier in zip(modules, ranks.carriers, strict=True):
        module.connect({GROUP: carrier})

    def step(rank):
        outputs = modules[rank].forward(given[rank])
        return modules[rank].backward(*outputs) if rank else None

    _, *found = ranks.run(step)
    for rank, error in enumerate(found, 1):
        assert isinstance(error, CallError)
        words = f"several: rank {rank} of 3 waited for the "
        assert str(error).startswith(words)
        assert "rank 0 took longer than 0.5 s" in str(error)
    again = ranks.run(lambda rank: modules[rank].forward(given[rank]) if rank else None)
    assert all("out of step since rank 0" in str(error) for error in again[1:])
