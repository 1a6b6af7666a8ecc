"""What is to be built of a region, as plain data; and the process that builds it by itself.

In: a job on standard input. Out: a bundle, pickled, on standard output. Nothing here imports
PyTorch, which that process has no use for.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import threading
from dataclasses import asdict, dataclass
from typing import IO, Any

from bngen.ir.node import Graph

_NICE = 19
"""A step of the training has many barriers, each of which waits for the slowest thread."""


@dataclass(frozen=True)
class Asked:
    """What is to be built of a region; equal regions share one build.

    Attributes:
        program: the text of its graph.
        wanted: of each argument, whether its gradient is wanted.
        formats: declared memory formats, by names as ``memory_format=`` takes them.
        threads: threads of a call.
    """

    program: str
    wanted: tuple[bool, ...]
    formats: tuple[tuple[str, str], ...]
    threads: int

    def options(self, graph: Graph) -> dict[str, Any]:
        """Arguments of `bngen.bundle`."""
        names = [i.name for i, wanted in zip(graph.inputs, self.wanted, strict=True) if wanted]
        formats = dict(self.formats) or None
        if not names:
            return {"memory_format": formats}
        return {"grad": True, "wrt": names, "memory_format": formats}

    def dumps(self) -> str:
        """As text."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> Asked:
        """From `dumps`."""
        job = json.loads(text)
        formats = tuple((name, word) for name, word in job["formats"])
        return cls(job["program"], tuple(job["wanted"]), formats, job["threads"])


def serve(parent: int) -> None:
    """Build one job, as long as the process that asks for it lives.

    Args:
        parent: descriptor of a pipe whose other end that process alone holds.
    """
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    os.nice(_NICE)
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no bundle
    with results:
        _build(Asked.loads(sys.stdin.read()), results)


def _die_with(parent: int) -> None:
    os.read(parent, 1)
    os.kill(os.getpid(), signal.SIGKILL)


def _build(asked: Asked, results: IO[bytes]) -> None:
    from bngen.compiler import bundle
    from bngen.ir.text import parse_graph

    graph = parse_graph(asked.program)
    pickle.dump(bundle(graph, **asked.options(graph)), results)
