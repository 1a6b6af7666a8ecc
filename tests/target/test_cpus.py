"""Traits of CPUs: rows by name and features, and what is measured of the machine at hand."""

from dataclasses import replace

import pytest

from bngen.target import cpus, llvm, measured
from bngen.target.cpus import PAIRS, TILES, TRAITS, traits_of
from bngen.target.parse import Target

NATIVE = Target.parse("llvm -mcpu=native")


@pytest.mark.parametrize("row", TRAITS, ids=lambda r: f"{r.arch} {' '.join(r.cpus) or r.needs}")
def test_llvm_has_the_cpus_of_a_row_and_they_fit_it(row):
    triple = None if row.arch == NATIVE.arch else f"{row.arch}-linux-gnu"
    for cpu in row.cpus:
        llvm.check_cpu(cpu, triple)
        features = llvm.features_of(cpu, (), triple)
        assert row.needs <= features
        assert replace(traits_of(row.arch, cpu, features), pairs=None, tiles=None) == row


def test_each_row_is_reached():
    for i, row in enumerate(TRAITS):
        cpu = row.cpus[0] if row.cpus else ""
        assert traits_of(row.arch, cpu, row.needs) is row, i


def test_a_core_that_features_tell_counts_for_more_than_its_name():
    masked = traits_of("x86_64", "rocketlake", {"avx", "avx512f", "avx512fp16"})
    assert masked.multiply_add_units == 2
    assert traits_of("x86_64", "rocketlake", {"avx", "avx512f"}).multiply_add_units == 1


@pytest.mark.skipif(not NATIVE.fma, reason="multiply and add are two instructions here")
@pytest.mark.parametrize(("in_flight", "units"), [(3.7, 1), (5.2, 1), (7.1, 2), (8.3, 2), (15, 4)])
def test_the_machine_at_hand_corrects_its_row(monkeypatch, in_flight, units):
    monkeypatch.setattr(measured, "_MEASURED", {})
    monkeypatch.setattr(measured, "in_flight", lambda traits, target: in_flight)
    row = cpus.Traits("x86_64", frozenset(), 64, 32)
    assert measured.corrected(row, None).multiply_add_units == units


@pytest.mark.skipif(not NATIVE.loads_here() or NATIVE.arch != "x86_64", reason="needs x86-64")
@pytest.mark.skipif(not NATIVE.fma, reason="multiply and add are two instructions here")
@pytest.mark.parametrize("system", ["pc-windows-msvc", "apple-darwin", "linux-gnu"])
def test_what_is_run_to_measure_is_code_for_this_system(monkeypatch, system):
    targets = []
    monkeypatch.setattr(measured, "_MEASURED", {})
    monkeypatch.setattr(measured, "in_flight", lambda traits, target: targets.append(target) or 8.0)
    Target.parse(f"llvm -mtriple=x86_64-{system} -mcpu=haswell")
    (target,) = targets
    assert "mtriple" not in target.attrs
    assert target.attrs["mcpu"] == "haswell"


@pytest.mark.skipif(not NATIVE.fma, reason="multiply and add are two instructions here")
def test_what_is_measured_is_possible():
    assert 3 < measured.in_flight(NATIVE.machine.traits, NATIVE.tvm()) < 40


# --- pairs of bfloat16 --------------------------------------------------------------------------


def test_each_row_of_pairs_is_reached():
    for row in PAIRS:
        cpu = row.cpus[0] if row.cpus else ""
        assert traits_of("x86_64", cpu, row.needs | {"avx512f"}).pairs is row
        if cpu:
            assert row.needs <= llvm.features_of(cpu, (), "x86_64-linux-gnu")


@pytest.mark.parametrize(
    ("cpu", "attrs", "pays"),
    [
        ("znver4", "", True),
        ("znver5", "", True),
        ("znver4", "-avx512bf16", False),
        ("x86-64-v4", "", False),
        ("x86-64-v4", "+avx512bf16", False),
        ("sapphirerapids", "", False),
    ],
)
def test_pairs_pay_where_they_are_done_faster_than_multiply_adds(cpu, attrs, pays, monkeypatch):
    monkeypatch.setattr("bngen.target.parse.corrected", lambda traits, target: traits)
    traits = Target.parse(None, mcpu=cpu, mattr=attrs).machine.traits
    assert traits.pairs_pay == pays
    if pays:
        assert traits.of_pairs().multiply_adds_in_flight > traits.multiply_adds_in_flight


@pytest.mark.skipif("avx512bf16" not in NATIVE.features, reason="needs AVX512-BF16")
def test_what_is_measured_of_pairs_is_possible():
    assert measured.units_of_pairs(NATIVE.machine.traits, NATIVE.tvm()) in (0.5, 1, 2, 3, 4)


# --- tiles --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cpu", "attrs", "there"),
    [
        ("sapphirerapids", "", True),
        ("emeraldrapids", "", True),
        ("graniterapids", "", True),
        ("x86-64-v4", "+amx-bf16,+avx512bf16", True),  # a CPU that nobody has named
        ("sapphirerapids", "-amx-bf16", False),
        ("sapphirerapids", "-avx512bf16", False),
        ("x86-64-v4", "+amx-int8,+avx512bf16", False),
        ("znver5", "", False),
    ],
)
def test_features_tell_of_tiles(cpu, attrs, there):
    target = Target.parse(f"llvm -mtriple=x86_64-linux-gnu -mcpu={cpu}", mattr=attrs)
    assert target.machine.traits.tiles in (TILES if there else (None,))
