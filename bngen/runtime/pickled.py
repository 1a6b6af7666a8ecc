"""A module as plain data: its program, its object files and its state, for `pickle` and `copy`.

In: what `Module.__reduce__` gives. Out: a module in another process, linked and loaded anew. A call
that waits for its ``backward`` is not part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

from bngen.errors import BngenError
from bngen.runtime import native, threads, toolchain
from bngen.version import __version__


@dataclass(frozen=True)
class Loose:
    """The inside of a module that came out of a pickle: the objects are there, texts are not."""

    files: Mapping[str, bytes]

    def texts(self, kind: str) -> dict[str, str]:
        """There are none.

        Raises:
            BngenError: always.
        """
        raise BngenError(f"a pickled module has no {kind} texts", hint="build the program again")

    def objects(self) -> Mapping[str, bytes]:
        """Object files, by symbol."""
        return self.files


def versions() -> tuple[str, str]:
    """What made a pickle; kernels and the runtime that calls them belong together."""
    return __version__, metadata.version("apache-tvm")


def restore(
    make: Callable[..., Any],
    made_by: tuple[str, str],
    built: Any,
    files: Mapping[str, bytes],
    initialize: Callable[[str, np.random.Generator], np.ndarray],
    num_threads: int | None,
    state: Mapping[str, np.ndarray] | None,
) -> Any:
    """The module of a pickle.

    Args:
        make: the class.
        made_by: `versions` at the time.
        built: what it runs.
        files: object files, by symbol.
        initialize: draws the value of a parameter or buffer.
        num_threads: threads of a call.
        state: parameters and buffers; None where they had no values.

    Raises:
        BngenError: for a pickle of another version.
        ToolchainError: where its kernels cannot be linked or loaded.
    """
    if made_by != versions():
        names = [f"bngen {v[0]} with apache-tvm {v[1]}" for v in (made_by, versions())]
        raise BngenError(
            f"{built.signature.program}: pickled by {names[0]}, and this is {names[1]}",
            hint="build the program again, and load its state_dict()",
        )
    threads.install()  # before any code is loaded: what is loaded keeps the pool that it finds
    library = toolchain.link(files.values())
    entries = native.load(library, {step.symbol for step in built.kernels})
    module = make(built, entries, initialize, Loose(files), num_threads)
    return module if state is None else module.load_state_dict(state)
