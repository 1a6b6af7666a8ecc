"""What an installation of bngen gives: metadata, package data, documents that tell the truth."""

import re
import tomllib
import zipfile
from pathlib import Path

from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement

from bngen import options
from bngen.version import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()


def between(start: str, end: str) -> str:
    return README.split(f"<!-- {start} -->\n", 1)[1].split(f"<!-- {end} -->", 1)[0]


def test_readme_holds_the_generated_option_table():
    shown = between("options: generated from bngen/options.py", "end of options")
    assert shown == options.markdown_table()


def test_readme_holds_the_generated_debug_ladder():
    shown = between("debug ladder: generated from bngen/options.py", "end of debug ladder")
    assert shown == options.debug_table()


def test_readme_names_every_fusion_level_in_order():
    section = README.split("## Fusion levels")[1].split("\n## ")[0]
    levels = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert tuple(levels) == options.FUSION_CHOICES


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
    assert pins["torch"] == "2.13.0"
    for name, version in pins.items():
        assert version in ranges[name].specifier, f"{name}=={version}"


def test_torch_is_an_extra():
    assert not any(r.startswith("torch") for r in PROJECT["dependencies"])
    assert any(r.startswith("torch") for r in PROJECT["optional-dependencies"]["torch"])


def test_wheel_carries_the_schedules(tmp_path):
    (name,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    files = set(zipfile.ZipFile(name).namelist())
    assert f"bngen-{__version__}" in Path(name).name
    assert {"bngen/cli.py", "bngen/_schedules/README.md"} <= files
    records = {f"bngen/_schedules/{p.name}" for p in (ROOT / "schedules").glob("*.toml")}
    assert records <= files
    assert not any(f.startswith(("schedules/", "tests/")) for f in files)
