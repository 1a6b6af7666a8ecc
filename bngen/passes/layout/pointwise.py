"""Where pointwise ops and index maps read and write: as their operands lie, wherever they can.

In: a pointwise op and where its operands lie. Out: its `Ruling`.
"""

from __future__ import annotations

from bngen.ir.node import Node
from bngen.ir.ops import OPS
from bngen.ir.types import Value
from bngen.passes.layout.channel_axes import fills_channels, keeps_channels
from bngen.passes.layout.state import FEW_CHANNELS, Laid, Ruling
from bngen.plan.layout import PLAIN, Blocked, Layout, Plain


def pointwise(laid: Laid, node: Node) -> Ruling:
    """Operands that have the result's channels in its blocks; the others plain."""
    out = node.out
    row = OPS[node.op]
    if row.gathers:
        return node.inputs, _gathered_layout(laid, node)
    if row.converts:
        return node.inputs, laid.of[node.inputs[0]]
    roles = [name.rstrip("?") for name in row.operands]
    layout = _pointwise_layout(laid, node)
    inputs = []
    for role, v in zip(roles, node.inputs, strict=True):
        if v is None or not v.shape:
            inputs.append(v)
        elif isinstance(layout, Blocked) and (
            role in row.channel or v.shape == out.shape or _spans_channels(v, out)
        ):
            inputs.append(laid.want(v, layout))
        else:
            inputs.append(laid.plain(v))
    return inputs, layout


def _spans_channels(v: Value, out: Value) -> bool:
    """A broadcast operand of the result's rank that has all of its channels."""
    axis = out.type.channel_axis
    return len(v.shape) == len(out.shape) and v.shape[axis] == out.shape[axis] > 1


def _pointwise_layout(laid: Laid, node: Node) -> Layout:
    """That of the first operand in blocks; else blocks, if there are channels to fill them."""
    out = node.out
    rank = len(out.shape)
    if rank not in (1, 2, 4) or laid.reads_innermost(node):
        return PLAIN
    spanning = [v for v in node.operands if _spans_channels(v, out) or v.shape == out.shape]
    for v in spanning:
        if isinstance(laid.of[v], Blocked):
            return laid.of[v]
    if out in laid.wishes.updating and all(isinstance(laid.of[v], Plain) for v in spanning):
        return laid.wishes.goals[out]  # A parameter's update: nothing there lies in blocks.
    if rank == 4 and out.shape[1] >= FEW_CHANNELS:
        return laid.block(out)
    return next((laid.of[v] for v in spanning if laid.of[v] != PLAIN), PLAIN)


def _gathered_layout(laid: Laid, node: Node) -> Layout:
    """Blocks of channels, if what fills a vector of them lies together in the operand, too."""
    (x,), out = node.inputs, node.out
    layout, inner = laid.of[x], x in laid.innermost
    if len(out.shape) != 4 or (inner and "order" not in node.attrs):
        return PLAIN
    if len(x.shape) == 4 and isinstance(layout, Blocked) and keeps_channels(node):
        return layout
    together = {1} if isinstance(layout, Blocked) else {len(x.shape) - 1}
    together |= {1} if len(x.shape) == 4 and not inner else set()
    many = out.shape[1] >= FEW_CHANNELS
    return laid.block(out) if many and fills_channels(node, together) else PLAIN
