"""The README's snippets, every one of them as it stands there; its commands are `tests/docs`'s."""

import contextlib
import copy
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


# --- Python: each block by itself, as a reader copies it --------------------------------------


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """The names after each block but the first, which is the one line that changes."""
    folder, after = tmp_path_factory.mktemp("readme"), []
    line, *sources = blocks("python")
    exec(line, {"torch": torch, "model": torch.nn.ReLU()})
    with contextlib.chdir(folder):
        for i, source in enumerate(sources):
            path = folder / f"block{i}.py"  # tracing names the user's lines, so there must be some
            path.write_text(source)
            names: dict[str, Any] = {}
            exec(compile(source, str(path), "exec"), names)
            after.append(names)
    return after


def test_the_models_gradients_are_eagers(session):
    model, images = session[0]["model"], session[0]["images"]
    plain = copy.deepcopy(model)  # which is not compiled
    assert all(p.grad is not None for p in model.parameters())
    torch.testing.assert_close(model.eval()(images), plain.eval()(images))


def test_the_first_program_is_right(session, capsys):
    names = session[1]
    graph = names["cpl"].graph
    before = {i.name: names[i.name] for i in graph.inputs}
    before |= {"mean": np.zeros(128, np.float32), "var": np.ones(128, np.float32)}
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
