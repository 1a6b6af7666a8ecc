"""Loads of scattered lanes as loads of whole vectors and a shuffle of them.

In: a load after TVM's last pass, its index a vector. Out: the same elements:

::

    A[[8*i, 8*i, 8*i + 4, 8*i + 4, ..]]    ->    shuffle(A[8*i : 8*i + 8], [0, 0, 4, 4, ..])

TVM's code generator loads such lanes one by one. Where it is known which vectors they lie in, few
enough, and where in them, each of those is loaded once. A load of anything else stays as it is.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx
from tvm.ir import TensorLoad
from tvm.sym import Analyzer

from bngen.lower.opaque import Expr, dtype_of

MOST_VECTORS = 4
"""Whole vectors that lanes are taken from; of more, loads one by one are no slower."""

_LANEWISE = {
    tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Mod, tirx.FloorDiv, tirx.FloorMod,
    tirx.Min, tirx.Max,
}  # fmt: skip


def shuffled(load: TensorLoad) -> Expr:
    """A load of scattered lanes as a shuffle of vectors, where it can be; else the load itself."""
    if len(load.indices) != 1 or type(load.indices[0]) in (tirx.Ramp, tirx.Broadcast):
        return load
    index = load.indices[0]
    lanes = int(dtype_of(index).partition("x")[2] or 1)
    if lanes == 1:
        return load
    places = [lane(index, i) for i in range(lanes)]
    if None in places:
        return load
    analyzer = Analyzer()
    first = analyzer.simplify(places[0])
    distances = [analyzer.simplify(place - first) for place in places]
    if not all(isinstance(d, tirx.IntImm) for d in distances):
        return load
    offsets = list(map(int, distances))
    within = analyzer.simplify(tirx.floormod(first, lanes))
    extents = [getattr(e, "value", None) for e in load.source.ty.shape]
    # What a vector holds beside what is wanted must be memory, too.
    if isinstance(within, tirx.IntImm) and None not in extents and math.prod(extents) % lanes == 0:
        offsets = [int(within) + o for o in offsets]
        return _of_vectors(load, analyzer.simplify(first - within), offsets)
    return _of_a_span(load, first, offsets)


def _of_vectors(load: TensorLoad, start: Expr, offsets: list[int]) -> Expr:
    """Of whole vectors, the first of which starts at ``start``."""
    lanes = len(offsets)
    vectors = sorted({offset // lanes for offset in offsets})
    if len(vectors) > MOST_VECTORS:
        return load
    parts = [_vector(load, start + v * lanes, lanes) for v in vectors]
    return _shuffle(parts, [vectors.index(o // lanes) * lanes + o % lanes for o in offsets])


def _of_a_span(load: TensorLoad, first: Expr, offsets: list[int]) -> Expr:
    """Of one or two vectors between the lowest and the highest element, anywhere in memory."""
    lowest, highest = min(offsets), max(offsets)
    span = highest - lowest + 1
    if span > len(offsets):
        return load
    if span == 1:
        return tirx.Broadcast(tirx.BufferLoad(load.source, [first + lowest]), len(offsets))
    width = 1 << (span.bit_length() - 1)
    starts = sorted({lowest, highest + 1 - width})
    parts = [_vector(load, first + start, width) for start in starts]
    last = len(starts) - 1
    chosen = [
        o - lowest if o - lowest < width else last * width + o - starts[last] for o in offsets
    ]
    # To TVM a shuffle makes no more lanes than it is given.
    parts += parts[-1:] * (math.ceil(len(offsets) / width) - len(parts))
    return _shuffle(parts, chosen)


def _vector(load: TensorLoad, start: Expr, lanes: int) -> Expr:
    return tirx.BufferLoad(load.source, [tirx.Ramp(start, tirx.const(1, "int32"), lanes)])


def _shuffle(parts: list[Expr], chosen: list[int]) -> Expr:
    return tirx.Shuffle(parts, [tirx.const(i, "int32") for i in chosen])


def lane(index: Expr, i: int) -> Any:
    """One lane of a vector of integers, as a scalar; None where it is not known how to."""
    kind = type(index)
    if kind is tirx.Ramp:
        return index.base + index.stride * i
    if kind is tirx.Broadcast:
        return index.value
    if kind not in _LANEWISE:
        return None
    a, b = lane(index.a, i), lane(index.b, i)
    return None if a is None or b is None else kind(a, b)
