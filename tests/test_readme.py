"""The README's first example, compiled and run as it stands there."""

import json
import re
from pathlib import Path

import numpy as np

import bngen
from bngen.bench import page
from bngen.ir import interp
from bngen.ir.text import parse_graph
from tests.oracle import assert_close, torch_run

ROOT = Path(__file__).parents[1]


def example(number: int) -> str:
    """The README's Python blocks, in order."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[number]


def test_the_measurements_are_those_of_the_files(pytestconfig):
    """``pytest --update-golden`` writes them anew after ``make bench``."""
    names = ("latest.json", "batch32.json", "kernels.json", "startup.json")
    paths = [p for p in (ROOT / "benchmarks" / name for name in names) if p.exists()]
    text = page.measured({p.name: json.loads(p.read_text()) for p in paths})
    readme = (ROOT / "README.md").read_text()
    if pytestconfig.getoption("--update-golden"):
        (ROOT / "README.md").write_text(page.with_section(readme, text))
    assert page.section((ROOT / "README.md").read_text()) == text


def test_the_training_example_runs_and_learns(tmp_path):
    source, path = example(2), tmp_path / "training.py"
    path.write_text(source)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 64)
    images = rng.standard_normal((64, 1, 8, 8)).astype(np.float32)
    names = {"bg": bngen, "x": images, "labels": labels}
    exec(compile(source, str(path), "exec"), names)
    assert {"conv.weight", "bn.weight", "bn.bias", "fc.weight", "fc.bias"} <= set(names["grads"])
    later = [float(names["step"](images, labels)) for _ in range(10)]
    assert later[-1] < float(names["loss"])


def test_the_example_runs_and_is_right(tmp_path, capsys):
    source = example(0)
    path = tmp_path / "example.py"
    path.write_text(source)
    rng = np.random.default_rng(0)
    shapes = {"x": (8, 64, 56, 56), "w1": (128, 64, 1, 1), "w2": (32, 128, 3, 3)}
    shapes |= dict.fromkeys(("mean", "var", "gamma", "beta"), (128,))
    names = {k: rng.uniform(0.1, 1.0, s).astype(np.float32) for k, s in shapes.items()}
    before = {k: v.copy() for k, v in names.items()}
    exec(compile(source, str(path), "exec"), names)

    graph = names["cpl"].graph
    assert parse_graph(capsys.readouterr().out) == graph
    torch32, exact = torch_run(graph, before), interp.run(graph, before, "float64")
    assert_close(names["out"], torch32.outputs[0], exact.outputs[0], "out")
    for name in ("mean", "var"):
        assert_close(names[name], torch32.updates[name], exact.updates[name], name)
