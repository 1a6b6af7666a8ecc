"""Ranks of one thread against one process of as many: ``python -m tests.race_of_ranks``.

One process trains with a batch on all threads; its rivals share the same batch out to ranks of one
thread each, under DistributedDataParallel. All take turns of a few steps, in one run.

A network between machines is imagined: a collective of synchronized batch normalization then takes
at least ``delay`` milliseconds, and gradients travel at so many MB/s, one bucket after another. One
machine is all that is measured: ranks share its memory bandwidth, and gloo its loopback.

The race is written to a file after each round, so that one that is interrupted keeps what it has;
``python docs/scaling.py`` makes of it what it says of more machines::

    python -m tests.race_of_ranks --json ranks.json && python docs/scaling.py ranks.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.racing_rank import Crew, RankError, work

NETWORKS = ("densenet121", "resnet50", "mobilenet_v2", "resnet18", "small")
ETHERNET = 125.0
"""MB/s of a network of 1 Gbit/s."""


@dataclass(frozen=True)
class Way:
    """A way to train, which processes are started for.

    Attributes:
        name: as it is shown.
        ranks: processes; the threads are shared out to them. None for as many as were asked for.
        bngen: whether bngen compiles the model, or PyTorch runs it, channels-last.
        sync: whether batch normalization is synchronized.
        split: whether Dynamo cuts the model at the borders of DistributedDataParallel's buckets.
        slow: whether gradients travel by a function of its own, which can be told to be slow.
    """

    name: str
    ranks: int | None = None
    bngen: bool = True
    sync: bool = False
    split: bool = False
    slow: bool = False


@dataclass(frozen=True)
class Setting:
    """What a way is tried under, in the same processes.

    Attributes:
        delay: milliseconds that a collective of batch normalization takes at least.
        bandwidth: MB/s at which gradients travel; 0 for what there is.
        stages: whether a region hands its gradients over in stages.
    """

    delay: float = 0.0
    bandwidth: float = 0.0
    stages: bool = True

    def __str__(self) -> str:
        words = [f"{self.delay:g} ms a collective"] if self.delay else []
        words += [f"{self.bandwidth:g} MB/s"] if self.bandwidth else []
        return ", ".join([*words, *([] if self.stages else ["no stages"])])


def entries(delays: list[float]) -> dict[Way, list[Setting]]:
    """All that take part."""
    plain, slow = Setting(), Setting(bandwidth=ETHERNET)
    return {
        Way("one process", ranks=1): [plain],
        Way("ranks"): [plain, Setting(stages=False)],
        Way("ranks", slow=True): [slow, Setting(bandwidth=ETHERNET, stages=False)],
        Way("ranks, cut by Dynamo", split=True): [plain],
        Way("ranks, cut by Dynamo", split=True, slow=True): [slow],
        Way("ranks, SyncBN", sync=True): [plain, *(Setting(delay=ms) for ms in delays)],
        Way("PyTorch, one process", ranks=1, bngen=False): [plain],
        Way("PyTorch, ranks", bngen=False): [plain],
        Way("PyTorch, ranks", bngen=False, slow=True): [slow],
    }  # fmt: skip


class Contender:
    """A way under a setting, and how long it has taken."""

    def __init__(self, way: Way, setting: Setting):
        self.way, self.setting, self.reason = way, setting, ""
        self.seconds: list[float] = []
        self.waited: list[float] = []
        self.collectives = 0
        self.gradient_bytes = 0

    def turn(self, crew: Crew, steps: int) -> None:
        """So many steps; the slowest rank counts."""
        rows = crew.turn({**asdict(self.setting), "steps": steps})
        self.seconds.append(max(r["seconds"] for r in rows) / steps)
        self.waited.append(max(r["waited"] for r in rows) / steps)
        self.collectives = rows[0]["collectives"] // steps
        self.gradient_bytes = rows[0]["gradient_bytes"]

    def row(self) -> dict:
        """As data."""
        found = {
            "name": self.way.name, **asdict(self.way), "setting": asdict(self.setting),
            "shown": ", ".join(filter(None, (self.way.name, str(self.setting)))),
            "status": "unavailable" if self.reason else "ok", "reason": self.reason,
        }  # fmt: skip
        if self.reason or not self.seconds:
            return found
        for name, values in (("step", self.seconds), ("waited", self.waited)):
            low, middle, high = quartiles(values)
            found[name] = {"median": middle, "low": low, "high": high, "samples": values}
        return found | {
            "collectives": self.collectives, "gradient_bytes": self.gradient_bytes
        }  # fmt: skip


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) < 2:
        return (values[0],) * 3
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))  # type: ignore[return-value]


def race(network: str, options: argparse.Namespace, keep: Callable[[dict], None]) -> dict:
    """All contenders with one network; what there is after each round is kept.

    No round begins that would end after ``options.minutes``, if it takes as long as the longest so
    far; one there is in any case.
    """
    crews: dict[Way, Crew] = {}
    contenders = [
        Contender(w, s)
        for w, settings in entries(options.delay).items()
        if w.name in options.ways
        for s in settings
    ]
    begun = time.monotonic()
    longest, rounds = 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        try:
            for number, way in enumerate(dict.fromkeys(c.way for c in contenders)):
                note(f"{network}: {way.name} begins, after {_minutes(begun)}")
                crews[way] = started(way, network, options, Path(folder) / str(number))
            while rounds < options.rounds:
                start = time.monotonic()
                if rounds and start + longest > begun + 60 * options.minutes:
                    note(f"{network}: no time for another round, after {_minutes(begun)}")
                    break
                note(f"{network}: round {rounds + 1} of {options.rounds}, after {_minutes(begun)}")
                for contender in contenders[:: 1 - 2 * (rounds % 2)]:
                    take_turn(contender, crews, options.steps)
                rounds, longest = rounds + 1, max(longest, time.monotonic() - start)
                keep(as_data(network, options, contenders, rounds))
        finally:
            for crew in crews.values():
                crew.stop()
    return as_data(network, options, contenders, rounds)


def as_data(
    network: str, options: argparse.Namespace, contenders: list[Contender], rounds: int
) -> dict:
    """A race, as far as it has come."""
    return {
        "network": network, "batch": options.batch, "image": options.image,
        "threads": options.threads, "ranks": options.ranks, "steps": options.steps,
        "rounds": rounds, "contenders": [c.row() for c in contenders],
    }  # fmt: skip


def _minutes(begun: float) -> str:
    return f"{(time.monotonic() - begun) / 60:.1f} minutes"


def started(way: Way, network: str, options: argparse.Namespace, folder: Path) -> Crew:
    """Processes of a way, which have compiled and made their first steps."""
    folder.mkdir()
    job = {
        **asdict(way), "ranks": way.ranks or options.ranks, "threads": options.threads,
        "batch": options.batch, "image": options.image, "network": network,
    }  # fmt: skip
    return Crew(job, folder, first=60 * options.first, later=60 * options.patience)


def take_turn(contender: Contender, crews: dict[Way, Crew], steps: int) -> None:
    """A turn, unless its processes have failed: that is told, and the others go on."""
    if contender.reason:
        return
    try:
        contender.turn(crews[contender.way], steps)
    except RankError as error:
        contender.reason = str(error)
        note(f"{contender.way.name}: {error}")


def note(text: str) -> None:
    """Tell how far it is."""
    print(text, file=sys.stderr, flush=True)


# --- what is shown ----------------------------------------------------------------------------


def table(race_: dict) -> str:
    """Markdown, as it is in the documentation."""
    rows = [c for c in race_["contenders"] if "step" in c]
    size = f"{race_['image']}x{race_['image']}"
    lines = [
        f"{race_['network']}, batch {race_['batch']}, {size}: {race_['ranks']} ranks, "
        f"{race_['threads']} threads together; medians of {race_['rounds']} turns of "
        f"{race_['steps']} steps",
        "",
        "| | ms a step | speed | ms waited | collectives | of their delay hidden |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        step, waited = (1000 * row[name]["median"] for name in ("step", "waited"))
        speed = rows[0]["step"]["median"] / row["step"]["median"]
        share = hidden(row, rows)
        meets = f"{waited:.1f} | {row['collectives']}" if row["sync"] else "|"
        shown = "" if share is None else f"{100 * share:.0f} %"
        lines.append(f"| {row['shown']} | {step:.1f} | {speed:.2f} | {meets} | {shown} |")
    lines += [f"\n{c['shown']}: {c['reason']}" for c in race_["contenders"] if c["reason"]]
    return "\n".join(lines)


def hidden(row: dict, rows: list[dict]) -> float | None:
    """Of the delay of all its collectives, the share by which a step did not become longer.

    None where that delay is less than a tenth of a step: lost in the noise of a shared machine.
    """
    delay = row["setting"]["delay"] / 1000 * row["collectives"]
    same = {**row["setting"], "delay": 0.0}
    base = next(r for r in rows if r["name"] == row["name"] and r["setting"] == same)
    if delay < base["step"]["median"] / 10:
        return None
    return 1 - (row["step"]["median"] - base["step"]["median"]) / delay


def parsed() -> argparse.Namespace:
    """What is asked for."""
    ways = list(dict.fromkeys(way.name for way in entries([])))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, nargs="+", default=["resnet50"])
    parser.add_argument("--batch", type=int, default=16, help="images of all ranks together")
    parser.add_argument("--image", type=int, default=224)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="of all ranks together")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="of a turn, after one that is not")
    parser.add_argument("--delay", type=float, nargs="*", default=[0.1, 1.0, 5.0])
    parser.add_argument("--ways", choices=ways, nargs="+", default=ways, metavar="WAY",
                        help=f"all by default: {'; '.join(ways)}")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=25, help="that a network may take")
    parser.add_argument("--first", type=float, default=10, help="minutes that compiling may take")
    parser.add_argument("--patience", type=float, default=3, help="minutes that a turn may take")
    parser.add_argument("--json", type=Path, help="the file that the race is written to")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.batch % options.ranks or options.threads % options.ranks:
        parser.error("--ranks: batch and threads are to be multiples of it")
    return options


def main() -> None:
    """Race, or be one of the ranks."""
    options = parsed()
    if options.rank:
        work(*json.loads(options.rank))
        return
    from bngen import cache
    from bngen.bench.machine import describe
    from bngen.files import write_whole

    found = {"schema": 1, "machine": describe(cache.target("llvm -mcpu=native")), "races": []}

    def keep(race_: dict) -> None:
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            whole = {**found, "races": [*found["races"], race_]}
            write_whole(options.json, (json.dumps(whole, indent=1) + "\n").encode())

    for network in options.network:
        found["races"].append(race(network, options, keep))
        print(table(found["races"][-1]) + "\n", flush=True)


if __name__ == "__main__":
    main()
