"""MemoryPlan: where every value of a plan lies.

In: nothing (nouns only). Out: what `passes.memory` decides, and what kernels are bound by.
"""

from __future__ import annotations

from dataclasses import dataclass

from bngen.ir.types import Value

ALIGNMENT = 64


@dataclass(frozen=True)
class Place:
    """``offset`` bytes into the buffer of ``root``."""

    root: Value
    offset: int = 0


@dataclass(frozen=True)
class MemoryPlan:
    """Where values lie.

    Attributes:
        places: buffer and offset of every value that lies in memory.
        arena: byte offset in the arena of every buffer that is in it.
        nbytes: size of the arena.
        lives: first and last kernel that touch each arena buffer.
        copies: (target, source) of updates and outputs that have to be copied after the run.
        in_place: (kernel name, value read, value written) of accumulations in place.
    """

    places: dict[Value, Place]
    arena: dict[Value, int]
    nbytes: int
    lives: dict[Value, tuple[int, int]]
    copies: tuple[tuple[Value, Value], ...] = ()
    in_place: tuple[tuple[str, Value, Value], ...] = ()


def align(nbytes: int) -> int:
    """The next multiple of `ALIGNMENT`."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
