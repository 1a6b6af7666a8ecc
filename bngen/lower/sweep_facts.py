"""Facts of kernels that no products are in; see `bngen.lower.facts`."""

from __future__ import annotations

from dataclasses import dataclass

from bngen.lower.facts import Facts, WideFacts

ENOUGH_PARTS, LEAST_PART = 16, 1 << 14
"""Tasks that a reduction should have, whatever the machine, and elements of one."""


def parts(tasks: int, steps: int, elements: int) -> int:
    """Into how many parts each of some tasks is cut, so that there are enough of them.

    Args:
        tasks: how many there are.
        steps: of a task, of which each part has equally many.
        elements: of a step.
    """
    most = min(ENOUGH_PARTS, tasks * steps * elements // LEAST_PART)
    wanted = -(-most // tasks)
    return next((d for d in range(max(1, wanted), steps + 1) if steps % d == 0), max(1, steps))


@dataclass(frozen=True, kw_only=True)
class RowFacts(WideFacts):
    """A reduction along the last axes of a plain value.

    Attributes:
        rows: how many results there are.
        columns: elements that each is made of.
    """

    rows: int
    columns: int

    @property
    def steps(self) -> int:
        """Vectors of a row, the last one perhaps ragged."""
        return -(-self.columns // self.lanes)

    @property
    def chunks(self) -> int:
        """Into how many parts of equal numbers of vectors a row is cut."""
        return parts(self.rows, self.steps, self.lanes)


@dataclass(frozen=True, kw_only=True)
class ColumnFacts(WideFacts):
    """A reduction of a plain value that leaves its last axis.

    Attributes:
        first: extent of the first axis that is reduced.
        last: extent of the last one.
        reduced: elements that a result is made of.
        kept: results for each of the columns.
        columns: extent of the last axis.
    """

    first: int
    last: int
    reduced: int
    kept: int
    columns: int

    @property
    def chunks(self) -> int:
        """Into how many parts the first axis is cut, so that there are tasks enough."""
        each = self.reduced * self.columns // self.first
        return parts(self.kept, self.first, each)


@dataclass(frozen=True, kw_only=True)
class PlainFacts(WideFacts):
    """A pointwise kernel over values in plain order.

    Attributes:
        size: elements of a result.
        columns: extent of the axis that is innermost in memory.
        flat: whether every operand is a number or lies as the result does.
    """

    size: int
    columns: int
    flat: int = 0

    @property
    def row(self) -> int:
        """Elements that lie one behind the other, and whose operands do so, too."""
        return self.size if self.flat else self.columns


@dataclass(frozen=True, kw_only=True)
class MergeFacts(Facts):
    """Partial results that are put together.

    Attributes:
        groups: how many there are for each channel.
        images: into how many results they are put together.
        blocks: channel blocks.
        lanes: channels of a block.
    """

    groups: int
    images: int
    blocks: int
    lanes: int


@dataclass(frozen=True, kw_only=True)
class CopyFacts(Facts):
    """A copy of a map to another layout or place.

    Attributes:
        n: images.
        c: channels of the result.
        h: rows.
        w: columns.
        lanes: channels of a block.
        to_blocks: whether the result lies in channel blocks.
        turned: whether something that it is made of lies in C order.
        last: whether the result is channels-last.
    """

    n: int
    c: int
    h: int
    w: int
    lanes: int
    to_blocks: int = 0
    turned: int = 0
    last: int = 0


@dataclass(frozen=True, kw_only=True)
class PackingFacts(Facts):
    """A copy of a weight to the order in which a convolution reads it.

    Attributes:
        blocks: channel blocks of the convolution's result.
        lanes: channels of a block.
        taps: of the window.
        flipped: whether it is packed for a data gradient.
    """

    blocks: int
    lanes: int
    taps: int
    flipped: int = 0
