"""What lowering hands to scheduling: a function of TE, and what its blocks are for."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bngen.ir.types import Value

if TYPE_CHECKING:
    from tvm import tirx


@dataclass(frozen=True)
class Argument:
    """One buffer of a kernel's signature."""

    value: Value
    shape: tuple[int, ...]


@dataclass
class Lowered:
    """An unscheduled kernel.

    Attributes:
        name: symbol.
        func: the TE function, blocks named as listed below.
        arguments: inputs then outputs, in the order of the signature.
        main: block of the anchor's loop nest.
        tiles: elementwise blocks of the store slot, in order; they follow ``main``'s tile.
        separate: stores that do not follow from the main block: nests of their own.
        sums: reductions that read one tile at a time.
        deviations: sums of deviations from a group's mean, which need a whole group of rows first.
        nests: sums of products that ``main`` puts together.
        pads: scratch blocks of the load slots.
        shuffles: blocks that hold each lane's own channels, made of ``pads``.
        points: blocks that hold tiles of an operand at Winograd's points, and what each reads.
    """

    name: str
    func: tirx.PrimFunc | None = None
    arguments: list[Argument] = field(default_factory=list)
    main: str = ""
    tiles: list[str] = field(default_factory=list)
    separate: list[str] = field(default_factory=list)
    sums: list[str] = field(default_factory=list)
    deviations: list[str] = field(default_factory=list)
    nests: list[str] = field(default_factory=list)
    pads: list[str] = field(default_factory=list)
    shuffles: list[str] = field(default_factory=list)
    points: dict[str, str] = field(default_factory=dict)


def identifier(name: str) -> str:
    """A value's name as a TIR identifier."""
    return re.sub(r"\W", "_", name)
