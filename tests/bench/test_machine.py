"""What the machine is, and what of it is free."""

from bngen.bench import machine
from bngen.target.parse import Target


def test_available_memory_is_the_least_of_machine_and_group(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(machine, "_field", lambda path, name: "4096 kB")
    assert machine.available_bytes() == 4 << 20  # no group
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert machine.available_bytes() == 4 << 20  # no limit
    (tmp_path / "memory.max").write_text("1500\n")
    assert machine.available_bytes() == 500
    (tmp_path / "memory.max").write_text("900\n")
    assert machine.available_bytes() == 0
    monkeypatch.setattr(machine, "_field", lambda path, name: "")
    assert machine.available_bytes() == 0  # nobody knows


def test_variables_that_openmp_and_allocators_read_are_told(monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    monkeypatch.setenv("SECRET", "x")
    told = machine.describe(Target.parse())["variables"]
    assert told["GOMP_SPINCOUNT"] == "7" and "SECRET" not in told
