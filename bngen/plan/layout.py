"""Physical layouts: how the elements of a logical tensor lie in memory.

Feature maps lie in *channel blocks*, block outermost: ``[N,C,H,W] -> (Cb, N, H, W, lanes)``. A
range of channel blocks is then one contiguous range of bytes, so that concatenation and split are
pointer offsets. Channel counts that are no multiple of the lanes are padded, each *segment* of a
concatenation by itself: ``cat`` of 24 and 10 channels with 16 lanes has segments ``(24, 10)`` and
three blocks, and still moves no data. Vectors along the channel axis, ``[C] -> (Cb, lanes)``, and
partial sums, ``[G,C] -> (Cb, G, lanes)``, follow the same rule. Padding lanes hold unspecified
values; whoever mixes channels masks them.

Weights of convolutions are packed for the loop nest that reads them, see `PackedWeight`. What
users hand in and get back is `Plain`: in C order or, where they say so, channels last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bngen.ir.types import TensorType


@dataclass(frozen=True)
class Plain:
    """Row-major without padding.

    Attributes:
        channels_last: ``[N,C,H,W] -> (N,H,W,C)``; else in logical order. Use `plain`, which is for
            any rank and calls no layout channels-last that is C order, too.
    """

    channels_last: bool = False

    def __str__(self) -> str:
        return "channels_last" if self.channels_last else "plain"

    def order(self, rank: int) -> tuple[int, ...]:
        """The axes, outermost first."""
        return CHANNELS_LAST_ORDER if self.channels_last else tuple(range(rank))


@dataclass(frozen=True)
class Blocked:
    """Channel blocks of ``lanes`` channels, outermost; see the module's text.

    Attributes:
        lanes: channels of a block.
        segments: channel counts padded one by one; all but the last are kept only where they are
            no multiple of ``lanes`` (use `blocked`, which puts them in this normal form).
    """

    lanes: int
    segments: tuple[int, ...]

    def __str__(self) -> str:
        even = self.even and len(self.segments) > _LISTED
        listed = f"{len(self.segments)}x{self.even}" if even else "+".join(map(str, self.segments))
        return f"blocked{self.lanes}({listed})"

    @property
    def channels(self) -> int:
        """Logical channels."""
        return sum(self.segments)

    @property
    def even(self) -> int | None:
        """Channels of each of several segments, if all have as many."""
        first, *rest = self.segments
        return first if rest and all(size == first for size in rest) else None

    @property
    def blocks(self) -> int:
        """Channel blocks, padding included."""
        return sum(-(-s // self.lanes) for s in self.segments)

    @property
    def padded(self) -> bool:
        """Whether some lanes hold no channel."""
        return self.blocks * self.lanes != self.channels

    def block_starts(self) -> tuple[tuple[int, int, int], ...]:
        """For each segment: (first logical channel, first block, channels)."""
        rows, channel, block = [], 0, 0
        for size in self.segments:
            rows.append((channel, block, size))
            channel += size
            block += -(-size // self.lanes)
        return tuple(rows)

    def slice(self, start: int, stop: int) -> tuple[Blocked, int] | None:
        """Layout and block offset of channels [start, stop), or None where it cuts a block."""
        pieces, offset = [], None
        for channel, block, size in self.block_starts():
            lo, hi = max(start, channel), min(stop, channel + size)
            if lo >= hi:
                continue
            cut_tail = hi < channel + size and (hi - channel) % self.lanes
            if (lo - channel) % self.lanes or cut_tail:
                return None
            if offset is None:
                offset = block + (lo - channel) // self.lanes
            pieces.append(hi - lo)
        return (blocked(self.lanes, pieces), offset) if pieces else None


_LISTED = 3
"""Most segments that are shown one by one."""


def blocked(lanes: int, segments) -> Blocked:
    """The normal form: a segment that ends on a block boundary merges with the next."""
    merged: list[int] = []
    for size in segments:
        if merged and merged[-1] % lanes == 0:
            merged[-1] += size
        else:
            merged.append(size)
    return Blocked(lanes, tuple(merged))


@dataclass(frozen=True)
class PackedWeight:
    """A convolution's weight ``[K,C/groups,R,S]`` in the order in which its loop nest reads it.

    ``(out blocks, in blocks, R, S, in lanes, out lanes)``; for ``flipped`` (the data gradient) in
    and out change places and the window is mirrored. ``inner`` is 1 where the input is plain.
    Groups that are padded to blocks have one inner block, of the channels that there are. Depthwise
    weights are ``(blocks, R, S, lanes)``; shuffled ones, where channels of several groups
    lie in an output block, ``(out blocks, channels of a group, R, S, out lanes)``. Padding lanes
    hold zeros.

    Paired weights lie in words of two inner channels, zeros beside an odd one: ``(out blocks, in
    blocks, R, S, pairs of in lanes, out lanes, 2)`` or, where the input is plain,
    ``(out blocks, pairs of channels, R, S, 1, out lanes, 2)``.

    Attributes:
        outer: layout of the channels that the nest writes.
        inner: layout of the channels that it sums over (None: plain, one channel at a time).
        groups: as in the convolution.
        flipped: whether the nest is the data gradient's.
        depthwise: one input channel an output channel.
        shuffled: groups cut channel blocks; each lane reads channels of its own.
        paired: the nest multiplies pairs of channels.
    """

    outer: Blocked
    inner: Blocked | None
    groups: int = 1
    flipped: bool = False
    depthwise: bool = False
    shuffled: bool = False
    paired: bool = False

    def __str__(self) -> str:
        kind = "depthwise " * self.depthwise + "shuffled " * self.shuffled
        kind += "paired " * self.paired
        kind += "flipped" if self.flipped else "forward"
        return f"packed({kind},{self.outer},{self.inner or 'plain'},groups={self.groups})"

    @property
    def by_channel(self) -> bool:
        """Whether the nest counts the channels of a group, not those of its blocks."""
        return self.groups > 1 and self.inner is not None and self.inner.padded


Layout = Plain | Blocked | PackedWeight
PLAIN, CHANNELS_LAST = Plain(), Plain(channels_last=True)
CHANNELS_LAST_ORDER = (0, 2, 3, 1)


def plain(type_: TensorType, *, channels_last: bool) -> Plain:
    """The layout of a user's array that is declared channels-last, or is not."""
    shape = type_.shape
    if channels_last and len(shape) == 4 and shape[1] > 1 and shape[2] * shape[3] > 1:
        return CHANNELS_LAST
    return PLAIN


def physical_shape(type_: TensorType, layout: Layout) -> tuple[int, ...]:
    """Extents of the array in memory."""
    shape = type_.shape
    if isinstance(layout, Plain):
        return tuple(shape[axis] for axis in layout.order(len(shape)))
    if isinstance(layout, Blocked):
        axis = type_.channel_axis
        return (layout.blocks, *shape[:axis], *shape[axis + 1 :], layout.lanes)
    r, s = shape[2:]
    if layout.depthwise:
        return (layout.outer.blocks, r, s, layout.outer.lanes)
    if layout.shuffled:
        terms = shape[0] // layout.groups if layout.flipped else shape[1]
        return (layout.outer.blocks, terms, r, s, layout.outer.lanes)
    if layout.by_channel:
        inner_blocks, inner_lanes = layout.groups, layout.inner.channels // layout.groups
    elif layout.inner is None:
        inner_blocks, inner_lanes = (shape[0] if layout.flipped else shape[1]), 1
    else:
        inner_blocks, inner_lanes = layout.inner.blocks, layout.inner.lanes
    outer, per_group = layout.outer, inner_blocks // layout.groups
    if not layout.paired:
        return (outer.blocks, per_group, r, s, inner_lanes, outer.lanes)
    if layout.inner is None:
        return (outer.blocks, _pairs(per_group), r, s, inner_lanes, outer.lanes, 2)
    return (outer.blocks, per_group, r, s, _pairs(inner_lanes), outer.lanes, 2)


def _pairs(count: int) -> int:
    return -(-count // 2)


def same_bytes(type_: TensorType, a: Layout, b: Layout) -> bool:
    """Whether the two layouts of one logical tensor are the same bytes in memory."""
    if a == b:
        return True
    flat, other = (a, b) if isinstance(a, Plain) else (b, a)
    if not isinstance(flat, Plain) or not isinstance(other, Blocked) or other.padded:
        return False
    if flat.channels_last:
        return other.blocks == 1
    axis = type_.channel_axis
    before = math.prod(type_.shape[:axis])
    after = math.prod(type_.shape[axis + 1 :])
    return before * after == 1 or (before == 1 and other.blocks == 1 and after == 1)


def physical_bytes(type_: TensorType, layout: Layout) -> int:
    """Bytes in memory, padding included."""
    return math.prod(physical_shape(type_, layout)) * type_.element.nbytes
