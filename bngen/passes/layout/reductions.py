"""Where what folds or exchanges numbers reads and writes: reductions, pools, products, collectives.

In: such an op and where its operands lie. Out: its `Ruling`.
"""

from __future__ import annotations

from bngen.ir.node import Node
from bngen.ir.ops import OPS
from bngen.passes.layout.state import Laid, Ruling
from bngen.plan.layout import PLAIN, Blocked


def reduce(laid: Laid, node: Node) -> Ruling:
    """Maps in blocks, and what is left of the channels, too; the rest plain."""
    x = node.inputs[0]
    row = OPS[node.op]
    if len(x.shape) == 4 and (row.is_partial or x not in laid.innermost):
        x, layout = laid.feature(x)
        keeps_channel = not row.defaults.get("axes") or _reduces_only_nhw(node)
        inputs = [x]
        for role, v in zip(row.operands[1:], node.inputs[1:], strict=True):
            blocks = role in row.channel or len(v.shape) == 4
            inputs.append(laid.want(v, layout) if blocks else v)
        return inputs, layout if keeps_channel else PLAIN
    if isinstance(laid.of[x], Blocked) and len(x.shape) == 2 and _folds_groups(node):
        layout = laid.of[x]
        return [laid.want(v, layout) for v in node.inputs], layout
    return [laid.want(v, PLAIN) for v in node.inputs], PLAIN


def _reduces_only_nhw(node: Node) -> bool:
    axes = {a % 4 for a in node.attrs["axes"]}
    return 1 not in axes and (node.attrs["keepdims"] or axes == {0, 2, 3})


def _folds_groups(node: Node) -> bool:
    return node.row.merges or (tuple(a % 2 for a in node.attrs.get("axes", (1,))) == (0,))


def window(laid: Laid, node: Node) -> Ruling:
    """All maps in the blocks of the first."""
    first, layout = laid.feature(node.inputs[0])
    return [first, *(laid.want(v, layout) for v in node.inputs[1:])], layout


def contract(laid: Laid, node: Node) -> Ruling:
    """A matrix product reads element by element."""
    return [laid.plain(v) for v in node.inputs], PLAIN


def collective(laid: Laid, node: Node) -> Ruling:
    """Vectors are exchanged channel by channel, wherever each of them lies."""
    if all(len(v.shape) <= 1 for v in node.outputs):
        return node.inputs, laid.block(node.out) if node.out.shape else PLAIN
    return [laid.want(v, PLAIN) for v in node.inputs], PLAIN
