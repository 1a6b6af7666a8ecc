"""The files and folders that flags name: refused before anything runs, written at the end.

In: a flag and the path given with it. Out: nothing, or an error that names the flag. Folders that
are missing are made. What is no regular file (a pipe, a device) is written to as it is.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from bngen import files
from bngen.errors import ToolchainError, UsageError


def check_file(flag: str, path: str | None) -> None:
    """Refuse a file that could not be written, as far as that can be told beforehand."""
    if path and (wrong := files.obstacle(path)):
        raise UsageError(wrong, hint=f"choose another {flag}")


def check_plots(path: str | None, extras: str = "bench") -> None:
    """Refuse ``--plot`` where nothing could be drawn, or its folder not be written to.

    Args:
        path: the folder, if plots are asked for.
        extras: of bngen, that the command needs with its plots.
    """
    if path is None:
        return
    if importlib.util.find_spec("matplotlib") is None:
        hint = f"pip install 'bngen[{extras}]'"
        raise ToolchainError("this needs matplotlib, which is not installed", hint=hint)
    if wrong := files.folder_obstacle(path):
        raise UsageError(wrong, hint="choose another --plot")


def write(flag: str, path: str, content: str) -> None:
    """Write a file that a flag names.

    Raises:
        ToolchainError: when it cannot be written.
    """
    try:
        Path(path).resolve().parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(path, content.encode())
    except OSError as error:
        what = f"cannot write {path}: {error.strerror or error}"
        raise ToolchainError(what, hint=f"choose another {flag}") from error


def write_json(path: str | None, value: Any) -> None:
    """Write what ``--json FILE`` asks for, if it is asked for."""
    if path:
        write("--json", path, json.dumps(value, indent=1) + "\n")
