"""``bngen bench`` with fake contenders: files, tables, exit status, interrupts and failures."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from bngen.bench import tables
from bngen.bench.measure import SCHEMA
from bngen.bench.process import Unavailable
from bngen.cli import bench as bench_command
from bngen.errors import BngenError, ToolchainError, UsageError
from tests.bench.stage import START, FakeRunner, Stage

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def request(**changes):
    settings = {
        "program": ("tiny_resnet",), "target": "llvm -mcpu=native", "mcpu": None, "mattr": None,
        "fusion": "icf", "dtype": "float32", "batch": 2, "image": 32, "threads": None,
        "schedules": None, "seed": 0,
        "against": ("icf", "eager"), "rounds": 3, "kernels": False, "startup": False,
        "json_file": None, "plot": None, "quiet": True,
    }  # fmt: skip
    return bench_command.BenchRequest(**{**settings, **changes})


def test_the_command_writes_json_and_plots(monkeypatch, tmp_path, capsys):
    stage = Stage()
    monkeypatch.setattr("bngen.bench.measure.Process", lambda entry, variables: stage.runner(entry))
    status = bench_command.run(
        request(json_file=str(tmp_path / "r.json"), plot=str(tmp_path / "plots"))
    )
    assert status == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["schema"] == SCHEMA
    assert {"cpu", "model", "cpus", "caches", "versions"} <= set(report["machine"])
    # The level that bngen runs at is no rival of itself.
    names = [r["name"] for r in report["races"][0]["contenders"]]
    assert names == ["bngen", "eager"]
    assert (tmp_path / "plots" / "steps.png").read_bytes()[:4] == b"\x89PNG"


def test_the_command_fails_when_a_rival_disagrees(monkeypatch, capsys):
    stage = Stage(losses={"eager": 1.0})
    monkeypatch.setattr("bngen.bench.measure.Process", lambda entry, variables: stage.runner(entry))
    assert bench_command.run(request()) == 1
    assert "eager disagrees: its loss is 1, not 6.9" in capsys.readouterr().out


def test_startup_is_measured_cold_and_warm(monkeypatch, tmp_path):
    stage, folders = Stage(fail={"none": 0}), []

    def runner(entry, variables):
        folders.append(variables["BNGEN_CACHE_DIR"])
        return stage.runner(entry)

    monkeypatch.setattr("bngen.bench.measure.Process", runner)
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
        "bngen.bench.measure.Process", lambda entry, variables: runners[entry.contender](entry)
    )
    return stage


def test_an_interrupt_keeps_the_complete_rounds(monkeypatch, tmp_path, capsys):
    stage = interrupted(monkeypatch, at=3)  # the peak, 2 rounds
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
        "bngen.bench.measure.Process", lambda entry, variables: Once(stage, entry.contender)
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


def test_a_folder_that_is_missing_is_made(monkeypatch, tmp_path):
    raced(monkeypatch)
    path = tmp_path / "new" / "r.json"
    assert bench_command.run(request(json_file=str(path))) == 0 and path.exists()


def test_tables_are_whole_on_a_narrow_terminal_and_in_a_pipe(monkeypatch, capfd):
    """No number is cut, no name is markup, and a reader that leaves is no failed check."""
    report = json.loads((BENCHMARKS / "znver4" / "steps.json").read_text())
    kernels = json.loads((BENCHMARKS / "znver4" / "kernels.json").read_text())
    report |= {"kernels": kernels["kernels"], "limits": kernels["limits"]}
    report["races"][0]["program"] = "/home/[me]/net.py"
    for width in ("80", "200"):
        monkeypatch.setenv("COLUMNS", width)
        for terminal in ("0", "1"):
            monkeypatch.setenv("TTY_COMPATIBLE", terminal)
            text = tables.text(report)
            assert "…" not in text and "/home/[me]/net.py" in text and "1.12x" in text
    monkeypatch.setattr("bngen.cli.console.print", broken_pipe, raising=False)
    with pytest.raises(BrokenPipeError):
        bench_command._publish(request(), report)


def broken_pipe(*args, **given):
    raise BrokenPipeError


# --- failures ---------------------------------------------------------------------------------


def raced(monkeypatch, broken=()):
    """Fake contenders; bngen itself dies of the programs that are ``broken``."""
    stage = Stage()

    def process(entry, variables):
        sick = {"bngen": 2} if entry.program in broken else {}
        return FakeRunner(Stage(fail=sick, log=stage.log), entry.contender)

    monkeypatch.setattr("bngen.bench.measure.Process", process)
    return stage


def test_a_program_that_fails_does_not_take_the_others_with_it(monkeypatch, tmp_path, capsys):
    raced(monkeypatch, broken={"tiny_vgg"})
    path, plots = tmp_path / "r.json", tmp_path / "plots"
    programs = ("tiny_resnet", "tiny_vgg", "tiny_mobilenet")
    asked = request(program=programs, json_file=str(path), plot=str(plots))
    assert bench_command.run(asked) == bench_command.UNMEASURED == 2
    report = json.loads(path.read_text())
    assert [race["program"] for race in report["races"]] == ["tiny_resnet", "tiny_mobilenet"]
    (failure,) = report["failures"]
    assert failure["program"] == "tiny_vgg"
    assert failure["reason"].startswith("tiny_vgg: bngen cannot run: its process ended")
    out, err = capsys.readouterr()
    assert "tiny_resnet" in out and "tiny_mobilenet" in out
    assert "error: tiny_vgg could not be measured: tiny_vgg: bngen cannot run" in err
    assert (plots / "steps.png").exists()


def test_one_program_that_fails_is_an_error_as_it_is(monkeypatch, tmp_path):
    raced(monkeypatch, broken={"tiny_resnet"})
    with pytest.raises(BngenError, match="tiny_resnet: bngen cannot run"):
        bench_command.run(request(json_file=str(tmp_path / "r.json")))
    assert not (tmp_path / "r.json").exists()


def test_all_programs_that_fail_are_named(monkeypatch, capsys):
    raced(monkeypatch, broken={"tiny_resnet", "tiny_vgg"})
    assert bench_command.run(request(program=("tiny_resnet", "tiny_vgg"))) == 2
    err = capsys.readouterr().err
    assert err.count("could not be measured") == 2


def test_kernels_that_fail_leave_the_race(monkeypatch, tmp_path):
    raced(monkeypatch)

    def no_convolutions(*args):
        raise UsageError("tiny_resnet has no convolutions")

    monkeypatch.setattr("bngen.bench.kernels.measure_kernels", no_convolutions)
    monkeypatch.setattr(
        "bngen.bench.limits.measure_limits", lambda *args: {"gflops": 1.0, "gbytes": 1.0}
    )
    path = tmp_path / "r.json"
    assert bench_command.run(request(kernels=True, json_file=str(path))) == 2
    report = json.loads(path.read_text())
    assert len(report["races"]) == 1 and report["kernels"] == []
    assert report["failures"] == [
        {"program": "tiny_resnet", "reason": "tiny_resnet has no convolutions"}
    ]


def test_a_bug_leaves_what_was_measured_before(monkeypatch, tmp_path):
    raced(monkeypatch)

    def bug(*args):
        raise RuntimeError("a bug")

    monkeypatch.setattr("bngen.bench.limits.measure_limits", bug)
    path = tmp_path / "r.json"
    with pytest.raises(RuntimeError, match="a bug"):
        bench_command.run(request(kernels=True, json_file=str(path)))
    assert len(json.loads(path.read_text())["races"]) == 1


def test_one_that_does_not_start_again_leaves_the_race(monkeypatch, tmp_path):
    started = []

    class Once(FakeRunner):
        def start(self):
            started.append(self.name)
            if len(started) > 2:
                raise Unavailable("out of memory")
            return super().start()

    stage = Stage()
    monkeypatch.setattr(
        "bngen.bench.measure.Process", lambda entry, variables: Once(stage, entry.contender)
    )
    path = tmp_path / "r.json"
    asked = request(startup=True, against=("eager",), json_file=str(path))
    assert bench_command.run(asked) == 2
    report = json.loads(path.read_text())
    assert len(report["races"]) == 1
    assert "started once, but not again: out of memory" in report["failures"][0]["reason"]


def test_a_plot_that_cannot_be_drawn_takes_neither_the_file_nor_the_tables(
    monkeypatch, tmp_path, capsys
):
    raced(monkeypatch)

    def full(*given):
        raise ToolchainError("cannot write plots: No space left on device")

    monkeypatch.setattr("bngen.bench.plots.draw", full)
    path = tmp_path / "r.json"
    with pytest.raises(ToolchainError, match="cannot write"):
        bench_command.run(request(json_file=str(path), plot=str(tmp_path / "plots")))
    assert json.loads(path.read_text())["races"]
    assert "bngen icf" in capsys.readouterr().out


def test_a_file_that_cannot_be_written_is_told_before_anything_runs(monkeypatch, tmp_path):
    stage = raced(monkeypatch)
    with pytest.raises(UsageError, match="is a folder.*--json"):
        bench_command.run(request(json_file=str(tmp_path)))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is no folder.*--plot"):
        bench_command.run(request(plot=str(tmp_path / "notes.txt")))
    assert stage.log == []


# --- nobody to race against -------------------------------------------------------------------


def test_without_pytorch_its_forms_are_refused_before_anything_runs(monkeypatch):
    stage = raced(monkeypatch)
    monkeypatch.setattr("bngen.bench.forms.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="none of the rivals can run: PyTorch is not installed"):
        bench_command.run(request(against=("eager", "compile")))
    assert stage.log == []


def test_one_rival_that_can_run_is_enough(monkeypatch):
    raced(monkeypatch)
    monkeypatch.setattr("bngen.bench.forms.importlib.util.find_spec", lambda name: None)
    assert bench_command.run(request(against=("eager", "none"))) == 0


def test_the_level_that_bngen_runs_at_is_nobody_to_race_against():
    with pytest.raises(UsageError, match="icf is what bngen itself runs at"):
        bench_command.run(request(against=("icf",)))


def test_rivals_that_all_fail_are_no_success(monkeypatch, tmp_path, capsys):
    stage = Stage(fail={"eager": 0, "none": 2})
    monkeypatch.setattr("bngen.bench.measure.Process", lambda entry, variables: stage.runner(entry))
    path = tmp_path / "r.json"
    assert bench_command.run(request(against=("eager", "none"), json_file=str(path))) == 2
    assert "tiny_resnet: none of the rivals could run" in capsys.readouterr().err
    assert json.loads(path.read_text())["races"]


def test_a_race_of_one_may_be_asked_for(monkeypatch):
    raced(monkeypatch)
    assert bench_command.run(request(against=())) == 0
