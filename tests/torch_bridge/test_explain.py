"""What is taken of a model, and why not the rest; and how PyTorch finds the backend."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import bngen
from bngen.torch_bridge import backend as backend_module
from tests.torch_bridge.installed import write_entry_points
from tests.torch_bridge.small import Net, images

pytestmark = pytest.mark.usefixtures("compiling")


class Odd(Net):
    def forward(self, x):
        y = self.features(x)
        y = torch.cumsum(y, 1)
        y = self.bn2(self.conv2(y))
        return self.fc(F.adaptive_avg_pool2d(y, 1).flatten(1))


class Residual(Net):
    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        z = self.bn2(self.conv2(y))
        z += y
        z = self.relu(z)  # in place, on what a call in place has made
        return F.max_pool2d(self.conv2(z) + z, 2)


def test_calls_in_place_one_after_another_stay_in_one_region():
    assert len(bngen.explain_model(Residual(), images()).regions) == 1


def test_what_is_left_is_named_with_its_line():
    explanation = bngen.explain_model(Odd(), images())
    text = str(explanation)
    line = Odd.forward.__code__.co_firstlineno + 2
    assert f"cumsum at {__file__}:{line}: bngen has no cumsum" in text
    assert "\n  3x Tensor.add_: it counts batches" in text
    assert text.startswith("bngen takes ") and "in 2 regions of 1 graph" in text
    assert len(explanation.regions) == 2


def test_regions_are_explained_with_the_models_names():
    explanation = bngen.explain_model(Net(), images())
    (report,) = explanation.reports("llvm -mcpu=x86-64-v3")
    assert set(report.totals) == {"forward", "backward"}
    assert {"conv1", "bn1", "conv2", "bn2", "fc"} <= {k.layer for k in report.kernels}
    lines = {s.line for k in report.kernels for s in k.sublayers if s.op == "conv2d"}
    assert len(lines) == 2 and all("small.py:" in line for line in lines)
    text = explanation.text("llvm -mcpu=x86-64-v3", "bnff")
    assert text.startswith(str(explanation)) and "bngen_0 at bnff" in text
    assert "<title>bngen_0 at icf</title>" in explanation.html(target="llvm -mcpu=x86-64-v3")
    with pytest.raises(bngen.BngenError, match="unknown fusion level 'all'"):
        explanation.reports(fusion="all")
    with pytest.raises(bngen.BngenError, match="no region 1: bngen takes 1"):
        explanation.html(1)


def test_nothing_changes():
    model = Odd()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    bngen.explain_model(model, images())
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model._compiled_call_impl is None
    torch.set_rng_state(state)
    torch.randn(4, 3, 8, 8)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    bngen.explain_model(model, images())
    assert torch.equal(torch.get_rng_state(), after)


def test_a_compiled_model_stays_compiled(monkeypatch):
    model = bngen.compile(Net())
    x = images()
    model(x)
    compiled = torch.compile(Net(), backend=backend_module.backend)
    captures = []
    monkeypatch.setattr(backend_module, "Captured", lambda *a, **k: captures.append(a))
    for m in (model, compiled):
        assert len(bngen.explain_model(m, x).regions) == 1
    model(x)
    assert not captures


def test_only_inference_is_asked():
    with torch.no_grad():
        explanation = bngen.explain_model(Net().eval(), images())
    assert len(explanation.regions) == 1


def test_debug_prints_it(monkeypatch, capsys):
    monkeypatch.setenv("BNGEN_DEBUG", "1")
    bngen.compile(Net())(images())
    assert "bngen takes " in capsys.readouterr().err


# --- the entry point --------------------------------------------------------------------------


def test_pytorch_finds_the_backend_without_importing_it(tmp_path):
    folder = write_entry_points(tmp_path)
    source = f"""
import sys
sys.path.insert(0, {str(folder)!r})
import torch
assert "bngen" in torch._dynamo.list_backends()
assert "bngen" not in sys.modules
compiled = torch.compile(torch.nn.Linear(2, 2), backend="bngen")
print(tuple(compiled(torch.ones(1, 2)).shape))
assert "bngen.torch_bridge.backend" in sys.modules and "tvm" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 2)"
