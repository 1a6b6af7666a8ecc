"""The zoo's own workings, on a small model: torchvision and timm need not be installed."""

import sys

import pytest
import torch
from torch import nn

from tests import zoo, zoo_fallback, zoo_models
from tests.torch_bridge.small import Net


class Small(Net):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 1000)


class Branched(Small):
    """One call in the middle that bngen lacks, and a number that no vector is made for."""

    def features(self, x):
        x = super().features(x)
        return torch.cumsum(x * x.mean().exp(), 1)


@pytest.fixture
def models(monkeypatch):
    made = {"small": Small, "branched": Branched}
    monkeypatch.setattr(zoo_models, "libraries", lambda: None)
    monkeypatch.setattr(zoo_models, "make", lambda name: made[name]())


def test_what_is_missing_is_said_in_a_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert zoo.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install" in line and "torchvision" in line


def test_a_model_that_agrees_and_one_that_cannot_be_run(models, capsys, tmp_path):
    out = tmp_path / "rows.json"
    arguments = ["small", "unknown", "--image", "8", "--seeds", "1", "--json", str(out)]
    assert zoo.main(arguments) == 1
    _, small, unknown, *_ = capsys.readouterr().out.splitlines()
    assert "agrees" in small and "1 of 1" in small
    assert unknown.split(maxsplit=1) == ["unknown", "fails: KeyError: 'unknown'"]
    assert out.read_text().count('"name"') == 2


def test_what_is_wrong_exceeds():
    exact = {"grad a.weight": torch.ones(3, dtype=torch.float64), "count": torch.tensor(3)}
    single = {"grad a.weight": torch.ones(3), "count": torch.tensor(3)}
    assert all(f.ok for f in zoo.findings(single, [single], exact))
    for wrong in (1.001, float("nan")):
        ours = {**single, "grad a.weight": single["grad a.weight"] * wrong}
        assert [f.ok for f in zoo.findings(ours, [single], exact)] == [False, True]
    off = {**single, "count": torch.tensor(4)}
    assert [f.ok for f in zoo.findings(off, [single], exact)] == [True, False]


def test_the_share_of_kernels_without_a_schedule(models):
    share = zoo_fallback.shares("branched", 2, 8)
    assert 0 < share.share < 1 and 0 < share.kernels[0] < share.kernels[1]
    assert sum(part for _, part in share.ops) <= share.share + 1e-9
    assert "branched" in share.text()
