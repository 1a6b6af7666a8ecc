"""Batch sizes: what comes back is built in the background; no step waits for a compiler."""

import copy
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import bngen
from bngen.errors import BngenError
from bngen.torch_bridge import backend as backend_module
from bngen.torch_bridge import builds
from bngen.torch_bridge.asked import Asked
from bngen.torch_bridge.region import Region
from tests.profiles import takes_long
from tests.torch_bridge.small import Net, images

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


@pytest.fixture
def alone():
    """A process group of this process."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def finish(own):
    """Wait for what is built in the background."""
    for running in list(own._running.values()):
        running._process.wait()


def train(model, sizes):
    for n in sizes:
        model(images(n, 3, 8, 8)).square().mean().backward()


@takes_long("what builds in the background lets all other tests go first")
@pytest.mark.parametrize("dynamic", [None, True, False])
def test_epochs_with_ragged_batches_and_validation(watched, dynamic, monkeypatch):
    """After the first epoch no step captures anything or waits for a build."""
    seen, own = watched
    captured, init = [], backend_module.Captured.__init__
    monkeypatch.setattr(
        backend_module.Captured, "__init__", lambda *a, **k: captured.append(0) or init(*a, **k)
    )
    model = Net()
    model.compile(backend=backend_module.backend, dynamic=dynamic)
    epochs = []
    for _ in range(3):
        before = {**seen, "captured": len(captured)}
        train(model.train(), [4] * 20 + [3])
        with torch.no_grad():
            for n in [4] * 5 + [1]:
                model.eval()(images(n, 3, 8, 8))
        finish(own)
        if own._running:  # one at a time: the other ragged size is asked for now
            train(model.train(), [3])
            with torch.no_grad():
                model.eval()(images(1, 3, 8, 8))
            finish(own)
        now = {**seen, "captured": len(captured)}
        epochs.append({k: now[k] - before[k] for k in now})
    # The first sizes of training and of validation are compiled at once, the ragged ones later.
    assert [e["now"] for e in epochs] == [2, 0, 0]
    assert sum(e["later"] for e in epochs) == 2
    assert [e["captured"] for e in epochs[1:]] == [0, 0] and epochs[0]["captured"] <= 4
    assert epochs[2]["calls"] == 20 + 1 + 5 + 1


def test_a_size_that_comes_once_is_not_built(watched):
    seen, _ = watched
    model = bngen.compile(Net())
    train(model, [4, 2, 3, 5])
    assert (seen["now"], seen["later"], seen["calls"]) == (1, 0, 1)


def test_where_dynamo_cuts_a_model_a_ragged_batch_waits_for_no_build(watched, alone, monkeypatch):
    """At the borders of buckets, of which each layer is one: its parts come with fake weights."""
    seen, own = watched
    monkeypatch.setattr(torch.distributed, "_DEFAULT_FIRST_BUCKET_BYTES", 1)
    parallel = DistributedDataParallel(Net(), bucket_cap_mb=1 / 2**20)
    model = torch.compile(parallel, backend=backend_module.backend)
    train(model, [4])
    parts = seen["now"]
    assert parts > 1 and seen["calls"] == parts
    train(model, [3])
    assert (seen["now"], seen["later"], seen["calls"]) == (parts, 0, parts)
    train(model, [3])
    assert (seen["now"], seen["later"], seen["calls"]) == (parts, 1, parts)


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


ENDS = {
    "returns": "",
    "raises": "raise SystemExit(1)",
    "is killed": "os.kill(os.getpid(), 9)",
}
ASKING = """
import os
from bngen.torch_bridge import builds
from bngen.torch_bridge.asked import Asked
builds._BUILD = (
    "import sys, time; from bngen.torch_bridge import asked;"
    "asked._build = lambda *_: time.sleep(600); asked.serve(int(sys.argv[1]))"
)
asked = Asked("", (), (), 1)
builds.BUILDS.later(asked)
(running,) = builds.BUILDS._running.values()
print(running._process.pid, flush=True)
if os.fork() == 0:  # as DataLoader's workers are: nothing runs there, and nothing is ended
    with builds.BUILDS._lock:
        assert builds.BUILDS.ready(asked) is None and not builds.BUILDS._failed
    raise SystemExit(7)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 7
assert running._process.poll() is None
"""


@pytest.mark.parametrize("end", ENDS)
def test_nothing_outlives_the_process_that_asked(end, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", ASKING + ENDS[end]], capture_output=True, text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == {"returns": 0, "raises": 1, "is killed": -9}[end], done.stderr
    assert not list(tmp_path.iterdir())
    deadline = time.monotonic() + 30
    while _lives(done.stdout.strip()):
        assert time.monotonic() < deadline, "the process in the background is still there"
        time.sleep(0.02)


def _lives(pid):
    """Whether there is such a process, and not only what nobody has asked after its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("python", ["", "/no/python"])
def test_without_a_python_to_start(python, monkeypatch, caplog):
    own, asked = builds.Builds(), Asked("", (), (), 1)
    monkeypatch.setattr(sys, "executable", python)
    for _ in range(2):
        own.later(asked)
    assert own.ready(asked) is None
    (record,) = caplog.records
    assert "this size runs in PyTorch: " in record.getMessage()
    assert (python or "is no Python") in record.getMessage()


def test_what_builds_does_without_pytorch():
    program = "import sys, bngen.torch_bridge.builds; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_more_sizes_than_dynamo_takes(watched):
    model = Net()
    model.compile(backend=backend_module.backend, dynamic=False)
    with torch._dynamo.config.patch(recompile_limit=2):
        for n in range(1, 6):
            train(model.eval(), [n, n])


def test_more_graphs_than_dynamo_takes(watched):
    model = bngen.compile(Net())
    with torch._dynamo.config.patch(recompile_limit=1):
        for training in (True, False):
            with torch.set_grad_enabled(training):
                model.train(training)(images())
    assert watched[0]["calls"] == 2


# --- failure ----------------------------------------------------------------------------------


def broken(*_args, **_kwargs):
    raise ZeroDivisionError("by a test")


def test_what_fails_on_types_alone_is_left_to_pytorch(monkeypatch):
    monkeypatch.setattr("torch.fx.passes.fake_tensor_prop.FakeTensorProp.run_node", broken)
    model, x = Net().eval(), images()
    reason = "cannot be evaluated on types: ZeroDivisionError: by a test"
    assert reason in str(bngen.explain_model(copy.deepcopy(model), x))
    torch._dynamo.reset()
    assert torch.equal(bngen.compile(copy.deepcopy(model))(x), model(x))


@pytest.mark.parametrize("where", ["builds.build", "translate.translate", "region.Region"])
def test_a_mistake_inside_names_the_models_line(where, monkeypatch):
    home, name = where.split(".")
    module = __import__(f"bngen.torch_bridge.{home}", fromlist=[name])
    if where == "region.Region":
        monkeypatch.setattr(backend_module, name, broken)
    else:
        monkeypatch.setattr(module, name, broken)
    monkeypatch.setattr(backend_module, "BUILDS", builds.Builds())
    x = images()
    torch._dynamo.reset()
    with pytest.raises(BngenError, match=r"ZeroDivisionError: by a test") as error:
        bngen.compile(Net())(x)
    if where != "region.Region":
        assert "small.py:" in str(error.value)
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
