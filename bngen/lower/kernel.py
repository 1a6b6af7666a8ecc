"""Dispatch: which nest a kernel of the plan becomes, by its anchor."""

from __future__ import annotations

from bngen.ir.ops import OPS
from bngen.ir.types import Value
from bngen.lower.body import Lowered
from bngen.lower.conv import lower_conv
from bngen.lower.plain import (
    lower_copy,
    lower_matmul,
    lower_partial,
    lower_pointwise,
    lower_reduce,
)
from bngen.lower.wgrad import lower_weight_gradient
from bngen.lower.window import lower_window
from bngen.plan.kernel import Kernel
from bngen.plan.layout import Layout


def lower(kernel: Kernel, layouts: dict[Value, Layout]) -> Lowered:
    """The unscheduled TE function of a kernel.

    Args:
        kernel: load slots, anchor, store slots.
        layouts: physical layout of every value the kernel touches.
    """
    anchor = kernel.anchor
    if anchor is None:
        return lower_pointwise(kernel, layouts)
    row = OPS[anchor.op]
    if row.kind == "reduce":
        return (lower_partial if row.is_partial else lower_reduce)(kernel, layouts)
    by_op = {
        "conv2d": lower_conv,
        "conv2d_grad_input": lower_conv,
        "conv2d_grad_weight": lower_weight_gradient,
        "matmul": lower_matmul,
    }
    by_kind = {"window": lower_window, "copy": lower_copy, "view": lower_copy}
    return (by_op.get(anchor.op) or by_kind[row.kind])(kernel, layouts)
