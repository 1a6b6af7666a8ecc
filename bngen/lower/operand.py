"""What a convolution's nest reads: memory itself, or a scratch with the load slot applied.

A scratch holds numbers or, for nests that multiply pairs of bfloat16, one of the other forms of a
`Form`: numbers of 16 bits, which a nest takes two at a time, or words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import te, tirx

from bngen.ir.types import Value
from bngen.lower import pairs
from bngen.lower.body import Body
from bngen.lower.coords import Coord, Lane, guarded, logical_coord
from bngen.lower.geometry import Geometry, Phases
from bngen.lower.opaque import Expr, holds
from bngen.plan.layout import Blocked, PackedWeight, physical_shape

# --- forms ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """What a nest is given of an operand.

    Attributes:
        element: of the scratch: ``(body, value, coordinate)``, zero in lanes without a channel.
        channels: of a plain operand that lie in an element.
        images: extent of the images, given how many there are.
    """

    element: Callable[[Body, Value, Coord], Expr]
    channels: int = 1
    images: Callable[[int], int] = lambda n: n


def _number(body: Body, x: Value, coord: Coord) -> Expr:
    return body.masked(x, coord, at=body.factor)


def _half(body: Body, x: Value, coord: Coord) -> Expr:
    if body.lies_narrow(x):
        return body.masked(x, coord, at=body.lying_at)
    return pairs.half(body.masked(x, coord))


def _of_two(axis: int) -> Callable[[Body, Value, Coord], Expr]:
    """A word of neighbours along an axis; zero beside an odd one."""

    def element(body: Body, x: Value, coord: Coord) -> Expr:
        lies = body.lies_narrow(x)
        both = [[*coord], [*coord]]
        both[0][axis], both[1][axis] = coord[axis] * 2, coord[axis] * 2 + 1
        low, high = (body.masked(x, at, at=body.lying_at if lies else None) for at in both)
        if x.shape[axis] % 2:
            high = guarded(holds(both[1][axis] < x.shape[axis]), high)
        return (pairs.word if lies else pairs.pair)(low, high)

    return element


def _or_zero(body: Body, x: Value, coord: Coord) -> Expr:
    """The number; zero in an image that there is not."""
    number = body.masked(x, coord)
    return guarded(holds(coord[0] < x.shape[0]), number) if x.shape[0] % 2 else number


NUMBERS = Form(_number)
HALVES = Form(_half)
CHANNELS = Form(_of_two(1), channels=2)
IMAGES = Form(_of_two(0), images=lambda n: -(-n // 2))
WHOLE_PAIRS = Form(_or_zero, images=lambda n: n + n % 2)


def form_of(packed: PackedWeight) -> Form:
    """What a nest over a packed weight multiplies."""
    if not packed.paired:
        return NUMBERS
    return CHANNELS if packed.inner is None else HALVES


def term(packed: PackedWeight, taken: Callable[[Expr], Expr], lane: Expr, weight: Expr) -> Expr:
    """One term of a sum over a packed weight.

    Args:
        packed: the weight's layout.
        taken: the operand's element in a lane that is summed over.
        lane: that of the weight: of words, where it lies in them.
        weight: its element.
    """
    if not packed.paired:
        return taken(lane) * weight
    if packed.inner is None:
        return pairs.product(taken(lane), weight)
    return pairs.product(pairs.word(taken(lane * 2), taken(lane * 2 + 1)), weight)


# --- operands ---------------------------------------------------------------------------------


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


def operand(body: Body, x: Value, geo: Geometry, form: Form = NUMBERS) -> te.Tensor:
    """``x`` as ``(blocks, N, padded h, padded w, lanes)``, zero outside the image."""
    narrow = form in (NUMBERS, WHOLE_PAIRS) and x.type.element.stored_only
    if geo.reads_memory(body.kernel, x, body.layouts) and not narrow:
        return body.tensors[x]
    layout = body.layouts[x]
    n, c = x.shape[:2]
    plain = -(-c // form.channels), 1
    blocks, lanes = (layout.blocks, layout.lanes) if isinstance(layout, Blocked) else plain

    def element(cb, image, p, q, lane):
        (h, in_h), (w, in_w) = row_of(geo, 0, p), row_of(geo, 1, q)
        channel = Lane(cb, lane, layout) if isinstance(layout, Blocked) else cb
        value = form.element(body, x, (image, channel, h, w))
        tests = in_h + in_w
        return guarded(tirx.all(*tests), value) if tests else value

    return _scratch(
        body, (blocks, form.images(n), geo.padded(0), geo.padded(1), lanes), element, "pad"
    )


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


def phased_operand(body: Body, dy: Value, phases: Phases, form: Form) -> te.Tensor:
    """``dy`` with room for what the phases read around it, zero there."""
    if phases.reads_memory(body.kernel, dy, body.layouts):
        return body.tensors[dy]
    layout: Blocked = body.layouts[dy]
    n, _, h, w = dy.shape

    def element(cb, image, p, q, lane):
        y, x = p - phases.lo[0], q - phases.lo[1]
        value = form.element(body, dy, (image, Lane(cb, lane, layout), y, x))
        return guarded(tirx.all(y >= 0, y < h, x >= 0, x < w), value)

    return _scratch(body, (layout.blocks, n, *phases.extent, layout.lanes), element, "pad")


def gradient(body: Body, dy: Value, geo: Geometry, form: Form = NUMBERS) -> te.Tensor:
    """``dy``, which a weight gradient reads beside its operand; zero beyond the map."""
    layout: Blocked = body.layouts[dy]
    blocks, n, h, w, lanes = physical_shape(dy.type, layout)
    whole = geo.out == (h, w)
    if whole and body.is_loaded(dy) and form is NUMBERS:
        return body.tensors[dy]

    def element(*index):
        coord = logical_coord(dy.type, layout, index)
        # Sums of a lane are its own: where it holds no channel, it may hold anything.
        value = body.factor(dy, coord) if form is NUMBERS else form.element(body, dy, coord)
        return value if whole else guarded(tirx.all(index[2] < h, index[3] < w), value)

    return _scratch(body, (blocks, form.images(n), *geo.out, lanes), element, "grad")


def _scratch(body: Body, shape: tuple[int, ...], element, name: str) -> te.Tensor:
    tensor = te.compute(shape, element, name=name)
    body.lowered.pads.append(name)
    return tensor
