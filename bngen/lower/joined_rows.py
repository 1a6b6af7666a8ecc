"""Rows joined: a kernel of pixels alone takes several rows of its maps for one.

In: a kernel around a convolution of one tap, its layouts. Out: the same kernel over maps of fewer
and longer rows, which lie alike. A register tile need not end with a row, then: seven columns are
one tile that is too small, 49 are ten of five but for one column.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bngen.ir.node import Node
from bngen.ir.types import TensorType, Value
from bngen.lower.facts import Layouts, group_rows
from bngen.lower.geometry import Geometry
from bngen.plan.kernel import Kernel

LONGEST = 128
"""Columns that rows are joined to, where no sums over groups of rows say how many belong together:
a task has whole rows, and there should be many of them."""


def with_joined_rows(kernel: Kernel, layouts: Layouts) -> tuple[Kernel, Layouts]:
    """The kernel over joined rows, and its layouts; as it is where a pixel knows of its place.

    Args:
        kernel: around a convolution or data gradient.
        layouts: how its values lie.
    """
    geo = Geometry.of_convolution(kernel.anchor)
    if geo.window != (1, 1) or not geo.is_identity or geo.out != geo.source:
        return kernel, layouts
    rows = _rows_to_join(kernel, *geo.out)
    others = (n for n in kernel.nodes if n is not kernel.anchor)
    if rows == 1 or not all(_is_of_pixels(n, geo.out) for n in others):
        return kernel, layouts

    def joined(v: Value) -> Value:
        if not _is_map(v, geo.out):
            return v
        n, c, h, w = v.shape
        return replace(v, type=TensorType((n, c, h // rows, w * rows), v.dtype))

    return _over(kernel, joined), {joined(v): layout for v, layout in layouts.items()}


def _rows_to_join(kernel: Kernel, height: int, width: int) -> int:
    """Rows of a group, or as many as make a row that is not too long."""
    fitting = (r for r in range(1, height + 1) if height % r == 0 and r * width <= LONGEST)
    return group_rows(kernel) or max(fitting, default=1)


def _is_map(v: Value, extents: tuple[int, int]) -> bool:
    return len(v.shape) == 4 and v.shape[2:] == extents


def _is_of_pixels(node: Node, extents: tuple[int, int]) -> bool:
    """Whether a node computes the same of each pixel, wherever that is."""
    if node.row.is_partial:
        return _is_map(node.inputs[0], extents)
    if node.row.kind != "pointwise" or node.row.gathers or "shape" in node.row.defaults:
        return False
    vectors = {v for v, role in zip(node.inputs, node.row.roles, strict=False)
               if role in node.row.channel}  # fmt: skip
    spread = [v for v in node.operands if v not in vectors]
    if not any(_is_map(v, extents) for v in (*spread, *node.outputs)):
        return True
    # All pixels of an image may share a number of their own, as those of a gate.
    return all(_is_map(v, extents) or not v.shape or v.shape[2:] == (1, 1) for v in spread)


def _over(kernel: Kernel, changed: Callable[[Value], Value]) -> Kernel:
    """The kernel with other values."""

    def node(old: Node) -> Node:
        inputs = (None if v is None else changed(v) for v in old.inputs)
        return replace(old, inputs=tuple(inputs), outputs=tuple(map(changed, old.outputs)))

    return replace(
        kernel,
        anchor=node(kernel.anchor),
        load=tuple(map(node, kernel.load)),
        store=tuple(map(node, kernel.store)),
        inputs=tuple(map(changed, kernel.inputs)),
        outputs=tuple(map(changed, kernel.outputs)),
    )
