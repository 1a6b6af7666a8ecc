"""Every command that the README and the documentation show: understood, and run as it stands there.

A line runs in a folder of its own, where ``net.py`` lies, after those that it needs.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bngen.bench import counters, simulated
from bngen.cli.main import cli
from bngen.target.parse import Target
from tests.profiles import THOROUGH

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))


def lines_of(page: Path) -> list[str]:
    """The lines of a page's shell blocks, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    words = (shlex.split(line, comments=True) for block in blocks for line in block.splitlines())
    return [shlex.join(w) for w in words if w]


LINES = list(dict.fromkeys(line for page in PAGES for line in lines_of(page)))
SMALL = {"BNGEN_BATCH": "2", "BNGEN_IMAGE": "64", "BNGEN_ROUNDS": "1"}
"""What a line does not say itself; networks are as deep as ever, images small."""

LONG = "takes half a minute or many; HYPOTHESIS_PROFILE=thorough runs it"
EXAMPLE = "the example is run in tests/test_examples.py"
MEASURES = "measures at full size; the commands that it runs are run here, too"

NOT_RUN = {
    "make run": "installs packages from the network; what it runs then is run here, too",
    "make test": "is this suite",
    "make docs": "the site is built in tests/docs/test_pages.py",
    "make bench": MEASURES,
    "make bench-startup": MEASURES,
    "bngen verify mobilenet_v2 --batch 2": LONG,
    "bngen build net.py:make --target 'llvm -mtriple=riscv64-linux-gnu -mcpu=sifive-u74' "
    "--out riscv": LONG,
    "bngen tune resnet50 --trials 40": LONG,
    "bngen tune densenet121 --trials 24": LONG,
    "bngen bench resnet50 mobilenet_v2 --against none,channels-last,compile --json r.json "
    "--plot plots": LONG,
    "bngen bench densenet121 --against none,channels-last --rounds 3": LONG,
    "bngen bench densenet121 --dtype bfloat16 --against backend-bf16,bf16,jemalloc-bf16": LONG,
    "bngen profile densenet121": LONG,
    "bngen profile resnet18 --trace trace.json --html profile.html": LONG,
    "bngen explain built": LONG,
    "bngen build resnet50 --batch 4 -mcpu znver4 --emit tir,ll,asm": LONG,
    "bngen build resnet18 --dtype bfloat16 --out half": LONG,
    "bngen ablate densenet121 resnet50 --batch 8 --scarce --traffic --json ablation.json "
    "--plot plots": LONG,
}
NOT_RUN |= {line: EXAMPLE for line in LINES if line.startswith("torchrun ")}
"""Lines that are not run here, or not always, and why; the report of pytest shows it."""

WRITES = {
    "bngen build --target llvm -mcpu=native": "bngen-out/densenet121/manifest.json",
    "bngen build resnet50 --batch 4 -mcpu znver4 --emit tir,ll,asm": "bngen-out/resnet50/asm",
    "bngen build net.py:make --out build/net --json": "build/net/manifest.json",
    "bngen build net.py:make --target 'llvm -mtriple=aarch64-linux-gnu -mcpu=neoverse-v1' "
    "--out arm": "arm/bundle.json",
    "bngen build net.py:make --target 'llvm -mtriple=riscv64-linux-gnu -mcpu=sifive-u74' "
    "--out riscv": "riscv/bundle.json",
    "bngen bench resnet50 mobilenet_v2 --against none,channels-last,compile --json r.json "
    "--plot plots": "plots/steps.png",
    "bngen explain resnet18 --grad --html resnet18.html": "resnet18.html",
    "bngen profile resnet18 --trace trace.json --html profile.html": "profile.html",
    "bngen build resnet18 --dtype bfloat16 --out half": "half/manifest.json",
    "bngen ablate densenet121 resnet50 --batch 8 --scarce --traffic --json ablation.json "
    "--plot plots": "plots/ablation-traffic.png",
}
"""What is there after a line, besides its exit status of 0."""

NEEDS = {"bngen explain built": "bngen build resnet18 --grad --out built"}
"""Lines that go on where another one has ended."""

COMMAND = (ROOT / "docs" / "command.md").read_text()
(NET,) = re.findall(r"^```python\n(.*?def make\(.*?)^```$", COMMAND, re.DOTALL | re.MULTILINE)
"""The ``net.py`` that lines name, as the page shows it."""


def test_the_tables_hold_lines_that_are_shown():
    assert {*NOT_RUN, *WRITES, *NEEDS, *NEEDS.values()} <= set(LINES)
    assert {x.split()[0] for x in LINES} == {"bngen", "make", "torchrun"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_page_says_each_line_once(page):
    found = lines_of(page)
    assert len(found) == len(set(found))


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("bngen ")])
def test_every_line_is_understood(line):
    _, name, *words = shlex.split(line)
    with cli.make_context("bngen", [name, *words]) as context:
        command = cli.get_command(context, name)
        command.make_context(name, words)  # raises on flags and values that there are not


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("make ")])
def test_every_target_of_make_is_there(line):
    done = subprocess.run(shlex.split(line) + ["-n"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", [x for x in LINES if x not in NEEDS.values()])
def test_every_line_runs(line, tmp_path):
    reason = NOT_RUN.get(line)
    if reason and not (reason == LONG and THOROUGH):
        pytest.skip(reason)
    if "--traffic" in line and counters.obstacle() and (missing := simulated.obstacle()):
        pytest.skip(missing)
    if "-mcpu znver4" in line and Target.parse("llvm -mcpu=native").channel_block < 16:
        pytest.skip("compiles for a CPU with AVX-512, which this machine does not have")
    (tmp_path / "net.py").write_text(NET)
    folder = Path(sys.executable).parent
    variables = {"PATH": f"{folder}:{os.environ['PATH']}", "OMP_WAIT_POLICY": "passive", **SMALL}
    for each in filter(None, (NEEDS.get(line), line)):
        done = subprocess.run(
            each, shell=True, cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    if line in WRITES:
        assert (tmp_path / WRITES[line]).exists()
    if line.endswith("--json"):
        assert json.loads(done.stdout)
