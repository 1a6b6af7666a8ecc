"""Any kernel as TE, whatever strategies there are: what `codegen.nests` closes its table with."""

from __future__ import annotations

from collections.abc import Callable

from bngen.lower.conv import lower_conv, lower_depthwise
from bngen.lower.copies import lower_copy
from bngen.lower.facts import Layouts
from bngen.lower.lowered import Lowered
from bngen.lower.maps import lower_partial, lower_pointwise
from bngen.lower.product import lower_matmul
from bngen.lower.reduce import lower_reduce
from bngen.lower.shuffled import lower_shuffled
from bngen.lower.wgrad import lower_unpacked_gradient
from bngen.lower.window import lower_window
from bngen.plan.kernel import Kernel
from bngen.plan.layout import PackedWeight


def lower_any(kernel: Kernel, layouts: Layouts) -> Lowered:
    """The plainest nest of a kernel."""
    anchor = kernel.anchor
    if anchor is None:
        return lower_pointwise(kernel, layouts)
    row = anchor.row
    if row.is_partial:
        return lower_partial(kernel, layouts)
    return (_BY_DIRECTION.get(row.direction) or _BY_KIND[row.kind])(kernel, layouts)


def _convolution(kernel: Kernel, layouts: Layouts) -> Lowered:
    packed: PackedWeight = layouts[kernel.anchor.inputs[1]]
    if packed.shuffled:
        return lower_shuffled(kernel, layouts)
    return (lower_depthwise if packed.depthwise else lower_conv)(kernel, layouts)


Lowering = Callable[[Kernel, Layouts], Lowered]
_BY_DIRECTION: dict[str, Lowering] = {
    "forward": _convolution,
    "input": _convolution,
    "weight": lower_unpacked_gradient,
}
_BY_KIND: dict[str, Lowering] = {
    "reduce": lower_reduce,
    "contract": lower_matmul,
    "window": lower_window,
    "copy": lower_copy,
    "view": lower_copy,
}
