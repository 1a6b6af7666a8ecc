"""Hypothesis profiles and golden files for the whole suite."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# What a test compiles it compiles anew, and keeps nothing in the user's folders.
os.environ["BNGEN_NO_CACHE"] = "1"
# Tests share the CPUs among themselves.
os.environ["BNGEN_JOBS"] = "1"

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=4, derandomize=True, **_COMMON)
settings.register_profile("thorough", max_examples=1000, print_blob=True, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden")


def pytest_collection_modifyitems(items):
    """What takes longest begins first: at the end one process would go on with it alone."""
    items.sort(key=lambda item: item.path.name != "test_examples.py")


@pytest.fixture
def tmpfs(tmp_path):
    """``tmpfs("ro", ...)``: a new small file system, mounted with these options."""
    mounted = []

    def mount(*options: str) -> Path:
        folder = tmp_path / f"mounted{len(mounted)}"
        folder.mkdir()
        words = ",".join(("mode=700", *options))
        command = ["mount", "-t", "tmpfs", "-o", words, "tmpfs", str(folder)]
        try:
            subprocess.run(command, capture_output=True, text=True, check=True)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"may not mount: {error.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def golden(request):
    """``golden(text)`` compares with tests/golden/<file>/<test>.txt, or rewrites that file."""
    stem = re.sub(r"[^\w.-]+", "_", request.node.name)
    path = Path(__file__).parent / "golden" / request.path.stem / f"{stem}.txt"

    def check(text: str) -> None:
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.exists(), f"no {path.name}: run pytest --update-golden and look at the result"
        assert text == path.read_text()

    return check


@pytest.fixture
def homeless(monkeypatch):
    """A user of whom the system knows no home."""

    def unknown(_):
        raise KeyError

    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
