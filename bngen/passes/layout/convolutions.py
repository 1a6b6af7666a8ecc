"""How convolutions and their gradients take maps and weights: blocks, groups, packing.

In: a convolution, or a gradient of one, and where its operands lie. Out: its `Ruling`.
"""

from __future__ import annotations

from dataclasses import replace

from bngen.dtypes import PAIRED, TILES
from bngen.ir.node import Node
from bngen.ir.types import Value
from bngen.passes.layout.state import FEW_CHANNELS, Laid, Ruling
from bngen.passes.layout.wishes import maps_of_groups
from bngen.plan.groups import holds_whole
from bngen.plan.layout import PLAIN, Blocked, PackedWeight, Plain


def conv2d(laid: Laid, node: Node) -> Ruling:
    """The map blocked, or plain where it is an image; the weight packed for both maps."""
    x, w = node.inputs
    groups, of_groups = node.attrs["groups"], maps_of_groups(node, laid.lanes)
    if of_groups:
        inner, outer = of_groups
        x = laid.want(x, inner)
    else:
        x, inner = _operand(laid, x) if groups == 1 else laid.feature(x)
        outer = laid.block(node.out)
    packed = _packing(laid, w, inner, outer, groups, flipped=False)
    return _multiplied(laid, x, w, packed), packed.outer


def conv2d_grad_input(laid: Laid, node: Node) -> Ruling:
    """The result as what it is the gradient of, if that is known; the weight packed, flipped."""
    dy, w = node.inputs
    if of_groups := maps_of_groups(node, laid.lanes):
        outer, inner = of_groups
        dy = laid.want(dy, inner)
    else:
        dy, inner = laid.feature(dy)
        x = laid.wishes.conv_inputs.get(w)
        known = laid.of.get(laid.b.resolve(x)) if x is not None else None
        outer = known if isinstance(known, Blocked) else laid.block(node.out)
    packed = _packing(laid, w, inner, outer, node.attrs["groups"], flipped=True)
    return _multiplied(laid, dy, w, packed), packed.outer


def conv2d_grad_weight(laid: Laid, node: Node) -> Ruling:
    """Both maps as forward takes them; the result plain, as users hold weights."""
    x, dy = node.inputs
    if of_groups := maps_of_groups(node, laid.lanes):
        return tuple(map(laid.want, (x, dy), of_groups)), PLAIN
    if node.attrs["groups"] > 1:
        x, inner = laid.feature(x)
        return (x, laid.want(dy, inner)), PLAIN
    return (_operand(laid, x)[0], laid.feature(dy)[0]), PLAIN


def _operand(laid: Laid, x: Value) -> tuple[Value, Blocked | None]:
    """A convolution's data operand; None as its layout where it is read plain."""
    if isinstance(laid.of[x], Plain) and x.shape[1] < FEW_CHANNELS:
        return x, None
    return laid.feature(x)


def _packing(
    laid: Laid, w: Value, inner: Blocked | None, outer: Blocked, groups: int, *, flipped: bool
) -> PackedWeight:
    """How the weight is packed."""
    paired = bool(laid.pairs) and w.dtype == PAIRED
    if groups == 1:
        return PackedWeight(outer, inner, 1, flipped, paired=paired)
    if w.shape[1] == 1 and w.shape[0] == groups:
        return PackedWeight(inner, inner, groups, flipped, depthwise=True)
    whole = holds_whole(inner, groups) and holds_whole(outer, groups)
    packed = PackedWeight(outer, inner, groups, flipped, shuffled=not whole)
    fills_tiles = whole and (laid.pairs != TILES or not packed.by_channel)
    return replace(packed, paired=paired and fills_tiles)


def _multiplied(laid: Laid, x: Value, w: Value, packed: PackedWeight) -> tuple[Value, Value]:
    """A map and a weight as operands of a nest: what it does not multiply in pairs is widened.

    A packed weight lies in memory as the floats that it stands for: a nest reads each of its
    vectors once for a few pixels, and would widen it as often.
    """
    if packed.paired or not w.type.element.stored_only:
        return x, laid.want(w, packed)
    x, w = laid.wide(x), laid.wide(laid.b.resolve(w))
    return x, laid.copied(w, packed)
