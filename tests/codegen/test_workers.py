"""Processes that compile: their code is that of threads, whatever starts and whatever ends them."""

import logging
import os
import signal
import subprocess
import sys

import pytest

import bngen as bg
from bngen.codegen import workers
from bngen.codegen.compile import compile_plan
from bngen.passes.prepare import join_gradient, prepare
from bngen.target.parse import Target
from tests.profiles import takes_long

TARGET = Target.parse()


@bg.program
def net(x: bg.Tensor[2, 16, 8, 8], w: bg.Tensor[16, 16, 3, 3]):
    y = bg.batch_norm(bg.conv2d(x, w, padding=1), None, None, training=True)
    return bg.mean(bg.relu(y) ** 2)


PLAN = prepare(join_gradient(net.graph), TARGET.channel_block).planned.plan


def machine_code(**options):
    return [c.code.machine_code for c in compile_plan(PLAN, TARGET, **options)]


@pytest.fixture
def few(monkeypatch):
    """Processes for as few kernels; they end with the test."""
    monkeypatch.setattr(workers, "LEAST", 1)
    monkeypatch.setattr(workers, "FEWEST", 2)
    yield
    for running in workers._running:
        running.executor.shutdown(kill_workers=True)
    workers._running.clear()


@pytest.fixture(scope="module")
def here():
    """What this process makes of each kernel."""
    return machine_code(jobs=1)


def test_code_is_that_of_this_process(few, here):
    compiled = compile_plan(PLAN, TARGET, jobs=2)
    assert all(c.code.kept is None for c in compiled)
    assert [c.code.machine_code for c in compiled] == here
    assert "ret" in compiled[0].code.text("asm")
    assert all(c.code.kept for c in compile_plan(PLAN, TARGET, jobs=2, here=True))


def test_what_a_process_was_killed_over_is_done_here(few, here, caplog):
    caplog.set_level(logging.INFO)
    pool = workers.processes(2)
    pool.submit(os.getpid).result()
    for pid in list(pool._processes):
        os.kill(pid, signal.SIGKILL)
    assert machine_code(jobs=2) == here
    assert workers.processes(2) is not pool, "new ones begin"


def test_where_none_can_be_started(few, here, caplog, monkeypatch):
    def refused(_):
        raise OSError("no semaphores here")

    monkeypatch.setattr(workers, "_started", refused)
    caplog.set_level(logging.INFO)
    assert machine_code(jobs=2) == here
    assert "compiled in this process: no semaphores here" in caplog.text


def test_a_fork_has_none_of_its_parents(few):
    pool = workers.processes(2)
    child = os.fork()
    if not child:
        os._exit(workers.processes(2) is pool)
    assert os.waitpid(child, 0)[1] == 0
    assert workers.processes(2) is pool


SCRIPT = """
import bngen as bg
from bngen.codegen import workers

print("once")
workers.LEAST, workers.FEWEST = 1, 2
x = bg.Tensor[2, 16, 8, 8]
module = bg.build(bg.trace(lambda x: bg.relu(x).mean((2, 3)), x), grad=True)
assert workers._running
"""


@takes_long("loads the compiler three times")
def test_a_script_needs_no_guard(tmp_path):
    """What the standard library's processes would run again."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True,
        env={**os.environ, "BNGEN_JOBS": "2"},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "once\n", "")
