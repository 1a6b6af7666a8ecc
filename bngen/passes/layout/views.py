"""Where concatenations, slices and reshapes read and write: so that they are views, if they can be.

In: such an op and where its operands lie. Out: its `Ruling`.
"""

from __future__ import annotations

from bngen.ir.node import Node
from bngen.passes.layout.state import Laid, Ruling
from bngen.plan.layout import PLAIN, Blocked, blocked


def cat(laid: Laid, node: Node) -> Ruling:
    """Along channels the segments of all operands, one after the other; plain otherwise."""
    axis, rank = node.attrs["axis"], len(node.out.shape)
    along_channels = axis == node.out.type.channel_axis
    some_blocked = any(isinstance(laid.of[v], Blocked) for v in node.inputs)
    if not along_channels or rank not in (1, 4) or (rank == 1 and not some_blocked):
        return [laid.plain(v) for v in node.inputs], PLAIN
    pairs = [laid.feature(v) for v in node.inputs]
    segments = [s for _, layout in pairs for s in layout.segments]
    return [v for v, _ in pairs], blocked(laid.lanes, segments)


def slice(laid: Laid, node: Node) -> Ruling:
    """Of blocks the ones inside, where the slice cuts none; else blocks of its own."""
    (x,) = node.inputs
    layout, rank = laid.of[x], len(x.shape)
    if not isinstance(layout, Blocked) or rank not in (1, 4):
        return [laid.plain(x)], PLAIN
    if node.attrs["axis"] != x.type.channel_axis:
        return [x], layout
    cut = layout.slice(node.attrs["start"], node.attrs["stop"])
    return [x], cut[0] if cut else laid.plain_block(node.attrs["stop"] - node.attrs["start"])


def reshape(laid: Laid, node: Node) -> Ruling:
    """As the operand lies, where the same channels stay the only long axis; plain otherwise."""
    (x,) = node.inputs
    layout, shape = laid.of[x], tuple(node.attrs["shape"])
    vector = (x.type.size,)
    rows = {vector, (1, *vector, 1, 1)}
    # One pixel of each image, which a matrix product does not want in blocks.
    to_map = shape == (*x.shape, 1, 1) and len(x.shape) == 2
    if isinstance(layout, Blocked) and (to_map or {x.shape, shape} <= rows):
        return [x], layout
    return [laid.want(x, PLAIN)], PLAIN


def copy(laid: Laid, node: Node) -> Ruling:
    """As what is copied; `place_concatenations` decides where else."""
    return node.inputs, laid.of[node.inputs[0]]
