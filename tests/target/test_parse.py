"""What users may write as a target, what it becomes, and what they are told when it is wrong."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from bngen.errors import TargetError
from bngen.runtime import host
from bngen.target.parse import Target

x86_only = pytest.mark.skipif(host.architecture() != "x86_64", reason="names of x86-64 CPUs")

V3_FORMS = [
    "llvm -mcpu=x86-64-v3",
    "llvm -mcpu x86-64-v3",
    "llvm --mcpu=x86-64-v3",
    "-mcpu=x86-64-v3",
    '{"kind": "llvm", "mcpu": "x86-64-v3"}',
    {"kind": "llvm", "mcpu": "x86-64-v3"},
    {"mcpu": "x86-64-v3"},
]


@x86_only
@pytest.mark.parametrize("spec", V3_FORMS, ids=str)
def test_every_form_of_a_target_means_the_same(spec):
    target = Target.parse(spec)
    assert str(target) == "llvm -mcpu=x86-64-v3"
    assert target == Target.parse("llvm -mcpu=x86-64-v3")
    assert len({target, Target.parse("llvm -mcpu=x86-64-v3")}) == 1


SPECS = [
    None,
    "llvm",
    "llvm -mcpu=native",
    "llvm -mcpu=x86-64-v4",
    "llvm -mcpu=x86-64-v3 -mattr=-fma",
    "llvm -mtriple=aarch64-linux-gnu -mcpu=neoverse-v1",
]


@x86_only
@pytest.mark.parametrize("spec", SPECS)
def test_canonical_text_and_tvm_target_parse_back(spec):
    target = Target.parse(spec)
    assert Target.parse(str(target)) == target
    assert Target.parse(target) == target
    assert Target.parse(target.tvm()) == target
    assert Target.parse(str(target.tvm())) == target


@x86_only
@pytest.mark.parametrize(
    "spec, lanes, registers, fma, psabi",
    [
        ("llvm", 4, 16, False, "x86-64"),
        ("llvm -mcpu=nehalem", 4, 16, False, "x86-64-v2"),
        ("llvm -mcpu=sandybridge", 8, 16, False, "x86-64-v2"),
        ("llvm -mcpu=x86-64-v3", 8, 16, True, "x86-64-v3"),
        ("llvm -mcpu=x86-64-v3 -mattr=-fma", 8, 16, False, "x86-64-v2"),
        ("llvm -mcpu=x86-64-v3 -mattr=+avx512f", 16, 32, True, "x86-64-v3"),
        ("llvm -mcpu=znver3", 8, 16, True, "x86-64-v3"),
        ("llvm -mcpu=znver4", 16, 32, True, "x86-64-v4"),
        ("llvm -mcpu=znver4 -mattr=-avx512f", 8, 16, True, "x86-64-v3"),
        ("llvm -mtriple=aarch64-linux-gnu -mcpu=neoverse-n1", 4, 32, True, "aarch64"),
    ],
)
def test_vectors_of_well_known_cpus(spec, lanes, registers, fma, psabi):
    target = Target.parse(spec)
    traits = target.machine.traits
    assert (target.channel_block, traits.vector_registers, target.fma) == (lanes, registers, fma)
    assert target.psabi == psabi


@x86_only
def test_later_attributes_override_and_redundant_ones_vanish():
    assert Target.parse("llvm -mcpu=x86-64-v3 -mattr=+avx2").attrs == ()
    assert Target.parse("llvm -mcpu=x86-64-v3 -mattr=-fma", mattr="+fma").attrs == ()
    assert Target.parse("llvm -mcpu=x86-64-v3", mattr=["-fma"]).attrs == ("-fma",)
    assert Target.parse("llvm -mcpu=native", mcpu="x86-64-v3").cpu == "x86-64-v3"
    # What needs a feature that is switched off is off, whatever the order.
    dead = Target.parse("llvm -mcpu=znver4 -mattr=-avx512f,+avx512vnni")
    assert "avx512vnni" not in dead.features and dead.attrs == ("-avx512f",)


@x86_only
def test_512_bit_registers_are_preferred_unless_the_user_says_otherwise():
    assert "-prefer-256-bit" in Target.parse("llvm -mcpu=skylake-avx512").attrs
    narrow = Target.parse("llvm -mcpu=skylake-avx512 -mattr=+prefer-256-bit")
    assert narrow.attrs == () and "prefer-256-bit" in narrow.features
    assert Target.parse(str(narrow)).channel_block == 16


def test_native_never_uses_what_the_machine_lacks():
    target = Target.parse("llvm -mcpu=native")
    assert target.cpu not in ("native", "")
    assert target.runs_here() and target.missing_here() == ()
    assert set(target.required_features()) <= (host.features() or set(target.required_features()))
    assert target == Target.parse(None) == Target.parse({"kind": "llvm", "mcpu": "native"})


@x86_only
def test_native_on_a_virtual_machine_that_masks_and_adds_features(monkeypatch):
    real = host.features()
    masked = frozenset({"64bit", "cmov", "cx8", "fxsr", "mmx", "sse", "sse2", "x87", "avx", "sse3"})
    masked |= {"ssse3", "sse4.1", "sse4.2", "crc32", "popcnt", "amx-tile"}
    monkeypatch.setattr(host, "features", lambda: masked)
    target = Target.parse("llvm -mcpu=native")
    assert set(target.required_features()) <= masked
    assert "amx-tile" in target.required_features(), "what the named CPU lacks is added"
    assert (target.channel_block, target.fma) == (8, False)
    assert target.runs_here() and Target.parse(str(target)) == target
    assert not Target.parse("llvm -mcpu=x86-64-v3").runs_here()
    assert real != masked


@x86_only
def test_code_for_another_cpu_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(host, "features", lambda: frozenset({"sse2", "avx", "avx2"}))
    target = Target.parse("llvm -mcpu=x86-64-v4")
    assert not target.runs_here()
    assert {"avx512f", "fma"} <= set(target.missing_here())
    assert "avx2" not in target.missing_here()
    # Caches of a machine we cannot see are the level's, not this machine's.
    assert (target.machine.l1, target.machine.l2) == (32 << 10, 1 << 20)


def test_another_architecture_does_not_run_here():
    other = "aarch64" if host.architecture() == "x86_64" else "x86_64"
    target = Target.parse(f"llvm -mtriple={other}-linux-gnu")
    assert target.arch == other
    assert target.missing_here() == (other,)


def test_machine_facts_are_sane():
    target = Target.parse("llvm -mcpu=native")
    assert 8 << 10 <= target.machine.l1 <= target.machine.l2
    assert target.machine.l3 > 0
    assert 1 <= target.machine.threads == host.cpu_count()


@x86_only
@pytest.mark.parametrize(
    "spec, message",
    [
        ("cuda", "unknown target kind 'cuda': bngen emits CPU code through LLVM"),
        ({"kind": "cuda"}, "bngen emits CPU code through LLVM"),
        ("znver4", "unknown target kind 'znver4'"),
        ("llvm -mcpv=native", "did you mean -mcpu?"),
        ("llvm -mcpu", "-mcpu needs a value"),
        ("llvm -mcpu=", "-mcpu needs a value"),
        ("llvm -mcpu=znver9", "did you mean znver5 or znver4"),
        ("llvm -mcpu=natvie", "did you mean native"),
        ("llvm -mcpu=??", "-mcpu=native is this machine"),
        ("llvm -mattr=avx2", "write -mattr=+a,-b"),
        ("llvm -mattr=+avx521f", "did you mean avx512f"),
        ("llvm -O3", "a target takes -mcpu, -mattr and -mtriple"),
        ("llvm native", "unknown target option 'native'"),
        ("llvm -mtriple=aarch65-linux-gnu", "did you mean aarch64"),
        ("llvm -mtriple=aarch64-linux-gnu -mcpu=native", "which is not aarch64-linux-gnu"),
        ("llvm -mtriple=aarch64-linux-gnu -mcpu=znver4", "no aarch64 CPU named 'znver4'"),
        ('{"kind": "llvm"', "not valid JSON"),
        ({"kind": "llvm", "fast-math": True}, "unknown target option 'fast-math'"),
        ({"kind": "llvm", "mcpu": 4}, "target option 'mcpu' cannot be 4"),
        ("llvm -mcpu='x", "cannot read target"),
        ("", "the target is empty"),
    ],
    ids=str,
)
def test_a_wrong_target_is_one_line_with_a_remedy(spec, message, capfd):
    with pytest.raises(TargetError) as caught:
        Target.parse(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == "", "LLVM must not be asked about names it does not know"


def test_importing_the_module_does_not_import_tvm():
    code = (
        "import bngen.target.parse, bngen.runtime.host, sys, json;"
        "print(json.dumps([m for m in ('tvm', 'torch', 'numpy') if m in sys.modules]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == []


def test_targets_are_frozen_values():
    target = Target.parse("llvm")
    machine = replace(target.machine, threads=target.machine.threads + 1)
    assert replace(target, machine=machine) != target
    with pytest.raises(AttributeError):
        target.cpu = "znver4"
