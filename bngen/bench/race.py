"""A race: contenders take their steps in turn, A B C A B C, each in a process of its own.

In: entries, the first of which is measured against. Out: the program's part of the bench's JSON.
A contender that cannot run is reported as unavailable with the reason; one whose first loss is not
that of the first contender is reported as disagreeing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from bngen.bench.contenders import Entry, environment
from bngen.bench.samples import PHASES, phases, ratios, summary
from bngen.errors import BngenError

SETTLE = 0.05
"""Seconds between turns: the threads of who has just run spin for a while before they sleep."""

WARM = 2.0
"""Seconds of steps, besides the first, after which a contender is warm."""

STARTUP = ("import", "build", "first_step", "total")
"""Seconds until a contender has taken its first step; ``total`` from the start of its process."""

LOSS_TOLERANCE = 1e-3
"""Relative; different orders of summation in a hundred layers stay well below."""

Told = Callable[[str], None]


class Unavailable(Exception):
    """A contender cannot take part; the text says why."""


class Runner(Protocol):
    """A contender as the race sees it."""

    def start(self) -> dict[str, Any]:
        """Take the first step; see `worker`."""

    def ask(self, what: str) -> dict[str, Any]:
        """Do ``step``, ``peak`` or, at the end, ``overhead``."""

    def stop(self) -> None:
        """End the process."""


class Process:
    """A `Runner` that talks to a `worker`.

    Args:
        entry: who runs.
        variables: additions to the environment (folders of caches).
    """

    def __init__(self, entry: Entry, variables: Mapping[str, str] | None = None):
        self._entry, self._variables = entry, dict(variables or {})
        self._process: subprocess.Popen | None = None
        self._log = tempfile.TemporaryFile("w+", errors="replace")

    def start(self) -> dict[str, Any]:
        """See `Runner`; ``total`` is the time from the start of the process."""
        try:
            own = environment(self._entry.contender)
        except BngenError as error:
            raise Unavailable(str(error)) from error
        begin = time.perf_counter()
        # In a session of its own, so that an interrupt is this process's alone to deal with.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bngen.bench.worker", json.dumps(asdict(self._entry))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env={**os.environ, **self._variables, **own}, start_new_session=True,
        )  # fmt: skip
        return {**self._answer(), "total": time.perf_counter() - begin}

    def ask(self, what: str) -> dict[str, Any]:
        """See `Runner`."""
        try:
            self._process.stdin.write(f"{what}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the missing answer tells
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._log.seek(0)
            last = self._log.read().strip().rpartition("\n")[2][:200]
            raise Unavailable(f"its process ended with status {status}: {last}")
        answer = json.loads(line)
        if "error" in answer:
            raise Unavailable(answer["error"])
        return answer

    def stop(self) -> None:
        """See `Runner`."""
        if self._process is None:
            return
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def race(
    entries: Sequence[Entry],
    rounds: int,
    warmup: int = 2,
    tell: Told = lambda text: None,
    run: Callable[[Entry], Runner] = Process,
    settle: float = SETTLE,
) -> dict[str, Any]:
    """Run the race.

    Args:
        entries: who takes part; the first is the one the others are compared with.
        rounds: measured steps of each.
        warmup: steps before those, besides the first; fewer where they take longer than `WARM`.
        tell: called with what is going on.
        run: entry to runner.
        settle: seconds between turns.

    Returns:
        The program's part of the report; after an interrupt, of the rounds that were complete, and
        ``interrupted`` is true.

    Raises:
        BngenError: when the first contender cannot run.
        KeyboardInterrupt: when no round was complete.
    """
    runners = {e.contender: run(e) for e in entries}
    starts: dict[str, dict[str, Any]] = {}
    reasons: dict[str, str] = {}
    steps: dict[str, list[dict[str, float]]] = {}
    peaks: dict[str, int] = {}
    overheads: dict[str, float | None] = {}
    interrupted = False

    def attempt(name: str, action: Callable[[], None]) -> None:
        """A contender that fails is out, with all it has measured."""
        if name in reasons:
            return
        try:
            action()
        except Unavailable as error:
            if name == entries[0].contender:
                raise BngenError(f"{entries[0].program}: {name} cannot run: {error}") from error
            reasons[name] = str(error)

    def begin(name: str) -> None:
        starts[name] = runners[name].start()
        spent = 0.0
        for _ in range(warmup):
            if spent < WARM:
                spent += sum(runners[name].ask("step").values())
        peaks[name] = runners[name].ask("peak")["peak"]

    def turn(name: str) -> None:
        time.sleep(settle)
        steps.setdefault(name, []).append(runners[name].ask("step"))

    def end(name: str) -> None:
        overheads[name] = runners[name].ask("overhead")["overhead"]

    try:
        for name in runners:
            tell(f"{entries[0].program}: preparing {name}")
            attempt(name, lambda name=name: begin(name))
        for i in range(rounds):
            tell(f"{entries[0].program}: round {i + 1} of {rounds}")
            for name in runners:
                attempt(name, lambda name=name: turn(name))
        for name in runners:
            attempt(name, lambda name=name: end(name))
    except KeyboardInterrupt:
        complete = min(len(steps.get(name, ())) for name in runners if name not in reasons)
        if not complete:
            raise
        interrupted = True
        steps = {name: taken[:complete] for name, taken in steps.items()}
    finally:
        for runner in runners.values():
            runner.stop()
    rows = _rows(entries, starts, steps, peaks, overheads, reasons)
    first = entries[0]
    return {
        "program": first.program, "batch": first.batch, "image": first.image,
        "fusion": first.fusion, "threads": first.threads, "interrupted": interrupted,
        "contenders": rows,
    }  # fmt: skip


def _rows(
    entries: Sequence[Entry],
    starts: Mapping[str, dict[str, Any]],
    steps: Mapping[str, list[dict[str, float]]],
    peaks: Mapping[str, int],
    overheads: Mapping[str, float | None],
    reasons: Mapping[str, str],
) -> list[dict[str, Any]]:
    first = entries[0]
    loss = starts[first.contender]["loss"]
    ours = phases(steps[first.contender])
    rows = []
    for name in (e.contender for e in entries):
        if name in reasons:
            rows.append({"name": name, "status": "unavailable", "reason": reasons[name]})
            continue
        times = phases(steps[name])
        start = starts[name]
        agrees = abs(start["loss"] - loss) <= LOSS_TOLERANCE * max(1.0, abs(loss))
        rows.append({
            "name": name,
            "status": "ok" if agrees else "disagrees",
            "reason": "" if agrees else f"its loss is {start['loss']:.6g}, not {loss:.6g}",
            **{p: summary(times[p]) for p in PHASES},
            "ratio": {p: ratios(ours[p], times[p]) for p in PHASES},
            "peak_bytes": peaks[name],
            "overhead": overheads.get(name),
            "startup": {k: start[k] for k in STARTUP},
        })  # fmt: skip
    return rows
