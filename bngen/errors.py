"""The errors a user of bngen can meet; each is one line that says what, where, and what to try.

In: a message, optionally the user's own source location and a hint. Out: an exception whose
``str()`` is that one line. The command line turns a ``BngenError`` into exit status 2; anything
else that escapes is a bug in bngen (exit status 101).
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass

INTERRUPTED = 130
"""Exit status of a command that Ctrl-C has ended, as shells give it."""


@dataclass(frozen=True)
class SourceLoc:
    """A line of the user's program.

    Attributes:
        file: path as Python reports it.
        line: one-based line number.
    """

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class BngenError(Exception):
    """Base of every error that is the user's to mend.

    Args:
        what: what is wrong, with the names and shapes involved.
        loc: the line of the user's program, where there is one.
        hint: what to try, an imperative clause.
    """

    def __init__(self, what: str, *, loc: SourceLoc | None = None, hint: str | None = None):
        self.what, self.loc, self.hint = what, loc, hint
        where = f"{loc}: " if loc else ""
        tail = f" ({hint})" if hint else ""
        super().__init__(" ".join(f"{where}{what}{tail}".split()))


class ProgramError(BngenError, ValueError):
    """A program that cannot be traced or differentiated: shapes, dtypes, names, missing output."""


class TargetError(BngenError, ValueError):
    """A target that cannot be compiled for, or code for another machine than this."""


class CallError(BngenError, TypeError, ValueError):
    """A compiled module called with the wrong arguments, or out of order."""


class ToolchainError(BngenError, RuntimeError):
    """A missing compiler, or a folder of a build that cannot be written or read."""


class UsageError(BngenError):
    """A command-line argument that cannot be used."""


_OURS = ("bngen", "torch")


def warn(message: str) -> None:
    """Warn of something at the line of the user's that led to it, behind bngen's and PyTorch's."""
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _OURS:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
