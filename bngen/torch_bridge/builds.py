"""Builds of regions: at once, or by a process in the background while PyTorch computes.

In: what is to be built. Out: a loaded module, shared by all regions that ask for the same. A
process of its own builds in the background, at low priority: a thread would hold Python's lock, and
make each step wait for it.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from pathlib import Path

from bngen.compiler import build
from bngen.errors import BngenError
from bngen.ir.node import Graph
from bngen.ir.text import parse_graph
from bngen.runtime.loading import load
from bngen.runtime.module import Module
from bngen.torch_bridge.region import Asked

_LOG = logging.getLogger(__name__)
_NICE = 5


class Builds:
    """What has been built, what is being built, and what could not be."""

    def __init__(self) -> None:
        self._modules: weakref.WeakValueDictionary[Asked, Module] = weakref.WeakValueDictionary()
        self._running: dict[Asked, _Running] = {}
        self._failed: set[Asked] = set()
        self._lock = threading.RLock()
        self._process: int | None = None  # whose exit ends what runs in the background

    def now(self, asked: Asked, graph: Graph) -> Module:
        """The module, built here if it has to be.

        Args:
            asked: what is to be built.
            graph: the program, with the model's lines in it.

        Raises:
            BngenError: when it cannot be built.
        """
        with self._lock:
            found = self.ready(asked)
            if found is None:
                found = build(graph, threads=asked.threads, **asked.options(graph))
                self._modules[asked] = found
            return found

    def ready(self, asked: Asked) -> Module | None:
        """The module if it is there by now, never waiting for it; for the caller to hold."""
        with self._lock:
            if asked in self._modules:
                return self._modules[asked]
            running = self._running.get(asked)
            if running is None or not running.is_done():
                return None
            del self._running[asked]
            try:
                self._modules[asked] = found = running.loaded(asked.threads)
                return found
            except BngenError as error:
                self._note_failure(asked, error)
                return None

    def later(self, asked: Asked) -> None:
        """Begin to build in the background, unless that has begun or has failed.

        One process at a time: what has to wait is asked for again.
        """
        with self._lock:
            if asked in self._modules or asked in self._failed or self._running:
                return
            if self._process != os.getpid():
                self._process = os.getpid()
                atexit.register(self.stop)
            try:
                self._running[asked] = _Running(asked)
            except OSError as error:
                self._note_failure(asked, error)

    def _note_failure(self, asked: Asked, error: Exception) -> None:
        _LOG.warning("a background build failed, this size runs in PyTorch: %s", error)
        self._failed.add(asked)

    def stop(self) -> None:
        """End what runs in the background; a forked process leaves it to the one it stems from."""
        with self._lock:
            if self._process != os.getpid():
                return
            for running in self._running.values():
                running.stop()
            self._running.clear()


class _Running:
    """A process that builds into a folder."""

    def __init__(self, asked: Asked):
        self._folder = tempfile.TemporaryDirectory(prefix="bngen-")
        out = Path(self._folder.name) / "bundle"
        job = {"program": asked.program, "wanted": asked.wanted, "formats": asked.formats}
        self._out, self._job = out, Path(self._folder.name) / "job.json"
        self._job.write_text(json.dumps({**job, "threads": asked.threads, "out": str(out)}))
        self._errors = Path(self._folder.name) / "errors"
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BUILD, str(self._job)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            )  # fmt: skip

    def is_done(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def loaded(self, threads: int) -> Module:
        """The module that was built; raises `BngenError` where none was."""
        with self._folder:
            if self._process.returncode:
                lines = self._errors.read_text(errors="replace").strip().splitlines()
                raise BngenError(lines[-1] if lines else f"exit status {self._process.returncode}")
            return load(self._out, threads=threads)

    def stop(self) -> None:
        """End the process and remove what it has written."""
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()


_BUILD = "import sys; from bngen.torch_bridge.builds import build_job; build_job(sys.argv[1])"


def build_job(path: str) -> None:
    """What the process in the background does: compile one job, and write its bundle."""
    from bngen.compiler import bundle

    os.nice(_NICE)
    job = json.loads(Path(path).read_text())
    formats = tuple((name, word) for name, word in job["formats"])
    asked = Asked(job["program"], tuple(job["wanted"]), formats, job["threads"])
    graph = parse_graph(asked.program)
    bundle(graph, **asked.options(graph)).save(job["out"])


BUILDS = Builds()
