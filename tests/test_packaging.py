"""What an installation of bngen gives: metadata, package data, documents that tell the truth."""

import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement

from bngen.version import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()


def test_readme_links_exist():
    links = re.findall(r"\]\(([^)]+)\)", README)
    missing = [x for x in links if not x.startswith("http") and not (ROOT / x).exists()]
    assert links and not missing


def test_ranges_exclude_the_ffi_that_crashes():
    ffi = next(r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "apache-tvm-ffi")
    assert "0.1.14.post0" in ffi.specifier
    assert "0.1.15" not in ffi.specifier
    assert "0.1.15.post1" not in ffi.specifier


def test_constraints_lie_within_the_ranges():
    extras = [r for rows in PROJECT["optional-dependencies"].values() for r in rows]
    ranges = {r.name: r for r in map(Requirement, [*PROJECT["dependencies"], *extras])}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert pins["torch"] == "2.13.0+cpu"  # which no CUDA build is
    for name, version in pins.items():
        assert version in ranges[name].specifier, f"{name}=={version}"


PACKAGES = {"sklearn": "scikit-learn"}
"""What is imported -> who brings it, where the two are called otherwise."""


def brought_by(extra: str) -> set[str]:
    """Packages that ``pip install '.[extra]'`` names, those of the extras in it included."""
    found = {r.name for r in map(Requirement, PROJECT["dependencies"])}
    for row in map(Requirement, PROJECT["optional-dependencies"][extra]):
        found |= {p for e in row.extras for p in brought_by(e)} or {row.name}
    return found


def test_an_extra_brings_what_it_is_for():
    assert brought_by("dev") >= set().union(*map(brought_by, PROJECT["optional-dependencies"]))
    assert "torch" in brought_by("docs")  # the reference tells of every public name
    examples = list((ROOT / "examples").glob("*.py"))
    for path in examples:
        names = re.findall(r"^ *(?:import|from) (\w+)", path.read_text(), re.MULTILINE)
        others = set(names) - sys.stdlib_module_names - {"bngen", *(p.stem for p in examples)}
        assert {PACKAGES.get(n, n) for n in others} <= brought_by("examples"), path.name


def test_torch_is_an_extra():
    assert not any(r.startswith("torch") for r in PROJECT["dependencies"])
    assert any(r.startswith("torch") for r in PROJECT["optional-dependencies"]["torch"])


# --- what make installs -----------------------------------------------------------------------

OWN = f"{sys.version_info.major}.{sys.version_info.minor}"
LISTED = "torch (2.15.0)\nAvailable versions: 2.15.0, {}2.13.0, 2.12.1\n  INSTALLED: 2.15.0\n"


@pytest.fixture
def install(monkeypatch) -> ModuleType:
    """`install.py`, in an environment without PyTorch."""
    spec = importlib.util.spec_from_file_location("install", ROOT / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "installed", lambda: False)
    return module


class Pip:
    """An index that has the CPU build for some Pythons; ``asked`` is what pip was told to do."""

    def __init__(self, *pythons: str, status: int = 0):
        self.pythons, self.status, self.asked = pythons, status, []
        self.constraints = ""

    def __call__(self, *words: str, **how: object) -> SimpleNamespace:
        self.asked.append(words)
        if words[0] == "install":
            self.constraints = Path(words[words.index("-c") + 1]).read_text()
            return SimpleNamespace(returncode=self.status)
        assert words[:3] == ("index", "versions", "torch")
        python = words[words.index("--python-version") + 1] if "--python-version" in words else OWN
        return SimpleNamespace(
            returncode=0, stdout=LISTED.format("2.13.0+cpu, " if python in self.pythons else "")
        )

    @property
    def installs(self) -> list[tuple[str, ...]]:
        return [words for words in self.asked if words[0] == "install"]


def test_a_cpu_build_is_installed_by_its_name(install):
    pip = Pip(OWN)
    assert install.main(["torch,bench"], pip) == 0
    (words,) = pip.installs
    assert words[-1] == f"{ROOT}[torch,bench]"
    assert "torch==2.13.0+cpu\n" in pip.constraints


def test_without_a_cpu_build_nothing_is_installed(install, capsys):
    pip = Pip()
    assert install.main(["torch"], pip) == 2
    assert pip.installs == []
    (line,) = capsys.readouterr().err.splitlines()
    assert f"no CPU build of PyTorch (torch 2.13.0+cpu) for Python {OWN}; nothing" in line
    assert "make INDEX=URL" in line and "PIP_EXTRA_INDEX_URL" in line and "make TORCH=any" in line
    assert "make PYTHON=" not in line  # there is none that would help


def test_another_python_that_has_a_cpu_build_is_named(install, capsys):
    other = next(p for p in install.PYTHONS if p != OWN)
    assert install.main(["torch"], Pip(other)) == 2
    assert f"make PYTHON=python{other}" in capsys.readouterr().err


def test_the_index_of_cpu_builds_is_handed_to_pip(install):
    pip = Pip(OWN)
    assert install.main(["torch", "--index", "https://index.example"], pip) == 0
    assert all("https://index.example" in words for words in pip.asked)


def test_any_build_is_taken_when_asked_for(install):
    pip = Pip()
    assert install.main(["torch", "--any-torch"], pip) == 0
    assert "torch==2.13.0\n" in pip.constraints and len(pip.asked) == 1


def test_what_is_installed_already_is_not_asked_for_again(install, monkeypatch):
    monkeypatch.setattr(install, "installed", lambda: True)
    pip = Pip()
    assert install.main(["torch"], pip) == 0 and len(pip.asked) == 1


def test_the_status_of_pip_is_that_of_the_installation(install):
    assert install.main(["torch"], Pip(OWN, status=1)) == 1


def test_an_index_that_says_nothing_has_nothing(install):
    def silent(*words: str, **how: object) -> SimpleNamespace:
        return SimpleNamespace(returncode=1, stdout="")

    assert install.versions(silent) == set()


def recipe(*words: str, folder: Path) -> str:
    """What make would do, with an environment in a folder."""
    command = ["make", "-n", *words, f"VENV={folder}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("command", "extras"),
    [("run", "torch"), ("bench", "torch,bench"), ("bench-startup", "torch,bench"), ("test", "dev"),
     ("docs", "docs")],
)  # fmt: skip
def test_make_installs_what_its_command_needs(command, extras, tmp_path):
    assert f"install.py  '{extras}'\n" in recipe(command, folder=tmp_path)
    (tmp_path / ".installed-dev").touch()  # newer than what it depends on
    assert "install.py" not in recipe(command, folder=tmp_path)


def test_make_hands_on_where_pytorch_comes_from(tmp_path):
    assert "install.py --index URL 'torch'" in recipe("run", "INDEX=URL", folder=tmp_path)
    assert "install.py --any-torch 'torch'" in recipe("run", "TORCH=any", folder=tmp_path)


def test_a_failed_installation_leaves_no_stamp(tmp_path):
    """A Python that says it is too old: make stops before anything is installed."""
    command = ["make", "run", "PYTHON=false", f"VENV={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "bngen needs Python 3.11 or newer" in done.stderr
    assert list(tmp_path.iterdir()) == []


# --- the wheel --------------------------------------------------------------------------------


def test_wheel_carries_the_schedules(tmp_path):
    (name,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    files = set(zipfile.ZipFile(name).namelist())
    assert f"bngen-{__version__}" in Path(name).name
    assert {"bngen/cli/main.py", "bngen/_schedules/README.md"} <= files
    records = {f"bngen/_schedules/{p.name}" for p in (ROOT / "schedules").glob("*.toml")}
    assert records <= files
    assert not any(f.startswith(("schedules/", "tests/")) for f in files)
