"""Matrix products ``op(a) @ op(b)``: linear layers and their gradients.

======================= ==================================================================
block                   computes
======================= ==================================================================
left, right             scratch of an operand that is not read where it lies
tile                    sums of products over a part of the inner extent, if it is long
fold                    sums of products, or of those
store_*, mid_*          the store slot, see `Body.store_slot`
======================= ==================================================================

Rows are rounded up to whole register tiles, columns to whole vectors; what is beyond the result is
computed from anything and not stored. The right operand's scratch lies in vectors of columns, one
for each inner index; the left one's in its own order, or in tiles of rows.

Where pairs of bfloat16 are multiplied, neighbours along the inner extent are one word, and its
index counts those; beside an odd one lies zero.
"""

from __future__ import annotations

from tvm import te, tirx

from bngen.ir.types import Value
from bngen.lower import pairs
from bngen.lower.body import Body
from bngen.lower.coords import guarded, zero
from bngen.lower.facts import Layouts, ProductFacts
from bngen.lower.lowered import Lowered
from bngen.lower.opaque import exactly, holds
from bngen.plan.kernel import Kernel

LONG_SUM = 2048
"""Products that a plain matrix product sums in the element's own type, one after the other."""


def lower_product(kernel: Kernel, layouts: Layouts, facts: ProductFacts) -> Lowered:
    """A product in tiles of whole vectors, for `bngen.scheduling.product`."""
    body, out = Body(kernel, layouts), kernel.anchor.out
    left, right = _left(body, facts), _right(body, facts)
    whole, depth = (facts.rows, facts.columns), facts.depth
    multiply = pairs.product if facts.pairs else tirx.Mul

    def product(i, j, e):
        value = multiply(left(i, e), right(j, e))
        if facts.chunks * depth == facts.k:
            return value
        return tirx.if_then_else(e < facts.k, value, zero(out.dtype))

    e = te.reduce_axis((0, depth), "e")
    if facts.chunks == 1:
        total = te.compute(whole, lambda i, j: te.sum(product(i, j, e), axis=e), name="fold")
    else:
        part = te.reduce_axis((0, facts.chunks), "part")
        tile = te.compute(
            (facts.chunks, *whole),
            lambda p, i, j: te.sum(product(i, j, p * depth + e), axis=e),
            name="tile",
        )
        total = te.compute(whole, lambda i, j: te.sum(tile(part, i, j), axis=part), name="fold")
    body.define(out, total)
    body.store_slot()
    return body.finish("fold")


def _left(body: Body, facts: ProductFacts):
    """The left operand at (row, inner index)."""
    a, across = body.kernel.anchor.inputs[0], bool(facts.trans_a)
    at = _element(body, a, facts, inner_last=not across)
    if not facts.copies_left:
        return at

    def element(i, e):
        # Rows beyond the last are the last one's: their results go nowhere.
        return at(i if facts.rows == facts.m else tirx.min(i, facts.m - 1), e)

    body.lowered.pads.append("left")
    if not across:
        return te.compute((facts.rows, facts.k), element, name="left")
    near = facts.granule
    scratch = te.compute(
        (facts.rows // near, facts.k, near), lambda g, e, r: element(g * near + r, e), name="left"
    )
    return lambda i, e: scratch(i // near, e, i % near)


def _right(body: Body, facts: ProductFacts):
    """The right operand at (column, inner index)."""
    b, across, lanes = body.kernel.anchor.inputs[1], bool(facts.trans_b), facts.lanes
    at = _element(body, b, facts, inner_last=across)
    if not facts.copies_right:
        return at

    def element(block, e, lane):
        j = block * lanes + lane
        if facts.columns == facts.n:
            return at(j, e)
        # What lies beyond the last column is computed from that one, and not stored.
        last = at(tirx.min(j, facts.n - 1), e)
        if across:
            return last
        return tirx.if_then_else(block < facts.n // lanes, at(j, e), last)

    scratch = te.compute((facts.blocks, facts.k, lanes), element, name="right")
    body.lowered.pads.append("right")
    return lambda j, e: scratch(j // lanes, e, j % lanes)


def _element(body: Body, v: Value, facts: ProductFacts, *, inner_last: bool):
    """An operand at (row or column of the result, inner index)."""
    if not facts.pairs:
        return lambda i, e: body.at(v, (i, e) if inner_last else (e, i))
    if inner_last and body.can_lie_in_words(v):
        words = body.take_for_words(v)
        return lambda i, e: words(i, e)
    lies, extent = body.lies_narrow(v), v.shape[1 if inner_last else 0]
    read = body.lying_at if lies else body.at

    def element(i, e):
        low, high = (read(v, (i, k) if inner_last else (k, i)) for k in (e * 2, e * 2 + 1))
        if extent % 2:
            high = guarded(holds(e * 2 + 1 < extent), high)
        return (pairs.word if lies else pairs.pair)(low, high)

    return element


def lower_matmul(kernel: Kernel, layouts: Layouts) -> Lowered:
    """The plainest nest: each element a sum of its own, in the exact type where it is long."""
    node = kernel.anchor
    body = Body(kernel, layouts)
    a, b = node.inputs
    ta, tb = node.attrs["trans_a"], node.attrs["trans_b"]
    k = a.shape[0] if ta else a.shape[1]
    e = te.reduce_axis((0, k), "e")

    def element(i, j):
        value = body.at(a, (e, i) if ta else (i, e)) * body.at(b, (j, e) if tb else (e, j))
        return te.sum(exactly(value) if k > LONG_SUM else value, axis=e)

    total = te.compute(node.out.shape, element, name="fold")
    if str(total.dtype) != node.out.dtype:
        long = total
        total = te.compute(
            node.out.shape, lambda i, j: tirx.Cast(node.out.dtype, long(i, j)), name="mid_product"
        )
        body.lowered.tiles.append("mid_product")
    body.define(node.out, total)
    body.store_slot()
    return body.finish("fold")
