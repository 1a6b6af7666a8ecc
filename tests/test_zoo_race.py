"""The race of the zoo: what is kept, what is done again, and its table; nothing is raced here."""

import json

import pytest

from bngen.bench.process import Unavailable
from bngen.errors import BngenError
from tests import zoo_models, zoo_race

ASKED = zoo_race.Asked(2, 32, 1, "cpu", ("channels-last",), 2)


def raced(ours, theirs, status="ok"):
    return {"contenders": [
        {"name": "backend", "status": "ok", "step": {"median": ours}},
        {"name": "channels-last", "status": status, "step": {"median": theirs},
         "ratio": {"step": {"median": theirs / ours}}},
    ]}  # fmt: skip


def parts(done, **broken):
    """Parts that note whom they were asked for."""

    def part(what):
        def add(row, asked, name, tell):
            done.append((what, name))
            if broken.get(what) == name:
                raise Unavailable(f"{name} has no {what}")
            row[what] = (
                raced(1, 2) if what == "race" else {"unfused": 9, "kernels": 4, "share": 0.1}
            )

        return add

    return {what: part(what) for what in ("race", "plan")}


def test_what_the_file_has_is_not_done_again(tmp_path, capsys):
    file, done = tmp_path / "cpu" / "zoo.json", []
    report = zoo_race.run(["a", "b"], ASKED, parts(done, race="b"), file)
    assert done == [("race", "a"), ("plan", "a"), ("race", "b"), ("plan", "b")]
    assert report["models"]["b"]["error"] == "b has no race"
    assert "b has no race" in capsys.readouterr().out
    done.clear()
    report = zoo_race.run(["a", "b", "c"], ASKED, parts(done), file)
    assert done == [("race", "b"), ("race", "c"), ("plan", "c")]
    assert report == json.loads(file.read_text())
    assert not any("error" in row for row in report["models"].values())


def test_a_file_of_another_race_is_refused(tmp_path):
    file = tmp_path / "zoo.json"
    zoo_race.run(["a"], ASKED, parts([]), file)
    with pytest.raises(BngenError, match="was raced with .*'batch': 2"):
        zoo_race.run(["a"], zoo_race.Asked(8, 32, 1, "cpu", ("channels-last",), 2), {}, file)


def test_the_table_begins_with_who_gains_least():
    models = {
        "fast": {"race": raced(0.1, 0.3), "cold": {"first_step": 41.2},
                 "plan": {"unfused": 339, "kernels": 175, "share": 0.031}},
        "slow": {"race": raced(0.2, 0.1, "disagrees")},
    }  # fmt: skip
    *_, slow, fast = zoo_race.markdown({"models": models}).splitlines()
    assert slow == "| slow | 200 | 100 (another loss) | 0.50 |  |  |  |"
    assert fast == "| fast | 100 | 300 | 3.00 | 3.1 % | 339, 175 | 41 |"


def test_entries_are_as_large_as_a_model_needs(monkeypatch):
    monkeypatch.setitem(zoo_models.LEAST_IMAGE, "large", 75)
    ours, theirs = ASKED.entries("large")
    assert (ours.contender, theirs.contender) == ("backend", "channels-last")
    assert ours.image == theirs.image == 75 and ASKED.entries("any")[0].image == 32
