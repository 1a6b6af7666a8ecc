"""Where each lane of a grouped convolution finds its channels, if groups cut channel blocks.

In: the layouts of both sides and the channels of a group. Out: plain numbers, which schedules
follow from. Nothing here needs TVM.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, lcm

from bngen.ir.types import Value
from bngen.lower.facts import Layouts
from bngen.plan.layout import Blocked

MOST_BLOCKS = 8
"""Longest period that is made use of: every block of it has code of its own."""


@dataclass(frozen=True)
class Groups:
    """Groups of channels: lane k of ``outer`` reads ``k // out_per * in_per + j``, j < ``in_per``.

    Attributes:
        inner: layout of what is summed over.
        outer: layout of what is written.
        in_per: channels of a group of the one.
        out_per: channels of a group of the other.
    """

    inner: Blocked
    outer: Blocked
    in_per: int
    out_per: int

    @property
    def reads_beyond(self) -> bool:
        """Whether lanes that hold no channel would read from blocks that are not there."""
        if not self._is_regular:
            return True
        last = (self.outer.blocks * self.outer.lanes - 1) // self.out_per
        return last * self.in_per + self.in_per > self.inner.blocks * self.inner.lanes

    @property
    def period(self) -> int:
        """Output blocks after which the lanes' channels lie alike again, whole vectors further on.

        1 where every block is like the others; 0 where there is no such number, or a long one.
        """
        lanes = self.outer.lanes
        if self.reads_beyond:
            return 0
        if self.out_per % lanes == 0:
            return 1
        outputs = lcm(lanes, self.out_per)
        inputs = outputs // self.out_per * self.in_per
        period = outputs // lanes * (lanes // gcd(lanes, inputs))
        return period if period <= MOST_BLOCKS and self.outer.blocks % period == 0 else 0

    @property
    def alike(self) -> bool:
        """Whether blocks of a period differ but in how many lanes further on they read."""
        lanes = self.outer.lanes
        if self.period <= 1:
            return self.period == 1
        return lanes % self.out_per == 0 and lanes % (lanes // self.out_per * self.in_per) == 0

    @property
    def _is_regular(self) -> bool:
        """Whether channels are numbered without gaps, but for the last block's."""
        return len(self.inner.segments) == len(self.outer.segments) == 1


def groups_of(groups: int, source: Value, out: Value, layouts: Layouts) -> Groups:
    """The groups of a convolution's feature maps, both in channel blocks."""
    return Groups(layouts[source], layouts[out], source.shape[1] // groups, out.shape[1] // groups)
