"""Traffic of a training step by the machine's own counters, where ``perf`` may read them.

In: an `Entry`. Out: bytes of the lines that its steps missed in the last level, read and written,
for each step. Virtual machines seldom have such counters; `simulated` then stands in.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from bngen.bench.contenders import Entry
from bngen.bench.process import Process
from bngen.errors import ToolchainError
from bngen.runtime import folders

EVENTS = ("LLC-load-misses", "LLC-store-misses")
LINE = 64


def obstacle() -> str | None:
    """Why there are no counters here, or None where there are."""
    if shutil.which("perf") is None:
        return "perf is not installed"
    with folders.scratch() as folder:
        out = folder / "counts"
        with suppress(OSError):
            subprocess.run(_command(out, "true"), capture_output=True)
        if missing := [e for e in EVENTS if _counts(out).get(e) is None]:
            return f"perf cannot count {missing[0]} here"
    return None


def bytes_of_step(entry: Entry) -> float:
    """Bytes of a training step.

    Args:
        entry: the contender; it gets a process of its own, and its first step is not counted.

    Raises:
        ToolchainError: when counting fails.
        Unavailable: when the contender cannot run.
    """
    running = Process(entry)
    with folders.scratch() as folder:
        out = folder / "counts"
        try:
            running.start()
            counting = subprocess.Popen(
                _command(out, "-p", str(running.pid)), stderr=subprocess.PIPE, text=True
            )
            turn = running.ask("turn")
            counting.send_signal(signal.SIGINT)
            _, told = counting.communicate()
        finally:
            running.stop()
        counts = _counts(out)
    if any(counts.get(event) is None for event in EVENTS):
        last = (told.strip().splitlines() or ["no message"])[-1]
        raise ToolchainError(f"perf has counted nothing: {last}")
    steps = turn["steps"] + turn["discarded"]
    return LINE * sum(counts[event] for event in EVENTS) / steps


def _command(out: Path, *rest: str) -> list[str]:
    return ["perf", "stat", "-x,", "-o", str(out), "-e", ",".join(EVENTS), *rest]


def _counts(out: Path) -> dict[str, float | None]:
    """Counts by event of a file that perf has written; None for those that it cannot count."""
    found: dict[str, float | None] = {}
    for line in out.read_text().splitlines() if out.exists() else ():
        count, _, event, *_ = (*line.split(","), "", "", "")
        name = event.partition(":")[0]
        if name in EVENTS:
            found[name] = float(count) if count.replace(".", "", 1).isdigit() else None
    return found
