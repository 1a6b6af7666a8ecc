"""What a program does, step after step: nouns.

In: nothing. Out: steps as data, which a bundle keeps and an executor runs. A step calls a kernel or
does something that is no kernel; both read and write what `Operand`s name.
"""

from __future__ import annotations

from dataclasses import dataclass

COMBINED = SUM, AVERAGE, MOMENTS = "sum", "average", "moments"
"""How a collective makes one of what each rank sends: element by element, or as statistics."""


@dataclass(frozen=True)
class Operand:
    """Where something that a step reads or writes lies.

    Attributes:
        slot: name of the external buffer it is in; None for the arena of the call.
        offset: bytes into the arena or the slot.
        shape: the shape the step takes it for, in C order.
        dtype: element type.
    """

    slot: str | None
    offset: int
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class KernelStep:
    """A call of a kernel.

    Attributes:
        name: the kernel's, for messages.
        symbol: of its code.
        operands: its arguments, in order.
        numbers: what its code takes after them.
    """

    name: str
    symbol: str
    operands: tuple[Operand, ...]
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True)
class CopyStep:
    """A copy: an update that no kernel could write in place, a result that is something else, too.

    Attributes:
        name: what is copied, for messages.
        source: what is read.
        target: what is written, of the same shape and type.
    """

    name: str
    source: Operand
    target: Operand

    @property
    def operands(self) -> tuple[Operand, ...]:
        """What it reads, then what it writes."""
        return self.source, self.target


@dataclass(frozen=True)
class StartStep:
    """The start of a collective: what it sends is taken.

    Attributes:
        name: the value that it gives, for messages.
        group: of ranks.
        combine: ``sum``, ``average``, or ``moments``: means and variances of ``count`` elements.
        count: of this rank's share.
        operands: what is read, in pieces.
    """

    name: str
    group: str
    combine: str
    count: int
    operands: tuple[Operand, ...]


@dataclass(frozen=True)
class WaitStep:
    """The end of a collective: what it gives is written.

    Attributes:
        name: as where it was started.
        start: the place of that step among all steps.
        operands: what is written, in pieces; all that it gives.
    """

    name: str
    start: int
    operands: tuple[Operand, ...]


Step = KernelStep | CopyStep | StartStep | WaitStep
