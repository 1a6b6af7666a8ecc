"""Batch sizes: what comes back is built in the background; no step waits for a compiler."""

import logging
import subprocess
import sys
import time

import pytest
import torch

import bngen
from bngen.errors import BngenError
from bngen.torch_bridge import backend as backend_module
from bngen.torch_bridge import builds
from bngen.torch_bridge.region import Region
from tests.torch_bridge.test_backend import Net, images

pytestmark = pytest.mark.usefixtures("compiling")


@pytest.fixture
def watched(monkeypatch):
    """Builds that a step has waited for, builds in the background, calls of regions."""
    seen = {"now": 0, "later": 0, "calls": 0}
    own = builds.Builds()
    build, running, forward = builds.build, builds._Running, Region.forward

    def counted_build(*args, **kwargs):
        seen["now"] += 1
        return build(*args, **kwargs)

    def counted_running(asked):
        seen["later"] += 1
        return running(asked)

    def counted_forward(self, *tensors):
        seen["calls"] += 1
        return forward(self, *tensors)

    monkeypatch.setattr(builds, "build", counted_build)
    monkeypatch.setattr(builds, "_Running", counted_running)
    monkeypatch.setattr(backend_module, "BUILDS", own)
    monkeypatch.setattr(Region, "forward", counted_forward)
    yield seen, own
    own.stop()


def finish(own):
    """Wait for what is built in the background."""
    for running in list(own._running.values()):
        running._process.wait()


def train(model, sizes):
    for n in sizes:
        model(images(n, 3, 8, 8)).square().mean().backward()


@pytest.mark.parametrize("dynamic", [None, False, True])
def test_a_ragged_last_batch_and_validation(watched, dynamic):
    seen, own = watched
    model = Net()
    model.compile(backend=backend_module.backend, dynamic=dynamic)
    for _ in range(3):
        train(model.train(), [4, 4, 3])
        with torch.no_grad():
            model.eval()(images(2, 3, 8, 8))
            model(images(2, 3, 8, 8))
        finish(own)
    # The first sizes of training and of validation are compiled at once, the ragged batch later.
    assert seen["now"] == 2
    assert seen["later"] == 1
    calls = seen["calls"]
    train(model.train(), [4, 3])
    assert seen["calls"] == calls + 2


def test_a_size_that_comes_once_is_not_built(watched):
    seen, _ = watched
    model = bngen.compile(Net())
    train(model, [4, 2, 3, 5])
    assert (seen["now"], seen["later"], seen["calls"]) == (1, 0, 1)


def test_a_failed_background_build_is_told_once(watched, monkeypatch, caplog):
    seen, own = watched
    model = bngen.compile(Net())
    train(model, [4])
    monkeypatch.setattr(builds, "_BUILD", "raise SystemExit('no room')")
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            train(model, [3])
            finish(own)
    (record,) = (r for r in caplog.records if r.name.startswith("bngen"))
    assert "no room" in record.getMessage()
    assert (seen["now"], seen["later"], seen["calls"]) == (1, 1, 1)


def test_nothing_is_left_at_exit(tmp_path):
    source = """
import sys, bngen, torch
from bngen.torch_bridge import builds
from tests.torch_bridge.test_backend import Net
builds._BUILD = "import time; time.sleep(600)"
model = bngen.compile(Net())
for n in (4, 3, 3, 3):
    model(torch.randn(n, 3, 8, 8)).sum().backward()
(running,) = builds.BUILDS._running.values()
print(running._process.pid)
"""
    import os

    folder = tmp_path / "tmp"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not [p for p in folder.iterdir() if p.name.startswith("bngen-")]
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.kill(int(done.stdout), 0)
        except ProcessLookupError:
            return
    raise AssertionError("the process in the background is still there")


def test_more_sizes_than_dynamo_takes(watched):
    model = Net()
    model.compile(backend=backend_module.backend, dynamic=False)
    with torch._dynamo.config.patch(recompile_limit=2):
        for n in range(1, 6):
            train(model.eval(), [n, n])


# --- failure ----------------------------------------------------------------------------------


def broken(*_args, **_kwargs):
    raise ZeroDivisionError("by a test")


@pytest.mark.parametrize(
    "where", ["builds.build", "translate.translate", "evaluation.statistics", "region.Region"]
)
def test_a_mistake_inside_names_the_models_line(where, monkeypatch):
    home, name = where.split(".")
    module = __import__(f"bngen.torch_bridge.{home}", fromlist=[name])
    if where == "evaluation.statistics":
        monkeypatch.setattr("torch.fx.passes.fake_tensor_prop.FakeTensorProp.run_node", broken)
    elif where == "region.Region":
        monkeypatch.setattr(backend_module, name, broken)
    else:
        monkeypatch.setattr(module, name, broken)
    monkeypatch.setattr(backend_module, "BUILDS", builds.Builds())
    x = images()
    torch._dynamo.reset()
    with pytest.raises(BngenError, match=r"ZeroDivisionError: by a test") as error:
        bngen.compile(Net())(x)
    if where != "region.Region":
        assert "test_backend.py:" in str(error.value)
    monkeypatch.setenv("BNGEN_FALLBACK", "1")
    torch._dynamo.reset()
    model = bngen.compile(Net().eval())
    plain = Net().eval()
    plain.load_state_dict(model.state_dict())
    with pytest.warns(UserWarning, match="runs in PyTorch"):
        out = model(x)
    assert torch.equal(out, plain(x))
    model(x).sum().backward()


def test_only_modules_are_compiled():
    with pytest.raises(BngenError, match="takes a torch.nn.Module, not a int"):
        bngen.compile(3)
    with pytest.raises(BngenError, match="takes a torch.nn.Module, not a int"):
        bngen.explain_model(3)
