"""Code for other architectures: what objects are, what is in them, and that it computes right."""

from __future__ import annotations

import re
import struct

import numpy as np
import pytest

import bngen as bg
from bngen.codegen.object_files import imports_of
from bngen.ir import interp
from bngen.passes.prepare import join_gradient
from bngen.target.parse import Target
from tests import cross
from tests.oracle import assert_close

RISCV_V = "llvm -mtriple=riscv64-linux-gnu -mcpu=generic-rv64 -mattr=+m,+a,+f,+d,+c,+v"
TARGETS = {
    "aarch64": "llvm -mtriple=aarch64-linux-gnu -mcpu=generic",
    "sve": "llvm -mtriple=aarch64-linux-gnu -mcpu=neoverse-v1",
    "riscv64": "llvm -mtriple=riscv64-linux-gnu -mcpu=sifive-u74",
    "rvv": RISCV_V,
}
AARCH64 = cross.Emulator("aarch64-linux-gnu-gcc", ("qemu-aarch64",))
RISCV64 = cross.Emulator("riscv64-linux-gnu-gcc", ("qemu-riscv64",))
EMULATORS = {
    "aarch64": AARCH64,
    # Vectors of 512 bits: nothing may depend on how long they are.
    "sve": cross.Emulator(AARCH64.compiler, ("qemu-aarch64", "-cpu", "max,sve512=on")),
    "riscv64": RISCV64,
    "rvv": cross.Emulator(RISCV64.compiler, ("qemu-riscv64", "-cpu", "rv64,v=true,vlen=128")),
}


def network():
    """conv - BN - ReLU - conv, strided and padded, with running statistics."""

    def net(x):
        y = bg.layers.conv2d(x, "a", 10, 3, padding=1, bias=False)
        y = bg.relu(bg.layers.batch_norm(y, "bn"))
        return bg.layers.conv2d(y, "b", 6, 1, stride=2)

    return bg.trace(net, bg.Tensor[2, 3, 9, 7], name="net")


@pytest.fixture(scope="module")
def bundles():
    made = {}

    def bundle(name):
        if name not in made:
            made[name] = bg.bundle(network(), grad=True, target=TARGETS[name], emit=["asm"])
        return made[name]

    return bundle


@pytest.mark.parametrize(
    ("name", "machine", "flags", "vectors"),
    [
        ("aarch64", 183, 0, r"fmla\s+v\d+\.4s"),
        ("sve", 183, 0, r"fmla\s+v\d+\.4s"),
        ("riscv64", 243, 4, r"fmadd\.s"),
        ("rvv", 243, 4, r"vsetivli\s+zero, 4, e32, m1.*?vfmacc\.v|vfmadd\.v"),
    ],
)
def test_objects_are_for_the_architecture_and_use_it(bundles, name, machine, flags, vectors):
    made = bundles(name)
    assert made.library is None
    for content in made.objects.values():
        assert content[:6] == b"\x7fELF\x02\x01"
        kind, found = struct.unpack_from("<HH", content, 16)
        (e_flags,) = struct.unpack_from("<I", content, 48)
        assert (kind, found) == (1, machine)  # an object to be linked
        assert e_flags & 6 == flags  # of RISC-V: floats in registers of 64 bits, the ABI lp64d
    text = "".join(made.emit("asm").values())
    assert re.search(vectors, text, re.DOTALL)


def test_the_manifest_lists_what_is_needed(bundles):
    manifest = bundles("sve").manifest()
    assert {"neon", "sve", "fullfp16", "dotprod"} <= set(manifest["target"]["features"])
    assert manifest["target"]["arch"] == "aarch64" and manifest["target"]["system"] == "linux"
    assert "__TVMBackendParallelLaunch" in manifest["imports"]["pointers"]
    assert {"v", "d"} <= set(bundles("rvv").manifest()["target"]["features"])
    assert "v" not in bundles("riscv64").manifest()["target"]["features"]


@pytest.mark.parametrize(
    ("triple", "magic", "more"),
    [
        ("x86_64-linux-gnu", b"\x7fELF\x02\x01", ()),
        ("aarch64-linux-gnu", b"\x7fELF\x02\x01", ()),
        ("x86_64-apple-darwin", b"\xcf\xfa\xed\xfe\x07\0\0\1", ()),
        ("arm64-apple-macosx14", b"\xcf\xfa\xed\xfe\x0c\0\0\1", ()),
        ("x86_64-pc-windows-msvc", b"\x64\x86", ("_fltused",)),
        ("aarch64-pc-windows-msvc", b"\x64\xaa", ()),
    ],
)
def test_imports_are_read_of_every_kind_of_object(triple, magic, more):
    program = bg.trace(lambda x: bg.sin(bg.relu(x)), bg.Tensor[4, 16, 32, 32], name="f")
    made = bg.bundle(program, target=f"llvm -mtriple={triple}")
    assert all(content.startswith(magic) for content in made.objects.values())
    assert made.manifest()["imports"] == {
        "functions": sorted(["sinf", *more]),
        "pointers": [
            "__TVMBackendAllocWorkspace", "__TVMBackendFreeWorkspace", "__TVMBackendParallelLaunch",
        ],
    }  # fmt: skip


def test_what_is_no_object_has_no_imports():
    for content in (b"", b"\x7fELF\x01", b"nonsense"):
        with pytest.raises(ValueError, match="no object file of 64 bits"):
            imports_of([content])


def test_code_does_not_count_on_the_length_of_vectors():
    """A CPU whose vectors have 512 bits: the code is right on 128, and asks for no more."""
    target = Target.parse("llvm -mtriple=riscv64-linux-gnu -mcpu=sifive-x280")
    assert "v" in target.features and "zvl128b" in target.features
    assert not {"zvl256b", "zvl512b"} & target.features


@pytest.mark.parametrize("name", TARGETS)
def test_it_is_refused_here(bundles, name):
    arch = bundles(name).target.arch
    with pytest.raises(bg.TargetError, match=f"on {arch} linux, and this machine is "):
        bg.load(bundles(name))


@pytest.mark.parametrize("name", TARGETS)
def test_forward_and_backward_are_right(bundles, name, tmp_path):
    EMULATORS[name].check_there()
    joint = join_gradient(network().graph)
    rng = np.random.default_rng(0)
    args = {
        i.name: np.asarray(rng.uniform(0.5, 1.5, i.value.shape)).astype(i.value.dtype)
        for i in joint.graph.inputs
    }
    args["x"] = rng.standard_normal(args["x"].shape, np.float32)
    for weight in ("a.weight", "b.weight"):
        args[weight] = rng.standard_normal(args[weight].shape, np.float32)
    ran = cross.run(bundles(name), args, EMULATORS[name], tmp_path)
    exact, theirs = (interp.run(joint.graph, args, dtype) for dtype in ("float64", None))
    ours = [*ran.outputs, *ran.gradients.values()]
    names = [*map(str, range(len(ran.outputs))), *ran.gradients]
    for what, *compared in zip(names, ours, theirs.outputs, exact.outputs, strict=True):
        assert_close(*compared, what)
    assert ran.updates.keys() == exact.updates.keys() != set()
    for what, new in ran.updates.items():
        assert_close(new, theirs.updates[what], exact.updates[what], what)
