"""The process of a contender: its worker, how it is kept idle, and how it ends."""

import io
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from bngen.bench import forms, worker
from bngen.bench.contenders import OURS, Entry, contender
from bngen.bench.process import Process, Unavailable
from bngen.bench.turns import Rule
from bngen.options import FUSION_CHOICES, RIVAL_CHOICES, RIVALS

TINY = Entry("tiny_resnet", "eager", batch=2, image=32, threads=1)


@dataclass
class FakeContender:
    calls: list
    can_idle: bool = False

    def forward(self):
        self.calls.append("forward")
        return 2.5

    def backward(self):
        self.calls.append("backward")

    def without_work(self):
        self.calls.append("without work")
        return self.can_idle


def test_worker_answers_each_line(monkeypatch):
    monkeypatch.setattr(worker, "_import_for", lambda entry: None)
    monkeypatch.setattr(worker.gc, "disable", lambda: None)
    answers, calls = [], []
    lines = io.StringIO("peak\nturn\noverhead\n")
    rule = Rule(window=2, span=0.0, tolerance=1e9)
    worker.serve(Entry("net", "bngen"), lines, answers.append, lambda e: FakeContender(calls), rule)
    first, peak, turn, overhead = answers
    assert first["loss"] == 2.5 and set(peak) == {"peak"}
    assert (turn["steps"], turn["discarded"], turn["stationary"]) == (2, 2, True)
    assert min(turn[phase] for phase in ("forward", "backward", "step")) >= 0
    assert calls == ["forward", "backward"] * 6 + ["without work"]
    assert overhead == {"overhead": None}


def test_worker_knows_nothing_else(monkeypatch):
    monkeypatch.setattr(worker, "_import_for", lambda entry: None)
    monkeypatch.setattr(worker.gc, "disable", lambda: None)
    with pytest.raises(ValueError, match="asked for 'stop'"):
        worker.serve(
            Entry("net", "bngen"), io.StringIO("stop\n"), print, lambda e: FakeContender([])
        )


def test_overhead_is_that_of_steps_without_work():
    calls = []
    answer = worker._overhead(FakeContender(calls, can_idle=True))
    assert answer["overhead"] >= 0
    assert calls[0] == "without work" and calls.count("forward") == calls.count("backward") > 1


def test_peak_is_above_what_was_there_before():
    held = []

    class Hungry:
        def forward(self):
            held.append(bytearray(64 << 20))
            return 0.0

        def backward(self):
            held.clear()

    before = worker._resident_now()
    peak = worker._peak(Hungry(), before)["peak"]
    assert 60 << 20 < peak < 120 << 20


# --- processes --------------------------------------------------------------------------------


@pytest.fixture
def process(request):
    process = Process(getattr(request, "param", TINY))
    yield process
    process.stop()


def stat(pid):
    """State and CPU ticks of a process; ``Z`` and ``X`` are dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return "X", 0
    return fields[0], int(fields[11]) + int(fields[12])


def until(wanted, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not wanted() and time.monotonic() < deadline:
        time.sleep(0.01)
    return wanted()


@pytest.mark.parametrize("name", ["eager", "bf16"])
def test_a_process_of_its_own(name):
    process = Process(Entry("tiny_resnet", name, batch=2, image=32, threads=1))
    try:
        start = process.start()
        assert 0 < start["loss"] < 20
        assert process.ask("peak")["peak"] > 0
        turn = process.ask("turn")
        assert turn["step"] > 0 and turn["steps"] >= 3 and turn["discarded"] >= 3
    finally:
        process.stop()


def test_what_a_step_gives_costs_it_nothing(tmp_path):
    """Numbers of bfloat16 are added up one by one, and one that no kernel has written is any."""
    path = tmp_path / "half.py"
    path.write_text(
        "import bngen as bg\n@bg.program\n"
        "def half(x: bg.Tensor[2, 5, 8, 8, bg.bfloat16]):\n    return bg.relu(x), x * 2\n"
    )
    step = contender(Entry(f"{path}:half", OURS))
    assert step.forward() == float(step.module.forward(*step._arguments)[0][0, 0, 0, 0])
    step.without_work()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step.forward()


def test_who_waits_is_stopped_and_can_be_asked_again(process):
    process.start()
    pid = process._process.pid
    assert until(lambda: stat(pid)[0] == "T")
    ticks = stat(pid)[1]
    time.sleep(0.2)
    assert stat(pid) == ("T", ticks)
    assert process.ask("peak")["peak"] > 0
    assert until(lambda: stat(pid)[0] == "T")


def test_an_ended_process_can_be_started_again(process):
    first = process.start()["loss"]
    pid = process._process.pid
    process.stop()
    assert stat(pid)[0] == "X"
    assert process.start()["loss"] == first
    assert process._process.pid != pid


def test_one_that_is_interrupted_at_work_is_not_waited_for(process):
    process.start()
    pid = process._process.pid
    process._busy = True  # as Ctrl-C leaves it in the middle of an answer
    process._signal(signal.SIGCONT)
    begin = time.monotonic()
    process.stop()
    assert stat(pid)[0] == "X" and time.monotonic() - begin < 5


def test_a_stopped_process_does_not_outlive_its_parent():
    code = (
        "import json, sys, time\n"
        "from bngen.bench.contenders import Entry\n"
        "from bngen.bench.process import Process\n"
        "process = Process(Entry(**json.loads(sys.argv[1])))\n"
        "process.start()\n"
        "print(process._process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, json.dumps(asdict(TINY))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert until(lambda: stat(pid)[0] == "T")
        parent.kill()
    assert until(lambda: stat(pid)[0] in "XZ")


def test_a_process_that_dies_says_how(process):
    process.start()
    os.kill(process._process.pid, signal.SIGKILL)
    with pytest.raises(Unavailable, match="ended with status -9"):
        process.ask("turn")


def test_an_error_of_the_worker_is_told(monkeypatch):
    process = Process(Entry("no_such_net.py:f", "none"))
    try:
        with pytest.raises(Unavailable, match="no_such_net"):
            process.start()
    finally:
        process.stop()


def test_how_idle_threads_wait_is_not_inherited(monkeypatch):
    seen = {}

    def popen(*args, env, **more):
        seen.update(env)
        raise OSError("enough")

    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr("bngen.bench.process.subprocess.Popen", popen)
    with pytest.raises(OSError, match="enough"):
        Process(TINY, {"BNGEN_CACHE_DIR": "/x"}).start()
    assert "OMP_WAIT_POLICY" not in seen
    assert (seen["OMP_NUM_THREADS"], seen["BNGEN_CACHE_DIR"]) == ("2", "/x")


# --- what a form of PyTorch needs -------------------------------------------------------------


def test_forms_are_the_choices_of_the_command():
    assert tuple(forms.FORMS) == RIVAL_CHOICES[len(FUSION_CHOICES) :]
    assert set(RIVALS) <= set(RIVAL_CHOICES)


def test_no_jemalloc(monkeypatch):
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    with pytest.raises(Unavailable, match="no jemalloc here .install libjemalloc2"):
        Process(Entry("tiny_resnet", "jemalloc")).start()


def test_allocators_of_the_library_path(monkeypatch, tmp_path):
    for name in ("libjemalloc.so.2", "libtcmalloc_minimal.so.4"):
        (tmp_path / name).touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere:{tmp_path}")
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    found = forms.environment("jemalloc-channels-last")
    assert found["LD_PRELOAD"] == str(tmp_path / "libjemalloc.so.2")
    assert "dirty_decay_ms:-1" in found["MALLOC_CONF"]
    monkeypatch.setenv("LD_PRELOAD", "/x/libiomp5.so")
    assert forms.environment("tcmalloc-bf16") == {
        "LD_PRELOAD": f"{tmp_path / 'libtcmalloc_minimal.so.4'}:/x/libiomp5.so"
    }
    for name in ("eager", "bf16", "none", "bngen"):
        assert forms.environment(name) == {}


def test_obstacles(monkeypatch):
    assert forms.obstacle("none", "own.py:f") == forms.obstacle("eager", "resnet50") == ""
    assert "own.py:f has no PyTorch module" in forms.obstacle("eager", "own.py:f")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "PyTorch is not installed" in forms.obstacle("bf16", "resnet50")
    assert forms.obstacle("mvf", "resnet50") == ""
