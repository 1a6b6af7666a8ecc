"""Loads of scattered lanes: the same elements, of whole vectors or spans, and nothing beyond."""

import pytest
from tvm import tirx
from tvm.sym import Analyzer

from bngen.codegen.shuffles import MOST_VECTORS, shuffled
from bngen.lower.coords import Lane, lane_of
from bngen.plan.layout import blocked
from bngen.scheduling.reading import replaced

LANES, SIZE = 8, 64
I = tirx.Var("i", "int32")  # noqa: E741


def vector(of):
    """A vector's index from that of its lanes: base, and a function of a ramp."""
    ramp = tirx.Ramp(tirx.const(0, "int32"), tirx.const(1, "int32"), LANES)
    return of(ramp, lambda value: tirx.Broadcast(tirx.const(value, "int32"), LANES))


def at(expr, i, lane):
    """An index's number at an iteration."""
    if isinstance(expr, tirx.Ramp):
        return at(expr.base, i, 0) + lane * at(expr.stride, i, 0)
    if isinstance(expr, tirx.Broadcast):
        return at(expr.value, i, 0)
    if str(expr.ty).partition("x")[2]:
        a, b = (tirx.const(at(e, i, lane), "int32") for e in (expr.a, expr.b))
        return int(Analyzer().simplify(type(expr)(a, b)))
    return int(Analyzer().simplify(replaced(expr, {I: tirx.const(i, "int32")})))


def elements(value, i):
    """Positions in memory of a load's lanes; those of a shuffle, and all that it reads."""
    if isinstance(value, tirx.Broadcast):
        return [at(value.value.indices[0], i, 0)] * LANES
    if isinstance(value, tirx.Shuffle):
        read = [e for part in value.vectors for e in elements(part, i)]
        assert all(0 <= e < SIZE for e in read)
        return [read[int(j)] for j in value.indices]
    lanes = int(str(value.indices[0].ty).partition("x")[2])
    return [at(value.indices[0], i, lane) for lane in range(lanes)]


def base(times):
    return tirx.Broadcast(I * times, LANES)


CASES = {
    # index -> loads, or None where it stays a load of lanes one by one
    "in a vector": (lambda r, c: base(8) + r // c(4) * c(4) + c(1), 1),
    "of two vectors": (lambda r, c: base(8) + r * c(2), 2),
    "of a span": (lambda r, c: base(3) + r // c(2) + c(2), 1),
    "of an odd span": (lambda r, c: base(3) + r - r // c(4), 2),
    "backwards": (lambda r, c: base(3) + c(7) - r, 1),
    "one element": (lambda r, c: base(5) + r // c(8), 0),
    "far apart": (lambda r, c: base(3) + r * c(5), None),
    "of too many": (lambda r, c: base(8) + r * c(8), None),
    "of an unknown number": (lambda r, c: (base(3) + r) % c(5), None),
}


@pytest.mark.parametrize("name", CASES)
def test_lanes_are_the_same_elements(name):
    index, parts = CASES[name]
    load = tirx.BufferLoad(tirx.decl_buffer((SIZE,), "float32", "a"), [vector(index)])
    found = shuffled(load)
    assert MOST_VECTORS < LANES
    if parts is None:
        assert found.same_as(load)
        return
    assert isinstance(found, tirx.Shuffle if parts else tirx.Broadcast)
    assert not parts or len({str(part) for part in found.vectors}) == parts
    for i in range(6):
        assert elements(found, i) == elements(load, i)


@pytest.mark.parametrize("segments", [[24] * 5, [12] * 3, [20, 20], [6] * 4])
def test_even_segments_are_counted_without_asking_for_each(segments):
    layout, number = blocked(16, segments), 0
    for first, block, size in layout.block_starts():
        for b in range(-(-size // 16)):
            for lane in range(16):
                here = Lane(tirx.const(block + b, "int32"), tirx.const(lane, "int32"), layout)
                assert bool(Analyzer().simplify(here.valid())) == (b * 16 + lane < size)
                if b * 16 + lane < size:
                    assert int(Analyzer().simplify(here.logical())) == number
                    there = lane_of(tirx.const(number, "int32"), layout)
                    place = (there.block, there.lane)
                    assert [int(Analyzer().simplify(p)) for p in place] == [block + b, lane]
                    number += 1
        assert number == first + size
