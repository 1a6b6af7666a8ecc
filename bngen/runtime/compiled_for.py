"""What code was compiled for, as data, and whether this machine is that.

In: what a bundle records of its target. Out: nothing, or an error that names what this machine
lacks. Needs no LLVM: whoever loads a bundle asks here, before anything is linked or run.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from bngen.errors import TargetError
from bngen.runtime import host


@dataclass(frozen=True)
class CompiledFor:
    """What a machine has to be to run code.

    Attributes:
        text: the target; it can be compiled for again.
        cpu: LLVM's name of the CPU.
        lanes: float32 lanes of its vectors.
        arch: architecture, ``x86_64``.
        system: operating system, ``linux``.
        features: instruction-set extensions that the code uses, by LLVM's names.
    """

    text: str
    cpu: str
    lanes: int
    arch: str
    system: str
    features: tuple[str, ...]

    def described(self) -> dict[str, Any]:
        """The same for a manifest."""
        return {**dataclasses.asdict(self), "features": list(self.features)}

    def check_runs_here(self, program: str) -> None:
        """Refuse code that this machine cannot run.

        Raises:
            TargetError: names what the machine lacks.
        """
        what = f"{program} was compiled for {self.cpu}"
        if (self.arch, self.system) != (host.architecture(), host.system()):
            here = f"{host.architecture()} {host.system()}"
            raise TargetError(
                f"{what} on {self.arch} {self.system}, and this machine is {here}",
                hint="load it there, or build it for this machine",
            )
        if missing := host.missing_features(self.arch, self.features):
            raise TargetError(
                f"{what}, and this machine lacks {', '.join(missing)}",
                hint="load it where they are, or build it with -mcpu=native here",
            )
