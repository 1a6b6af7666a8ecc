"""Window arithmetic of convolutions: which rows of an operand an output reads, in every direction.

In: the node of a convolution or of one of its gradients. Out: plain numbers, which facts are made
of and from which lowering makes expressions. Nothing here needs TVM.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from bngen.ir.node import Node
from bngen.ir.types import Value
from bngen.lower.facts import Layouts
from bngen.plan.kernel import Kernel
from bngen.plan.layout import Blocked, PackedWeight

Pair = tuple[int, int]

TILE = 2
"""Rows and columns of outputs in one of Winograd's tiles, see `bngen.lower.winograd`."""

POINTS = 4
"""Rows and columns of what such a tile reads, and of the points it is computed at."""


@dataclass(frozen=True)
class Geometry:
    """One direction of a convolution, rows and then columns.

    Output row ``o`` and tap ``r`` read padded row ``o*stride + r*dilation``; padded row ``p`` is
    row ``(p - lo) / spread`` of the operand, if that is whole.

    Attributes:
        window: extents of the window.
        stride: see above.
        dilation: see above.
        spread: see above; a forward convolution's is 1, a data gradient's the stride.
        lo: rows of padding before the first.
        out: extents of what the windows go over.
        source: extents of the operand.
    """

    window: Pair
    stride: Pair
    dilation: Pair
    spread: Pair
    lo: Pair
    out: Pair
    source: Pair

    @staticmethod
    def forward(node: Node) -> Geometry:
        """That of a ``conv2d``."""
        x, weight = node.inputs
        return _forward(node, x, weight, node.out)

    @staticmethod
    def data_gradient(node: Node) -> Geometry:
        """That of a ``conv2d_grad_input``: dy spread by the stride, and a mirrored window."""
        dy, weight = node.inputs
        (dh, dw), (top, _, left, _) = node.attrs["dilation"], node.attrs["padding"]
        r, s = weight.shape[2:]
        return Geometry(
            window=(r, s),
            stride=(1, 1),
            dilation=(dh, dw),
            spread=node.attrs["stride"],
            lo=(dh * (r - 1) - top, dw * (s - 1) - left),
            out=node.out.shape[2:],
            source=dy.shape[2:],
        )

    @staticmethod
    def of_convolution(node: Node) -> Geometry:
        """That of a convolution or data gradient."""
        is_gradient = node.row.direction == "input"
        return (Geometry.data_gradient if is_gradient else Geometry.forward)(node)

    @staticmethod
    def weight_gradient(node: Node) -> Geometry:
        """That of the forward convolution which a ``conv2d_grad_weight`` belongs to."""
        x, dy = node.inputs
        return _forward(node, x, node.out, dy)

    def padded(self, i: int) -> int:
        """Extent of the padded operand that the windows touch along axis i."""
        return (self.out[i] - 1) * self.stride[i] + self.dilation[i] * (self.window[i] - 1) + 1

    def of_whole_tiles(self, tile: int) -> Geometry:
        """For as many more output rows and columns as tiles of ``tile`` need; they read zeros."""
        h, w = (-(-e // tile) * tile for e in self.out)
        return replace(self, out=(h, w))

    @property
    def is_identity(self) -> bool:
        """Whether padded and stored operand are the same."""
        return (
            self.spread == (1, 1)
            and self.lo == (0, 0)
            and all(self.padded(i) <= self.source[i] for i in (0, 1))
        )

    def reads_memory(self, kernel: Kernel, x: Value, layouts: Layouts) -> bool:
        """Whether the nest reads its operand as it lies in memory, without a scratch."""
        return self.is_identity and _is_whole(kernel, x, layouts)

    def padded_w(self, kernel: Kernel, x: Value, layouts: Layouts) -> int:
        """Columns of what the nest reads."""
        return self.source[1] if self.reads_memory(kernel, x, layouts) else self.padded(1)


def _forward(node: Node, x: Value, weight: Value, out: Value) -> Geometry:
    top, _, left, _ = node.attrs["padding"]
    return Geometry(
        window=weight.shape[2:],
        stride=node.attrs["stride"],
        dilation=node.attrs["dilation"],
        spread=(1, 1),
        lo=(top, left),
        out=out.shape[2:],
        source=x.shape[2:],
    )


def direct_products(node: Node) -> int:
    """Multiplications of a direct convolution; its gradients take as many."""
    a, b, out = node.inputs[0], node.inputs[1], node.out
    weight, image = {
        "forward": (b, out), "input": (b, a), "weight": (out, b),
    }[node.row.direction]  # fmt: skip
    n, _, h, w = image.shape
    return n * h * w * math.prod(weight.shape)


def _is_whole(kernel: Kernel, x: Value, layouts: Layouts) -> bool:
    """Whether an operand lies in memory with a channel in every lane, nothing to do on load.

    What is only stored has to be widened, unless pairs are multiplied.
    """
    layout = layouts[x]
    whole = isinstance(layout, Blocked) and not layout.padded and x in kernel.inputs
    return whole and (not x.type.element.stored_only or multiplies_pairs(kernel, layouts))


def multiplies_pairs(kernel: Kernel, layouts: Layouts) -> bool:
    """Whether a convolution, or data gradient, multiplies pairs of channels."""
    weight = layouts.get(kernel.anchor.inputs[1])
    return isinstance(weight, PackedWeight) and weight.paired


# --- phases of a strided data gradient --------------------------------------------------------


@dataclass(frozen=True)
class Phase:
    """One phase along one axis: its taps, and the row of dy that the first reads for row 0."""

    number: int
    taps: tuple[int, ...]
    ahead: int

    @property
    def last_reads(self) -> int:
        """The row of dy that the last tap reads for row 0, the topmost of all."""
        return self.ahead - (len(self.taps) - 1)

    @staticmethod
    def of(number: int, window: int, stride: int, lo: int) -> Phase:
        """The phase ``number`` of an axis."""
        first = (number + lo) % stride
        return Phase(number, tuple(range(first, window, stride)), (number + lo - first) // stride)


@dataclass(frozen=True)
class Phases:
    """The phases of rows and columns, and the part of dy that they read together.

    Attributes:
        axes: of the rows, of the columns.
        lo: rows and columns of zeros before dy.
        extent: rows and columns of dy with what is read around it.
    """

    axes: tuple[tuple[Phase, ...], tuple[Phase, ...]]
    lo: Pair
    extent: Pair

    @staticmethod
    def of(node: Node) -> Phases:
        """Those of a ``conv2d_grad_input`` whose extents are multiples of its stride."""
        strides, window = node.attrs["stride"], node.inputs[1].shape[2:]
        top, _, left, _ = node.attrs["padding"]
        axes, lo, extent = [], [], []
        for stride, taps, pad, size in zip(
            strides, window, (top, left), node.out.shape[2:], strict=True
        ):
            phases = tuple(Phase.of(a, taps, stride, pad) for a in range(stride))
            active = [p for p in phases if p.taps]
            axes.append(phases)
            lo.append(max(0, *(-p.last_reads for p in active)))
            extent.append(size // stride + max(p.ahead for p in active) + lo[-1])
        return Phases(tuple(axes), tuple(lo), tuple(extent))

    def reads_memory(self, kernel: Kernel, dy: Value, layouts: Layouts) -> bool:
        """Whether the nests read dy as it lies in memory, without a scratch."""
        within = all(e <= size for e, size in zip(self.extent, dy.shape[2:], strict=True))
        return within and not any(self.lo) and _is_whole(kernel, dy, layouts)

    def padded_w(self, kernel: Kernel, dy: Value, layouts: Layouts) -> int:
        """Columns of what the nests read."""
        return dy.shape[3] if self.reads_memory(kernel, dy, layouts) else self.extent[1]
