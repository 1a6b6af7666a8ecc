"""The README's snippets, every one of them as it stands there, and its measurements."""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bngen as bg
from bngen.cli.main import cli
from bngen.ir import interp
from bngen.ir.text import parse_graph
from bngen.target.parse import Target
from tests.oracle import assert_close, torch_run
from tests.readme import page

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The README's fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_every_block_is_of_a_language_that_is_run_here():
    # A block without a language is a drawing.
    assert set(re.findall(r"^```(\w+)$", README, re.MULTILINE)) == {"python", "sh"}


def test_the_networks_are_listed():
    rows = re.findall(r"^\| (?:images|each pixel) \| (.*) \|$", README, re.MULTILINE)
    assert ", ".join(rows).split(", ") == list(bg.models.PUBLIC)


def test_the_measurements_are_those_of_the_files(pytestconfig):
    """``pytest --update-golden`` writes them anew after ``make bench``."""
    names = ("latest.json", "batch32.json", "kernels.json", "startup.json")
    paths = [p for p in (ROOT / "benchmarks" / name for name in names) if p.exists()]
    text = page.measured({p.name: json.loads(p.read_text()) for p in paths})
    if pytestconfig.getoption("--update-golden"):
        (ROOT / "README.md").write_text(page.with_section(README, text))
    assert page.section((ROOT / "README.md").read_text()) == text


# --- Python: one session, as a reader types it ------------------------------------------------


def small_model() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(inplace=True),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 10),
    )  # fmt: skip


def given() -> list[dict[str, Any]]:
    """What the reader has at hand before each block, besides what earlier ones have defined."""
    rng = np.random.default_rng(0)
    shapes = {"x": (8, 64, 56, 56), "w1": (128, 64, 1, 1), "w2": (32, 128, 3, 3)}
    shapes |= dict.fromkeys(("mean", "var", "gamma", "beta"), (128,))
    images = rng.standard_normal((64, 1, 8, 8)).astype(np.float32)
    return [
        {"model": small_model(), "torch": torch},
        {"model": small_model(), "images": torch.randn(8, 3, 16, 16), "classes": torch.arange(8)},
        {k: rng.uniform(0.1, 1.0, s).astype(np.float32) for k, s in shapes.items()},
        {},
        {"x": images, "labels": rng.integers(0, 10, 64)},
        {},
        {},
        {},
    ]


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """The names after each block."""
    folder, names, after = tmp_path_factory.mktemp("readme"), {}, []
    with contextlib.chdir(folder):
        for i, (source, inputs) in enumerate(zip(blocks("python"), given(), strict=True)):
            path = folder / f"block{i}.py"  # tracing names the user's lines, so there must be some
            path.write_text(source)
            names |= inputs
            exec(compile(source, str(path), "exec"), names)
            after.append(dict(names))
    return after[1:]  # the one line has no result


def test_the_models_gradients_are_eagers(session):
    names, first = session[0], given()[1]
    model, images = names["model"], first["images"]
    plain = small_model()
    plain.load_state_dict(model.state_dict())
    assert all(p.grad is not None for p in model.parameters())
    torch.testing.assert_close(model.eval()(images), plain.eval()(images))


def test_the_first_program_is_right(session, capsys):
    names, before = session[1], given()[2]
    graph = names["cpl"].graph
    print(graph)
    assert parse_graph(capsys.readouterr().out) == graph
    torch32, exact = torch_run(graph, before), interp.run(graph, before, "float64")
    assert_close(names["out"], torch32.outputs[0], exact.outputs[0], "out")
    for name in ("mean", "var"):
        assert_close(names[name], torch32.updates[name], exact.updates[name], name)


def test_declared_parameters_go_by_name(session):
    state = session[2]["mod"].state_dict()
    assert list(state) == ["denseblock1.weight"]
    assert np.array_equal(state["denseblock1.weight"], session[1]["w1"])


def test_the_training_example_learns(session):
    names = session[3]
    assert {"conv.weight", "bn.weight", "bn.bias", "fc.weight", "fc.bias"} <= set(names["grads"])
    images, labels = names["x"], names["labels"]
    later = [float(names["step"](images, labels)) for _ in range(10)]
    assert later[-1] < float(names["loss"])


def test_calls_that_wait_add_up(session):
    names = session[5]
    mod, x, labels = names["mod"], names["x"], names["labels"]
    expected = {name: 0 for name in names["grads"]}
    for images, classes in ((x[::-1], labels[::-1]), (x, labels)):
        mod(images, classes)
        expected = {name: expected[name] + g for name, g in mod.backward().items()}
    for name, gradient in names["grads"].items():
        np.testing.assert_array_equal(gradient, expected[name], err_msg=name)


def test_what_is_loaded_is_what_was_built(session):
    trained, loaded = session[3], session[6]
    again = bg.build(trained["net"], grad=True).init(0)
    assert loaded["loss"] == again(trained["x"], trained["labels"])
    with pytest.raises(bg.TargetError, match="aarch64 linux, and this machine is"):
        bg.load(loaded["arm"])


# --- the shell: each line by itself, in a folder of its own -----------------------------------

LINES = [
    shlex.join(words)
    for block in blocks("sh")
    for line in block.splitlines()
    if (words := shlex.split(line, comments=True))
]
SMALL = {"BNGEN_BATCH": "2", "BNGEN_IMAGE": "64", "BNGEN_ROUNDS": "1"}
"""What a line does not say itself; networks are as deep as ever, images small."""

LONG = "takes many minutes; HYPOTHESIS_PROFILE=thorough runs it"
EXAMPLE = "the example is run in tests/test_examples.py"

NOT_RUN = {
    "make run": "installs packages from the network; what it runs then is run here, too",
    "make test": "is this suite",
    "bngen tune resnet50 --trials 40": LONG,
    "bngen bench resnet50 mobilenet_v2 --against none,channels-last,compile --json r.json "
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
}
"""What is there after a line, besides its exit status of 0."""

NET = """
import bngen as bg

def make(batch=8, image=224):
    @bg.program
    def net(x: bg.Tensor[batch, 3, image, image], w: bg.Tensor[8, 3, 3, 3]):
        return bg.relu(bg.conv2d(x, w, padding=1))
    return net
"""


def test_the_tables_hold_lines_of_the_readme():
    assert {*NOT_RUN, *WRITES} <= set(LINES)
    assert len(LINES) == len(set(LINES))
    assert {x.split()[0] for x in LINES} == {"bngen", "make", "torchrun"}


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


@pytest.mark.parametrize("line", LINES)
def test_every_line_runs(line, tmp_path):
    thorough = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
    reason = NOT_RUN.get(line)
    if reason and not (reason == LONG and thorough):
        pytest.skip(reason)
    if "-mcpu znver4" in line and Target.parse("llvm -mcpu=native").channel_block < 16:
        pytest.skip("compiles for a CPU with AVX-512, which this machine does not have")
    (tmp_path / "net.py").write_text(NET)
    folder = Path(sys.executable).parent
    variables = {"PATH": f"{folder}:{os.environ['PATH']}", "OMP_WAIT_POLICY": "passive", **SMALL}
    done = subprocess.run(
        line, shell=True, cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if line in WRITES:
        assert (tmp_path / WRITES[line]).exists()
    if line.endswith("--json"):
        assert json.loads(done.stdout)
