"""Programs kept on disk: taken only for what they were built for, the same bits, no compiler."""

import json
import os
import random
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import bngen as bg
from bngen import cache, compiler
from bngen.errors import BngenError, TargetError
from bngen.runtime import store, toolchain
from bngen.target.parse import Target
from bngen.tuning.lone import fill
from tests.profiles import THOROUGH

CHANNELS = 16


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("BNGEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("BNGEN_NO_CACHE")
    store._warn.cache_clear()
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


def test_another_memory_format_is_another_build(compiled):
    """Where there is anything that can lie so; however it is written."""
    graph = bg.trace(bg.relu, bg.Tensor((2, 3, 4, 4)), name="maps").graph
    for memory_format in (None, "channels_last", {graph.inputs[0].name: "channels_last"}):
        bg.build(graph, memory_format=memory_format)
    assert len(compiled) == 3
    both = dict.fromkeys((graph.inputs[0].name, "return"), "channels_last")
    for memory_format in ("contiguous_format", "channels_last", both):
        bg.build(graph, memory_format=memory_format)
    bg.build(program())
    bg.build(program(), memory_format="channels_last")
    assert len(compiled) == 4


def test_another_program_is_not_taken(compiled):
    bg.build(program())
    bg.build(program(channels=8))
    bg.build(program(name="renamed"))
    assert len(compiled) == 3


def test_other_records_are_another_build(compiled, tmp_path, monkeypatch):
    from bngen.tuning import records

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


@pytest.mark.parametrize("name", ["bundle.json", "manifest.json", "kernels.so", "index.json"])
def test_a_damaged_entry_is_made_again(compiled, folder, name):
    first = step(bg.build(program(), grad=True))
    (entry,) = (folder / "programs").iterdir()
    (entry / name).write_bytes(b"nonsense")
    second = step(bg.build(program(), grad=True))
    assert len(compiled) == 2
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    bg.build(program(), grad=True)
    assert len(compiled) == 2


def test_what_happens_to_files_in_use_does_not_matter(folder):
    """They are not mapped: a file cut short under a mapping kills the process that uses it."""
    bg.build(program(), grad=True)
    module = bg.build(program(), grad=True)
    expected = step(module)
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("r+b") as file:
                file.truncate(0)
    for a, b in zip(expected, step(module), strict=True):
        np.testing.assert_array_equal(a, b)


def test_nothing_that_can_run_code_is_kept(folder):
    bg.build(program(), grad=True)
    files = [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size]
    kinds = {p.suffix for p in files if not p.read_bytes().startswith(b"\x7fELF")}
    assert kinds == {".json"}
    assert {p.suffix for p in files} == {".json", ".so", ".o"}
    for path in (p for p in files if p.suffix == ".json"):
        json.loads(path.read_bytes())


def test_what_two_want_at_once_one_compiles(compiled, monkeypatch):
    both, mine, find = threading.Barrier(2), threading.local(), cache.find

    def found(key):
        kept = find(key)
        if not vars(mine):
            mine.waited = both.wait(10)  # until neither has found it
        return kept

    monkeypatch.setattr(cache, "find", found)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: bg.bundle(program(), grad=True), range(2))
    assert len(compiled) == 1
    assert one.library == other.library


def test_somebody_who_can_change_a_folder_above_is_not_obeyed(compiled, folder, tmp_path, caplog):
    """The whole folder is replaced by a copy, which is what its owner could do to it."""
    bg.build(program())
    tmp_path.chmod(0o777)
    try:
        bg.build(program())
    finally:
        tmp_path.chmod(0o700)
    assert len(compiled) == 2
    assert "others can write to" in caplog.text


def _entry(folder, name):
    entries = (folder / "programs").iterdir()
    (entry,) = (e for e in entries if name in (e / "bundle.json").read_text())
    return entry


def test_an_entry_in_the_place_of_another_is_not_taken(compiled, folder):
    bg.build(program(name="one"))
    bg.build(program(name="two"))
    one, two = _entry(folder, '"one"'), _entry(folder, '"two"')
    shutil.rmtree(one)
    two.rename(one)
    assert bg.build(program(name="one")).manifest()["program"] == "one"
    assert len(compiled) == 3


FUZZ = 400 if THOROUGH else 60
"""Damaged entries that are tried."""


def _damage(rng, entry, other):
    """Do one thing to a file of an entry; ``other`` is an entry to take files from."""
    files = sorted(p for p in entry.iterdir() if _read(p))
    path = rng.choice(files)
    content = bytearray(path.read_bytes())
    kind = rng.choice(["flip", "cut", "grow", "swap", "take", "link", "pipe", "folder", "gone"])
    if kind == "flip":
        for _ in range(rng.choice([1, 1, 8])):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    elif kind == "cut":
        path.write_bytes(content[: rng.randrange(len(content))])
    elif kind == "grow":
        path.write_bytes(content + rng.choice([b"\0", b" ", b"}", content]))
    elif kind == "swap":
        second = rng.choice([p for p in files if p != path])
        path.write_bytes(second.read_bytes())
        second.write_bytes(content)
    elif kind == "take":
        path.write_bytes((other / rng.choice(sorted(os.listdir(other)))).read_bytes())
    else:
        path.unlink()
        make = {
            "link": lambda: path.symlink_to(rng.choice(["/dev/zero", str(other), path.name])),
            "pipe": lambda: os.mkfifo(path),
            "folder": path.mkdir,
            "gone": lambda: None,
        }
        make[kind]()
    return f"{kind} {path.name}"


def test_damage_of_any_kind_is_an_absent_entry_or_none(folder):
    """What is found is what was kept, or nothing; the library of a damaged entry is not loaded."""
    bg.build(program(), grad=True)
    bg.build(program(name="another", channels=4))
    entry = _entry(folder, '"small"')
    other, pristine = _entry(folder, '"another"'), folder / "pristine"
    shutil.copytree(entry, pristine)
    whole = {p.name: p.read_bytes() for p in pristine.iterdir()}
    expected = cache.find(entry.name)
    rng = random.Random(0)
    for _ in range(FUZZ):
        done = [_damage(rng, entry, other) for _ in range(rng.choice([1, 1, 2]))]
        kept = cache.find(entry.name)
        unharmed = {n for n in whole if _read(entry / n) == whole[n]}
        assert kept is None or unharmed == whole.keys(), done
        assert kept in (None, expected), done
        shutil.rmtree(entry, ignore_errors=True)
        shutil.copytree(pristine, entry)


def _read(path):
    return path.read_bytes() if path.is_file() and not path.is_symlink() else None


def test_hostile_documents_with_the_right_digests(folder, monkeypatch):
    """Whoever could write these could replace the code; still nothing but a `Bundle` is made."""
    kept = {}
    monkeypatch.setattr(cache._PROGRAMS, "add", lambda key, files: kept.update(files))
    bg.build(program())
    rng = random.Random(0)
    for document in ("bundle.json", "manifest.json"):
        whole = kept[document]
        for _ in range(FUZZ):
            content = bytearray(whole)
            at = rng.randrange(len(content))
            junk = [b"", b"0", b"-1", b"[", b"}", b"null", b'"', b"1e999", b"\\ud800", b"true"]
            content[at : at + rng.randrange(8)] = rng.choice(junk)
            found = {**kept, document: bytes(content)}
            monkeypatch.setattr(
                cache._PROGRAMS, "read", lambda key, *names, f=found: tuple(f[n] for n in names)
            )
            if (entry := cache.find("key")) is not None:
                try:
                    entry.manifest()
                except BngenError:
                    assert document == "manifest.json"


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


def test_a_warm_start_neither_differentiates_nor_runs_a_pass(monkeypatch):
    bg.build(program(), grad=True)
    for name in ("join_gradient", "prepare", "compile_plan", "bind"):
        monkeypatch.setattr(compiler, name, None)
    step(bg.build(program(), grad=True))


def test_a_bundle_and_a_module_are_one_entry(compiled):
    made = bg.bundle(program(), grad=True)
    module = bg.build(program(), grad=True)
    assert module.bundle == made == bg.bundle(program(), grad=True)
    assert len(compiled) == 1


def test_a_bundle_for_another_machine_is_kept(compiled):
    target = "llvm -mtriple=aarch64-linux-gnu -mcpu=neoverse-v1"
    made = [bg.bundle(program(), target=target) for _ in range(2)]
    assert made[0] == made[1] and made[0].library is None
    assert len(compiled) == 1


def test_texts_are_made_for_a_kept_bundle_and_not_kept(compiled, folder):
    bg.bundle(program())
    made = bg.bundle(program(), emit=["asm"])
    assert made.emit("asm").keys() == made.objects.keys()
    assert len(compiled) == 2
    assert not bg.bundle(program()).texts


@pytest.mark.parametrize("wrt", ["head.weight", 3, [3], [b"x"], ["no"]])
def test_what_are_no_names_is_refused_as_ever(wrt):
    for _ in range(2):
        with pytest.raises(BngenError):
            bg.build(program(), grad=True, wrt=wrt)


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


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"nonsense", b'{"cpu": "x"}'])
def test_a_damaged_target_is_parsed_again(folder, content, monkeypatch):
    first = cache.target("llvm -mcpu=x86-64-v3")
    monkeypatch.setattr(cache._TARGETS, "read", lambda *_: (content,))
    again = cache.target("llvm -mcpu=x86-64-v3")
    assert again == first and again.features == first.features


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
