"""What must hold once the snippets of a page have run, besides what they assert themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

import bngen as bg
from bngen.ir import interp
from tests.oracle import assert_close, torch_run

Names = Mapping[str, Any]


def language(names: Names) -> None:
    """The first program is right, updates in place, and parameters go by name."""
    arrays = {k: names[k] for k in ("x", "w1", "gamma", "beta", "w2")}
    before = {**arrays, "mean": np.zeros(128, np.float32), "var": np.ones(128, np.float32)}
    graph = names["cpl"].graph
    torch32, exact = torch_run(graph, before), interp.run(graph, before, "float64")
    assert_close(names["out"], torch32.outputs[0], exact.outputs[0], "out")
    for name in ("mean", "var"):
        assert_close(names[name], torch32.updates[name], exact.updates[name], name)
    state = names["mod"].state_dict()
    assert list(state) == ["denseblock1.weight"]
    assert np.array_equal(state["denseblock1.weight"], names["w1"])


def training(names: Names) -> None:
    """Gradients have the names of parameters, and steps learn."""
    assert {"conv.weight", "bn.weight", "bn.bias", "fc.weight", "fc.bias"} <= set(names["grads"])
    later = [float(names["step"](names["x"], names["labels"])) for _ in range(10)]
    assert later[-1] < float(names["loss"])


def calls(names: Names) -> None:
    """Gradients of calls that waited add up to those of calls one after the other."""
    mod, x, labels = names["mod"], names["x"], names["labels"]
    expected = {name: 0 for name in names["grads"]}
    for images, classes in ((x[::-1], labels[::-1]), (x, labels)):
        mod(images, classes)
        expected = {name: expected[name] + g for name, g in mod.backward().items()}
    for name, gradient in names["grads"].items():
        np.testing.assert_array_equal(gradient, expected[name], err_msg=name)


def bundles(names: Names) -> None:
    """What is loaded is what was built; what is another machine's is refused."""
    again = bg.build(names["net"], grad=True).init(0)
    assert names["loss"] == again(names["x"], names["labels"])
    with pytest.raises(bg.TargetError, match="aarch64 linux, and this machine is"):
        bg.load(names["arm"])


AFTER: dict[str, Callable[[Names], None]] = {
    "language.md": language,
    "training.md": training,
    "calls.md": calls,
    "bundles.md": bundles,
}
