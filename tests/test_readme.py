"""The README's snippets, every one of them as it stands there; its commands are `tests/docs`'s."""

import contextlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bngen.ir import interp
from bngen.ir.text import parse_graph
from tests.oracle import assert_close, torch_run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The README's fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_every_block_is_of_a_language_that_is_run_here():
    # A block without a language is a drawing.
    assert set(re.findall(r"^```(\w+)$", README, re.MULTILINE)) == {"python", "sh"}


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
        {"x": images, "labels": rng.integers(0, 10, 64)},
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


def test_the_training_example_learns(session):
    names = session[2]
    images, labels = names["x"], names["labels"]
    later = [float(names["step"](images, labels)) for _ in range(10)]
    assert later[-1] < float(names["loss"])


def test_it_is_short():
    """What is no start, and no table of results, is in `docs`."""
    assert len(README.splitlines()) <= 200
