"""Roundings of numbers that lie in no memory, which a kernel can do without.

In: a kernel. Out: the values that it does not round. Mixed precision rounds the result of each op;
where that is not stored, the unrounded number is nearer to what is meant, and at hand. In the store
slot of a data gradient::

    dx = cast(conv2d_grad_input(..))     dx is not rounded, as only dy is stored
    y = cast(bn_apply(..))               nor is y, as it is only compared with 6
    dy = cast(scale * where(y < 6, dx, 0))

A value stays rounded if it could be told from the unrounded one by more than its last digits: where
it is compared with another one, which may be the same; or where a kernel's statistics are of it, as
those must be of what will be normalized.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bngen.ir.node import Node
from bngen.ir.types import Value
from bngen.lower.stored import computed, is_narrow
from bngen.plan.kernel import Kernel

ORDER = ("<", "<=", ">", ">=")
"""Relations that hardly tell one number from another that is next to it."""


def only_rounds(node: Node) -> bool:
    """Whether a node makes of numbers what is only stored."""
    return node.row.converts and is_narrow(node.out) and node.inputs[0].dtype == computed(node.out)


def not_rounded(kernel: Kernel) -> frozenset[Value]:
    """Results of roundings that a convolution's kernel leaves out, operands of products aside."""
    if kernel.anchor is None or not kernel.anchor.row.direction:
        return frozenset()
    readers: dict[Value, list[Node]] = {}
    for node in kernel.nodes:
        for v in node.operands:
            readers.setdefault(v, []).append(node)
    literals = {n.out for n in kernel.nodes if n.row.literal}
    kept = {*kernel.outputs, *kernel.anchor.operands}
    made = (n.out for n in kernel.nodes if only_rounds(n))
    return frozenset(v for v in made if _is_only_computed_with(v, readers, literals, kept))


def _is_only_computed_with(
    v: Value, readers: Mapping[Value, Sequence[Node]], literals: set[Value], kept: set[Value]
) -> bool:
    """Whether all that is made of a value, itself included, is other numbers."""
    work = [v]
    while work:
        wanted = work.pop()
        if wanted in kept:
            return False
        for node in readers.get(wanted, ()):
            row = node.row
            if row.relation:
                others = (o for o in node.operands if o != wanted)
                if row.relation not in ORDER or any(o not in literals for o in others):
                    return False
            elif row.kind == "reduce":
                if row.combine != "sum":
                    return False
            elif row.kind != "pointwise":
                return False
            elif not row.rounds and not only_rounds(node):
                work.append(node.out)
    return True
