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

from bngen.lower.body import Body
from bngen.lower.coords import zero
from bngen.lower.facts import Layouts
from bngen.lower.geometry import Phase, Phases
from bngen.lower.lowered import Lowered
from bngen.lower.opaque import Expr
from bngen.lower.operand import form_of, phased_operand, summed_channel, term
from bngen.lower.shuffled import shuffled
from bngen.plan.kernel import Kernel
from bngen.plan.layout import PackedWeight, physical_shape


def lower_phased(kernel: Kernel, layouts: Layouts) -> Lowered:
    """A strided data gradient over packed weights."""
    node = kernel.anchor
    body = Body(kernel, layouts)
    dy, weight = node.inputs
    sh, sw = node.attrs["stride"]
    phases = Phases.of(node)
    data = phased_operand(body, dy, phases, form_of(layouts[weight]))
    if layouts[weight].shuffled:
        data = shuffled(body, data, dy, node.out)
    operands = _Operands(data, body.memory(weight), layouts[weight], phases.lo)
    rows, columns = phases.axes
    nests = {
        (a.number, b.number): _phase_nest(node, operands, a, b)
        for a in rows for b in columns if a.taps and b.taps
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
    body.lowered.nests = [t.op.name for t in nests.values()]
    body.store_slot()
    return body.finish("merge")


@dataclass(frozen=True)
class _Operands:
    """What the nests read: dy with ``lo`` rows and columns before it, and the packed weight."""

    data: te.Tensor
    w: te.Tensor
    packed: PackedWeight
    lo: tuple[int, int]


def _phase_nest(node, of: _Operands, a: Phase, b: Phase) -> te.Tensor:
    """``(blocks, N, h/sh, w/sw, lanes)``: the rows and columns of one phase."""
    t, u = te.reduce_axis((0, len(a.taps)), "t"), te.reduce_axis((0, len(b.taps)), "u")
    (sh, sw), (rows, cols) = node.attrs["stride"], node.inputs[1].shape[2:]
    data, w, packed = of.data, of.w, of.packed
    # The packed window is mirrored. Taps run backwards, so that every address ascends: LLVM spills
    # accumulators where it cannot fold the steps of a descending one into its loads.
    row = rows - 1 - a.taps[-1] + t * sh
    column = cols - 1 - b.taps[-1] + u * sw
    n, _, h, width = node.out.shape
    shape = (packed.outer.blocks, n, h // sh, width // sw, packed.outer.lanes)
    name = f"phase_{a.number}_{b.number}"

    def source(p: Expr, q: Expr) -> tuple[Expr, Expr]:
        return p + (a.last_reads + of.lo[0]) + t, q + (b.last_reads + of.lo[1]) + u

    if packed.depthwise:

        def depthwise(kb, image, p, q, lane):
            y, x = source(p, q)
            return te.sum(data[kb, image, y, x, lane] * w[kb, row, column, lane], axis=[t, u])

        return te.compute(shape, depthwise, name=name)
    if packed.shuffled:
        j = te.reduce_axis((0, w.shape[1]), "j")

        def own(kb, image, p, q, lane):
            y, x = source(p, q)
            product = data[kb, j, image, y, x, lane] * w[kb, j, row, column, lane]
            return te.sum(product, axis=[j, t, u])

        return te.compute(shape, own, name=name)
    per_group, lanes = int(w.shape[1]), int(w.shape[4])
    cb, cl = te.reduce_axis((0, per_group), "cb"), te.reduce_axis((0, lanes), "cl")

    def element(kb, image, p, q, lane):
        y, x = source(p, q)

        def taken(channel):
            block, own = summed_channel(packed, kb, cb, channel)
            return data(block, image, y, x, own)

        product = term(packed, taken, cl, w(kb, cb, row, column, cl, lane))
        return te.sum(product, axis=[cb, t, u, cl])

    return te.compute(shape, element, name=name)
