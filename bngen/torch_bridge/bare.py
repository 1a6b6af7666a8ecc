"""One bare convolution as PyTorch (oneDNN) runs it, in any of the three directions.

In: a node of a graph: ``conv2d``, ``conv2d_grad_input`` or ``conv2d_grad_weight``. Out: a call for
each memory layout, on operands of its own. Nothing is fused in and no layout is converted: this is
what the library does at its best with a convolution alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from bngen.ir.node import Node

DIRECTIONS = {
    "conv2d": "forward",
    "conv2d_grad_input": "data gradient",
    "conv2d_grad_weight": "weight gradient",
}

LAYOUTS = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}


def bare_convolution(node: Node, layout: str) -> Callable[[], None] | None:
    """The call, or None where PyTorch has no such convolution (uneven padding).

    Args:
        node: an op of `DIRECTIONS`.
        layout: a key of `LAYOUTS`.
    """
    attrs = node.attrs
    top, bottom, left, right = attrs["padding"]
    if top != bottom or left != right:
        return None
    window = (list(attrs["stride"]), [top, left], list(attrs["dilation"]), False, [0, 0])
    groups = attrs["groups"]
    kind = getattr(torch, node.inputs[0].type.element.torch)
    x, weight, dy = (
        torch.rand(shape).to(kind).to(memory_format=LAYOUTS[layout]) for shape in shapes(node)
    )
    if node.row.direction == "forward":
        return lambda: torch.ops.aten.convolution(x, weight, None, *window, groups)
    wanted = [*(node.row.direction == way for way in ("input", "weight")), False]
    return lambda: torch.ops.aten.convolution_backward(dy, x, weight, None, *window, groups, wanted)


def shapes(node: Node) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Shapes of input, weight and output of the forward convolution a node belongs to."""
    a, b, out = node.inputs[0].shape, node.inputs[1].shape, node.out.shape
    return {"forward": (a, b, out), "input": (out, b, a), "weight": (a, out, b)}[node.row.direction]


def flops(node: Node) -> int:
    """Operations of the convolution, two a multiply-add; the same in all directions."""
    _, (k, c, r, s), (n, _, h, w) = shapes(node)
    return 2 * n * k * c * r * s * h * w
