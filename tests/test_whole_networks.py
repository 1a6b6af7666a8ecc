"""One training step of whole networks on small images; `whole_network` also runs larger ones."""

import numpy as np
import pytest

from tests import whole_network
from tests.profiles import takes_long
from tests.whole_network import compare, findings, main, median, table


@pytest.mark.parametrize(
    ("name", "batch", "image"),
    [
        pytest.param("resnet18", 2, 48, marks=takes_long("takes half a minute")),
        pytest.param("tiny_unet_bilinear", 2, 22, marks=takes_long("takes a while")),
        ("tiny_densenet", 3, 32),
        pytest.param("tiny_mobilenet", 3, 32, marks=takes_long("tiny_mobilenet_v3 is like it")),
        ("tiny_mobilenet_v3", 4, 32),
        pytest.param("tiny_vgg", 3, 32, marks=takes_long("the others have what it has")),
    ],
)
def test_a_step_is_that_of_pytorch(name, batch, image):
    found = compare(name, batch, image)
    assert sum(f.name.startswith("grad ") for f in found) > 10
    assert sum(f.name.endswith("running_var") for f in found) > 2
    assert all(f.ok for f in found), "\n" + table(found)


def step(error=0.0):
    exact = {"loss": np.array(2.0), "grad w": np.array([1.0, 4.0])}
    return {n: (a + error * np.arange(a.size).reshape(a.shape)) for n, a in exact.items()}


@pytest.mark.parametrize(
    ("error", "ok"), [(0.0, True), (3.9e-3, True), (4.1e-3, False), (np.nan, False)]
)
def test_the_rule_is_applied(error, ok):
    loss, gradient = findings(step(error), [step(1e-4), step(1e-3)], step())
    assert gradient.ok is ok
    assert gradient.theirs == pytest.approx(1e-3)
    assert loss.ok or np.isnan(error)


def test_one_batch_of_three_may_meet_a_kink():
    judged = [list(findings(step(e), [step(1e-4)], step()))[1] for e in (1e-4, 0.5, 2e-4)]
    assert median(judged).ok
    assert not median([judged[1], judged[0], judged[1]]).ok
    broken = list(findings(step(np.nan), [step(1e-4)], step()))[1]
    assert not median([broken, judged[0], broken]).ok


def test_a_network_that_differs_fails_the_command(monkeypatch, capsys):
    def differing(*args):
        assert args == ("resnet18", 2, 32, "mvf", "llvm -mcpu=native", 3, 4)
        return list(findings(step(0.5), [step(1e-4)], step()))

    monkeypatch.setattr(whole_network, "compare", differing)
    assert main(["resnet18", "--batch", "2", "--image", "32", "--fusion", "mvf"]) == 1
    out = capsys.readouterr().out
    assert "exceeds" in out and "1 of 2 tensors within the tolerance rule" in out
