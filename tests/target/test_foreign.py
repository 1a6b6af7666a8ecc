"""Targets that this machine cannot run or load, and CPUs that code cannot be generated for."""

from __future__ import annotations

import pickle

import pytest

import bngen as bg
from bngen import compiler
from bngen.runtime import host, native
from bngen.target.parse import Target

pytestmark = pytest.mark.skipif(host.architecture() != "x86_64", reason="names x86-64 CPUs")


@pytest.fixture(scope="module")
def foreign():
    """A CPU that this machine is not."""
    newest = ("diamondrapids", "novalake", "znver5", "bdver4")
    return next(c for c in newest if not Target.parse(f"llvm -mcpu={c}").runs_here())


def program():
    return bg.trace(lambda x: bg.relu(x * 2.0) + x.exp(), bg.Tensor[64], name="f")


def test_a_program_for_another_cpu_is_compiled_and_refused_when_loaded(
    foreign, tmp_path, monkeypatch
):
    monkeypatch.setenv("BNGEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "load", None)  # nothing is loaded
    target = f"llvm -mcpu={foreign}"
    missing = Target.parse(target).missing_here()
    fresh = bg.bundle(program(), target=target, cache=True)
    kept = bg.bundle(program(), target=target, cache=True)
    assert fresh == kept and fresh.library
    fresh.save(tmp_path / "saved")
    for source in (fresh, kept, tmp_path / "saved", pickle.loads(pickle.dumps(kept))):
        with pytest.raises(bg.TargetError) as caught:
            bg.load(source)
        assert f"f was compiled for {foreign}, and this machine lacks " in str(caught.value)
        needed = (name for name in missing if not name.startswith("amx-"))  # No sums in tiles.
        assert all(name in str(caught.value) for name in needed)


def test_a_build_for_another_cpu_is_refused_before_it_is_compiled(foreign, monkeypatch):
    monkeypatch.setattr(compiler, "compile_plan", None)
    with pytest.raises(bg.TargetError, match=f"f was compiled for {foreign}, and this machine"):
        bg.build(program(), target=f"llvm -mcpu={foreign}")


def test_a_lesser_machine_refuses_what_a_better_one_has_pickled(monkeypatch):
    module = bg.build(program(), target="llvm -mcpu=x86-64-v3")
    kept = pickle.dumps(module)
    monkeypatch.setattr(host, "features", lambda: frozenset({"64bit", "sse2", "cmov", "cx8"}))
    with pytest.raises(bg.TargetError, match=r"f was compiled for x86-64-v3, .* lacks .*avx2"):
        pickle.loads(kept)


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
        ("llvm -mtriple=riscv64-linux-gnu", r"has no m, f, d, .* or -mattr=\+m,\+f,\+d"),
        ("llvm -mtriple=riscv64-linux-gnu -mcpu=sifive-u74 -mattr=-d", "has no d, which code for"),
        ("llvm -mtriple=x86_64-linux-gnux32", "addresses of 32 bits"),
        ("llvm -mtriple=aarch64-linux-gnu_ilp32", "addresses of 32 bits"),
        ("llvm -mtriple=arm-linux-gnueabihf", "generates no code for arm"),
        ("llvm -mtriple=powerpc64le-linux-gnu -mcpu=pwr9", "for x86_64, aarch64, riscv64 it does"),
        ("llvm -mtriple=s390x-linux-gnu", "generates no code for s390x"),
        ("llvm -mtriple=aarch64_be-linux-gnu", "generates no code for aarch64_be"),
        ("llvm -mtriple=riscv32-linux-gnu", "generates no code for riscv32"),
        ("llvm -mtriple=aarch64-linux-gnu -mattr=-neon", "generic as asked for has no neon"),
    ],
)
def test_a_cpu_that_llvm_would_end_the_process_for(target, what):
    with pytest.raises(bg.TargetError, match=what):
        Target.parse(target)


@pytest.mark.parametrize(
    ("triple", "system"),
    [
        ("aarch64-linux-gnu", "aarch64 linux"),
        ("riscv64-linux-gnu", "riscv64 linux"),
        ("x86_64-pc-windows-msvc", "x86_64 windows"),
        ("x86_64-apple-darwin", "x86_64 darwin"),
        ("arm64-apple-macosx14", "aarch64 darwin"),
        ("x86_64-unknown-freebsd", "x86_64 freebsd"),
        ("x86_64-unknown-none", "x86_64 none"),
    ],
)
def test_a_system_whose_objects_cannot_be_loaded(triple, system, monkeypatch):
    monkeypatch.setattr(compiler, "compile_plan", None)
    cpu = {"riscv64-linux-gnu": "sifive-u74"}.get(triple, "generic")
    target = Target.parse(f"llvm -mtriple={triple} -mcpu={cpu}")
    assert target.triple == triple and not target.loads_here()
    with pytest.raises(bg.TargetError, match=f"on {system}, and this machine is x86_64 linux"):
        bg.build(program(), target=target)


@pytest.mark.parametrize("triple", ["x86_64", "x86_64-linux-musl", "x86_64-unknown-linux-gnu"])
def test_other_names_of_this_system(triple):
    assert Target.parse(f"llvm -mtriple={triple} -mcpu=x86-64").loads_here()


def test_what_runs_code_for_another_cpu_says_so_first(foreign):
    target = Target.parse(f"llvm -mcpu={foreign}")
    with pytest.raises(bg.TargetError, match=f"code for {foreign} needs what this machine lacks"):
        target.check_runs_here()
    Target.parse("llvm -mcpu=native").check_runs_here()
