"""What the documentation makes of the race of ranks, and the race itself on a small network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import race_of_ranks
from tests.profiles import takes_long
from tests.race_of_ranks import Contender, entries, table
from tests.racing_rank import Crew, RankError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def scaling(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import scaling

    return scaling


def made_up():
    """A race in which a step takes 1 s, and a network what one could work out by hand."""
    contenders = []
    for way, settings_ in entries([1.0, 5.0]).items():
        for setting in settings_:
            c = Contender(way, setting)
            c.gradient_bytes, c.collectives = 250_000_000, 100 if way.sync else 0
            # 2 s of travelling, of which half is hidden; of delays a fifth is.
            late = 0.8 * 100 * setting.delay / 1000 if way.sync else 0.0
            own = 0.1 if way.sync else 0.0
            c.seconds = [1.0 + own + late + (1.0 if setting.bandwidth else 0.0)] * 3
            c.waited = [late] * 3
            contenders.append(c.row())
    return {
        "network": "net", "batch": 16, "image": 224, "threads": 2, "ranks": 2, "steps": 3,
        "rounds": 3, "contenders": contenders,
    }  # fmt: skip


def test_the_extrapolation_begins_with_what_was_measured(scaling):
    steps = scaling.Steps(made_up())
    ethernet = scaling.Network(0.0, 125e6)
    assert steps.plain(1) == steps.synced(1) == 1.0
    assert steps.plain(2, ethernet) == pytest.approx(2.0)
    assert steps.plain(4, ethernet) == pytest.approx(3.0)  # 3 s of which 1 s is hidden
    assert steps.plain(64, scaling.Network(0.0, 1e12)) == 1.0
    assert steps.waits(0.001) == pytest.approx(0.1 + 0.08)
    assert steps.waits(0.010) == pytest.approx(0.1 + 0.8)
    times = [steps.synced(k) for k in scaling.MACHINES]
    assert times == sorted(times)


def test_the_page_and_the_picture_are_made_of_a_race(scaling, tmp_path):
    race = {"machine": {"cpus": 2, "model": "a CPU"}, "races": [made_up()]}
    (tmp_path / "ranks.json").write_text(json.dumps(race))
    page = "before\n<!-- measured: ranks.json -->\nold\n<!-- end of measured -->\nafter\n"
    text = scaling.with_measured(page, tmp_path)
    assert text.startswith("before") and text.endswith("after\n") and "old" not in text
    assert "| ranks, SyncBN, 5 ms a collective | 1500.0 | 0.67 | 400.0 | 100 | 20 % |" in text
    assert "| net, SyncBN | 1000 (100 %) |" in text
    scaling.draw(race, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 1000


def test_the_page_says_what_was_measured(scaling):
    page = (ROOT / "docs" / "distributed.md").read_text()
    assert scaling.with_measured(page, ROOT) == page


def test_who_has_failed_is_told_and_the_others_are_shown():
    race = made_up()
    race["contenders"][1] = {**race["contenders"][1], "reason": "rank 1 has ended: Killed"}
    del race["contenders"][1]["step"]
    text = table(race)
    assert "| one process | 1000.0 | 1.00 |" in text
    assert text.endswith("ranks: rank 1 has ended: Killed")


def test_a_rank_that_fails_or_hangs_says_so(tmp_path):
    job = {"ranks": 1, "threads": 1, "batch": 1, "image": 8, "network": "nothing", "bngen": False}
    crew = Crew(job, tmp_path, first=120, later=1)
    with pytest.raises(RankError, match="rank 0 has ended: .*(nothing|torchvision)"):
        crew.turn({})
    crew = Crew(job, tmp_path, first=0.0, later=1)
    with pytest.raises(RankError, match="rank 0 takes more than 0 s"):
        crew.turn({})


class MadeUp:
    """A crew that takes no time, and is interrupted in its third turn."""

    def __init__(self):
        self.turns = 0

    def turn(self, job):
        self.turns += 1
        if self.turns == 3:
            raise KeyboardInterrupt
        row = {"seconds": 3.0, "waited": 0.0, "collectives": 6, "gradient_bytes": 4}
        return [row, row | {"seconds": 6.0}]

    def stop(self):
        pass


def test_an_interrupted_race_keeps_the_rounds_before(tmp_path, monkeypatch):
    file = tmp_path / "a" / "ranks.json"
    monkeypatch.setattr(race_of_ranks, "started", lambda *_: MadeUp())
    monkeypatch.setattr(sys, "argv", ["race", "--ways", "one process", "--json", str(file)])
    with pytest.raises(KeyboardInterrupt):
        race_of_ranks.main()
    (race,) = json.loads(file.read_text())["races"]
    assert race["rounds"] == 2 and race["network"] == "resnet50"
    (one,) = race["contenders"]
    assert one["step"]["samples"] == [2.0, 2.0] and one["collectives"] == 2


def test_a_race_without_time_has_one_round(monkeypatch, capsys):
    monkeypatch.setattr(race_of_ranks, "started", lambda *_: MadeUp())
    monkeypatch.setattr(sys, "argv", ["race", "--ways", "one process", "--minutes", "0"])
    race_of_ranks.main()
    out, err = capsys.readouterr()
    assert "medians of 1 turns" in out and "| one process | 2000.0 | 1.00 |" in out
    assert "no time for another round" in err


@takes_long("takes minutes")
def test_the_race_runs_whole(tmp_path):
    command = [sys.executable, "-m", "tests.race_of_ranks", "--network", "small", "--image", "8",
               "--batch", "4", "--rounds", "2", "--steps", "2", "--json",
               str(tmp_path / "a" / "ranks.json")]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (race,) = json.loads((tmp_path / "a" / "ranks.json").read_text())["races"]
    assert [c["status"] for c in race["contenders"]] == ["ok"] * len(race["contenders"])
    assert race["rounds"] == 2
