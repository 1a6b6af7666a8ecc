"""The C compiler: small sources that ship with bngen, and object files linked to libraries.

In: a C file, or objects. Out: a shared library. That of a C file is made once per machine and kept
in the user's cache folder under a hash of everything it depends on (source, flags, compiler).

Whatever the user's compiler does (hangs, crashes, floods its error output, writes nothing) comes
out as a `ToolchainError`, and callers do without it.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import select
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from bngen.errors import ToolchainError
from bngen.runtime import folders, native
from bngen.runtime.store import Store

L = TypeVar("L", bound=ctypes.CDLL)

FLAGS = ("-O2", "-std=c11", "-fPIC", "-shared")
# What kernels call, they call directly: within a library, and of the C and math libraries.
LINK_FLAGS = ("-shared", "-Wl,-Bsymbolic", "-lm")
_LOG = logging.getLogger(__name__)
_INSTALL = "install gcc, or name a C compiler in CC"
_LIBRARIES = Store("native", 1 << 20)
_LIBRARY = "library.so"
_PATIENCE = 60.0
"""Seconds after which a compiler counts as hanging; a small source takes a tenth of one."""
_hanging: set[str] = set()
"""Compilers that did, and are not waited for once more."""
_TICK = 0.01
"""Seconds between two looks at it."""
_TELLING = ("error", "failed", "no space", "undefined")
_LONGEST_LINE = 300
_MOST_TEXT = 1 << 16
"""Bytes of a compiler's messages that are worth keeping."""


def find_compiler() -> list[str]:
    """The C compiler's command line: ``CC``, else cc, gcc or clang.

    Raises:
        ToolchainError: when there is none.
    """
    named = os.environ.get("CC", "").strip()
    try:
        commands = [shlex.split(named)] if named else [["cc"], ["gcc"], ["clang"]]
    except ValueError as error:
        raise ToolchainError(f"CC={named:.80} cannot be read: {error}", hint=_INSTALL) from None
    for first, *rest in commands:
        path = shutil.which(first)
        if path:
            return [os.path.abspath(path), *rest]
    what = f"CC={named:.80} names no program that can be run" if named else "no cc, gcc or clang"
    raise ToolchainError(f"no C compiler: {what}", hint=_INSTALL)


def is_there() -> bool:
    """Whether there is a C compiler, be it able to work or not."""
    try:
        find_compiler()
    except ToolchainError:
        return False
    return True


def shared_library(source: Path, kind: type[L], symbols: Sequence[str]) -> L:
    """The compiled form of a C file, loaded; it is made if it is not in the cache yet.

    Args:
        source: the file.
        kind: `ctypes.CDLL` or `ctypes.PyDLL`.
        symbols: what it must have.

    Raises:
        ToolchainError: when there is no compiler, it fails, or no library can be loaded.
    """
    command, content = [*find_compiler(), *FLAGS], source.read_bytes()
    key = _key(content, command)
    kept = _LIBRARIES.read(key, _LIBRARY)
    if kept:
        try:
            return native.open_library(kept[0], kind, symbols)
        except ToolchainError as error:
            _LOG.info("%s is compiled again: %s", source.name, error)
    library = _made(command, {source.name: content}, [], f"compile {source.name}")
    loaded = native.open_library(library, kind, symbols)
    _LIBRARIES.add(key, {_LIBRARY: library})
    return loaded


def link(objects: Iterable[bytes]) -> bytes:
    """A shared library of object files.

    Raises:
        ToolchainError: when there is no compiler, or it fails.
    """
    first, *flags = LINK_FLAGS
    inputs = {f"{i}.o": content for i, content in enumerate(objects)}
    return _made([*find_compiler(), first], inputs, flags, "link kernels")


def _key(source: bytes, command: Sequence[str]) -> str:
    try:
        compiler = os.stat(command[0])
    except OSError as error:  # Gone since it was found.
        raise ToolchainError(f"{command[0]}: {error.strerror}", hint=_INSTALL) from None
    identity = repr((command, compiler.st_size, compiler.st_mtime_ns, platform.machine())).encode()
    return hashlib.sha256(source + identity).hexdigest()[:32]


def _made(
    command: Sequence[str], inputs: Mapping[str, bytes], libraries: Sequence[str], task: str
) -> bytes:
    """The content of the library that a compiler makes of files."""
    with folders.scratch() as folder:
        try:
            for name, content in inputs.items():
                (folder / name).write_bytes(content)
            # Libraries come after the objects that need them.
            _run([*command, "-o", _LIBRARY, *inputs, *libraries], folder, task)
            return (folder / _LIBRARY).read_bytes()
        except FileNotFoundError:
            raise ToolchainError(f"{command[0]} wrote nothing to {task}", hint=_INSTALL) from None
        except OSError as error:
            what = f"cannot {task} in {folder.parent}: {error.strerror or error}"
            raise ToolchainError(what, hint="set TMPDIR to a folder with room") from None


# --- running ----------------------------------------------------------------------------------


def _run(command: Sequence[str], folder: Path, task: str) -> None:
    """Run a compiler in a folder, its own temporary files included.

    Raises:
        ToolchainError: when it fails in any way.
    """
    hangs = ToolchainError(f"{command[0]} takes over {_PATIENCE:g} s to {task}", hint=_INSTALL)
    if command[0] in _hanging:
        raise hangs
    # In a session of its own: what it has started is ended with it.
    try:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, "TMPDIR": str(folder), "LC_ALL": "C"},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        what = f"{command[0]} cannot be run: {error.strerror or error}"
        raise ToolchainError(what, hint=_INSTALL) from None
    with process:
        try:
            text, status = _outcome(process, time.monotonic() + _PATIENCE)
        except BaseException:
            _kill(process)
            raise
    if status is None:
        _hanging.add(command[0])
        raise hangs
    if status < 0:
        what = f"{command[0]} was killed by {_signal(-status)}, to {task}"
        raise ToolchainError(what, hint=_INSTALL)
    if status:
        raise ToolchainError(f"{command[0]} cannot {task}: {_first_error(text)}", hint=_INSTALL)


def _outcome(process: subprocess.Popen, deadline: float) -> tuple[bytes, int | None]:
    """The first of its messages, and its exit status; None for one that had to be killed.

    It has ended when it has exited: a server that it leaves behind may keep its messages open.
    """
    text, messages = b"", process.stderr.fileno()
    poller = select.poll()
    poller.register(messages, select.POLLIN)
    while time.monotonic() < deadline:
        exited = process.poll() is not None
        if poller.poll(0 if exited else 1000 * _TICK):
            chunk = os.read(messages, _MOST_TEXT)
            text = (text + chunk)[:_MOST_TEXT]
            if chunk:
                continue
            time.sleep(0 if exited else _TICK)
        if exited:
            return text, process.returncode
    _kill(process)
    return text, None


def _kill(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one of the many without a name
        return f"signal {number}"


def _first_error(output: bytes) -> str:
    lines = output.decode(errors="replace").splitlines()
    # gcc's own last word, that ld has failed, says less than what ld said before.
    telling = [
        line
        for line in lines
        if any(word in line.lower() for word in _TELLING) and "ld returned" not in line
    ]
    return (telling or lines or ["no message"])[0][:_LONGEST_LINE]
