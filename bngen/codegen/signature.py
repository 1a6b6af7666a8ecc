"""The signature of a kernel: as a text that equal kernels share, and whose parts share memory."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from bngen.ir.types import Value
from bngen.plan.kernel import Kernel, KernelPlan


def signature(kernel: Kernel, plan: KernelPlan) -> str:
    """A text equal for kernels that do the same on tensors of the same types and layouts."""
    names: dict[Value, str] = {}

    def name(v: Value | None) -> str:
        if v is None:
            return "_"
        if v not in names:
            layout = plan.layouts.get(v)
            stored = v in kernel.inputs or v in kernel.outputs or not _defines(kernel, v)
            names[v] = f"v{len(names)}:{v.type}:{layout if stored or layout else ''}"
        return names[v]

    parts = [",".join(map(name, kernel.inputs))]
    for node in kernel.nodes:
        mark = "*" if node is kernel.anchor else ""
        attrs = ",".join(f"{k}={v}" for k, v in node.attrs.items_)
        inputs, outputs = ",".join(map(name, node.inputs)), ",".join(map(name, node.outputs))
        parts.append(f"{outputs}={mark}{node.op}({inputs}){{{attrs}}}")
    parts.append(",".join(map(name, kernel.outputs)))
    return ";".join(parts)


def _defines(kernel: Kernel, v: Value) -> bool:
    """Whether a node of the kernel computes ``v``."""
    return any(v in n.outputs for n in kernel.nodes)


def overwritten(kernel: Kernel, places: Mapping[Value, Hashable]) -> list[tuple[int, int]]:
    """Positions (input, output) in the signature of values that share one place."""
    first = len(kernel.inputs)
    return [
        (i, first + o)
        for o, out in enumerate(kernel.outputs)
        for i, v in enumerate(kernel.inputs)
        if out in places and places.get(v) == places[out]
    ]
