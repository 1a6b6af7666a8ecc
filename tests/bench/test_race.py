"""A race on a fake clock: order of turns, pairs, rivals that fail, and the JSON."""

import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bngen import bench_command
from bngen.bench import tables, worker
from bngen.bench.contenders import Entry
from bngen.bench.race import Process, Unavailable, race
from bngen.errors import BngenError, UsageError

START = {"import": 1.0, "build": 2.0, "first_step": 0.5, "total": 3.75}
TIMES = {
    "bngen": (1.0, 2.0), "none": (2.0, 2.5), "eager": (2.0, 4.0), "compile": (1.5, 3.0),
    "mvf": (0.3, 0.4),
}  # fmt: skip


@dataclass
class Stage:
    """Fake runners; ``log`` is what they were asked, in order."""

    losses: dict = field(default_factory=dict)
    fail: dict = field(default_factory=dict)
    log: list = field(default_factory=list)

    def runner(self, entry):
        return FakeRunner(self, entry.contender)

    def entries(self, *names):
        return [Entry("net", name, batch=8, image=224) for name in names]

    def race(self, *names, rounds=3, warmup=1):
        return race(self.entries(*names), rounds, warmup, run=self.runner, settle=0.0)


@dataclass
class FakeRunner:
    stage: Stage
    name: str
    asked: int = 0

    def start(self):
        self.stage.log.append((self.name, "start"))
        if self.stage.fail.get(self.name) == 0:
            raise Unavailable("there is none here")
        loss = self.stage.losses.get(self.name, 6.9)
        return {"loss": loss, **START}

    def ask(self, what):
        self.asked += 1
        self.stage.log.append((self.name, what))
        if self.asked == self.stage.fail.get(self.name):
            raise Unavailable("its process ended with status -9")
        if what == "peak":
            return {"peak": 1 << 20}
        if what == "overhead":
            return {"overhead": None if self.name == "eager" else 0.003}
        forward, backward = TIMES[self.name]
        return {"forward": forward, "backward": backward}

    def stop(self):
        self.stage.log.append((self.name, "stop"))


def test_turns_alternate_after_everybody_is_warm():
    stage = Stage()
    stage.race("bngen", "eager", "none", rounds=2)
    preparing = [(n, w) for n in ("bngen", "eager", "none") for w in ("start", "step", "peak")]
    turns = [(n, "step") for n in ("bngen", "eager", "none")] * 2
    ends = [(n, w) for w in ("overhead", "stop") for n in ("bngen", "eager", "none")]
    assert stage.log == [*preparing, *turns, *ends]


def test_long_steps_need_fewer_to_be_warm():
    stage = Stage()
    stage.race("mvf", "eager", rounds=1, warmup=9)
    # 0.7 s a step: two seconds are over after the third; 6 s: after the first.
    assert [stage.log.count((name, "step")) for name in ("mvf", "eager")] == [3 + 1, 1 + 1]


def test_the_result():
    result = Stage().race("bngen", "eager", rounds=3)
    ours, eager = result["contenders"]
    assert result["program"] == "net" and result["batch"] == 8
    assert (ours["name"], ours["status"], ours["ratio"]["step"]["median"]) == ("bngen", "ok", 1)
    assert eager["step"]["median"] == 6.0 and len(eager["step"]["samples"]) == 3
    assert eager["ratio"]["step"]["median"] == 2.0
    assert eager["ratio"]["forward"]["median"] == 2.0
    assert eager["peak_bytes"] == 1 << 20
    assert eager["startup"] == START
    assert (ours["overhead"], eager["overhead"]) == (0.003, None)
    assert not result["interrupted"]
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize("when", [0, 1, 4])
def test_a_rival_that_fails_is_out_and_says_why(when):
    stage = Stage(fail={"eager": when})
    result = stage.race("bngen", "eager", "none", rounds=3)
    rows = {r["name"]: r for r in result["contenders"]}
    assert rows["eager"]["status"] == "unavailable"
    assert rows["eager"]["reason"] in ("there is none here", "its process ended with status -9")
    assert "step" not in rows["eager"]
    assert rows["none"]["status"] == "ok" and len(rows["none"]["step"]["samples"]) == 3
    assert rows["none"]["overhead"] == 0.003
    asked = [w for n, w in stage.log if n == "eager"]
    assert len(asked) == when + 2  # no more questions after the failure, but an end


def test_bngen_itself_must_run():
    stage = Stage(fail={"bngen": 2})
    with pytest.raises(BngenError, match="net: bngen cannot run: its process ended"):
        stage.race("bngen", "eager")
    assert ("bngen", "stop") in stage.log and ("eager", "stop") in stage.log


def test_another_loss_disagrees():
    rows = Stage(losses={"eager": 6.92, "none": 6.9001}).race("bngen", "eager", "none")
    statuses = [r["status"] for r in rows["contenders"]]
    assert statuses == ["ok", "disagrees", "ok"]
    assert rows["contenders"][1]["reason"] == "its loss is 6.92, not 6.9"


def test_the_table_shows_ratios_and_reasons(capsys):
    result = Stage(fail={"compile": 0}).race("bngen", "eager", "compile")
    machine = {"cpu": "znver4", "model": "EPYC", "cpus": 2, "versions": {"torch": "2"}}
    tables.show({"machine": machine, "races": [result], "kernels": []})
    out = capsys.readouterr().out
    assert "2.00x (2.00-2.00)" in out
    assert "bngen icf" in out
    assert "compile unavailable: there is none here" in out


# --- the worker -------------------------------------------------------------------------------


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
    lines = io.StringIO("step\npeak\nstep\noverhead\n")
    worker.serve(Entry("net", "bngen"), lines, answers.append, lambda e: FakeContender(calls))
    assert answers[0]["loss"] == 2.5
    assert [sorted(a) for a in answers[1:]] == [
        ["backward", "forward"], ["peak"], ["backward", "forward"], ["overhead"],
    ]  # fmt: skip
    assert calls == ["forward", "backward"] * 4 + ["without work"]
    assert answers.pop() == {"overhead": None}
    assert all(v >= 0 for a in answers[1::2] for v in a.values())


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


def test_a_process_of_its_own():
    entry = Entry("tiny_resnet", "eager", batch=2, image=32, threads=1)
    process = Process(entry)
    try:
        start = process.start()
        assert 0 < start["loss"] < 20
        assert process.ask("peak")["peak"] > 0
        assert set(process.ask("step")) == {"forward", "backward"}
    finally:
        process.stop()


def test_what_a_process_could_not_do():
    process = Process(Entry("no_such_net.py:f", "eager"))
    try:
        with pytest.raises(Unavailable, match="has no PyTorch module"):
            process.start()
    finally:
        process.stop()


def test_no_jemalloc(monkeypatch):
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    with pytest.raises(Unavailable, match="no jemalloc here .install libjemalloc2"):
        Process(Entry("tiny_resnet", "jemalloc")).start()


def test_jemalloc_of_the_library_path(monkeypatch, tmp_path):
    from bngen.bench.contenders import environment

    (tmp_path / "libjemalloc.so.2").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere:{tmp_path}")
    assert environment("jemalloc")["LD_PRELOAD"] == str(tmp_path / "libjemalloc.so.2")
    assert environment("eager") == {}


# --- the command ------------------------------------------------------------------------------


def request(**changes):
    settings = {
        "program": ("tiny_resnet",), "target": "llvm -mcpu=native", "mcpu": None, "mattr": None,
        "fusion": "icf", "batch": 2, "image": 32, "threads": None, "schedules": None, "seed": 0,
        "against": ("icf", "eager"), "rounds": 3, "kernels": False, "startup": False,
        "json_file": None, "plot": None, "quiet": True,
    }  # fmt: skip
    return bench_command.BenchRequest(**{**settings, **changes})


def test_the_command_writes_json_and_plots(monkeypatch, tmp_path, capsys):
    stage = Stage()
    monkeypatch.setattr("bngen.bench.race.Process", lambda entry, variables: stage.runner(entry))
    status = bench_command.run(
        request(json_file=str(tmp_path / "r.json"), plot=str(tmp_path / "plots"))
    )
    assert status == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["schema"] == bench_command.SCHEMA
    assert {"cpu", "model", "cpus", "caches", "versions"} <= set(report["machine"])
    # The level that bngen runs at is no rival of itself.
    names = [r["name"] for r in report["races"][0]["contenders"]]
    assert names == ["bngen", "eager"]
    assert (tmp_path / "plots" / "steps.png").read_bytes()[:4] == b"\x89PNG"


def test_the_command_fails_when_a_rival_disagrees(monkeypatch, capsys):
    stage = Stage(losses={"eager": 1.0})
    monkeypatch.setattr("bngen.bench.race.Process", lambda entry, variables: stage.runner(entry))
    assert bench_command.run(request()) == 1
    assert "eager disagrees: its loss is 1, not 6.9" in capsys.readouterr().out


def test_startup_is_measured_cold_and_warm(monkeypatch, tmp_path):
    stage, folders = Stage(fail={"none": 0}), []

    def runner(entry, variables):
        folders.append(variables["BNGEN_CACHE_DIR"])
        return stage.runner(entry)

    monkeypatch.setattr("bngen.bench.race.Process", runner)
    path = tmp_path / "r.json"
    asked = request(startup=True, against=("eager", "none"), json_file=str(path))
    assert bench_command.run(asked) == 0
    ours, eager, none = json.loads(path.read_text())["races"][0]["contenders"]
    for row in (ours, eager):
        assert row["startup"]["warm"] == START
    assert none["status"] == "unavailable"
    assert len(folders) == 5 and len(set(folders)) == 1  # three that raced, two again
    assert not Path(folders[0]).exists()


@dataclass
class InterruptedRunner(FakeRunner):
    """Ctrl-C comes while this contender takes a step."""

    at: int = 0

    def ask(self, what):
        if self.asked == self.at:
            raise KeyboardInterrupt
        return super().ask(what)


def interrupted(monkeypatch, at):
    stage = Stage()
    runners = {"bngen": stage.runner, "eager": lambda e: InterruptedRunner(stage, "eager", at=at)}
    monkeypatch.setattr(
        "bngen.bench.race.Process", lambda entry, variables: runners[entry.contender](entry)
    )
    return stage


def test_an_interrupt_keeps_the_complete_rounds(monkeypatch, tmp_path, capsys):
    stage = interrupted(monkeypatch, at=4)  # a long step to warm up, the peak, 2 rounds
    path = tmp_path / "r.json"
    asked = request(program=("tiny_resnet", "tiny_vgg"), json_file=str(path), rounds=9)
    assert bench_command.run(asked) == 130
    report = json.loads(path.read_text())
    assert report["interrupted"]
    (race,) = report["races"]
    assert [len(r["step"]["samples"]) for r in race["contenders"]] == [2, 2]
    assert "interrupted; this is what was measured until then" in capsys.readouterr().err
    assert ("bngen", "stop") in stage.log and ("eager", "stop") in stage.log


def test_an_interrupt_while_starting_again_keeps_the_race(monkeypatch, tmp_path):
    stage, started = Stage(), []

    class Once(FakeRunner):
        def start(self):
            started.append(self.name)
            if len(started) > 2:
                raise KeyboardInterrupt
            return super().start()

    monkeypatch.setattr(
        "bngen.bench.race.Process", lambda entry, variables: Once(stage, entry.contender)
    )
    path = tmp_path / "r.json"
    asked = request(startup=True, against=("eager",), json_file=str(path))
    assert bench_command.run(asked) == 130
    (race,) = json.loads(path.read_text())["races"]
    assert race["interrupted"] and len(race["contenders"]) == 2


def test_an_interrupt_before_a_round_is_complete_writes_nothing(monkeypatch, tmp_path):
    stage = interrupted(monkeypatch, at=1)
    with pytest.raises(KeyboardInterrupt):
        bench_command.run(request(json_file=str(tmp_path / "r.json")))
    assert not (tmp_path / "r.json").exists()
    assert ("bngen", "stop") in stage.log and ("eager", "stop") in stage.log


def test_a_folder_that_is_missing_is_told_before_anything_runs(tmp_path):
    with pytest.raises(UsageError, match="no folder for"):
        bench_command.run(request(json_file=str(tmp_path / "no" / "r.json")))
