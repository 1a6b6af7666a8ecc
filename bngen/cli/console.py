"""What the commands say while they work and when they are done.

Progress and log go to standard error: a bar on a terminal, a few plain lines elsewhere, nothing
with ``--quiet``. The result alone goes to standard output. What cannot be logged is left out; a
result that cannot be written is an error. `rich` is imported only when a bar is about to be drawn.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

from bngen.errors import ToolchainError

SCHEMA = 1
"""Version of what ``--json`` prints; it grows when a field changes its meaning or goes away."""
_PLAIN_LINES = 20
"""About how many progress lines a build prints when there is no terminal."""


class Progress(Protocol):
    """What a command reports to while it works."""

    def stage(self, text: str) -> None:
        """Something began whose length is unknown."""

    def kernel(self, done: int, total: int, name: str) -> None:
        """So many kernels of the total are compiled; ``name`` is the latest."""

    def paused(self) -> AbstractContextManager[None]:
        """A block that writes to the terminal, too."""


class _Silent:
    def stage(self, text: str) -> None:
        pass

    def kernel(self, done: int, total: int, name: str) -> None:
        pass

    def paused(self) -> AbstractContextManager[None]:
        return nullcontext()


class _Lines:
    """Plain lines: every stage, and about `_PLAIN_LINES` of the kernels."""

    def __init__(self) -> None:
        self._shown = 0

    def stage(self, text: str) -> None:
        log(text)

    def kernel(self, done: int, total: int, name: str) -> None:
        # Equal kernels are done together, so that `done` may jump.
        if done == total or (done - self._shown) * _PLAIN_LINES >= total:
            self._shown = done
            log(f"[{done}/{total}] {name}")

    def paused(self) -> AbstractContextManager[None]:
        return nullcontext()


class _Bar:
    """A bar on the terminal; rich draws it and takes it away again."""

    def __init__(self, bar: Any):
        self._bar = bar
        self._task = bar.add_task("", total=None)

    def stage(self, text: str) -> None:
        self._bar.reset(self._task, total=None, description=text)

    def kernel(self, done: int, total: int, name: str) -> None:
        self._bar.update(self._task, completed=done, total=total, description=name)

    @contextmanager
    def paused(self) -> Iterator[None]:
        # While it is drawn, rich sends whatever is printed to where the bar goes.
        self._bar.stop()
        try:
            yield
        finally:
            self._bar.start()


@contextmanager
def progress(quiet: bool) -> Iterator[Progress]:
    """A reporter fit for where standard error goes."""
    if quiet:
        with _without_log():
            yield _Silent()
    elif not sys.stderr.isatty():
        yield _Lines()
    else:
        with _rich_bar() as bar:
            yield _Bar(bar)


@contextmanager
def _without_log() -> Iterator[None]:
    logger = logging.getLogger("bngen")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _rich_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description:32.32}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def log(line: str) -> None:
    """One line on standard error, if it can be written there."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # Nobody is there to be told.
        silence(sys.stderr)


def result(text: str, end: str = "\n") -> None:
    """The command's result, on standard output.

    Raises:
        BrokenPipeError: when its reader has left.
        ToolchainError: when it cannot be written.
    """
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        silence(sys.stdout)
        what = f"cannot write to standard output: {error.strerror or error}"
        raise ToolchainError(what, hint="send it elsewhere") from error


def silence(stream: Any) -> None:
    """Let a stream lead nowhere from now on: what it still holds can be dropped in peace."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def open_missing_streams() -> None:
    """Let standard streams that were closed when the process started lead nowhere.

    Otherwise the next file that is opened takes their number, and gets what was meant for them.
    Text that cannot be encoded is written in ASCII from now on.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            stream = open(number, "w" if number else "r", encoding="utf-8", closefd=False)
            setattr(sys, name, stream)
        stream.reconfigure(errors="backslashreplace")


def settle() -> None:
    """Write what the streams still hold, or drop it: Python would end with a status of its own."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            silence(stream)


def json_result(value: Mapping[str, Any]) -> None:
    """The command's result for machines, on standard output, under the version of its form."""
    result(json.dumps({"schema": SCHEMA, **value}, indent=2))


def columns(rows: Sequence[Sequence[str]], indent: str = "  ") -> str:
    """Rows of cells as left-aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(f"{indent}{line}".rstrip() for line in lines)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def __str__(self) -> str:
        return f"{time.perf_counter() - self._start:.1f} s"
