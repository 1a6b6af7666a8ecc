"""The C compiler: small sources that ship with bngen, and object files linked to libraries.

In: a C file, or objects. Out: a shared library. That of a C file is made once per machine and kept
in the user's cache folder: its name contains a hash of everything it depends on (source, flags,
compiler), so a stale library is never found, and it appears by an atomic rename, so that two
processes may race.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bngen.errors import ToolchainError

FLAGS = ("-O2", "-std=c11", "-fPIC", "-shared")
# What kernels call, they call directly: within a library, and of the C and math libraries.
LINK_FLAGS = ("-shared", "-Wl,-Bsymbolic", "-lm")
_INSTALL = "install gcc, or name a C compiler in CC"


def cache_dir() -> Path:
    """Where bngen keeps what can be made again: BNGEN_CACHE_DIR, else the user's cache folder."""
    own = os.environ.get("BNGEN_CACHE_DIR", "").strip()
    if own:
        return Path(own).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME", "").strip()
    return (Path(xdg) if xdg else Path("~/.cache").expanduser()) / "bngen"


def find_compiler() -> list[str]:
    """The C compiler's command line: ``CC``, else cc, gcc or clang.

    Raises:
        ToolchainError: when there is none.
    """
    named = os.environ.get("CC", "").strip()
    for command in [shlex.split(named)] if named else [["cc"], ["gcc"], ["clang"]]:
        path = shutil.which(command[0])
        if path:
            return [path, *command[1:]]
    raise ToolchainError(f"no C compiler: {named or 'cc, gcc, clang'} not found", hint=_INSTALL)


def shared_library(source: Path) -> Path:
    """The compiled form of a C file, made if it is not in the cache yet.

    Raises:
        ToolchainError: when there is no compiler, it fails, or no folder can be written.
    """
    command = [*find_compiler(), *FLAGS]
    name = f"{source.stem}-{_key(source.read_bytes(), tuple(command))}.so"
    library = private_folder("native") / name
    if not library.exists():
        _make(command, [source], library, f"compile {source.name}")
    return library


def link(objects: Sequence[Path], library: Path) -> None:
    """Make a shared library of object files.

    Raises:
        ToolchainError: when there is no compiler, or it fails.
    """
    first, *flags = LINK_FLAGS
    # Libraries come after the objects that need them.
    _make([*find_compiler(), first], [*objects, *flags], library, "link kernels")


def _key(source: bytes, command: tuple[str, ...]) -> str:
    compiler = os.stat(command[0])
    identity = repr((command, compiler.st_size, compiler.st_mtime_ns)).encode()
    return hashlib.sha256(source + identity).hexdigest()[:16]


def private_folder(name: str) -> Path:
    """A folder in the cache that nobody else can write to; where there is none, `session_folder`.

    Raises:
        ToolchainError: when no folder can be written.
    """
    folder = cache_dir() / name
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError:
        return session_folder()
    # Where somebody else can write could lie somebody else's code.
    ours = status.st_uid == os.geteuid() and not status.st_mode & 0o022
    return folder if ours and os.access(folder, os.W_OK) else session_folder()


@functools.cache
def session_folder() -> Path:
    """A private folder that goes when this process does.

    Raises:
        ToolchainError: when it cannot be made.
    """
    import atexit

    try:
        folder = tempfile.mkdtemp(prefix="bngen-")
    except OSError as error:
        raise ToolchainError(
            f"cannot write to {cache_dir()}: {error}", hint="set BNGEN_CACHE_DIR"
        ) from None
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _make(command: Sequence[str], inputs: Sequence[Path | str], library: Path, task: str) -> None:
    handle, scratch = tempfile.mkstemp(suffix=".so", dir=library.parent)
    os.close(handle)
    try:
        done = subprocess.run(
            [*command, "-o", scratch, *map(str, inputs)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise ToolchainError(
                f"{command[0]} cannot {task}: {_first_error(done.stderr)}",
                hint=_INSTALL,
            )
        os.chmod(scratch, 0o755)
        os.replace(scratch, library)
    finally:
        Path(scratch).unlink(missing_ok=True)


def _first_error(output: str) -> str:
    lines = [line for line in output.splitlines() if "error" in line.lower()]
    return (lines or output.splitlines() or ["no message"])[0]
