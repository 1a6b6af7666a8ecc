"""Packing of weights, in the order in which a convolution's loop nest reads them.

In: a copy of a weight ``[K,C/groups,R,S]`` to a `PackedWeight`. Two blocks at most:

======= ==========================================================================
block   holds
======= ==========================================================================
rows    vectors of lanes in the weight's own order, taps innermost: what is turned over
main    the packed weight, each vector moved to its place; zeros where no channel is
======= ==========================================================================

A window of one tap needs no ``rows``, if all lanes hold channels: there the two orders are one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvm import te, tirx

from bngen.lower.body import Body
from bngen.lower.coords import Lane, guard, logical
from bngen.lower.facts import Layouts
from bngen.lower.lowered import Lowered
from bngen.lower.opaque import Expr, chooses
from bngen.lower.stored import computed, narrowed
from bngen.plan.kernel import Kernel
from bngen.plan.layout import PLAIN, Blocked, PackedWeight, physical_shape


def lower_packing(kernel: Kernel, layouts: Layouts) -> Lowered:
    """A weight in another order, for `bngen.scheduling.packing`."""
    w, out = kernel.anchor.inputs[0], kernel.anchor.out
    body = Body(kernel, layouts)
    order = Order(layouts[out], w.shape)

    def element(ob, ib, il, r, s, ol):
        return body.at(w, order.source(ob, ib, il, r, s, ol))

    vectors = element
    if order.turns:
        rows = te.compute(order.extents, element, name="rows")

        def vectors(ob, ib, il, r, s, ol):
            return rows(ob, ib, il, *order.tap(r, s), ol)

    def packed(*index):
        at = order.named(index)
        value = vectors(*at)
        holds = guard(PLAIN, order.channels(*at))
        if holds is not None:
            value = tirx.Select(chooses(holds), value, tirx.const(0, computed(out)))
        return narrowed(value, out.dtype)

    shape = physical_shape(out.type, layouts[out])
    body.results[out] = te.compute(shape, packed, name="main")
    return body.finish("main")


@dataclass(frozen=True)
class Order:
    """What stands at an index of a packed weight.

    An index of any of its forms is (out block, in block, in lane, row, column, out lane), of which
    some are always zero.

    Attributes:
        layout: of the packed weight.
        shape: of the weight.
    """

    layout: PackedWeight
    shape: tuple[int, ...]

    @property
    def turns(self) -> bool:
        """Whether vectors are made before they are moved."""
        p = self.layout
        padded = p.outer.padded or (p.inner is not None and p.inner.padded)
        return math.prod(self.shape[2:]) > 1 or p.depthwise or p.shuffled or padded

    @property
    def extents(self) -> tuple[int, ...]:
        """Of an index, all of it."""
        k, per_group, r, s = self.shape
        p, outer = self.layout, self.layout.outer
        if p.depthwise:
            inner = (1, 1)
        elif p.shuffled:
            inner = (1, k // p.groups if p.flipped else per_group)
        elif p.by_channel:
            inner = (1, p.inner.channels // p.groups)
        elif p.inner is None:
            inner = (k if p.flipped else per_group, 1)
        else:
            inner = (p.inner.blocks // p.groups, p.inner.lanes)
        return (outer.blocks, *inner, r, s, outer.lanes)

    def named(self, index: tuple[Expr, ...]) -> tuple[Expr, ...]:
        """The whole of an index of the packed weight's own form."""
        if self.layout.depthwise:
            ob, r, s, ol = index
            return ob, 0, 0, r, s, ol
        if self.layout.shuffled:
            ob, il, r, s, ol = index
            return ob, 0, il, r, s, ol
        ob, ib, r, s, il, ol = index
        return ob, ib, il, r, s, ol

    def tap(self, r: Expr, s: Expr) -> tuple[Expr, Expr]:
        """The tap of the weight that is a tap of the packed one, and the other way round."""
        rows, columns = self.shape[2:]
        return (rows - 1 - r, columns - 1 - s) if self.layout.flipped else (r, s)

    def channels(self, ob, ib, il, r, s, ol) -> list[Lane]:
        """The channels of an index that may be none."""
        p = self.layout
        outer = Lane(ob, ol, p.outer)
        if p.depthwise or p.shuffled or p.by_channel or p.inner is None:
            return [outer]
        return [outer, Lane(ib, il, p.inner)]

    def source(self, ob, ib, il, r, s, ol) -> tuple[Expr, ...]:
        """Where the weight's element lies, taps in its own order; of no channel, the last one's."""
        p, (k, per_group, *_) = self.layout, self.shape
        o = _within(Lane(ob, ol, p.outer))
        if p.depthwise:
            return (o, 0, r, s)
        if p.shuffled or p.by_channel:
            i = il
        elif p.inner is None:
            i = ib
        else:
            i = _within(Lane(ib, il, p.inner))
        if not p.flipped:
            return (o, i, r, s)
        if p.groups > 1:
            # Channel o of dx, in group g, sums over that group's outputs i:
            # w[g*K/groups + i, o mod C/groups].
            i = tirx.floordiv(o, per_group) * (k // p.groups) + i
            o = tirx.floormod(o, per_group)
        return (i, o, r, s)


def _within(lane: Lane) -> Expr:
    """A channel's number; the last channel's for a lane that holds none."""
    layout: Blocked = lane.layout
    number = logical(lane)
    return tirx.min(number, layout.channels - 1) if layout.padded else number
