"""What every command is asked for: one field a row of the option table that all of them take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bngen.target.parse import Target


@dataclass(frozen=True)
class Request:
    """The part that commands share; names and meanings as in `options`."""

    target: str
    mcpu: str | None
    mattr: str | None
    dtype: str
    batch: int | None
    image: int | None
    schedules: str | None
    quiet: bool

    def parsed_target(self, cached: bool = False) -> Target:
        """What to compile for.

        Args:
            cached: whether what LLVM once said of it may be read from the user's cache.

        Raises:
            TargetError: when there is no such target.
        """
        from bngen import cache  # NumPy comes with it: as late as can be
        from bngen.target.parse import Target

        parse = cache.target if cached else Target.parse
        return parse(self.target, mcpu=self.mcpu, mattr=self.mattr or ())
