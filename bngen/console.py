"""What the commands say while they work and when they are done.

Progress and log go to standard error: a bar on a terminal, a few plain lines elsewhere, nothing
with ``--quiet``. The result alone goes to standard output. `rich` is imported only when a bar is
about to be drawn.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

_PLAIN_LINES = 20
"""About how many progress lines a build prints when there is no terminal."""


class Progress(Protocol):
    """What a command reports to while it works."""

    def stage(self, text: str) -> None:
        """Something began whose length is unknown."""

    def kernel(self, done: int, total: int, name: str) -> None:
        """So many kernels of the total are compiled; ``name`` is the latest."""


class _Silent:
    def stage(self, text: str) -> None:
        pass

    def kernel(self, done: int, total: int, name: str) -> None:
        pass


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
def progress(quiet: bool) -> Iterator[Progress]:
    """A reporter fit for where standard error goes."""
    if quiet:
        yield _Silent()
    elif not sys.stderr.isatty():
        yield _Lines()
    else:
        with _rich_bar() as bar:
            yield _Bar(bar)


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
    """One line on standard error."""
    print(line, file=sys.stderr, flush=True)


def result(text: str) -> None:
    """The command's result, on standard output."""
    print(text, flush=True)


def json_result(value: Any) -> None:
    """The command's result for machines, on standard output."""
    result(json.dumps(value, indent=2))


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
