"""Where index maps and reshapes leave the channels of a map: what layouts are chosen by.

In: a node. Out: whether its channels stay, come from what lies together in memory, or are
innermost, as in ``[N,H,W,C]``. Nothing is decided here.
"""

from __future__ import annotations

from bngen.ir.node import Node
from bngen.ir.ops.gather import factors_of_axes

MAP_RANK = 4


def keeps_channels(node: Node) -> bool:
    """Whether an index map of two maps leaves every element in its channel."""
    if "order" not in node.attrs:
        return node.attrs.get("axis") != 1
    return _sources(node)[1] == _factors(node, 1)


def fills_channels(node: Node, axes: set[int]) -> bool:
    """Whether channels of the result come from one of these axes of the operand."""
    if "order" not in node.attrs:
        return len(node.inputs[0].shape) == MAP_RANK and 1 in axes
    wanted = {factor for axis in axes for factor in _factors(node, axis)}
    return not wanted.isdisjoint(_sources(node)[1])


def keeps_last_axis(node: Node, innermost: bool) -> bool:
    """Whether a reshape makes a map whose last axis has been one: the channels of each pixel.

    Args:
        node: a reshape.
        innermost: whether that is known of its operand's last axis, if that is a map itself.
    """
    x, out = node.inputs[0].shape, node.out.shape
    rows = len(x) in (2, 3) or (len(x) == MAP_RANK and innermost)
    return rows and len(out) == MAP_RANK and x[-1] == out[-1]


def _factors(node: Node, axis: int) -> list[int]:
    """Which factors of a ``rearrange`` an axis of its operand is made of."""
    return factors_of_axes(node.inputs[0].shape, node.attrs["split"])[axis]


def _sources(node: Node) -> list[list[int]]:
    """Which of them each axis of its result is made of."""
    order, split = node.attrs["order"], node.attrs["split"]
    moved = factors_of_axes(node.out.shape, [split[i] for i in order])
    return [[order[k] for k in factors] for factors in moved]
