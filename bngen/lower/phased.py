"""The data gradient of a strided convolution, one nest per phase of the stride.

With stride (2, 2) the rows of dx fall into two phases and its columns likewise; each phase sees
only some taps of the window: of a 3x3 window 1, 2, 2 and 4, of a 1x1 window 1, 0, 0 and 0.
Spreading dy with zeros instead would multiply by them.

For row ``h = sh*q + a`` of dx and tap ``r = first + sh*t`` with ``first = (a + top) mod sh``, the
row of dy is ``q + (a + top - first)/sh - t``.

Blocks: ``pad`` (dy, load slot applied, shifted), ``phase_*`` (sums of products), ``merge`` (dx from
its phases), then the store slot.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import te, tirx

from bngen.ir.types import Value
from bngen.lower.body import Body, Lowered
from bngen.lower.coords import Lane, zero
from bngen.lower.opaque import Expr
from bngen.plan.kernel import Kernel
from bngen.plan.layout import Blocked, PackedWeight, physical_shape


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


def is_phased(kernel: Kernel) -> bool:
    """Whether this nest takes a data gradient: strided, undilated, groups of rows of all phases."""
    node = kernel.anchor
    strides = node.attrs["stride"]
    n, _, h, _ = node.out.shape
    whole = all(e % s == 0 for e, s in zip(node.out.shape[2:], strides, strict=True))
    rows = [h // (r.attrs["row_groups"] // n) for r in kernel.store if r.row.is_partial]
    aligned = all(r % strides[0] == 0 for r in rows)
    return strides != (1, 1) and node.attrs["dilation"] == (1, 1) and whole and aligned


def lower_phased(kernel: Kernel, layouts: dict) -> Lowered:
    """A data gradient for which `is_phased` holds, over packed weights."""
    node = kernel.anchor
    packed: PackedWeight = layouts[node.inputs[1]]
    body = Body(kernel, layouts, "phased")
    dy, weight = node.inputs
    (sh, sw), (rows, cols) = node.attrs["stride"], weight.shape[2:]
    top, _, left, _ = node.attrs["padding"]
    phases = (
        [Phase.of(a, rows, sh, top) for a in range(sh)],
        [Phase.of(b, cols, sw, left) for b in range(sw)],
    )
    n, _, h, w = node.out.shape
    data, lo = _shifted(body, dy, phases, (h // sh, w // sw))
    nests = {
        (a.number, b.number): _phase_nest(node.out, data, lo, body.tensors[weight], a, b, packed,
                                          (rows, cols), (sh, sw))
        for a in phases[0] for b in phases[1] if a.taps and b.taps
    }  # fmt: skip

    def element(kb, image, y, x, lane):
        value: Expr = zero(dy.dtype)
        for (a, b), nest in nests.items():
            here = tirx.all(tirx.floormod(y, sh) == a, tirx.floormod(x, sw) == b)
            part = nest(kb, image, tirx.floordiv(y, sh), tirx.floordiv(x, sw), lane)
            value = tirx.Select(here, part, value)
        return value

    shape = physical_shape(node.out.type, layouts[node.out])
    body.define(node.out, te.compute(shape, element, name="merge"))
    body.lowered.main = "merge"
    body.lowered.nests = [t.op.name for t in nests.values()]
    body.store_slot()
    depthwise = packed.depthwise
    wshape = [int(e) for e in body.tensors[weight].shape]
    return body.finish(
        n=n, h=h, w=w, out_blocks=packed.outer.blocks, lanes=packed.outer.lanes,
        in_blocks=1 if depthwise else wshape[1],
        in_lanes=packed.outer.lanes if depthwise else wshape[4],
        r=rows, s=cols, spread_h=sh, spread_w=sw, groups=1 if depthwise else packed.groups,
        padded_w=int(data.shape[3]),
    )  # fmt: skip


def _shifted(body: Body, dy: Value, phases, rows: tuple[int, int]):
    """Dy with its load slot applied and room for what the phases read around it."""
    layout: Blocked = body.layouts[dy]
    lo, extent = [], []
    for axis, count in zip(phases, rows, strict=True):
        active = [p for p in axis if p.taps]
        lo.append(max(0, *(-p.last_reads for p in active)))
        extent.append(count + max(p.ahead for p in active) + lo[-1])
    n, _, h, w = dy.shape
    inside = extent[0] <= h and extent[1] <= w and not any(lo)
    if inside and body.is_loaded(dy) and not layout.padded:
        return body.tensors[dy], lo

    def element(cb, image, p, q, lane):
        y, x = p - lo[0], q - lo[1]
        value = body.masked(dy, (image, Lane(cb, lane, layout), y, x))
        tests = tirx.all(y >= 0, y < h, x >= 0, x < w)
        return tirx.if_then_else(tests, value, zero(dy.dtype))

    tensor = te.compute((layout.blocks, n, *extent, layout.lanes), element, name="pad")
    body.lowered.pads.append("pad")
    return tensor, lo


def _phase_nest(
    out: Value, data, lo, w, a: Phase, b: Phase, packed: PackedWeight, window, strides
) -> te.Tensor:
    """``(blocks, N, h/sh, w/sw, lanes)``: the rows and columns of one phase."""
    t, u = te.reduce_axis((0, len(a.taps)), "t"), te.reduce_axis((0, len(b.taps)), "u")
    # The packed window is mirrored. Taps run backwards, so that every address ascends: LLVM spills
    # accumulators where it cannot fold the steps of a descending one into its loads.
    row = window[0] - 1 - a.taps[-1] + t * strides[0]
    column = window[1] - 1 - b.taps[-1] + u * strides[1]
    n, _, h, width = out.shape
    shape = (packed.outer.blocks, n, h // strides[0], width // strides[1], packed.outer.lanes)
    name = f"phase_{a.number}_{b.number}"

    def source(p: Expr, q: Expr) -> tuple[Expr, Expr]:
        return p + (a.last_reads + lo[0]) + t, q + (b.last_reads + lo[1]) + u

    if packed.depthwise:

        def depthwise(kb, image, p, q, lane):
            y, x = source(p, q)
            return te.sum(data[kb, image, y, x, lane] * w[kb, row, column, lane], axis=[t, u])

        return te.compute(shape, depthwise, name=name)
    per_group, lanes = int(w.shape[1]), int(w.shape[4])
    cb, cl = te.reduce_axis((0, per_group), "cb"), te.reduce_axis((0, lanes), "cl")
    out_per_group = packed.outer.blocks // packed.groups

    def element(kb, image, p, q, lane):
        y, x = source(p, q)
        first = 0 if packed.groups == 1 else (kb // out_per_group) * per_group
        product = data[first + cb, image, y, x, cl] * w[kb, cb, row, column, cl, lane]
        return te.sum(product, axis=[cb, t, u, cl])

    return te.compute(shape, element, name=name)
