"""The ladder of ``BNGEN_DEBUG``: how much of a build is shown on standard error.

In: the level (`options.debug_level`), the passes' graphs as they come, the finished module. Out:
lines. The rungs are `options.DEBUG_LADDER`; each shows what those below it show, and more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from bngen.cli.console import log

TIMES, GRAPHS, KERNELS, TIR, ASSEMBLY = range(1, 6)


def pass_reporter(level: int) -> Callable[[str, Any], None] | None:
    """What the compiler calls after each pass, or None when nothing is to be shown."""
    if level < TIMES:
        return None
    last = time.perf_counter()

    def report(name: str, graph: Any) -> None:
        nonlocal last
        now = time.perf_counter()
        log(f"pass {name}: {len(graph.nodes)} nodes, {1e3 * (now - last):.0f} ms")
        if level >= GRAPHS:
            log(str(graph))
        last = time.perf_counter()

    return report


def texts(level: int) -> tuple[str, ...]:
    """The kinds of text that `show` shows."""
    return tuple(kind for rung, kind in ((TIR, "tir"), (ASSEMBLY, "asm")) if level >= rung)


def show(compiled: Any, level: int) -> None:
    """The kernels of a bundle or a module and their texts, as far as the level says."""
    if level >= KERNELS:
        for kernel in compiled.manifest()["kernels"]:
            knobs = " ".join(f"{k}={v}" for k, v in kernel["knobs"].items())
            held = " ; ".join(kernel["sublayers"])
            log(f"kernel {kernel['name']}: {held} => rule {kernel['rule']} {knobs}".rstrip())
    for kind in texts(level):
        for name, text in compiled.emit(kind).items():
            log(f"{kind} of {name}:\n{text}")
