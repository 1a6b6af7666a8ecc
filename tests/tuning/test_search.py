"""The tuner on a fake timer: what is tried, what wins, what is kept, and how it goes on."""

import json
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest

from bngen.cli import tune as tune_command
from bngen.cli.main import main
from bngen.codegen.nests import BY_KIND, legal
from bngen.errors import UsageError
from bngen.target.parse import Target
from bngen.tuning import records
from bngen.tuning.records import Record
from bngen.tuning.search import Job, agree, compile_candidate, search, tune, work_of
from tests.tuning.test_records import CONV, candidates, facts_of
from tests.tuning.test_records import EXTENTS as ALL

EXTENTS = {n: v for n, v in CONV.items() if n != "group_rows"} | {"groups": 1}
FACTS = facts_of("conv", EXTENTS)
REGISTERS = 32
OWN = {"columns": 1, "blocks": 1, "rows": 1}
BEST = {"columns": 7, "blocks": 3, "rows": 6}


def cost(knobs):
    """Seconds: a bowl with its floor at `BEST`."""
    return 1.0 + sum(abs(knobs[name] - BEST[name]) for name in BEST)


# --- search -----------------------------------------------------------------------------------


def test_few_candidates_are_all_tried():
    space = [{"rows": r} for r in (1, 2, 4, 8)]
    tried = []

    def seconds(knobs):
        tried.append(knobs["rows"])
        return {1: 3.0, 2: 2.0, 4: 1.0, 8: 5.0}[knobs["rows"]]

    best = search(space, [{"rows": 2}], 10, seconds)
    assert (best.knobs, best.seconds, best.baseline, best.trials) == ({"rows": 4}, 1.0, 2.0, 4)
    assert tried[0] == 2 and sorted(tried) == [1, 2, 4, 8]


def test_many_candidates_are_searched_for():
    space = list(candidates("conv", EXTENTS))
    tried = []

    def seconds(knobs):
        assert legal("conv", EXTENTS, knobs) is None
        tried.append(tuple(knobs.values()))
        return cost(knobs)

    best = search(space, [OWN], 40, seconds)
    assert len(tried) == len(set(tried)) == best.trials == 40 < len(space)
    assert best.baseline == cost(OWN)
    # Better than the best of as many random draws is on average.
    rng = np.random.default_rng(0)
    luck = [min(cost(space[i]) for i in rng.choice(len(space), 40)) for _ in range(200)]
    assert best.seconds <= np.mean(luck)


def test_the_search_is_repeatable():
    space = list(candidates("conv", EXTENTS))
    assert search(space, [OWN], 30, cost) == search(space, [OWN], 30, cost)


def test_candidates_without_a_time_never_win():
    space = [{"rows": r} for r in (1, 2, 4)]
    times = {1: 3.0, 2: None, 4: 2.5}
    best = search(space, [{"rows": 1}], 9, lambda k: times[k["rows"]])
    assert (best.knobs, best.trials) == ({"rows": 4}, 3)


def test_nothing_beats_the_rule():
    space = [{"rows": r} for r in (1, 2, 4)]
    best = search(space, [{"rows": 1}], 9, lambda k: float(k["rows"]))
    assert (best.knobs, best.seconds) == ({"rows": 1}, best.baseline)


def test_a_rule_that_does_not_run_is_an_error():
    with pytest.raises(RuntimeError, match="the strategy's own knobs"):
        search([{"rows": 1}], [{"rows": 1}], 9, lambda knobs: None)


def test_progress_tells_the_best_so_far():
    told = []
    space = [{"rows": r} for r in (1, 2, 4)]
    search(space, [{"rows": 1}], 9, lambda k: 1 / k["rows"], lambda *state: told.append(state))
    assert [(done, total, best.seconds) for done, total, best in told] == [
        (1, 3, 1.0), (2, 3, 0.5), (3, 3, 0.25),
    ]  # fmt: skip


# --- jobs -------------------------------------------------------------------------------------


@dataclass
class Bench:
    """Compiles candidates that take the time `cost` says; ``wrong`` and ``broken`` are knobs."""

    wrong: list = field(default_factory=list)
    broken: list = field(default_factory=list)
    timed: list = field(default_factory=list)
    time: object = staticmethod(cost)

    def __call__(self, job, knobs):
        if knobs in self.broken:
            raise ValueError("ScheduleError: no such loop")
        return SimpleNamespace(
            results=lambda: [np.full(4, 2.0 if knobs in self.wrong else 1.0, np.float32)],
            seconds=lambda: self.timed.append(knobs) or self.time(knobs),
        )


def job(name="a"):
    kernel = SimpleNamespace(sublayers=("relu", "conv2d"))
    return Job(name, BY_KIND["conv"], FACTS, kernel, None, OWN, 1)


def tuned(work, bench, known=None, trials=500):
    return list(tune(work, known or {}, trials, 2, REGISTERS, bench))


def test_a_record_of_each_kernel():
    one, two = tuned([job("a"), job("b")], Bench())
    assert (one.id, two.id, one.what, one.kind) == ("a", "b", "relu conv2d", "conv")
    assert one.knobs == BEST and one.extents == EXTENTS
    assert (one.seconds, one.baseline, one.threads) == (cost(BEST), cost(OWN), 2)
    assert one.trials == len(job().space(REGISTERS)) < len(list(candidates("conv", EXTENTS)))


@pytest.mark.parametrize(
    ("kind", "changed", "knobs", "worth"),
    [
        ("conv", {"w": 56}, {"columns": 7, "blocks": 4, "rows": 1}, False),  # 33 registers
        ("conv", {"w": 56}, {"columns": 28, "blocks": 1, "rows": 1}, True),
        ("conv", {"w": 112}, {"columns": 5, "blocks": 4, "rows": 1}, True),  # a ragged last tile
        ("phased", {"w": 112}, {"columns": 14, "blocks": 3, "rows": 2}, False),
        ("winograd", {"w": 7}, {"columns": 14, "blocks": 3, "rows": 8}, False),
        ("wgrad", {}, {"blocks": 2, "in_lanes": 8}, True),
        ("wgrad", {}, {"blocks": 2, "in_lanes": 16}, False),
        ("winograd_wgrad", {}, {"blocks": 2, "in_lanes": 16}, False),
        ("wgrad", {"in_lanes": 1, "s": 7}, {"blocks": 4}, False),
        ("window", {}, {"rows": 4}, True),
    ],
)
def test_what_deserves_a_trial(kind, changed, knobs, worth):
    facts = facts_of(kind, {**ALL[kind], **changed})
    assert (BY_KIND[kind].registers(facts, knobs) <= REGISTERS) is worth


def test_wrong_candidates_are_never_timed():
    bench = Bench(wrong=[BEST])
    (record,) = tuned([job()], bench)
    assert BEST not in bench.timed
    assert record.knobs != BEST and record.seconds == cost(BEST) + 1


def test_candidates_that_do_not_compile_are_passed_over():
    (record,) = tuned([job()], Bench(broken=[BEST]))
    assert record.knobs != BEST


def test_a_lead_that_a_second_look_does_not_confirm_is_luck():
    def lucky(knobs, seen=iter(range(10**9))):  # noqa: B008  (one counter for all calls)
        return 1.0 if knobs != BEST or next(seen) >= 5 else 0.5

    (record,) = tuned([job()], Bench(time=lucky))
    assert record.knobs == OWN
    assert record.seconds == record.baseline


def test_enough_trials_are_not_made_again():
    (record,) = tuned([job()], Bench(), trials=20)
    assert record.trials == 20
    bench = Bench()
    assert tuned([job()], bench, {"a": record}, trials=20) == []
    assert bench.timed == []


def test_more_trials_go_on_from_the_record():
    known = replace(tuned([job()], Bench(), trials=3)[0], knobs=BEST)
    bench = Bench()
    (record,) = tuned([job()], bench, {"a": known}, trials=4)
    assert record.knobs == BEST
    first = list(dict.fromkeys(map(str, bench.timed)))[:2]
    assert first == [str(OWN), str(BEST)]


@pytest.mark.parametrize(
    "change", [{"threads": 7}, {"knobs": {**BEST, "rows": 5}}, {"knobs": {"rows": 1}}]
)
def test_records_that_do_not_fit_are_measured_anew(change):
    known = replace(tuned([job()], Bench(), trials=500)[0], **change)
    (record,) = tuned([job()], Bench(), {"a": known})
    assert (record.knobs, record.threads) == (BEST, 2)


# --- agreement --------------------------------------------------------------------------------


def arrays(*values, dtype=np.float32):
    return [np.array(values, dtype)]


@pytest.mark.parametrize(
    ("ours", "reference", "same"),
    [
        (arrays(1.0, 1000.0), arrays(1.005, 1000.0), True),  # within 1e-5 of the largest
        (arrays(1.0, 1000.0), arrays(1.05, 1000.0), False),
        (arrays(1.0, np.nan, np.inf), arrays(1.0, np.nan, np.inf), True),
        (arrays(1.0, 1.0), arrays(1.0, np.nan), False),
        (arrays(1, 2, dtype=np.int64), arrays(1, 2, dtype=np.int64), True),
        (arrays(1, 2, dtype=np.int64), arrays(1, 3, dtype=np.int64), False),
        (arrays(0.0), arrays(0.0), True),
        (arrays(1e-3), arrays(0.0), False),
    ],
)
def test_agreement(ours, reference, same):
    assert agree(ours, reference) is same


# --- real kernels, and the command ------------------------------------------------------------

SMALL = ("tiny_resnet", "--batch", "1", "--image", "16", "--quiet")


@pytest.fixture
def work(monkeypatch):
    """The first three jobs of a tiny network, whose candidates take no time to measure."""
    monkeypatch.setattr("bngen.tuning.lone._SHORTEST", 0.0)

    def three(*asked):
        return work_of(*asked)[:3]

    monkeypatch.setattr("bngen.tuning.search.work_of", three)


def test_jobs_of_a_network():
    from bngen import models

    target = Target.parse()
    program = models.make("tiny_densenet", batch=1, image=32, loss=True)
    found = work_of(program, target, "icf", ["features.conv0.weight"])
    assert len({j.id for j in found}) == len(found)
    assert {"conv", "wgrad"} <= {j.strategy.kind for j in found}
    assert all(j.strategy.misfit(j.facts, j.own) is None for j in found)
    calls = [j.calls for j in found]
    assert calls == sorted(calls, reverse=True)


def test_every_kind_of_candidate_agrees_with_the_rules_own():
    """Real code: for one kernel of each kind, three choices of knobs compute the same."""
    from bngen import models

    target = Target.parse()
    seen = set()
    for name in ("tiny_resnet", "tiny_mobilenet"):
        program = models.make(name, batch=2, image=32, loss=True)
        parameters = [i.name for i in program.graph.inputs if i.kind == "parameter"]
        for one in work_of(program, target, "icf", parameters):
            kind, space = one.strategy.kind, list(one.strategy.candidates(one.facts))
            if kind in seen or len(space) < 2:
                continue
            seen.add(kind)
            reference = compile_candidate(one, target, one.own).results()
            assert any(np.any(a) for a in reference)
            for knobs in (space[0], space[len(space) // 2], space[-1]):
                assert agree(compile_candidate(one, target, knobs).results(), reference), knobs
    assert {
        "conv", "phased", "winograd", "depthwise", "wgrad", "winograd_wgrad", "window"
    } <= seen  # fmt: skip


def test_the_command_writes_and_goes_on(tmp_path, capsys, work):
    argv = ["tune", *SMALL, "--trials", "2", "--out", str(tmp_path), "--json"]
    assert main(argv) == 0
    summary = json.loads(capsys.readouterr().out)
    path = tmp_path / f"{Target.parse().cpu}.toml"
    assert summary["file"] == str(path) and not summary["interrupted"]
    written = records.read(path)
    assert {r.id for r in written} == {k["id"] for k in summary["kernels"]}
    assert all(1 <= r.trials <= 2 for r in written)
    assert main(argv) == 0
    assert json.loads(capsys.readouterr().out)["kernels"] == []


def test_stopped_with_what_was_found_kept(tmp_path, capsys, monkeypatch):
    kept = Record("a" * 16, "conv", "conv2d", EXTENTS, BEST, 1e-3, 2e-3, 2, 9)

    def stopped(*asked):
        yield kept
        raise KeyboardInterrupt

    monkeypatch.setattr("bngen.tuning.search.tune", stopped)
    monkeypatch.setattr("bngen.tuning.search.work_of", lambda *asked: [])
    assert main(["tune", *SMALL, "--out", str(tmp_path)]) == tune_command.INTERRUPTED
    captured = capsys.readouterr()
    assert "the same command goes on" in captured.err
    assert "1 kernels, 1 of them faster" in captured.out and "2.00x" in captured.out
    (path,) = tmp_path.iterdir()
    assert records.read(path) == [kept]


OLD = Record("a" * 16, "conv", "conv2d", EXTENTS, BEST, 1e-3, 2e-3, 2, 9)


@pytest.mark.parametrize("before", [[], [OLD]], ids=["nothing", "records"])
def test_stopped_before_anything_was_found(tmp_path, capsys, monkeypatch, before):
    """No file is named that is not there."""

    def stopped(*asked):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr("bngen.tuning.search.tune", stopped)
    monkeypatch.setattr("bngen.tuning.search.work_of", lambda *asked: [])
    path = tmp_path / "mine" / f"{Target.parse().cpu}.toml"
    if before:
        records.write(path, before, {})
    out = ["--out", str(path.parent)]
    assert main(["tune", *SMALL, *out]) == tune_command.INTERRUPTED
    captured = capsys.readouterr()
    assert "stopped before the first kernel was done" in captured.err
    assert (str(path) in captured.err) == (str(path) in captured.out) == bool(before)
    assert main(["tune", *SMALL, *out, "--json"]) == tune_command.INTERRUPTED
    assert json.loads(capsys.readouterr().out)["file"] == (str(path) if before else None)
    assert path.parent.exists() == bool(before)


@pytest.mark.parametrize("out", ["file", "file/below", "mounted0/below"])
def test_records_that_could_not_be_kept_are_not_searched_for(
    tmp_path, capsys, monkeypatch, tmpfs, out
):
    monkeypatch.setattr("bngen.tuning.search.work_of", None)
    (tmp_path / "file").write_text("")
    tmpfs("ro")
    assert main(["tune", *SMALL, "--out", str(tmp_path / out)]) == 2
    assert "nowhere to keep records" in capsys.readouterr().err


def test_two_folders_are_refused(capsys):
    assert main(["tune", *SMALL, "--ship", "--out", "x"]) == 2
    assert "--ship and --out name two folders" in capsys.readouterr().err


def test_a_cpu_that_is_not_here_cannot_be_tuned_for(monkeypatch):
    monkeypatch.setattr(Target, "missing_here", lambda self: ("avx99",))
    with pytest.raises(UsageError, match="what this machine lacks: avx99"):
        tune_command.run(
            tune_command.TuneRequest(
                program="tiny_resnet",
                target="llvm -mcpu=native",
                mcpu=None,
                mattr=None,
                fusion="icf",
                dtype="float32",
                batch=1,
                image=16,
                threads=None,
                schedules=None,
                trials=2,
                records=None,
                ship=False,
                json=False,
                quiet=True,
            )  # fmt: skip
        )
