"""What a convolution's nest reads: memory itself, or a scratch with the load slot applied."""

from __future__ import annotations

from tvm import te, tirx

from bngen.ir.types import Value
from bngen.lower.body import Body
from bngen.lower.coords import Lane, logical_coord, zero
from bngen.lower.geometry import Geometry, Phases
from bngen.lower.opaque import Expr
from bngen.plan.layout import Blocked, PackedWeight, physical_shape


def row_of(geo: Geometry, i: int, p: Expr) -> tuple[Expr, list[Expr]]:
    """Row of the operand for padded row ``p`` of axis i, and when there is one."""
    offset = p - geo.lo[i]
    spread, size = geo.spread[i], geo.source[i]
    tests = []
    if geo.lo[i] > 0:
        tests.append(offset >= 0)
    if geo.padded(i) - 1 - geo.lo[i] > (size - 1) * spread:
        tests.append(offset <= (size - 1) * spread)
    if spread == 1:
        return offset, tests
    tests.append(tirx.floormod(offset, spread) == 0)
    return tirx.floordiv(offset, spread), tests


def operand(body: Body, x: Value, geo: Geometry) -> te.Tensor:
    """``x`` as ``(blocks, N, padded h, padded w, lanes)``, zero outside the image."""
    if geo.reads_memory(body.kernel, x, body.layouts):
        return body.tensors[x]
    layout = body.layouts[x]
    n, c = x.shape[:2]
    blocks, lanes = (layout.blocks, layout.lanes) if isinstance(layout, Blocked) else (c, 1)

    def element(cb, image, p, q, lane):
        (h, in_h), (w, in_w) = row_of(geo, 0, p), row_of(geo, 1, q)
        channel = Lane(cb, lane, layout) if isinstance(layout, Blocked) else cb
        value = body.masked(x, (image, channel, h, w))
        tests = in_h + in_w
        return tirx.if_then_else(tirx.all(*tests), value, zero(x.dtype)) if tests else value

    return _scratch(body, (blocks, n, geo.padded(0), geo.padded(1), lanes), element, "pad")


def summed_channel(packed: PackedWeight, kb: Expr, cb: Expr, cl: Expr) -> tuple[Expr, Expr]:
    """Block and lane of the operand that a packed weight's inner block and lane belong to."""
    if packed.groups == 1:
        return cb, cl
    group = kb // (packed.outer.blocks // packed.groups)
    first = group * (packed.inner.blocks // packed.groups)
    if not packed.by_channel:
        return first + cb, cl
    lanes = packed.inner.lanes
    return first + tirx.floordiv(cl, lanes), tirx.floormod(cl, lanes)


def phased_operand(body: Body, dy: Value, phases: Phases) -> te.Tensor:
    """``dy`` with room for what the phases read around it, zero there."""
    if phases.reads_memory(body.kernel, dy, body.layouts):
        return body.tensors[dy]
    layout: Blocked = body.layouts[dy]
    n, _, h, w = dy.shape

    def element(cb, image, p, q, lane):
        y, x = p - phases.lo[0], q - phases.lo[1]
        value = body.masked(dy, (image, Lane(cb, lane, layout), y, x))
        tests = tirx.all(y >= 0, y < h, x >= 0, x < w)
        return tirx.if_then_else(tests, value, zero(dy.dtype))

    return _scratch(body, (layout.blocks, n, *phases.extent, layout.lanes), element, "pad")


def gradient(body: Body, dy: Value, geo: Geometry) -> te.Tensor:
    """``dy``, which a weight gradient reads beside its operand; zero beyond the map."""
    layout: Blocked = body.layouts[dy]
    blocks, n, h, w, lanes = physical_shape(dy.type, layout)
    whole = geo.out == (h, w)
    if whole and body.is_loaded(dy):
        return body.tensors[dy]

    def element(*index):
        value = body.at(dy, logical_coord(dy.type, layout, index))
        return value if whole else tirx.if_then_else(
            tirx.all(index[2] < h, index[3] < w), value, zero(dy.dtype)
        )  # fmt: skip

    return _scratch(body, (blocks, n, *geo.out, lanes), element, "grad")


def _scratch(body: Body, shape: tuple[int, ...], element, name: str) -> te.Tensor:
    tensor = te.compute(shape, element, name=name)
    body.lowered.pads.append(name)
    return tensor
