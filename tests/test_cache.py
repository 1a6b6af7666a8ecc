"""Programs kept on disk: taken only for what they were built for, the same bits, no compiler."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bngen as bg
from bngen import cache, compiler
from bngen.bench.lone import fill
from bngen.errors import TargetError
from bngen.runtime import toolchain
from bngen.target import Target

CHANNELS = 16


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("BNGEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("BNGEN_NO_CACHE")
    return tmp_path / "cache"


def program(channels=CHANNELS, name="small"):
    def small(x, labels):
        return bg.cross_entropy(bg.relu(bg.layers.linear(x, "head", channels)), labels)

    return bg.trace(small, bg.Tensor((2, 6)), bg.Tensor((2,), dtype="int64"), name=name)


@pytest.fixture
def compiled(monkeypatch):
    """How many kernels each compilation had."""
    counts = []
    compile_plan = compiler.compile_plan

    def counted(plan, *args, **named):
        counts.append(len(plan.kernels))
        return compile_plan(plan, *args, **named)

    monkeypatch.setattr(compiler, "compile_plan", counted)
    return counts


def step(module):
    rng = np.random.default_rng(3)
    x = np.empty((2, 6), np.float32)
    fill(x, rng)
    module.init(1)
    loss = module.forward(x, np.array([1, 3]))
    return [loss, *module.backward().values(), *module.state_dict().values()]


def test_the_second_build_compiles_nothing_and_computes_the_same_bits(compiled):
    first = bg.build(program(), grad=True)
    second = bg.build(program(), grad=True)
    assert len(compiled) == 1
    assert second.manifest() == first.manifest()
    assert second.memory == first.memory
    for a, b in zip(step(first), step(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_progress_ends_at_the_last_kernel_either_way():
    for _ in range(2):
        seen = []
        module = bg.build(program(), progress=lambda *args, seen=seen: seen.append(args))
        kernels = module.manifest()["kernels"]
        assert seen[-1][:2] == (len(kernels), len(kernels))


@pytest.mark.parametrize(
    "other",
    [
        {"grad": True, "fusion": "none"},
        {"grad": False},
        {"grad": True, "wrt": ("head.weight",)},
        {"grad": True, "target": "llvm -mcpu=x86-64"},
    ],
)
def test_what_was_built_otherwise_is_not_taken(compiled, other):
    bg.build(program(), grad=True)
    bg.build(program(), **other)
    assert len(compiled) == 2


def test_another_program_is_not_taken(compiled):
    bg.build(program())
    bg.build(program(channels=8))
    bg.build(program(name="renamed"))
    assert len(compiled) == 3


def test_other_records_are_another_build(compiled, tmp_path, monkeypatch):
    from bngen.scheduling import records

    bg.build(program())
    target = Target.parse()
    plan_of = {"kind": "pointwise", "what": "relu", "extents": {"h": 4}, "knobs": {"rows": 2}}
    record = records.Record("0" * 16, **plan_of, seconds=1.0, baseline=2.0, threads=1, trials=1)
    records.write(tmp_path / "mine" / f"{target.cpu}.toml", [record], {})
    bg.build(program(), schedules=tmp_path / "mine")
    assert len(compiled) == 2


def test_another_source_is_another_build(compiled, monkeypatch):
    bg.build(program())
    monkeypatch.setattr(cache, "_source", lambda: "edited")
    bg.build(program())
    assert len(compiled) == 2


def test_no_cache_neither_looks_nor_keeps(compiled, folder, monkeypatch):
    bg.build(program(), cache=False)
    assert not (folder / "programs").exists()
    bg.build(program())
    monkeypatch.setenv("BNGEN_NO_CACHE", "1")
    bg.build(program())
    assert len(compiled) == 3


def test_passes_are_shown_although_the_program_is_kept():
    bg.build(program())
    names = []
    bg.build(program(), dump=lambda name, graph: names.append(name))
    assert names


def test_a_warning_is_given_each_time():
    def independent(x, unused):
        return bg.mean(bg.relu(x))

    shapes = bg.Tensor((2, 4)), bg.Tensor((3,))
    for _ in range(2):
        with pytest.warns(UserWarning, match="no output depends on 'unused'"):
            bg.build(bg.trace(independent, *shapes, name="p"), grad=True)


@pytest.mark.parametrize("name", ["built.pickle", "kernels.so", "index.json"])
def test_a_damaged_entry_is_made_again(compiled, folder, name):
    first = step(bg.build(program(), grad=True))
    (entry,) = (folder / "programs").iterdir()
    (entry / name).unlink()  # the library is in use: it must not change, the name may go
    (entry / name).write_bytes(b"nonsense")
    second = step(bg.build(program(), grad=True))
    assert len(compiled) == 2
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    bg.build(program(), grad=True)
    assert len(compiled) == 2


def test_texts_and_objects_of_a_kept_program(folder, tmp_path, compiled):
    first = bg.build(program())
    kept = bg.build(program())
    for name, module in (("first", first), ("kept", kept)):
        (tmp_path / name).mkdir()
        module.save_objects(tmp_path / name)
    files = {p.name: p.read_bytes() for p in (tmp_path / "first").iterdir()}
    assert files == {p.name: p.read_bytes() for p in (tmp_path / "kept").iterdir()}
    assert len(compiled) == 1
    assert kept.emit("tir") == first.emit("tir")  # made when it is asked for
    assert len(compiled) == 2


def test_objects_are_made_again_where_they_are_gone(folder, tmp_path):
    first, kept = bg.build(program()), bg.build(program())
    (entry,) = (folder / "programs").iterdir()
    (entry / "objects.pickle").unlink()
    kept.save_objects(tmp_path)
    assert {p.stem for p in tmp_path.glob("*.o")} == set(first.emit("tir"))


def test_without_a_c_compiler_nothing_is_kept(compiled, folder, monkeypatch):
    def none():
        raise toolchain.ToolchainError("no C compiler")

    monkeypatch.setattr(toolchain, "find_compiler", none)
    first = step(bg.build(program(), grad=True))
    assert not list((folder / "programs").glob("*"))
    monkeypatch.undo()
    for a, b in zip(first, step(bg.build(program(), grad=True)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_second_process_loads_neither_the_compiler_nor_pytorch(folder):
    source = """
import sys, numpy as np, bngen as bg
def f(x):
    return bg.relu(bg.layers.batch_norm(bg.layers.conv2d(x, "c", 16, 3), "b"))
m = bg.build(bg.trace(f, bg.Tensor((2, 3, 8, 8)), name="p"), grad=True).init(0)
y = m.forward(np.ones((2, 3, 8, 8), np.float32))
m.backward(np.ones_like(y))
print(sorted({"tvm", "tvm_ffi", "torch"} & set(sys.modules)))
"""
    seen = [
        subprocess.run(
            [sys.executable, "-c", source], capture_output=True, text=True, check=True
        ).stdout.strip()
        for _ in range(2)
    ]
    assert "tvm" in seen[0]
    assert seen[1] == "[]"


# --- targets ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec", [None, "llvm -mcpu=native", {"kind": "llvm", "mcpu": "x86-64-v3"}, '{"kind": "llvm"}']
)
def test_a_kept_target_is_the_one_that_was_parsed(spec, monkeypatch):
    first = cache.target(spec)
    assert first == Target.parse(spec) and first.features == Target.parse(spec).features
    monkeypatch.setattr(Target, "parse", None)
    again = cache.target(spec)
    assert again == first and again.features == first.features
    assert cache.target(first) is first


def test_options_of_a_target_are_told_apart():
    plain = cache.target("llvm -mcpu=x86-64-v3")
    assert cache.target("llvm -mcpu=x86-64-v3", mattr="-fma").fma is not plain.fma
    assert cache.target("llvm -mcpu=x86-64-v3", mcpu="x86-64").cpu == "x86-64"


@pytest.mark.parametrize("spec", ["llvm -mcpu=nosuch", 3, {"mcpu": object()}])
def test_a_wrong_target_is_refused_in_the_same_words(spec, folder):
    with pytest.raises(TargetError) as parsed:
        Target.parse(spec)
    for _ in range(2):
        with pytest.raises(TargetError) as kept:
            cache.target(spec)
        assert str(kept.value) == str(parsed.value)


def test_the_source_digest_covers_the_c_files(monkeypatch, tmp_path):
    package = Path(cache.__file__).parent
    (tmp_path / "runtime").mkdir()
    for name in ("cache.py", "runtime/dispatch.c"):
        (tmp_path / name).write_bytes((package / name).read_bytes())
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "cache.py"))
    before = cache._source.__wrapped__()
    assert cache._source.__wrapped__() == before
    (tmp_path / "runtime" / "dispatch.c").write_text("int x;")
    assert cache._source.__wrapped__() != before
