"""Kernels whose loops only visit elements of a feature map, and partial sums by themselves."""

from __future__ import annotations

from bngen.lower.body import Body
from bngen.lower.facts import Layouts
from bngen.lower.lowered import Lowered
from bngen.plan.kernel import Kernel


def lower_pointwise(kernel: Kernel, layouts: Layouts) -> Lowered:
    """No anchor: what is stored first is the main block; partial sums follow it."""
    body = Body(kernel, layouts)
    body.store_slot()
    return body.finish(body.lowered.tiles[0])


def lower_partial(kernel: Kernel, layouts: Layouts) -> Lowered:
    """A partial reduction that no store slot took: it sweeps its operand by itself."""
    body = Body(kernel, layouts)
    body.sum_rows(kernel.anchor)
    return body.finish(body.lowered.sums[0] if body.lowered.sums else "wide")
