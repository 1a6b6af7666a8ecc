"""A race: contenders take their turns, A B C A B C, each in a process of its own.

In: entries, the first of which is measured against. Out: the program's part of the bench's JSON.
A contender that cannot run is reported as unavailable with the reason; one whose first loss is not
that of the first contender is reported as disagreeing.

While one has its turn the others are idle: stopped, and in memory that nobody needs. Where memory
is too short for all, those that do not fit end after their turn and start anew for the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bngen.bench import machine
from bngen.bench.contenders import Entry
from bngen.bench.forms import precision
from bngen.bench.process import Process, Runner, Unavailable
from bngen.bench.samples import phases, ratios, summary
from bngen.bench.turns import PHASES
from bngen.errors import BngenError

SETTLE = 0.05
"""Seconds between turns, in which who has just been stopped comes to rest."""

STARTUP = ("import", "build", "first_step", "total")
"""Seconds until a contender has taken its first step; ``total`` from the start of its process."""

LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 1e-2}
"""Relative, by precision. Different orders of summation in a hundred layers stay well below the
first; bfloat16's 8 bits came to 0.0031 at most in the losses of three networks."""

HEADROOM = 1.25
"""Memory that must be free for a turn, in peaks of the hungriest contender."""

Told = Callable[[str], None]


def race(
    entries: Sequence[Entry],
    rounds: int,
    tell: Told = lambda text: None,
    run: Callable[[Entry], Runner] = Process,
    settle: float = SETTLE,
    available: Callable[[], int] = machine.available_bytes,
) -> dict[str, Any]:
    """Run the race.

    Args:
        entries: who takes part; the first is the one the others are compared with.
        rounds: turns of each.
        tell: called with what is going on.
        run: entry to runner.
        settle: seconds between turns.
        available: bytes that are free; 0 if nobody knows.

    Returns:
        The program's part of the report; after an interrupt, of the rounds that were complete, and
        ``interrupted`` is true.

    Raises:
        BngenError: when the first contender cannot run.
        KeyboardInterrupt: when no round was complete.
    """
    running = _Race(entries, tell, run, settle, available)
    interrupted = False
    try:
        running.prepare()
        for i in range(rounds):
            running.round(i + 1, rounds)
        running.end()
    except KeyboardInterrupt:
        if not running.keep_complete_rounds():
            raise
        interrupted = True
    finally:
        running.stop()
    first = entries[0]
    return {
        "program": first.program, "batch": first.batch, "image": first.image,
        "fusion": first.fusion, "threads": first.threads, "interrupted": interrupted,
        "contenders": running.rows(),
    }  # fmt: skip


class _Race:
    """The race under way; arguments as those of `race`."""

    def __init__(
        self, entries: Sequence[Entry], tell: Told, run: Callable[[Entry], Runner],
        settle: float, available: Callable[[], int],
    ):  # fmt: skip
        self._program, self._first = entries[0].program, entries[0].contender
        self._dtype = entries[0].dtype
        self._tell, self._settle, self._available = tell, settle, available
        self._runners = {e.contender: run(e) for e in entries}
        self._live: set[str] = set()
        self._starts: dict[str, dict[str, Any]] = {}
        self._peaks: dict[str, int] = {}
        self._turns: dict[str, list[dict[str, Any]]] = {}
        self._overheads: dict[str, float | None] = {}
        self._reasons: dict[str, str] = {}

    def prepare(self) -> None:
        """Everybody's first step, and the memory of the second."""
        for name in self._runners:
            self._tell(f"{self._program}: preparing {name}")
            self._attempt(name, self._begin)

    def round(self, number: int, of: int) -> None:
        """A turn of everybody."""
        for name in self._runners:
            if name not in self._reasons:
                self._tell(f"{self._program}: round {number} of {of}, {name}")
            self._attempt(name, self._turn)

    def end(self) -> None:
        """Steps without work, where a contender can take them."""
        for name in self._runners:
            self._attempt(name, self._idle)

    def stop(self) -> None:
        """End all processes."""
        for runner in self._runners.values():
            runner.stop()

    def keep_complete_rounds(self) -> int:
        """Drop the turns of a round that others have not taken; how many rounds are left."""
        taking = [n for n in self._runners if n not in self._reasons]
        complete = min(len(self._turns.get(name, ())) for name in taking)
        self._turns = {name: taken[:complete] for name, taken in self._turns.items()}
        return complete

    def _attempt(self, name: str, action: Callable[[str], None]) -> None:
        """A contender that fails is out, with all it has measured."""
        if name in self._reasons:
            return
        try:
            action(name)
        except Unavailable as error:
            if name == self._first:
                raise BngenError(f"{self._program}: {name} cannot run: {error}") from error
            self._reasons[name] = str(error)
            self._tell(f"{self._program}: {name} is out: {error}")

    def _begin(self, name: str) -> None:
        self._starts[name] = self._start(name)
        self._peaks[name] = self._runners[name].ask("peak")["peak"]
        self._make_room(name)

    def _turn(self, name: str) -> None:
        runner = self._started(name)
        time.sleep(self._settle)
        self._turns.setdefault(name, []).append(runner.ask("turn"))
        self._make_room(name)

    def _idle(self, name: str) -> None:
        self._overheads[name] = self._started(name).ask("overhead")["overhead"]

    def _start(self, name: str) -> dict[str, Any]:
        answer = self._runners[name].start()
        self._live.add(name)
        return answer

    def _started(self, name: str) -> Runner:
        if name not in self._live:
            self._start(name)
        return self._runners[name]

    def _make_room(self, name: str) -> None:
        """End who has just had its turn, if the next would not find the memory it needs."""
        free = self._available()
        if free and free < HEADROOM * max(self._peaks.values()):
            self._tell(f"{self._program}: no memory to keep {name}; it starts anew for each turn")
            self._runners[name].stop()
            self._live.discard(name)

    def rows(self) -> list[dict[str, Any]]:
        """The contenders' part of the report."""
        loss = self._starts[self._first]["loss"]
        ours = phases(self._turns[self._first])
        return [
            {
                "name": name, "precision": precision(name, self._dtype), "status": "unavailable",
                "reason": self._reasons[name],
            }
            if name in self._reasons
            else self._row(name, loss, ours)
            for name in self._runners
        ]  # fmt: skip

    def _row(self, name: str, loss: float, ours: Mapping[str, list[float]]) -> dict[str, Any]:
        turns, start = self._turns[name], self._starts[name]
        times = phases(turns)
        kind = precision(name, self._dtype)
        coarse = max(LOSS_TOLERANCE[kind], LOSS_TOLERANCE[self._dtype])
        allowed = coarse * max(1.0, abs(loss))
        agrees = abs(start["loss"] - loss) <= allowed
        return {
            "name": name,
            "precision": kind,
            "status": "ok" if agrees else "disagrees",
            "reason": "" if agrees else f"its loss is {start['loss']:.6g}, not {loss:.6g}",
            **{p: summary(times[p]) for p in PHASES},
            "ratio": {p: ratios(ours[p], times[p]) for p in PHASES},
            "turns": {k: [t[k] for t in turns] for k in ("steps", "discarded", "stationary")},
            "peak_bytes": self._peaks[name],
            "overhead": self._overheads.get(name),
            "startup": {k: start[k] for k in STARTUP},
        }
