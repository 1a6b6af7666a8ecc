"""Every example runs, as a user runs it, and shows what it says it shows."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.profiles import THOROUGH
from tests.torch_bridge.installed import write_entry_points

SECONDS = 300 if THOROUGH else 60
EXAMPLES = Path(__file__).parents[1] / "examples"
RUN = """
import runpy, sys
from importlib.machinery import PathFinder

class NoTorch(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == "torch" else super().find_spec(name, path, target)

sys.meta_path = [NoTorch if finder is PathFinder else finder for finder in sys.meta_path]
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
assert "torch" not in sys.modules
"""


def run(name, *words):
    """Standard output of an example, in a process that finds no PyTorch."""
    command = [sys.executable, "-c", RUN, str(EXAMPLES / name), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here():
    source = Path(__file__).read_text()
    tested = set(re.findall(r'run\("(\w+\.py)"|EXAMPLES / "(\w+\.py)"', source))
    tested = {name for pair in tested for name in pair if name}
    assert tested == {p.name for p in EXAMPLES.glob("*.py")}
    gallery = (EXAMPLES.parent / "docs" / "gallery.md").read_text()
    assert all(f"`{name}`" in gallery for name in tested)


def test_first_program():
    out = run("first_program.py")
    assert out.startswith("program cpl {")
    assert "out float32[8, 32, 56, 56]" in out
    readme = (EXAMPLES.parent / "README.md").read_text()
    source = (EXAMPLES / "first_program.py").read_text()
    program = re.search(r"@bg\.program\n.*?padding=1\)\n", readme, re.DOTALL).group()
    assert program in source.replace("  # fmt: skip", "")


def test_handwritten_fission():
    out = run("handwritten_fission.py")
    counts = [int(n) for n in re.findall(r"(\d+) kernels", out)]
    assert counts[0] > counts[1] == counts[2]
    assert "the same result from all three" in out


def test_own_activation():
    out = run("own_activation.py")
    assert "with Hard Swish as with ReLU" in out
    # The activation's own arithmetic is inside a kernel whose anchor is the second convolution.
    assert re.search(r"minimum,.*conv2d", out)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"] if THOROUGH else ["float32"])
def test_train_digits(dtype):
    out = run("train_digits.py", "--dtype", dtype)
    assert float(re.search(r"test accuracy ([\d.]+)%", out).group(1)) >= 97


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def distributed(start, out, backend, *words, **env):
    small = ["--growth", "2", "--layers", "1", "1", "--size", "8", "--batch", "673"]
    command = [*start, str(EXAMPLES / "train_distributed.py"), *small, "--backend", backend]
    command += ["--sync-bn", "--out", str(out), *words]
    env = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", **env}
    env.pop("BNGEN_NO_CACHE", None)
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)


def losses(out, backend):
    epochs = json.loads((out / f"distributed-{backend}.json").read_text())["loss"]
    return [loss for epoch in epochs for loss in epoch]


@pytest.mark.parametrize("backend", ["eager", "bngen"] if THOROUGH else ["eager"])
def test_train_distributed(tmp_path, backend):
    """Two ranks with statistics of the whole batch are one process; killed, they go on.

    The last batch is of one image, so that the second rank has none.
    """
    cache = {"BNGEN_CACHE_DIR": str(tmp_path / "cache")}
    two, one = tmp_path / "two", tmp_path / "one"
    killed = distributed([*TORCHRUN, "2"], two, backend, "--epochs", "1000", **cache)
    try:
        assert killed.stdout.readline().startswith("epoch 0: loss ")
        ranks = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split()
        os.kill(int(ranks[-1]), signal.SIGKILL)
        assert killed.wait(SECONDS) != 0
    finally:
        killed.kill()
        killed.wait()
    done = len(torch.load(two / f"distributed-{backend}.pt")["log"]["accuracy"])
    words = backend, "--epochs", str(done + 2)
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    runs = [
        distributed([*TORCHRUN, "2"], two, *words, **cache),
        distributed([sys.executable], one, *words, **alone, **cache),
    ]
    assert [process.wait(SECONDS) for process in runs] == [0, 0]
    np.testing.assert_allclose(losses(two, backend), losses(one, backend), rtol=1e-3)


def test_train_torch(tmp_path):
    installed = write_entry_points(tmp_path / "site")
    path = os.pathsep.join([str(installed), str(EXAMPLES.parent)])
    # Compiled once, the second time from the cache.
    variables = {k: v for k, v in os.environ.items() if k != "BNGEN_NO_CACHE"}
    variables |= {"PYTHONPATH": path, "BNGEN_CACHE_DIR": str(tmp_path / "cache")}
    small = "--size 8 --layers 1 1 --growth 4 --batch 128 --out runs".split()

    def train(*words):
        command = [sys.executable, str(EXAMPLES / "train_torch.py"), *small, *words]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path,
            env=variables,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def losses(backend):
        return json.loads((tmp_path / "runs" / f"{backend}.json").read_text())["loss"]

    train("--backend", "eager", "--epochs", "2")
    train("--backend", "bngen", "--epochs", "1")
    assert "test accuracy" in train("--backend", "bngen", "--epochs", "2", "--resume")
    assert len(losses("eager")) == len(losses("bngen")) == 2 * 11
    # From the same seed the same curve, as far as rounding lets it.
    assert losses("bngen")[:3] == pytest.approx(losses("eager")[:3], rel=1e-3)
    assert losses("bngen")[-1] < losses("bngen")[0]
    (tmp_path / "runs" / "distributed-eager.json").write_text('{"loss": [[2.0, 1.0]]}')
    assert "wrote" in train("--plot")
    assert (tmp_path / "runs" / "training.png").exists()
