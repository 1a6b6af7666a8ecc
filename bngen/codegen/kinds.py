"""What a kernel is built around, as rows of strategies ask, and how they name a lowering.

In: a kernel of a plan. Out: yes or no. See `bngen.codegen.nests`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from bngen.lower.facts import Facts, Layouts
from bngen.lower.lowered import Lowered
from bngen.plan.kernel import Kernel

Lowering = Callable[[Kernel, Layouts, Any], Lowered]


def convolves(*directions: str) -> Callable[[Kernel], bool]:
    """Whether a kernel is built around a convolution of these directions."""
    return lambda kernel: kernel.anchor is not None and kernel.anchor.row.direction in directions


def is_window(kernel: Kernel) -> bool:
    """Whether a kernel is built around a pool, or a gradient of one."""
    return kernel.anchor is not None and kernel.anchor.row.kind == "window"


def is_pointwise(kernel: Kernel) -> bool:
    """Whether all ops of a kernel go element by element."""
    return kernel.anchor is None


def is_product(kernel: Kernel) -> bool:
    """Whether a kernel is built around a matrix product."""
    return (
        kernel.anchor is not None
        and kernel.anchor.row.kind == "contract"
        and not kernel.anchor.row.direction
    )


def moves(kernel: Kernel) -> bool:
    """Whether a kernel is built around an op that computes nothing."""
    return kernel.anchor is not None and bool(kernel.anchor.row.moves)


def reduces(kernel: Kernel) -> bool:
    """Whether a kernel is built around a reduction that is no partial one."""
    node = kernel.anchor
    return node is not None and node.row.kind == "reduce" and not node.row.is_partial


def folds_axes(kernel: Kernel) -> bool:
    """Whether a kernel is built around a reduction along any axes."""
    node = kernel.anchor
    return node is not None and node.row.kind == "reduce" and "axes" in node.attrs


def describes_channels(kernel: Kernel) -> bool:
    """Whether a kernel is built around a whole reduction of each channel, given no axes."""
    return reduces(kernel) and "axes" not in kernel.anchor.attrs and not kernel.anchor.row.merges


def is_partial(kernel: Kernel) -> bool:
    """Whether a kernel is built around a partial reduction."""
    return kernel.anchor is not None and kernel.anchor.row.is_partial


def lowering(module: str, function: str, *, wide: bool = False) -> Lowering:
    """A function of `bngen.lower`; its module, and TVM with it, is imported when it is called.

    Args:
        module: of `bngen.lower`.
        function: in it.
        wide: whether it takes the facts, too.
    """

    def lower(kernel: Kernel, layouts: Layouts, facts: Facts) -> Lowered:
        found = getattr(importlib.import_module(f"bngen.lower.{module}"), function)
        return found(kernel, layouts, *([facts] if wide else ()))

    return lower
