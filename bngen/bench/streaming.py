"""A process that streams through memory on one CPU, so that others find less of its bandwidth.

In: nothing. Out: `Streaming`, a context in which the process runs; it says at what rate it has been
reading and writing. It copies between arrays that no cache holds, and has the last CPU to itself as
far as its own placement goes: whoever measures beside it leaves one CPU free.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from typing import Any

from bngen.errors import ToolchainError

BYTES = 256 << 20
"""Of each of the two arrays."""
_READY_SECONDS = 60


class Streaming:
    """The process, from `__enter__` to `__exit__`."""

    def __enter__(self) -> Streaming:
        # In a session of its own: an interrupt is for who started it, and that one ends it.
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip
        try:
            self._answer()  # it has its arrays
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *raised: Any) -> None:
        self._process.kill()
        self._process.wait()

    def rate(self) -> float:
        """1e9 bytes a second, read and written, since the last question or the begin."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> float:
        ready, _, _ = select.select([self._process.stdout], [], [], _READY_SECONDS)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise ToolchainError("the process that streams through memory does not answer")
        return json.loads(line)


def main() -> None:
    """Copy for ever, and answer each line of standard input with the rate until then."""
    import numpy as np

    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    source, target = np.ones(BYTES // 8), np.zeros(BYTES // 8)
    print(json.dumps(0.0), flush=True)
    began, copied = time.perf_counter(), 0
    while True:
        np.copyto(target, source)
        copied += 2 * BYTES
        if select.select([sys.stdin], [], [], 0)[0]:
            if not sys.stdin.readline():
                return  # nobody is there any more
            now = time.perf_counter()
            print(json.dumps(copied / (now - began) / 1e9), flush=True)
            began, copied = now, 0


if __name__ == "__main__":
    main()
