"""Every stage of a build, written to the folder that ``BNGEN_DUMP`` names.

In: graphs as the passes make them, then the manifest and the kernels' texts. Out: files, in a
folder called like the program::

    00-traced.txt  01-...   the program after each pass, in a form that parses back
    manifest.json           the plan: kernels, layouts, what was not fused and why
    tir/ ll/ asm/           each distinct kernel, scheduled, as LLVM's IR, as assembly
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bngen import files
from bngen.errors import ToolchainError
from bngen.options import environment

TEXTS = {"tir": ".tir.py", "ll": ".ll", "asm": ".s"}


class Stages:
    """Writes one program's stages.

    Args:
        folder: is made, with those above it.
    """

    def __init__(self, folder: Path):
        self._folder, self._count = folder, 0

    @classmethod
    def asked(cls, program: str) -> Stages | None:
        """What ``BNGEN_DUMP`` asks for, or None where it is not set."""
        folder = environment("dump")
        if not folder:
            return None
        return cls(Path(folder) / re.sub(r"[^\w.-]+", "_", program))

    def graph(self, name: str, graph: Any) -> None:
        """The program after a pass."""
        self._write(f"{self._count:02d}-{name}.txt", graph.text(locations=True))
        self._count += 1

    def compiled(self, manifest: Mapping[str, Any], texts: Callable[[str], Mapping[str, str]]):
        """The plan, and each distinct kernel.

        Args:
            manifest: see `bngen.manifest`.
            texts: gives the texts of a kind, by symbol.
        """
        self._write("manifest.json", json.dumps(manifest, indent=2) + "\n")
        for kind, suffix in TEXTS.items():
            for symbol, text in texts(kind).items():
                self._write(f"{kind}/{symbol}{suffix}", text)

    def _write(self, name: str, text: str) -> None:
        path = self._folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_whole(path, text.encode())
        except OSError as error:
            what = f"cannot write {path}: {error.strerror or error}"
            raise ToolchainError(what, hint="set BNGEN_DUMP to another folder") from error
