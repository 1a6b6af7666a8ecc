"""Targets that this machine cannot run or load, and CPUs that code cannot be generated for."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import bngen as bg
from bngen.runtime import host
from bngen.target.parse import Target

pytestmark = pytest.mark.skipif(host.architecture() != "x86_64", reason="names x86-64 CPUs")

X = np.ones(64, np.float32)


@pytest.fixture(scope="module")
def foreign():
    """A CPU that this machine is not."""
    newest = ("diamondrapids", "novalake", "znver5", "bdver4")
    return next(c for c in newest if not Target.parse(f"llvm -mcpu={c}").runs_here())


def program():
    return bg.trace(lambda x: bg.relu(x * 2.0) + x.exp(), bg.Tensor[64], name="f")


def test_a_program_for_another_cpu_is_built_and_refused_when_called(foreign, tmp_path, monkeypatch):
    monkeypatch.setenv("BNGEN_CACHE_DIR", str(tmp_path / "cache"))
    target = f"llvm -mcpu={foreign}"
    missing = Target.parse(target).missing_here()
    fresh = bg.build(program(), target=target, cache=True)
    kept = bg.build(program(), target=target, cache=True)
    for module in (fresh, kept, copy.copy(fresh), pickle.loads(pickle.dumps(kept))):
        with pytest.raises(bg.TargetError) as caught:
            module(X)
        assert f"f was compiled for {foreign}, and this machine lacks " in str(caught.value)
        assert all(name in str(caught.value) for name in missing)
        module.save_objects(tmp_path)  # for the machine that can run it
        assert list(tmp_path.glob("*.o"))


def test_a_lesser_machine_refuses_what_a_better_one_has_pickled(monkeypatch):
    module = bg.build(program(), target="llvm -mcpu=x86-64-v3")
    kept = pickle.dumps(module)
    monkeypatch.setattr(host, "features", lambda: frozenset({"64bit", "sse2", "cmov", "cx8"}))
    with pytest.raises(bg.TargetError, match=r"f was compiled for x86-64-v3, .* lacks .*avx2"):
        pickle.loads(kept)(X)


@pytest.mark.parametrize(
    ("target", "what"),
    [
        ("llvm -mcpu=i686", "i686 as asked for has no 64bit, which code for x86_64 needs"),
        ("llvm -mcpu=pentium4", "pentium4 as asked for has no 64bit"),
        ("llvm -mcpu=x86-64 -mattr=-sse2", "has no sse2"),
        ("llvm -mcpu=native -mattr=-sse", "has no sse, sse2"),
        ("llvm -mcpu=x86-64 -mattr=-64bit", "has no 64bit"),
        ("llvm -mcpu=x86-64 -mattr=-64bit-mode", "has no 64bit-mode"),
        ("llvm -mtriple=i386-linux-gnu -mcpu=i686", "generates no code for i386"),
        ("llvm -mtriple=wasm32", "generates no code for wasm32"),
        ("llvm -mtriple=riscv64-linux-gnu", "generates no code for riscv64"),
        ("llvm -mtriple=aarch64-linux-gnu -mattr=-neon", "generic as asked for has no neon"),
    ],
)
def test_a_cpu_that_llvm_would_end_the_process_for(target, what):
    with pytest.raises(bg.TargetError, match=what):
        Target.parse(target)


@pytest.mark.parametrize(
    "triple",
    ["aarch64-linux-gnu", "x86_64-pc-windows-msvc", "x86_64-apple-darwin", "x86_64-linux-gnux32"],
)
def test_a_system_whose_objects_cannot_be_loaded(triple):
    assert Target.parse(f"llvm -mtriple={triple}").triple == triple
    with pytest.raises(bg.TargetError, match=f"code for {triple} cannot be loaded on this x86_64"):
        bg.build(program(), target=f"llvm -mtriple={triple}")


@pytest.mark.parametrize("triple", ["x86_64", "x86_64-linux-musl", "x86_64-unknown-linux-gnu"])
def test_other_names_of_this_system(triple):
    Target.parse(f"llvm -mtriple={triple} -mcpu=x86-64").check_loads_here()


def test_what_runs_code_for_another_cpu_says_so_first(foreign):
    target = Target.parse(f"llvm -mcpu={foreign}")
    with pytest.raises(bg.TargetError, match=f"code for {foreign} needs what this machine lacks"):
        target.check_runs_here()
    Target.parse("llvm -mcpu=native").check_runs_here()
