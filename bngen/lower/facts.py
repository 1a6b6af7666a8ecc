"""Facts: what a kernel's schedule and its knobs follow from, known before there is any TIR.

In: a kernel of the plan and its layouts. Out: a frozen `Facts` of the kernel's family, all integers
with units in their docstrings, and reasons where there is none. Nothing here needs TVM.

A record file holds the same numbers by name (`Facts.extents`, `Facts.read`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import Self

from bngen.dtypes import DTYPES, FLOAT
from bngen.ir.types import Value
from bngen.plan.kernel import Kernel
from bngen.plan.layout import Layout

Layouts = Mapping[Value, Layout]


@dataclass(frozen=True)
class Declined:
    """Why a strategy, or a choice of knobs, does not apply."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of any kernel.

    Attributes:
        element_bytes: bytes of an element of the maps that the kernel goes over.
        pairs: 1 where it multiplies pairs; lanes that are summed over, or images, are then words.
    """

    element_bytes: int = DTYPES[FLOAT].nbytes
    pairs: int = 0

    def extents(self) -> dict[str, int]:
        """The facts by name as record files hold them: those that are as usual are left out."""
        named = {f.name: (getattr(self, f.name), f.default) for f in fields(self)}
        return {name: value for name, (value, usual) in named.items() if value != usual}

    @classmethod
    def read(cls, extents: Mapping[str, int]) -> Self | Declined:
        """The facts that a record file holds, or what it lacks or has too many."""
        known = {f.name: f.default is MISSING for f in fields(cls)}
        lacking = [name for name, needed in known.items() if needed and name not in extents]
        if lacking:
            return Declined(f"the extents lack {', '.join(lacking)}")
        if strange := sorted(extents.keys() - known.keys()):
            return Declined(f"the extents have {', '.join(strange)}, which {cls.__name__} do not")
        return cls(**extents)


@dataclass(frozen=True, kw_only=True)
class MapFacts(Facts):
    """A kernel whose loops go over a feature map in channel blocks.

    Attributes:
        group_rows: rows of the map that a partial sum of the store slot adds up; None without one.
        n: images.
        h: rows of the map that is written.
        w: columns of it.
        out_blocks: channel blocks of it.
        lanes: channels of a block.
    """

    group_rows: int | None = None
    n: int
    h: int
    w: int
    out_blocks: int
    lanes: int


@dataclass(frozen=True, kw_only=True)
class ConvFacts(MapFacts):
    """A convolution, or a data gradient as a convolution of the other gradient.

    Attributes:
        groups: of a grouped convolution, each with as many channel blocks; 1 for a depthwise one
            means nothing.
        in_blocks: channel blocks that an output sums over.
        in_lanes: channels of such a block; 1 where the operand is plain, or depthwise.
        r: rows of the window.
        s: columns of the window.
        padded_w: columns of the operand in memory, what is padded included.
        stride_h: rows of the operand from one output to the next.
        stride_w: columns.
        dilation_h: rows of the operand from one tap to the next.
        dilation_w: columns.
    """

    groups: int
    in_blocks: int
    in_lanes: int
    r: int
    s: int
    padded_w: int
    stride_h: int
    stride_w: int
    dilation_h: int
    dilation_w: int

    @property
    def terms(self) -> int:
        """Products that an output is the sum of."""
        return self.in_blocks * self.in_lanes * self.r * self.s


@dataclass(frozen=True, kw_only=True)
class ShuffledFacts(ConvFacts):
    """A grouped convolution, or data gradient, whose lanes read channels of their own.

    Attributes:
        period: output blocks after which those lie alike again, see `bngen.plan.groups`; 0 where
            they never do.
        alike: 1 where within a period blocks differ but in a number of lanes; 0 elsewhere.
    """

    period: int = 0
    alike: int = 0


@dataclass(frozen=True, kw_only=True)
class PhasedFacts(MapFacts):
    """The data gradient of a strided convolution, phase by phase.

    Attributes:
        in_blocks: channel blocks that an output sums over.
        in_lanes: channels of such a block.
        r: rows of the whole window.
        s: columns of the whole window.
        spread_h: phases of the rows: the convolution's stride.
        spread_w: phases of the columns.
        groups: of a grouped convolution.
        padded_w: columns of the operand in memory, what is padded included.
    """

    in_blocks: int
    in_lanes: int
    r: int
    s: int
    spread_h: int
    spread_w: int
    groups: int
    padded_w: int

    @property
    def terms(self) -> int:
        """Products of the whole window, those of all phases together."""
        return self.in_blocks * self.in_lanes * self.r * self.s


@dataclass(frozen=True, kw_only=True)
class GradientFacts(Facts):
    """A weight gradient: sums over the pixels of a map, or over Winograd's tiles of it.

    Attributes:
        n: images.
        h: rows of the map that is summed over, or of its tiles.
        w: columns of it.
        out_blocks: channel blocks of the output's gradient.
        lanes: channels of a block.
        r: rows of the window, or of the points of a tile.
        s: columns of it.
        in_blocks: channel blocks of the input that belong to a group.
        in_lanes: channels of such a block; 1 where the input is plain, or depthwise.
        stride_h: rows of the input from one output to the next.
        stride_w: columns.
        padded_w: columns of the input in memory, what is padded included.
        dilation_h: rows of the input from one tap to the next.
        groups: of a grouped convolution.
    """

    n: int
    h: int
    w: int
    out_blocks: int
    lanes: int
    r: int
    s: int
    in_blocks: int
    in_lanes: int
    stride_h: int
    stride_w: int
    padded_w: int
    dilation_h: int
    groups: int

    def of_image_pairs(self) -> Self:
        """The facts where an element is a word of two images."""
        return replace(self, n=-(-self.n // 2), pairs=1)


@dataclass(frozen=True, kw_only=True)
class ShuffledGradientFacts(GradientFacts):
    """The weight gradient of such a convolution.

    Attributes:
        period: as in `ShuffledFacts`.
        alike: as there.
    """

    period: int = 0
    alike: int = 0


@dataclass(frozen=True, kw_only=True)
class WideFacts(Facts):
    """A kernel over values in plain order, which its loops cut into vectors themselves.

    Attributes:
        lanes: elements of a vector of the machine that the kernel is for.
    """

    lanes: int = 0

    def on(self, lanes: int) -> Self:
        """The facts on a machine of so many elements a vector."""
        return replace(self, lanes=lanes)


MOST_ROWS, LEAST_ROWS = 14, 6
"""Rows of a product's register tile: of more rows, a few are computed for nothing."""
FEW_BLOCKS = 4
"""Most vectors of columns in a register tile."""
LONG, PART = 384, 256
"""Products up to which a sum is one, and of a part of a longer one, whose operands stay in cache:
float32 sums of so few keep their digits."""


@dataclass(frozen=True, kw_only=True)
class ProductFacts(WideFacts):
    """A matrix product ``op(a) @ op(b)``.

    Attributes:
        m: rows of the result.
        n: columns.
        k: products that an element is the sum of.
        trans_a: whether ``a`` lies as ``[k, m]``.
        trans_b: whether ``b`` lies as ``[n, k]``.
        loads_a: whether ops are done to ``a`` as it is loaded.
        loads_b: the same of ``b``.
    """

    m: int
    n: int
    k: int
    trans_a: int = 0
    trans_b: int = 0
    loads_a: int = 0
    loads_b: int = 0

    @classmethod
    def read(cls, extents: Mapping[str, int]) -> Self | Declined:
        """See `Facts.read`; a record is one machine's, whose lanes it names."""
        return super().read(extents) if "lanes" in extents else Declined("the extents lack lanes")

    @property
    def blocks(self) -> int:
        """Vectors of columns; one more where register tiles would else hold one of them each."""
        vectors = -(-self.n // self.lanes)
        odd = vectors > FEW_BLOCKS and all(vectors % d for d in range(2, FEW_BLOCKS + 1))
        return vectors + (odd and self.copies_right)

    @property
    def columns(self) -> int:
        """Columns, the last vector's filled up."""
        return self.blocks * self.lanes

    @property
    def rows(self) -> int:
        """Rows, as few more as whole register tiles need."""
        if self.m <= MOST_ROWS:
            return self.m
        return min(-(-self.m // r) * r for r in range(LEAST_ROWS, MOST_ROWS + 1))

    @property
    def depth(self) -> int:
        """Products of a part of the sums; the last part may be shorter."""
        if self.k <= LONG:
            return self.k
        even = [d for d in range(PART // 2, LONG + 1) if self.k % d == 0]
        return min(even, key=lambda d: abs(math.log(d / PART))) if even else PART

    @property
    def chunks(self) -> int:
        """Parts of the sums."""
        return -(-self.k // self.depth)

    @property
    def copies_left(self) -> bool:
        """Whether the nest reads ``a`` from a scratch.

        It does so, too, where a tile reads a few elements of each of many rows of ``a``.
        """
        return bool(self.loads_a) or self.rows != self.m or (bool(self.trans_a) and self.chunks > 1)

    @property
    def granule(self) -> int:
        """Rows of a tile, unless knobs say otherwise: those that lie together in a scratch."""
        return max(d for d in range(1, MOST_ROWS + 1) if self.rows % d == 0)

    @property
    def copies_right(self) -> bool:
        """Whether the nest reads ``b`` from a scratch: in vectors of columns, all of them whole.

        It does so where each is read several times, too: rows of ``b`` lie far apart, and those
        whose distance is a power of two displace each other in a cache.
        """
        lies_otherwise = bool(self.loads_b or self.trans_b) or self.n % self.lanes
        return bool(lies_otherwise) or self.rows > MOST_ROWS


@dataclass(frozen=True, kw_only=True)
class AnyFacts(WideFacts):
    """A kernel that no strategy was made for."""


def element_bytes(v: Value) -> int:
    """Bytes of an element of a value."""
    return v.type.element.nbytes


# --- what the store slot asks of a schedule ---------------------------------------------------


def partial_sums(kernel: Kernel) -> list:
    """The reductions over groups of rows that a kernel holds."""
    held = (kernel.anchor, *kernel.store) if kernel.anchor else kernel.store
    return [n for n in held if n.row.is_partial]


def group_rows(kernel: Kernel) -> int | None:
    """Rows of the map that one partial sum adds up; None where the kernel holds no such sum."""
    rows = None
    for node in partial_sums(kernel):
        n, _, h, _ = node.inputs[0].shape
        rows = h // (node.attrs["row_groups"] // n)
    return rows


def wide_sums(kernel: Kernel) -> Declined | None:
    """Why the sums of a kernel cannot follow its tiles, or None where they can.

    Exact ones, rounded and what that leaves, are stages that only the fallback schedules.
    """
    for node in partial_sums(kernel):
        if node.row.exact:
            exact = node.inputs[0].type.element.exact
            return Declined(f"{node.op} sums in {exact}, which no tile holds")
    return None
