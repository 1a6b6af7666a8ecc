"""The process of one contender: told what to do on standard input, answers in lines of JSON.

============ =================================================================================
line         answer
============ =================================================================================
(start)      ``loss`` of the first step; seconds to import, to ``build``, of the ``first_step``
``turn``     a turn of steps in a row, see `turns.take_steps`
``peak``     bytes that a step holds at its peak above what was resident before the first one
``overhead`` seconds of a step without its kernels, None where they cannot be left out; the last
             line, since nothing is computed from then on
============ =================================================================================

A process each keeps contenders out of each other's memory, allocator and threads; see
`race.Process` for how it is kept idle between the lines. What goes wrong is answered as ``error``.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from bngen.bench.contenders import Contender, Entry, contender
from bngen.bench.forms import FORMS
from bngen.bench.turns import STEPS, Rule, take_steps

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_IDLE_STEPS = 21
_PR_SET_PDEATHSIG = 1

Clock = Callable[[], float]


def serve(
    entry: Entry,
    lines: TextIO,
    answer: Callable[[dict[str, Any]], None],
    make: Callable[[Entry], Contender] = contender,
    rule: Rule = STEPS,
    clock: Clock = time.perf_counter,
) -> None:
    """Prepare the contender and do what the lines say until they end.

    Args:
        entry: who it is.
        lines: ``turn``, ``peak`` or ``overhead``.
        answer: called with each answer.
        make: entry to contender.
        rule: when a turn is over.
        clock: what times the steps of turns, in seconds.

    Raises:
        ValueError: for any other line.
    """
    watch = time.perf_counter
    start = watch()
    _import_for(entry)
    imported = watch()
    rival = make(entry)
    built = watch()
    before = _resident_now()
    loss = rival.forward()
    rival.backward()
    answer({
        "loss": loss, "import": imported - start, "build": built - imported,
        "first_step": watch() - built,
    })  # fmt: skip
    gc.disable()  # no pause within a step; nothing that a step makes lies in a cycle
    for line in lines:
        match line.strip():
            case "peak":
                answer(_peak(rival, before))
            case "overhead":
                answer(_overhead(rival))
            case "turn":
                answer(take_steps(lambda: timed_step(rival, clock), rule))
            case other:
                raise ValueError(f"asked for {other!r}")


def _import_for(entry: Entry) -> None:
    if entry.contender in FORMS:
        import bngen.torch_bridge.training  # noqa: F401
    else:
        import bngen.compiler  # noqa: F401


def timed_step(rival: Contender, clock: Clock = time.perf_counter) -> dict[str, float]:
    """Take a training step; seconds of its halves."""
    start = clock()
    rival.forward()
    middle = clock()
    rival.backward()
    return {"forward": middle - start, "backward": clock() - middle}


def _peak(rival: Contender, before: int) -> dict[str, Any]:
    _reset_peak()
    timed_step(rival)
    return {"peak": _peak_resident() - before}


def _overhead(rival: Contender) -> dict[str, Any]:
    if not rival.without_work():
        return {"overhead": None}
    taken = (sum(timed_step(rival).values()) for _ in range(_IDLE_STEPS))
    return {"overhead": statistics.median(taken)}


# --- resident memory --------------------------------------------------------------------------


def _resident_now() -> int:
    """Bytes resident, once the allocator has given back what building left behind."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return _status("VmRSS") or _peak_resident()


def _reset_peak() -> None:
    """Forget the peak so far, where the system allows that: compiling may have been higher."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        pass


def _peak_resident() -> int:
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _status(name: str) -> int:
    """A field of the process's status in bytes; 0 where there is none."""
    if not _STATUS.exists():
        return 0
    rows = (line.split() for line in _STATUS.read_text().splitlines())
    return next((int(r[1]) << 10 for r in rows if r[0] == f"{name}:"), 0)


def _die_with_parent() -> None:
    """Be killed once the parent is gone: a stopped process would wait for it for ever."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux alone has it
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(
    make: Callable[[Entry], Contender] = contender,
    rule: Rule = STEPS,
    clock: Clock = time.perf_counter,
) -> None:
    """The child process; its one argument is the entry as JSON, the others are those of `serve`."""
    _die_with_parent()
    # Whatever a library prints must not end up among the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    try:
        serve(Entry(**json.loads(sys.argv[1])), sys.stdin, answer, make, rule, clock)
    except Exception as error:  # the parent reports it; a rival that fails is not bngen's end
        answer({"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]})


if __name__ == "__main__":
    main()
