"""Traffic by the machine's counters, with a stand-in for perf."""

from __future__ import annotations

import contextlib
import os
import sys
import time

import pytest

from bngen.bench import counters
from bngen.bench.contenders import OURS, Entry
from bngen.errors import ToolchainError

FAKE = """#!{python}
import signal, sys, time
words = sys.argv
out = words[words.index("-o") + 1]
if "-p" in words:
    # Blocked before anybody knows of it: one that came between would be waited for in vain.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    open(out + ".ready", "w").close()
    signal.sigwait([signal.SIGINT])
open(out, "w").write("# started\\n" + {counts!r})
"""
ALL = "1000,,LLC-load-misses:u,1,100.00,,\n500,,LLC-store-misses,1,100.00,,\n"
NONE = "<not supported>,,LLC-load-misses,0,100.00,,\n500,,LLC-store-misses,1,100.00,,\n"


@pytest.fixture
def perf(tmp_path, monkeypatch):
    def install(counts: str) -> None:
        path = tmp_path / "perf"
        path.write_text(FAKE.format(python=sys.executable, counts=counts))
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return install


def test_what_cannot_be_counted_is_said(perf, monkeypatch):
    perf(NONE)
    assert counters.obstacle() == "perf cannot count LLC-load-misses here"
    perf(ALL)
    assert counters.obstacle() is None
    monkeypatch.setattr(counters.shutil, "which", lambda name: None)
    assert counters.obstacle() == "perf is not installed"


class Running:
    """A contender that has taken four steps in its turn."""

    pid = os.getpid()

    def __init__(self, entry):
        self.stopped = False

    def start(self):
        return {}

    def ask(self, what):
        deadline = time.monotonic() + 20
        while not (ready := list(self.folder.rglob("counts.ready"))):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        ready[0].unlink()
        return {"steps": 3, "discarded": 1}

    def stop(self):
        self.stopped = True


def test_bytes_are_lines_missed_by_a_step(perf, monkeypatch, tmp_path):
    monkeypatch.setattr(counters.folders, "scratch", lambda: contextlib.nullcontext(tmp_path))
    monkeypatch.setattr(counters, "Process", Running)
    Running.folder = tmp_path
    entry = Entry("net", OURS)
    perf(ALL)
    assert counters.bytes_of_step(entry) == 64 * 1500 / 4
    perf(NONE)
    with pytest.raises(ToolchainError, match="perf has counted nothing"):
        counters.bytes_of_step(entry)
