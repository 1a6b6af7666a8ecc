"""Groups of channels: how the feature maps of a grouped convolution lie, and what a lane reads.

In: the channels of both maps and the number of groups. Out: plain numbers and layouts. Whole groups
are padded to channel blocks where little is lost by it: then a group is a dense convolution, of
blocks. Else groups cut blocks, and each lane of an output block reads channels of its own, see
`bngen.lower.shuffled`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd, lcm

from bngen.ir.types import Value
from bngen.plan.layout import Blocked, Layout, blocked

MOST_BLOCKS = 8
"""Longest period that is made use of: every block of it has code of its own."""

MOST_PADDED, PADDED_AT_NEED = 1.5, 2.0
"""Lanes for a channel up to which groups are padded to blocks; and where blocks have no period, so
that lanes are loaded one by one."""


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
        if len(self.inner.segments) > 1 or len(self.outer.segments) > 1:
            return True  # Channels are numbered with gaps.
        last = (self.outer.blocks * self.outer.lanes - 1) // self.out_per
        return (last + 1) * self.in_per > self.inner.blocks * self.inner.lanes

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


def groups_of(groups: int, source: Value, out: Value, layouts: Mapping[Value, Layout]) -> Groups:
    """The groups of a convolution's feature maps, both in channel blocks."""
    inner, outer = layouts[source], layouts[out]
    return Groups(inner, outer, source.shape[1] // groups, out.shape[1] // groups)


def holds_whole(layout: Blocked, groups: int) -> bool:
    """Whether every group of channels has blocks of its own."""
    return layout == _padded(layout.lanes, layout.channels, groups)


def layouts_of_groups(
    lanes: int, inputs: int, outputs: int, groups: int
) -> tuple[Blocked, Blocked]:
    """Layouts of the input and of the output of a grouped convolution, the same in all directions.

    Args:
        lanes: channels of a block.
        inputs: channels of the input.
        outputs: channels of the output.
        groups: into how many both are divided.
    """
    padded = [_padded(lanes, c, groups) for c in (inputs, outputs)]
    plain = [blocked(lanes, (c,)) for c in (inputs, outputs)]
    per = inputs // groups, outputs // groups
    ways = Groups(*plain, *per), Groups(*plain[::-1], *per[::-1])
    if all(way.alike for way in ways) and max(per) <= 2 * lanes and padded != plain:
        return tuple(plain)
    most = MOST_PADDED if all(way.period for way in ways) else PADDED_AT_NEED
    spent = max(p.blocks * lanes / p.channels for p in padded)
    return tuple(padded if spent <= most else plain)


def _padded(lanes: int, channels: int, groups: int) -> Blocked:
    return blocked(lanes, [channels // groups] * groups)
