"""What the numbers were measured on: CPU, counts, versions. Out: a dictionary for the JSON."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from bngen.runtime import host
from bngen.target.parse import Target

_PACKAGES = ("apache-tvm", "torch", "numpy")
_VARIABLES = ("OMP_", "GOMP_", "KMP_", "MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
_CGROUP = Path("/sys/fs/cgroup")


def describe(target: Target) -> dict[str, Any]:
    """The machine and the versions of what runs on it."""
    return {
        "cpu": target.cpu,
        "model": _model(),
        "isa": target.psabi,
        "lanes": target.channel_block,
        "cpus": host.cpu_count(),
        "caches": {level: getattr(target.machine, level) for level in ("l1", "l2", "l3")},
        "memory_bytes": _memory(),
        "system": f"{platform.system()} {platform.release()}",
        "versions": {"python": platform.python_version(), **_versions()},
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_VARIABLES)},
    }


def available_bytes() -> int:
    """Memory that can still be had without pressing anybody out of his; 0 if nobody knows."""
    free = _bytes(_field(Path("/proc/meminfo"), "MemAvailable"))
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no such group, or no limit: its text is "max"
        return free
    return min(free, max(0, limit - used))


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _model() -> str:
    return _field(Path("/proc/cpuinfo"), "model name") or platform.processor() or "unknown CPU"


def _memory() -> int:
    return _bytes(_field(Path("/proc/meminfo"), "MemTotal"))


def _bytes(kibibytes: str) -> int:
    return int(kibibytes.split()[0]) << 10 if kibibytes else 0


def _field(path: Path, name: str) -> str:
    if not path.exists():
        return ""
    rows = (line.partition(":") for line in path.read_text().splitlines())
    return next((value.strip() for key, _, value in rows if key.strip() == name), "")
