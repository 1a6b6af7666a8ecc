"""Whole builds in worlds that lack something: disks, rights, homes, compilers; the same numbers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOMEBODY = 12345
PROGRAM = """
import bngen as bg

@bg.program
def net(x: bg.Tensor[2, 6]):
    return bg.relu(bg.layers.linear(x, "head", 4))
"""
RUN = f"""
import logging, os, sys
sys.path.insert(0, {str(ROOT)!r})
import numpy as np
import bngen as bg
from bngen.runtime import threads
logging.basicConfig(format="%(message)s")
exec(open("net.py").read())
x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 6)
for _ in range(2):
    module = bg.build(net, grad=True).init(0)
    y = module(x)
    gradient = module.backward(np.ones_like(y))["head.weight"]
print(threads.install().split()[0], y.tobytes().hex(), gradient.tobytes().hex())
"""


@pytest.fixture
def world(tmp_path):
    """``world(CC=...)``: pool, numbers and warnings of a build, under these variables."""
    folder = tmp_path / "world"
    folder.mkdir()
    (folder / "net.py").write_text(PROGRAM)

    def run(*prefix, cache="", **variables):
        kept = {k: v for k, v in os.environ.items() if k not in ("BNGEN_NO_CACHE", "CC")}
        variables = {**kept, "BNGEN_CACHE_DIR": str(cache), **variables}
        done = subprocess.run(
            [*prefix, sys.executable, "-c", RUN], cwd=folder, capture_output=True, text=True,
            env={k: v for k, v in variables.items() if v is not None}, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        pool, *numbers = done.stdout.split()
        return pool, numbers, done.stderr.splitlines()

    run.folder = folder
    return run


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """What the program computes where nothing is amiss."""
    import numpy as np

    import bngen as bg

    names = {}
    exec(PROGRAM, names)
    module = bg.build(names["net"], grad=True, cache=False).init(0)
    y = module(np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 6))
    gradient = module.backward(np.ones_like(y))["head.weight"]
    return [y.tobytes().hex(), gradient.tobytes().hex()]


def test_nothing_may_be_executed_from_any_disk(world, numbers, tmpfs):
    cache, tmp = tmpfs("noexec"), tmpfs("noexec")
    for _ in range(2):
        pool, found, warnings = world(cache=cache, TMPDIR=str(tmp))
        assert (pool, found, warnings) == ("openmp", numbers, [])
    assert sorted(os.listdir(cache)) == ["making", "native", "programs", "targets"]
    assert os.listdir(tmp) == []


def test_full_and_read_only_disks(world, numbers, tmpfs):
    cache, tmp = tmpfs("ro"), tmpfs("size=8k")
    (tmp / "full").write_bytes(bytes(8192))
    pool, found, warnings = world(cache=cache, TMPDIR=str(tmp))
    assert found == numbers
    (line,) = warnings
    assert line.startswith(
        f"nothing is kept for the next time: cannot use the cache folder {cache}: Read-only file "
    )
    assert pool == "openmp"
    assert os.listdir(tmp) == ["full"]


def test_neither_compiler_nor_folder(world, numbers, tmp_path):
    (tmp_path / "file").write_text("")
    missing = str(tmp_path / "missing")
    pool, found, warnings = world(cache=tmp_path / "file", TMPDIR=missing, HOME=None, CC="'gcc")
    assert (pool, found) == ("tvm", numbers)
    assert all(len(line) < 300 for line in warnings)
    assert any(line.startswith("kernels run on TVM's thread pool") for line in warnings)
    assert not os.path.exists(missing)


def test_files_that_may_not_grow_are_one_line(world):
    """LLVM would end the process."""
    command = [sys.executable, "-m", "bngen.cli.main", "build", "net.py:net", "--no-cache"]
    done = subprocess.run(
        ["sh", "-c", 'ulimit -f 8; exec "$@"', "-", *command], cwd=world.folder,
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("bngen: error: files may not grow beyond ")


@pytest.fixture
def home(tmp_path):
    folder = tmp_path / "home"
    for inside in (folder / ".local" / "share", folder / ".cache"):
        inside.mkdir(parents=True)
    return folder


@pytest.fixture
def obeying():
    """A command prefix under which permissions count, as they do for everybody but root."""
    if os.geteuid():
        return []
    prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    try:
        subprocess.run([*prefix, sys.executable, "-c", ""], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"root cannot be made to obey permissions: {error}")
    return prefix


def test_a_home_that_cannot_be_read(world, numbers, home, obeying):
    unreadable = (home / ".local" / "share", home / ".cache")
    for folder in unreadable:
        folder.chmod(0)
    try:
        pool, found, warnings = world(*obeying, HOME=str(home), XDG_CACHE_HOME=None)
    finally:
        for folder in unreadable:
            folder.chmod(0o700)
    assert (pool, found) == ("openmp", numbers)
    told = " ".join(warnings)
    assert "the user's schedule records are not read" in told
    assert f"cannot use the cache folder {home}/.cache/bngen: Permission denied" in told


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files to another user")
def test_somebody_elses_home_is_not_trusted(world, numbers, home):
    """As root with the home of a user: what that user can put there is not run."""
    os.chown(home, SOMEBODY, SOMEBODY)
    pool, found, warnings = world(HOME=str(home), XDG_CACHE_HOME=None)
    assert (pool, found) == ("openmp", numbers)
    assert f"{home} belongs to another user ({SOMEBODY})" in " ".join(warnings)
    assert os.listdir(home / ".cache") == []
