"""How many operations a kernel performs.

In: a kernel and its strategy. Out: a number. Two are counted for a multiplication of a sum of
products (at Winograd's points there are fewer of those), and one for an element of everything else:
of a pointwise op's result, of what a reduction or a pool reads or writes, whichever is more.
Literals, copies, views and what only says where an element lies count nothing.
"""

from __future__ import annotations

from bngen.codegen.strategy import Strategy
from bngen.ir.node import Node
from bngen.lower.geometry import direct_products
from bngen.plan.kernel import Kernel

_FOLDS = ("reduce", "window")
"""Kinds of which an operation is counted for each element that goes in or comes out."""


def operations(kernel: Kernel, strategy: Strategy) -> int:
    """Operations of a kernel; what several slots compute is counted once."""
    others = sum(_elements(n) for n in kernel.nodes if n.row.kind != "contract")
    products = [n for n in kernel.nodes if n.row.kind == "contract"]
    return others + 2 * (strategy.products(kernel) or sum(map(multiplications, products)))


def multiplications(node: Node) -> int:
    """Multiplications of a sum of products, as it is defined."""
    if node.row.direction:
        return direct_products(node)
    rows = max(node.out.shape[0], 1)
    return node.out.type.size * (node.operands[0].type.size // rows)


def _elements(node: Node) -> int:
    row = node.row
    if row.kind in _FOLDS:
        return max(v.type.size for v in (*node.operands, *node.outputs))
    silent = row.literal or row.identity or row.gathers or row.converts
    return 0 if row.kind != "pointwise" or silent else node.out.type.size
