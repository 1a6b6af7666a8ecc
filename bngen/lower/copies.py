"""Copies: another layout, or another place for what could not stay a view of its operand.

``copy`` is the block of the result; ``load_*`` are those of what load slots make, in the layout of
what they read.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from tvm import te, tirx

from bngen.ir.node import Node
from bngen.ir.types import Value
from bngen.lower.body import Body, buffer_of
from bngen.lower.coords import Lane, guard, guarded, logical, logical_coord, unravelled
from bngen.lower.facts import Layouts
from bngen.lower.lowered import Lowered, identifier
from bngen.lower.opaque import Expr, dtype_of, holds
from bngen.lower.packing import Order
from bngen.lower.pairs import pair as pair_of
from bngen.lower.pairs import word
from bngen.lower.stored import narrowed
from bngen.plan.kernel import Kernel
from bngen.plan.layout import PLAIN, PackedWeight


def lower_copy(kernel: Kernel, layouts: Layouts) -> Lowered:
    """Another layout, or another place: copy, and views that could not stay views."""
    return _moved(_body(kernel, layouts))


def lower_map_copy(kernel: Kernel, layouts: Layouts) -> Lowered:
    """The same, for `bngen.scheduling.copies`: what load slots make is turned as it was made."""
    body, out = _body(kernel, layouts), kernel.anchor.out
    for v in dict.fromkeys(kernel.anchor.operands):
        if v not in kernel.inputs and layouts[v] != layouts[out]:
            body.lowered.pads.append(body.stage(v, f"load_{identifier(v.name)}").op.name)
    return _moved(body)


def _body(kernel: Kernel, layouts: Layouts) -> Body:
    # What is moved as it is need not be widened on the way.
    return Body(kernel, layouts, bits=not kernel.load)


def _moved(body: Body) -> Lowered:
    node = body.kernel.anchor
    out, layout = node.out, body.layouts[node.out]
    shape, dtype = buffer_of(out, layout)
    if isinstance(layout, PackedWeight):
        element = _packed_element(body, node.inputs[0], layout)
    else:

        def element(*index):
            coord = logical_coord(out.type, layout, index) if out.shape else ()
            return ELEMENTS[node.row.moves](body, node, coord)

    def stored(*index):
        value = element(*index)
        return value if dtype_of(value) == dtype else narrowed(value, out.dtype)

    tensor = te.compute(shape, stored, name="copy")
    body.results[out] = tensor
    return body.finish("copy")


def _copied(body: Body, node: Node, coord):
    return body.masked(node.inputs[0], coord)


def _sliced(body: Body, node: Node, coord):
    axis, start = node.attrs["axis"], node.attrs["start"]
    source = list(coord)
    source[axis] = logical(coord[axis]) + start
    return _guarded(body, node.inputs[0], coord, source)


def _reshaped(body: Body, node: Node, coord):
    return _guarded(body, node.inputs[0], coord, _unravel(coord, node))


def _joined(body: Body, node: Node, coord):
    axis = node.attrs["axis"]
    here = logical(coord[axis])
    starts = list(itertools.accumulate((v.shape[axis] for v in node.inputs), initial=0))

    def among(first: int, stop: int) -> Expr:
        # Halves of halves: expressions that nest as deep as there are parts could not be walked.
        if stop - first == 1:
            source = [here - starts[first] if i == axis else c for i, c in enumerate(coord)]
            return _guarded(body, node.inputs[first], coord, source)
        middle = (first + stop) // 2
        before, behind = among(first, middle), among(middle, stop)
        return tirx.if_then_else(here < starts[middle], before, behind)

    return among(0, len(node.inputs))


ELEMENTS: dict[str, Callable[..., Expr]] = {
    "copies": _copied,
    "cuts": _sliced,
    "reshapes": _reshaped,
    "joins": _joined,
}
"""How an op moves -> the element of its result at a coordinate: ``(body, node, coord)``."""


def _guarded(body: Body, x: Value, coord, source):
    """Read ``x`` at ``source``, but only for lanes of ``coord`` that hold a channel."""
    value = body.at(x, tuple(source))
    condition = guard(body.layouts[x], coord)
    return value if condition is None else guarded(condition, value)


def _unravel(coord, node: Node):
    number = tirx.const(0, "int32")
    for axis, extent in zip(coord, node.out.shape, strict=True):
        number = number * extent + logical(axis)
    return unravelled(number, node.inputs[0].shape)


def _packed_element(body: Body, w: Value, layout: PackedWeight):
    """Gather a packed weight from ``[K,C/groups,R,S]``; zeros in padding lanes."""
    order = Order(layout, w.shape)

    def number(ob, ib, il, r, s, ol):
        element = body.at(w, order.source(ob, ib, il, *order.tap(r, s), ol))
        return _when(order.channels(ob, ib, il, r, s, ol), element)

    def paired(ob, ib, r, s, pair, ol):
        block, channel = (2 * ib, pair) if layout.inner is None else (ib, 2 * pair)
        step = (1, 0) if layout.inner is None else (0, 1)
        low = number(ob, block, channel, r, s, ol)
        high = number(ob, block + step[0], channel + step[1], r, s, ol)
        if odd:
            there = (block if layout.inner is None else channel) + 1 < channels
            high = guarded(holds(there), high)
        return (word if body.bits else pair_of)(low, high)

    # Those that the last pair may exceed: of all lanes, else of a plain input or a group.
    channels = w.shape[0 if layout.flipped else 1]
    if layout.inner is not None:
        channels = layout.inner.channels // layout.groups if layout.by_channel else 0
    odd = channels % 2 == 1
    return paired if layout.paired else lambda *index: number(*order.named(index))


def _when(lanes: list[Lane], value):
    condition = guard(PLAIN, lanes)
    return value if condition is None else guarded(condition, value)
