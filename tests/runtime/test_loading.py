"""From a folder to a module: without a compiler, the same bits, and nothing that is damaged."""

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import bngen as bg
from bngen.errors import BngenError, TargetError, ToolchainError
from bngen.runtime import host, native, toolchain
from bngen.runtime.plain import PlainError
from tests import networks

X = np.random.default_rng(0).standard_normal((2, 3, 6, 6), dtype=np.float32)
LABELS = np.array([1, 3])


@pytest.fixture(scope="module")
def made():
    return bg.bundle(networks.small(), grad=True, emit=["asm"])


@pytest.fixture
def folder(made, tmp_path):
    made.save(tmp_path / "saved")
    return tmp_path / "saved"


def step(module):
    loss = module.init(1).forward(X, LABELS)
    return [loss, *module.backward().values(), *module.state_dict().values()]


def test_a_loaded_folder_computes_the_same_bits(made, folder):
    expected = step(bg.build(networks.small(), grad=True))
    module = bg.load(folder, threads=1)
    loaded = (module, bg.load(made), bg.load(str(folder)))
    for one in (*loaded, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        for ours, theirs in zip(step(one), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert bg.Bundle.read(folder) == made == module.bundle
    assert module.manifest() == made.manifest()


PROCESS = """
import sys
import numpy as np
import bngen as bg
module = bg.load(sys.argv[1]).init(1)
loss = module(np.load("x.npy"), np.array([1, 3]))
gradients = module.backward()
print(loss.tobytes().hex(), gradients["conv.weight"].tobytes().hex())
rooms = {name.split(".")[1] for name in sys.modules if name.startswith("bngen.")}
print(sorted({"tvm", "tvm_ffi", "torch"} & set(sys.modules)), sorted(rooms))
"""


def run_alone(folder, tmp_path, **variables):
    np.save(tmp_path / "x.npy", X)
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, str(folder)], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    numbers, imported = done.stdout.splitlines()
    return numbers.split(), imported


@pytest.mark.parametrize("without", ["", "a C compiler"])
def test_a_process_that_loads_has_neither_compiler_nor_pytorch(folder, tmp_path, without):
    """Not even a C compiler, for the library is in the folder, and TVM's pool runs the loops."""
    cache = {"BNGEN_CACHE_DIR": str(tmp_path / "cache"), "CC": "no compiler"} if without else {}
    numbers, imported = run_alone(folder, tmp_path, **cache)
    module = bg.load(folder).init(1)
    loss, gradient = module(X, LABELS), module.backward()["conv.weight"]
    assert numbers == [loss.tobytes().hex(), gradient.tobytes().hex()]
    rooms = "arrays errors initializers dtypes options files labels moments runtime version".split()
    found, modules = imported.split("] [")
    assert found == "["
    assert {name.strip("' ]") for name in modules.split(",")} <= set(rooms)


def test_without_a_library_the_objects_are_linked(made, tmp_path):
    replace(made, library=None).save(tmp_path / "objects")
    assert not (tmp_path / "objects" / "kernels.so").exists()
    for ours, theirs in zip(step(bg.load(tmp_path / "objects")), step(bg.load(made)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_with_neither_library_nor_c_compiler(made, monkeypatch):
    monkeypatch.setenv("CC", "no compiler")
    with pytest.raises(ToolchainError, match="no C compiler: .*install gcc"):
        bg.load(replace(made, library=None))


def test_a_library_that_cannot_be_loaded_is_linked_again(made):
    module = bg.load(replace(made, library=b"of another C library"))
    np.testing.assert_array_equal(step(module)[0], step(bg.load(made))[0])


def test_texts_are_those_of_the_folder(made, folder, tmp_path):
    module = bg.load(folder)
    assert module.emit("asm") == made.emit("asm")
    with pytest.raises(BngenError, match="net holds no ll texts .*bngen build --emit ll"):
        module.emit("ll")
    with pytest.raises(BngenError, match="unknown kind of text 'cuda' .one of tir, ll, asm"):
        module.emit("cuda")


# --- refused ----------------------------------------------------------------------------------


@pytest.fixture
def untouched(monkeypatch):
    """Nothing may be linked or loaded."""
    monkeypatch.setattr(native, "load", None)
    monkeypatch.setattr(toolchain, "link", None)


def asking_for(made, folder, **target):
    """A folder whose data asks for another machine."""
    asked = replace(made.target, **target)
    built = replace(made.built, manifest={**made.manifest(), "target": asked.described()})
    replace(made, built=built).save(folder)


def test_a_feature_that_this_machine_lacks_is_named(made, tmp_path, untouched, monkeypatch):
    table = sorted(host.known_features(host.architecture()))
    if not table:
        pytest.skip("nobody tells what this machine can do")
    monkeypatch.setattr(host, "features", lambda: frozenset(table[2:]))
    asking_for(made, tmp_path / "saved", features=tuple(table), cpu="future")
    with pytest.raises(TargetError) as caught:
        bg.load(tmp_path / "saved")
    assert f"net was compiled for future, and this machine lacks {table[0]}, {table[1]} (" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("target", "what"),
    [
        ({"arch": "sparcv9"}, "on sparcv9 linux, and this machine is"),
        ({"system": "plan9"}, "plan9, and this machine is"),
    ],
)
def test_another_machine_is_named(made, tmp_path, untouched, target, what):
    asking_for(made, tmp_path / "saved", **target)
    with pytest.raises(TargetError, match=what):
        bg.load(tmp_path / "saved")


def _edit(name, change):
    def damage(folder):
        path = next(iter(sorted(folder.glob(name))))
        path.write_bytes(change(path.read_bytes()))

    return damage


def _format(content, **changes):
    return json.dumps({**json.loads(content), **changes}).encode()


def _flipped(content):
    return content[:700] + bytes([content[700] ^ 1]) + content[701:]


DAMAGE = {
    "no folder": (shutil.rmtree, "there is no folder"),
    "an empty folder": (lambda f: (shutil.rmtree(f), f.mkdir()), "has no file bundle.json"),
    "a file": (lambda f: (shutil.rmtree(f), f.write_text("")), "there is no folder"),
    "no data": (lambda f: (f / "bundle.json").unlink(), "has no file bundle.json"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "has no file manifest.json"),
    "no library": (lambda f: (f / "kernels.so").unlink(), "has no file kernels.so"),
    "no object": (lambda f: next((f / "kernels").iterdir()).unlink(), "has no file kernels/k0"),
    "no text": (lambda f: next((f / "asm").iterdir()).unlink(), "has no file asm/k0"),
    "a folder for a file": (
        lambda f: ((f / "kernels.so").unlink(), (f / "kernels.so").mkdir()), "has no file",
    ),
    "another library": (_edit("kernels.so", _flipped), "kernels.so is not what was written"),
    "another object": (_edit("kernels/*", _flipped), r"kernels/k0\w+.o is not what was written"),
    "a longer text": (_edit("asm/*", lambda c: c + b"\n"), r"asm/k0\w+.s is not what was written"),
    "data cut short": (_edit("bundle.json", lambda c: c[:-9]), "cannot be loaded: "),
    "nonsense": (_edit("bundle.json", lambda c: b"\xff"), "cannot be loaded: "),
    "a manifest of nothing": (_edit("manifest.json", lambda c: b"[]"), "cannot be loaded: "),
    "another format": (
        _edit("bundle.json", lambda c: _format(c, format=99, more=1)), "in format 99, and this is",
    ),
    "another bngen": (
        _edit("bundle.json", lambda c: _format(c, made_by=["7.7", "0.1"])),
        "made by bngen 7.7 with apache-tvm 0.1 .*build it again",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_folder_is_one_line(folder, untouched, kind):
    damage, told = DAMAGE[kind]
    damage(folder)
    with pytest.raises(BngenError, match=told) as caught:
        bg.load(folder)
    assert not isinstance(caught.value, PlainError)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("source", "threads", "what"),
    [
        (None, None, "cannot load a NoneType .give a bundle, or the path of its folder"),
        (networks.small, None, "cannot load a function"),
        ("", 0, "cannot run on 0 threads"),
    ],
)
def test_what_is_no_bundle(source, threads, what):
    with pytest.raises(BngenError, match=what):
        bg.load(source, threads=threads)


def test_a_pickle_that_lacks_a_file(made):
    restore, (files,) = made.__reduce__()
    assert restore(files) == made
    with pytest.raises(BngenError, match="a pickled bundle has no file kernels.so"):
        restore({name: content for name, content in files.items() if name != "kernels.so"})


def test_names_of_the_two_acts():
    assert {"Bundle", "build", "bundle", "load"} <= set(bg.__all__)
    assert bg.compile.__module__ == "bngen.torch_bridge.backend"  # which takes PyTorch's models


def test_a_saved_folder_replaces_another_and_nothing_else(made, folder):
    replace(made, texts={}).save(folder)
    assert not (folder / "asm").exists() and bg.Bundle.read(folder).objects == made.objects
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(ToolchainError, match=r"holds thesis.tex, which bngen did not write"):
        made.save(folder)
