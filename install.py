"""Install bngen here, with PyTorch in its CPU build or not at all.

usage: python install.py [--index URL] [--any-torch] EXTRAS

The wheels of PyTorch that pip finds for Linux by itself are built for CUDA and bring gigabytes of
libraries that a compiler for CPUs never loads. `constraints.txt` names the CPU build by its local
version, ``+cpu``, so that pip cannot take another. Here pip is asked beforehand, without
downloading anything, whether it finds that build; if not, one line says where there is one.

This is what ``make`` runs, in the Python of its own environment; it needs the standard library.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent
CONSTRAINTS = ROOT / "constraints.txt"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
"""Where else to look for the build."""

Pip = Callable[..., "subprocess.CompletedProcess[str]"]


def pinned(package: str = "torch") -> str:
    """The version that `CONSTRAINTS` names, ``2.13.0+cpu``."""
    text = CONSTRAINTS.read_text(encoding="utf-8")
    return re.search(rf"^{package}==(\S+)$", text, re.MULTILINE)[1]


def versions(pip: Pip, *words: str) -> set[str]:
    """The versions of PyTorch that pip finds; ``words`` are more of its options."""
    listed = pip("index", "versions", "torch", *words, capture_output=True, text=True)
    line = re.search(r"^Available versions: (.*)$", listed.stdout or "", re.MULTILINE)
    return set(re.split(r",\s*", line[1].strip())) if line else set()


def obstacle(pip: Pip, where: Sequence[str]) -> str:
    """Why the CPU build cannot be installed; "" if it can.

    Args:
        pip: runs pip with the words it is given.
        where: options that say where to look.
    """
    wanted = pinned()
    if wanted in versions(pip, *where):
        return ""
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    other = next(
        (p for p in PYTHONS if p != own and wanted in versions(pip, *where, "--python-version", p)),
        None,
    )
    elsewhere = f"; or take Python {other}, for which there is one: make PYTHON=python{other}"
    return (
        f"pip finds no CPU build of PyTorch (torch {wanted}) for Python {own}; nothing was "
        "installed (name the index of CPU builds that PyTorch's installation page gives: "
        f"make INDEX=URL, or PIP_EXTRA_INDEX_URL=URL{elsewhere if other else ''}; or take any "
        "build, with gigabytes of CUDA if it has them: make TORCH=any)"
    )


def installed() -> bool:
    """Whether the build is there already."""
    try:
        return importlib.metadata.version("torch") == pinned()
    except importlib.metadata.PackageNotFoundError:
        return False


def run_pip(*words: str, **how: object) -> subprocess.CompletedProcess[str]:
    """Pip of this Python's environment."""
    return subprocess.run([sys.executable, "-m", "pip", *words], **how)


def main(argv: Sequence[str] | None = None, pip: Pip = run_pip) -> int:
    """Ask, then install; the exit status: 0, 2 when refused, or pip's own."""
    parser = argparse.ArgumentParser(description="Install bngen, with PyTorch in its CPU build.")
    parser.add_argument("extras", help="of pyproject.toml, comma separated: torch, bench, dev")
    parser.add_argument("--index", metavar="URL", help="where pip looks besides its own index")
    parser.add_argument("--any-torch", action="store_true", help="take any build of that version")
    asked = parser.parse_args(argv)
    where = ["--extra-index-url", asked.index] if asked.index else []
    if not asked.any_torch and not installed() and (reason := obstacle(pip, where)):
        print(f"install: {reason}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        constraints = CONSTRAINTS
        if asked.any_torch:
            constraints = Path(folder) / CONSTRAINTS.name
            text = CONSTRAINTS.read_text(encoding="utf-8")
            constraints.write_text(text.replace("+cpu", ""), encoding="utf-8")
        what = ["-c", str(constraints), "-e", f"{ROOT}[{asked.extras}]"]
        return pip("install", *where, *what).returncode


if __name__ == "__main__":
    sys.exit(main())
