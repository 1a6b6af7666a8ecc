"""Leave to use tiles: asked for once, by who needs it; a system that refuses is named."""

import errno
import os
import threading

import ml_dtypes
import numpy as np
import pytest

import bngen as bg
from bngen.errors import TargetError
from bngen.runtime import host, tiles
from bngen.target.parse import Target

has_tiles = pytest.mark.skipif("amx-tile" not in (host.features() or ()), reason="needs AMX")
CPUINFO = "processor : 0\nflags : lm sse2 avx512f avx512_bf16 amx_tile amx_bf16\n"


@pytest.fixture
def without_leave(monkeypatch):
    """A process that has not asked yet, and what the system answers."""
    asked = []

    def called(option, _):
        asked.append(option)
        return answer["errno"]

    answer = {"errno": 0, "asked": asked}
    monkeypatch.setattr(tiles, "_leave", False)
    monkeypatch.setattr(tiles, "_called", called)
    return answer


def test_it_is_asked_for_once(without_leave):
    for _ in range(3):
        tiles.ask("net")
    assert len(without_leave["asked"]) == 1


@pytest.mark.parametrize(
    ("number", "why"),
    [(errno.EPERM, "Operation not permitted"), (errno.ENOSPC, "a stack for signals that is too")],
)
def test_a_refusal_says_what_to_do(without_leave, number, why):
    without_leave["errno"] = number
    for _ in range(2):  # It is not taken for given afterwards, either.
        with pytest.raises(TargetError, match=f"net needs tiles.*{why}") as refused:
            tiles.ask("net")
        assert "-mattr=-amx-bf16" in str(refused.value)


@pytest.mark.skipif(host.architecture() != "x86_64", reason="an x86-64's /proc/cpuinfo")
@pytest.mark.parametrize("known", [True, False])
def test_a_cpu_has_what_its_system_knows(monkeypatch, tmp_path, known):
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    monkeypatch.setattr(host, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(tiles, "are_known", lambda: known)
    found = host.features.__wrapped__()
    assert ("amx-bf16" in found) == ("amx-tile" in found) == known
    assert "avx512bf16" in found


@has_tiles
def test_a_refusal_is_told_before_any_code_is_run(monkeypatch, without_leave):
    made = bg.bundle(product(), target="llvm -mcpu=native")
    without_leave["errno"] = errno.EPERM
    with pytest.raises(TargetError, match="needs tiles"):
        bg.load(made)
    bg.load(bg.bundle(product(), target=Target.parse("llvm -mcpu=native", mattr="-amx-bf16")))


@has_tiles
def test_threads_and_children_have_it():
    """Threads that ran before, that begin afterwards, and a process that is forked."""
    x, w = (np.ones(shape, ml_dtypes.bfloat16) for shape in ((4, 32, 3, 8), (16, 32, 1, 1)))
    started, results = threading.Event(), []

    def call():
        started.wait()
        results.append(module(x, w))

    before = threading.Thread(target=call)
    before.start()
    module = bg.build(product(), target="llvm -mcpu=native", threads=2)
    started.set()
    after = threading.Thread(target=call)
    after.start()
    for thread in (before, after):
        thread.join()
    child = os.fork()
    if not child:
        os._exit(int(not (np.asarray(module(x, w), np.float32) == 32).all()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert all((np.asarray(y, np.float32) == 32).all() for y in results) and len(results) == 2


def product():
    """A small program in tiles."""

    def net(x, w):
        return bg.conv2d(x, w)

    of = bg.bfloat16
    return bg.trace(net, bg.Tensor[4, 32, 3, 8, of], bg.Tensor[16, 32, 1, 1, of]).graph
