"""The documentation: snippets run, what is shown is so, commands are understood, links lead on."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bngen.cli.main import cli
from tests.docs.shown import with_shown

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


LINES = [
    (name, line)
    for name, page in zip(NAMES, PAGES, strict=True)
    for block in blocks(page, "sh")
    for line in block.splitlines()
]


@pytest.mark.parametrize(("page", "line"), LINES)
def test_every_command_is_understood(page, line):
    _, name, *words = shlex.split(line, comments=True)
    with cli.make_context("bngen", [name, *words]) as context:
        cli.get_command(context, name).make_context(name, words)


def test_a_command_that_compiles_nothing_runs():
    """Those that compile are run by the README's tests, and by `tests/cli` on small programs."""
    line = "bngen explain resnet18 --emit graph,plan --json"
    assert line in {line for _, line in LINES}
    command = [sys.executable, "-m", "bngen", *shlex.split(line)[1:], "--image", "32"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["program"] == "resnet18"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=[*NAMES, "README.md"])
def test_links_lead_somewhere(page):
    for target in filter(None, (a or b for a, b in LINK.findall(page.read_text()))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists() or Path(path).name in GENERATED, f"{page.name}: {target}"
        if anchor and there.suffix == ".md" and there.exists():
            assert anchor in headings(there), f"{page.name}: {target}"


def headings(page: Path) -> set[str]:
    found = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in found}


def test_every_page_is_in_the_navigation():
    listed = re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text())
    assert sorted(listed) == sorted([*NAMES, *GENERATED])


def test_the_reference_tells_of_every_public_function():
    """Built with the site; here its text alone."""
    sys.path.insert(0, str(DOCS))
    try:
        import reference
    finally:
        sys.path.remove(str(DOCS))
    import bngen

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
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert (tmp_path / "reference.html").exists()
