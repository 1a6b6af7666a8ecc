"""A contender's process as the race sees it, idle whenever it is not its turn.

In: an `Entry`. Out: the answers of its `worker`. Between two answers the whole process group is
stopped by a signal: no thread of it can spin, purge memory or compile ahead while another contender
has its turn.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Protocol

from bngen.bench.contenders import Entry
from bngen.bench.forms import environment, obstacle

_PATIENCE = 20.0
"""Seconds until a process that was told to end is killed."""

_HOW_TO_WAIT = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Settings for who shares a machine. A contender has it to itself, and waits as is fastest."""


class Unavailable(Exception):
    """A contender cannot take part; the text says why."""


class Runner(Protocol):
    """A contender as the race sees it."""

    def start(self) -> dict[str, Any]:
        """Take the first step; see `worker`."""

    def ask(self, what: str) -> dict[str, Any]:
        """Do ``peak``, ``turn`` or, at the end, ``overhead``."""

    def stop(self) -> None:
        """End the process, if there is one; it can be started again."""


class Process:
    """A `Runner` that talks to a `worker`.

    Args:
        entry: who runs.
        variables: additions to the environment (folders of caches).

    Attributes:
        worker: the module that the process runs.
    """

    worker = "bngen.bench.worker"

    def __init__(self, entry: Entry, variables: Mapping[str, str] | None = None):
        self._entry, self._variables = entry, dict(variables or {})
        self._process: subprocess.Popen | None = None
        self._busy = False
        self._log = tempfile.TemporaryFile("w+", errors="replace")

    @property
    def pid(self) -> int:
        """Of the process, once it has been started."""
        return self._process.pid

    def start(self) -> dict[str, Any]:
        """See `Runner`; ``total`` is the time from the start of the process.

        Raises:
            Unavailable: when it cannot take its first step.
        """
        if reason := self.obstacle():
            raise Unavailable(reason)
        inherited = {k: v for k, v in os.environ.items() if k not in _HOW_TO_WAIT}
        own = environment(self._entry.contender)
        begin = time.perf_counter()
        # In a session of its own, so that an interrupt is this process's alone to deal with.
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.worker, json.dumps(asdict(self._entry))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env={**inherited, **self._variables, **own}, start_new_session=True,
        )  # fmt: skip
        self._busy = True
        return {**self._answer(), "total": time.perf_counter() - begin}

    def obstacle(self) -> str:
        """Why it cannot be started here; "" where nothing is known."""
        return obstacle(self._entry.contender, self._entry.program)

    def ask(self, what: str) -> dict[str, Any]:
        """See `Runner`.

        Raises:
            Unavailable: when it fails.
        """
        self._busy = True
        self._signal(signal.SIGCONT)
        with suppress(BrokenPipeError):  # the missing answer tells
            self._process.stdin.write(f"{what}\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._log.seek(0)
            last = self._log.read().strip().rpartition("\n")[2][:200]
            raise Unavailable(f"its process ended with status {status}: {last}")
        self._busy = False
        self._signal(signal.SIGSTOP)
        answer = json.loads(line)
        if "error" in answer:
            raise Unavailable(answer["error"])
        return answer

    def stop(self) -> None:
        """See `Runner`; one that was interrupted at work is not waited for."""
        if self._process is None:
            return
        if self._busy:
            self._signal(signal.SIGKILL)
        self._signal(signal.SIGCONT)
        with suppress(BrokenPipeError):  # what it has not read
            self._process.stdin.close()
        try:
            self._process.wait(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        self._process.stdout.close()
        self._process, self._busy = None, False

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it has ended; its next answer tells
            os.killpg(self._process.pid, number)
