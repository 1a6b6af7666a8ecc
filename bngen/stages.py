"""Every stage of a build, written to the folder that ``BNGEN_DUMP`` names.

In: graphs as the passes make them, then the manifest and the kernels' texts. Out: files, in a
folder called like the program, which hold its last build alone::

    00-traced.txt  01-...   the program after each pass, in a form that parses back
    manifest.json           the plan: kernels, layouts, what was not fused and why
    tir/ ll/ asm/           each distinct kernel, scheduled, as LLVM's IR, as assembly

What PyTorch has captured has no name of its own: there a digest of all that is asked for follows,
so that training, evaluation and each size of a batch have their own.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bngen import files
from bngen.errors import ToolchainError
from bngen.options import environment

TEXTS = {"tir": ".tir.py", "ll": ".ll", "asm": ".s"}
_WRITTEN = ("[0-9][0-9]-*.txt", "manifest.json", *(f"{k}/*{end}" for k, end in TEXTS.items()))
_UNNAMED = re.compile(r"bngen_\d+")
"""How `torch_bridge` calls regions."""


class Stages:
    """Writes one program's stages.

    Args:
        folder: is made, with those above it.
    """

    def __init__(self, folder: Path):
        self._folder, self._count = folder, 0

    @classmethod
    def asked(cls, program: str, wanted: Sequence[object]) -> Stages | None:
        """What ``BNGEN_DUMP`` asks for, or None where it is not set.

        Args:
            program: its name.
            wanted: what tells builds of one name apart, by its text.
        """
        folder = environment("dump")
        if not folder:
            return None
        if _UNNAMED.fullmatch(program):
            text = "\n".join(map(str, wanted))
            program += f"-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        return cls(Path(folder) / re.sub(r"[^\w.-]+", "_", program))

    def graph(self, name: str, graph: Any) -> None:
        """The program after a pass."""
        if self._count == 0:
            self._remove_written()
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

    def _remove_written(self) -> None:
        """Remove what an earlier build has written, and nothing else."""
        try:
            for path in [p for pattern in _WRITTEN for p in self._folder.glob(pattern)]:
                path.unlink(missing_ok=True)  # another process may be about to do the same
        except OSError as error:
            raise self._unwritable(self._folder, error) from error

    def _write(self, name: str, text: str) -> None:
        path = self._folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_whole(path, text.encode())
        except OSError as error:
            raise self._unwritable(path, error) from error

    @staticmethod
    def _unwritable(path: Path, error: OSError) -> ToolchainError:
        what = f"cannot write {path}: {error.strerror or error}"
        return ToolchainError(what, hint="set BNGEN_DUMP to another folder")
