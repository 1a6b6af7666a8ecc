"""The documentation: snippets run, what is shown is so, tables are the sources', links lead on."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from bngen import models, options
from tests.docs.after import AFTER
from tests.docs.shown import with_shown
from tests.readme import page as measured

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NAMES = [str(p.relative_to(DOCS)) for p in PAGES]
GENERATED = {"reference.md"}
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_snippets_run_and_what_is_shown_is_so(page, tmp_path, pytestconfig):
    """``pytest --update-golden`` writes what is shown anew."""
    names: dict[str, object] = {}
    with contextlib.chdir(tmp_path):
        for i, source in enumerate(blocks(page, "python")):
            path = tmp_path / f"block{i}.py"  # tracing names the user's lines
            path.write_text(source)
            exec(compile(source, str(path), "exec"), names)
    text = page.read_text()
    made = with_shown(text, names)
    if pytestconfig.getoption("--update-golden"):
        page.write_text(made)
    assert page.read_text() == made
    after = AFTER.get(str(page.relative_to(DOCS)))
    if after:
        after(names)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=[*NAMES, "README.md"])
def test_links_lead_somewhere(page):
    for target in filter(None, (a or b for a, b in LINK.findall(page.read_text()))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name}: {target}"  # as it lies there, before a site is made
        if anchor and there.suffix == ".md" and there.exists():
            assert anchor in headings(there), f"{page.name}: {target}"


def headings(page: Path) -> set[str]:
    found = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in found}


# --- tables that are made ---------------------------------------------------------------------


def between(page: str, start: str, end: str) -> str:
    return (DOCS / page).read_text().split(f"<!-- {start} -->\n", 1)[1].split(f"<!-- {end} -->")[0]


def test_the_option_table_is_the_sources():
    shown = between("command.md", "options: generated from bngen/options.py", "end of options")
    assert shown == options.markdown_table()


def test_the_debug_ladder_is_the_sources():
    marks = "debug ladder: generated from bngen/options.py", "end of debug ladder"
    assert between("command.md", *marks) == options.debug_table()


def test_every_fusion_level_is_named_in_order():
    section = (DOCS / "how" / "fusion.md").read_text().split("## Fusion levels")[1]
    levels = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert tuple(levels) == options.FUSION_CHOICES


def test_the_networks_are_listed():
    page = (DOCS / "command.md").read_text()
    rows = re.findall(r"^\| (?:images|each pixel) \| (.*) \|$", page, re.MULTILINE)
    assert ", ".join(rows).split(", ") == list(models.PUBLIC)


MEASURED = "emeraldrapids"
FILES = ("steps.json", "batch32.json", "kernels.json", "startup.json")
"""Files of ``benchmarks/`` that the page shows: of one machine."""


def test_the_measurements_are_those_of_the_files(pytestconfig):
    """``pytest --update-golden`` writes them anew after ``make bench``."""
    folder = ROOT / "benchmarks" / MEASURED
    files = {p.name: json.loads(p.read_text()) for p in (folder / name for name in FILES)}
    text = measured.measured({f"{MEASURED}/{name}": file for name, file in files.items()})
    path = DOCS / "performance.md"
    if pytestconfig.getoption("--update-golden"):
        path.write_text(measured.with_section(path.read_text(), text))
    assert measured.section(path.read_text()) == text


def of_docs(name: str) -> ModuleType:
    """A module that makes parts of the documentation."""
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(DOCS))


@pytest.fixture
def ablation():
    return of_docs("ablation")


def test_the_ablation_is_the_files(ablation, pytestconfig):
    """``python docs/ablation.py`` writes it, and draws its plots."""
    page = DOCS / "see.md"
    made = ablation.with_section(page.read_text(), ablation.section(ablation.recorded()))
    if pytestconfig.getoption("--update-golden"):
        page.write_text(made)
    assert page.read_text() == made
    if ablation.recorded():
        assert all((DOCS / "pictures" / f"ablation-{x}.png").exists() for x in ("time", "traffic"))


def test_an_ablation_is_shown_beside_the_paper(ablation):
    """Of the file that is recorded for its traffic."""
    report = json.loads((ROOT / "benchmarks" / "traffic.json").read_text())
    text = ablation.section(report)
    for word in ("25.7 %", "operations a byte", "+ICF", "| CONV |", "cachegrind", "2 MiB"):
        assert word in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows and all(row.endswith("|") for row in rows)
    page = ablation.with_section(f"a\n{ablation.BEGIN}old{ablation.END}\nb", text)
    assert page == f"a\n{ablation.BEGIN}{text}{ablation.END}\nb"


PROFILE = {
    "program": "densenet121", "fusion": "icf", "threads": 2,
    "machine": {"cpus": 2, "model": "EPYC", "cpu": "znver4"},
    "limits": {"gflops": 240.0, "gbytes": 44.0}, "step": {"step": 0.5},
    "kernels": [
        {"call": call, "work": work, "seconds": 0.1, "nbytes": nbytes, "operations": operations}
        for call, work, nbytes, operations in (
            ("forward", "CONV", 1 << 20, 10**9), ("backward", "BN", 1 << 20, 10**6),
            ("backward", "copy", 0, 0),
        )
    ],
}  # fmt: skip


def test_profiles_are_the_files(pytestconfig):
    """``python docs/profiles.py`` writes them, and draws their pictures."""
    profiles, page = of_docs("profiles"), DOCS / "see.md"
    made = profiles.with_section(page.read_text(), profiles.section(profiles.recorded()))
    if pytestconfig.getoption("--update-golden"):
        page.write_text(made)
    assert page.read_text() == made
    if profiles.recorded():
        pictures = (DOCS / "pictures" / f"{x}-measured.png" for x in ("roofline", "timeline"))
        assert all(p.exists() for p in pictures)


def test_profiles_are_drawn_and_told(tmp_path):
    profiles = of_docs("profiles")
    both = [{**PROFILE, "fusion": "none", "step": {"step": 0.6}}, PROFILE]
    text = profiles.section(both)
    assert "600 ms at `none` and 500 ms at `icf`" in text and "240 GFLOP/s, 44.0 GB/s" in text
    for draw in (profiles.roofline, profiles.timeline):
        draw(both, tmp_path / "x.png")
        assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


# --- the site ---------------------------------------------------------------------------------


def test_every_page_is_in_the_navigation():
    listed = re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text())
    assert sorted(listed) == sorted([*NAMES, *GENERATED])


def test_the_reference_tells_of_every_public_function():
    """Built with the site; here its text alone."""
    import bngen

    reference = of_docs("reference")
    text = reference.page()
    for names in reference.homes().values():
        for name in names:
            assert f"\n### {name}\n" in text and getattr(bngen, name).__doc__
    for home in reference.TITLES:
        assert home in reference.homes(), f"{home} is no home of public names any more"


def test_the_site_builds_without_warnings(tmp_path):
    why = "mkdocs-material is not installed: pip install '.[docs]'"
    pytest.importorskip("material", reason=why)
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},  # its news are no warnings of ours
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert (tmp_path / "reference.html").exists()
