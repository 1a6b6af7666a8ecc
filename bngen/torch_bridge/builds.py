"""Builds of regions: at once, or by a process in the background while PyTorch computes.

In: what is to be built. Out: a loaded module, shared by all regions that ask for the same. A
process of its own builds in the background, at low priority: a thread would hold Python's lock, and
make each step wait for it. It dies with this one, however this one ends, and leaves nothing: what
the two tell each other lies in files that have no name.
"""

from __future__ import annotations

import atexit
import logging
import os
import pickle
import subprocess
import sys
import tempfile
import weakref

from bngen.compiler import build
from bngen.errors import BngenError
from bngen.ir.node import Graph
from bngen.runtime.loading import load
from bngen.runtime.module import Module
from bngen.torch_bridge.asked import Asked
from bngen.torch_bridge.forks import Lock, forget_at_fork

_LOG = logging.getLogger(__name__)


class Builds:
    """What has been built, what is being built, and what could not be."""

    def __init__(self) -> None:
        self._modules: weakref.WeakValueDictionary[Asked, Module] = weakref.WeakValueDictionary()
        self._running: dict[Asked, _Running] = {}
        self._failed: set[Asked] = set()
        self._lock = Lock()
        self._ends = False  # whether the exit of this process ends what runs in the background
        forget_at_fork(self)

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
            if not self._ends:
                self._ends = True
                atexit.register(self.stop)
            try:
                self._running[asked] = _Running(asked)
            except (OSError, BngenError) as error:
                self._note_failure(asked, error)

    def _note_failure(self, asked: Asked, error: Exception) -> None:
        _LOG.warning("a background build failed, this size runs in PyTorch: %s", error)
        self._failed.add(asked)

    def stop(self) -> None:
        """End what runs in the background."""
        for running in list(self._running.values()):  # without a lock: at exit nobody waits
            running.stop()
        self._running.clear()

    def after_fork(self) -> None:
        """In a forked process: what runs in the background is the other one's."""
        for running in self._running.values():
            running.leave()
        self._running.clear()


class _Running:
    """A process that builds.

    Raises:
        OSError: where it cannot be started.
        BngenError: where there is nothing to start.
    """

    def __init__(self, asked: Asked):
        if not sys.executable or getattr(sys, "frozen", False):
            raise BngenError(f"sys.executable is {sys.executable!r}, which is no Python")
        self._bundle, self._errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        paths = os.pathsep.join(p or os.getcwd() for p in sys.path)
        watched, self._alive = os.pipe()
        try:
            with tempfile.TemporaryFile() as job:
                job.write(asked.dumps().encode())
                job.seek(0)
                # Of the same session: Linux shares CPUs out to sessions first (autogroups), and
                # niceness counts within one alone. Ctrl-C goes to the group in the foreground.
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _BUILD, str(watched)],
                    stdin=job, stdout=self._bundle, stderr=self._errors, pass_fds=(watched,),
                    process_group=0, env={**os.environ, "PYTHONPATH": paths, "BNGEN_JOBS": "1"},
                )  # fmt: skip
        except BaseException:
            self._close()
            raise
        finally:
            os.close(watched)

    def is_done(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def loaded(self, threads: int) -> Module:
        """The module that was built; raises `BngenError` where none was."""
        try:
            if self._process.returncode:
                self._errors.seek(0)
                lines = self._errors.read().decode(errors="replace").strip().splitlines()
                raise BngenError(lines[-1] if lines else f"exit status {self._process.returncode}")
            self._bundle.seek(0)
            return load(pickle.load(self._bundle), threads=threads)
        finally:
            self._close()

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._close()

    def leave(self) -> None:
        """Let go of what is another process's child."""
        self._process.returncode = 0
        self._close()

    def _close(self) -> None:
        os.close(self._alive)
        self._bundle.close()
        self._errors.close()


_BUILD = "import sys; from bngen.torch_bridge.asked import serve; serve(int(sys.argv[1]))"

BUILDS = Builds()
"""Those of this process."""
