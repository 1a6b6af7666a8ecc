"""A race of fake contenders: order of turns, pairs, memory, rivals that fail, and the JSON."""

import json

import pytest

from bngen.bench import tables
from bngen.errors import BngenError
from tests.bench.stage import START, Stage


def test_turns_alternate_after_everybody_is_prepared():
    stage = Stage()
    stage.race("bngen", "eager", "none", rounds=2)
    preparing = [(n, w) for n in ("bngen", "eager", "none") for w in ("start", "peak")]
    turns = [(n, "turn") for n in ("bngen", "eager", "none")] * 2
    ends = [(n, w) for w in ("overhead", "stop") for n in ("bngen", "eager", "none")]
    assert stage.log == [*preparing, *turns, *ends]


def test_who_does_not_fit_into_memory_starts_anew_for_each_turn():
    peak = 1 << 20
    # Looked at after everybody's preparation and turn: with eager prepared there is little left.
    stage = Stage(free=[9 * peak, peak, 9 * peak, peak, 9 * peak, peak])
    rows = stage.race("bngen", "eager", rounds=2)["contenders"]
    assert [w for n, w in stage.log if n == "bngen"] == [
        "start", "peak", "turn", "turn", "overhead", "stop",
    ]  # fmt: skip
    assert [w for n, w in stage.log if n == "eager"] == [
        "start", "peak", "stop", "start", "turn", "stop", "start", "turn", "stop", "start",
        "overhead", "stop",
    ]  # fmt: skip
    assert [len(r["step"]["samples"]) for r in rows] == [2, 2]


def test_where_nobody_knows_what_is_free_all_stay():
    stage = Stage(free=[0, 0, 0, 0])
    stage.race("bngen", "eager", rounds=1)
    assert stage.log.count(("eager", "start")) == 1


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
    assert eager["precision"] == "float32"
    assert eager["turns"] == {"steps": [3] * 3, "discarded": [5] * 3, "stationary": [True] * 3}
    assert (ours["overhead"], eager["overhead"]) == (0.003, None)
    assert not result["interrupted"]
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize("when", [0, 1, 3])
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


def test_a_lower_precision_is_marked_and_may_differ_more():
    rows = Stage(losses={"bf16": 6.95, "eager": 6.91}).race("bngen", "eager", "bf16")["contenders"]
    assert [r["status"] for r in rows] == ["ok", "disagrees", "ok"]
    assert [r["precision"] for r in rows] == ["float32", "float32", "bfloat16"]
    assert Stage(losses={"bf16": 7.0}).race("bngen", "bf16")["contenders"][1]["status"] != "ok"


def test_the_table_shows_ratios_and_reasons():
    result = Stage(fail={"compile": 0}).race("bngen", "eager", "compile", "bf16")
    machine = {"cpu": "znver4", "model": "EPYC", "cpus": 2, "versions": {"torch": "2"}}
    out = tables.text({"machine": machine, "races": [result], "kernels": []})
    assert "2.00x (2.00-2.00)" in out
    assert "bngen icf" in out and "bf16 (bfloat16)" in out
    assert "compile unavailable: there is none here" in out
