"""The first step of a process: from empty caches, and once more when they are full.

In: a race that was run with the variables of `empty_caches`. Out: the race's rows, with the times
of a second process added.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bngen import files
from bngen.bench.contenders import Entry
from bngen.bench.process import Runner, Unavailable
from bngen.bench.race import STARTUP
from bngen.errors import BngenError

_CACHES = ("BNGEN_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


@contextmanager
def empty_caches() -> Iterator[Mapping[str, str]]:
    """Variables that point every cache of either side to a new folder, which is deleted after."""
    place = Path(tempfile.gettempdir())
    with files.opened(place) as parent, files.working_folder(parent, "bngen-bench-") as (folder, _):
        yield {name: str(place / folder / name.lower()) for name in _CACHES}


def start_again(
    race: dict[str, Any],
    entries: Sequence[Entry],
    run: Callable[[Entry], Runner],
    tell: Callable[[str], None],
) -> None:
    """Add to each contender's times what a second process needs, now that caches are full.

    Raises:
        BngenError: when a contender that has raced does not start.
    """
    rows = {row["name"]: row for row in race["contenders"] if row["status"] != "unavailable"}
    for entry in entries:
        if entry.contender not in rows:
            continue
        tell(f"{entry.program}: starting {entry.contender} with full caches")
        process = run(entry)
        try:
            start = process.start()
        except Unavailable as error:
            what = f"{entry.program}: {entry.contender} started once, but not again: {error}"
            raise BngenError(what) from error
        finally:
            process.stop()
        rows[entry.contender]["startup"]["warm"] = {k: start[k] for k in STARTUP}
