"""Reading the machine: cpuinfo, caches, affinity, quotas, on files as Linux writes them."""

import os

import pytest

from bngen.runtime import host


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def cache(folder, index, level, kind, size, sharers):
    for name, text in zip(
        ("level", "type", "size", "shared_cpu_list"), (level, kind, size, sharers), strict=True
    ):
        write(folder / f"index{index}" / name, text)


def test_caches_are_per_core_and_leave_instructions_out(tmp_path):
    cache(tmp_path, 0, "1", "Data", "48K", "0,4")
    cache(tmp_path, 1, "1", "Instruction", "32K", "0,4")
    cache(tmp_path, 2, "2", "Unified", "2M", "0,4")
    cache(tmp_path, 3, "3", "Unified", "32768K", "0-7")
    # Two hardware threads a core: eight CPUs are four cores.
    assert host._read_caches(tmp_path) == host.Caches(48 << 10, 2 << 20, 8 << 20)


def test_a_machine_without_l3_counts_on_its_l2(tmp_path):
    cache(tmp_path, 0, "1", "Data", "32K", "0")
    cache(tmp_path, 1, "2", "Unified", "1024K", "0-3")
    assert host._read_caches(tmp_path) == host.Caches(32 << 10, 256 << 10, 256 << 10)


def test_no_cache_information_is_none(tmp_path):
    assert host._read_caches(tmp_path) is None


@pytest.mark.parametrize("text, count", [("0", 1), ("0-3", 4), ("0-1,8-9", 4), ("0,2,4", 3)])
def test_cpu_lists(text, count):
    assert host._count_cpus(text) == count


def test_flags_are_those_of_every_cpu():
    text = "processor : 0\nflags\t\t: sse2 avx avx2\n\nprocessor : 1\nflags\t\t: sse2 avx\n"
    assert host._cpuinfo_flags(text) == {"sse2", "avx"}
    assert host._cpuinfo_flags("Features\t: fp asimd\n") == {"fp", "asimd"}
    isa = host._cpuinfo_flags("isa\t\t: rv64imafdcv_zicntr_zba_zvfh\n")
    assert {"i", "m", "a", "f", "d", "c", "v", "zba", "zve32x", "zve64d", "zvfhmin"} <= isa
    assert {"i", "m", "f", "d", "zmmul"} <= host._cpuinfo_flags("isa : rv64gc\n") - {"v", "zba"}
    assert host._cpuinfo_flags("no such thing") == frozenset()


def test_quota_of_the_innermost_to_the_outermost_group_v2(tmp_path):
    write(tmp_path / "a/b/cpu.max", "max 100000")
    write(tmp_path / "a/cpu.max", "150000 100000")
    write(tmp_path / "cpu.max", "400000 100000")
    assert host._cgroup_quota(tmp_path, "0::/a/b") == 1.5
    assert host._cgroup_quota(tmp_path, "0::/") == 4.0
    # Inside a container the path may be the outside's.
    assert host._cgroup_quota(tmp_path, "0::/not/here") == 4.0


def test_quota_v1(tmp_path):
    write(tmp_path / "cpu/pod/cpu.cfs_quota_us", "250000")
    write(tmp_path / "cpu/pod/cpu.cfs_period_us", "100000")
    write(tmp_path / "cpu/cpu.cfs_quota_us", "-1")
    write(tmp_path / "cpu/cpu.cfs_period_us", "100000")
    assert host._cgroup_quota(tmp_path, "3:cpuset:/\n2:cpu,cpuacct:/pod\n0::/") == 2.5
    assert host._cgroup_quota(tmp_path, "2:cpu,cpuacct:/") is None


def test_cpu_count_respects_affinity_and_quota(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    monkeypatch.setattr(host, "_cgroup_quota", lambda *_: None)
    assert host.cpu_count() == 6
    monkeypatch.setattr(host, "_cgroup_quota", lambda *_: 2.5)
    assert host.cpu_count() == 3
    monkeypatch.setattr(host, "_cgroup_quota", lambda *_: 64.0)
    assert host.cpu_count() == 6
    monkeypatch.setattr(host, "_cgroup_quota", lambda *_: 0.2)
    assert host.cpu_count() == 1


def test_missing_features_ignore_tuning_hints(monkeypatch):
    monkeypatch.setattr(host, "architecture", lambda: "x86_64")
    monkeypatch.setattr(host, "features", lambda: frozenset({"avx2"}))
    required = ["avx2", "fma", "prefer-256-bit", "fast-gather"]
    assert host.missing_features("x86_64", required) == ("fma",)
    assert host.missing_features("aarch64", []) == ("aarch64",)
    monkeypatch.setattr(host, "features", lambda: None)
    assert host.missing_features("x86_64", required) == ()
