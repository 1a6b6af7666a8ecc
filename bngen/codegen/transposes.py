"""Vectors that are gathered side by side are loaded in rows, and turned over in registers.

In: statements after TVM's last pass. Out: the same elements stored, without gathers: as many loads
of vectors as there were gathers, and ``log2`` of the lanes times as many shuffles.

::

    t[ 0: 4] = b[Ramp(p    , s, 4)]        r0 = b[p : p+4]; r1 = b[p+s : p+s+4]; ..
    t[ 4: 8] = b[Ramp(p + 1, s, 4)]   ->   exchange what lies beside the diagonal in blocks of 1,
    t[ 8:12] = b[Ramp(p + 2, s, 4)]        then of 2
    t[12:16] = b[Ramp(p + 3, s, 4)]        t[0:4] = r0; t[4:8] = r1; ..

A gather is as many loads as it has lanes. Where elements are wanted in the other order of axes
(weights as a matrix product reads them, maps into channel blocks), a schedule writes out as many
of them as there are lanes, or an even part of that; this is for all of those. What is done to an
element on its way, such as rounding, is then done to the vector that is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import Expr, TensorLoad
from tvm.sym import Analyzer

from bngen.codegen.shuffles import lane
from bngen.lower.opaque import dtype_of

MOST_LANES = 16
"""Lanes of a gather: of more, the rows fill no registers."""

_ZERO = tirx.const(0, "int32")


def turn_gathers(statements: tirx.SeqStmt) -> tirx.Stmt:
    """A sequence in which runs of gathers side by side are loaded in rows."""
    done: list[tirx.Stmt] = []
    rest = list(statements.seq)
    while rest:
        run = _run(rest)
        done += _turned(run) if len(run) > 1 else rest[:1]
        rest = rest[max(1, len(run)) :]
    return statements if len(done) == len(statements.seq) else tirx.SeqStmt(done)


def _run(statements: Sequence[tirx.Stmt]) -> list[tirx.BufferStore]:
    """The gathers at the front that lie side by side; a power of two of them, at most the lanes."""
    first = statements[0]
    if not _is_gather(first):
        return []
    analyzer, lanes = Analyzer(), _lanes(first)
    run = [first]
    for other in statements[1:lanes]:
        if not (_is_gather(other) and _is_beside(first, other, len(run), analyzer)):
            break
        run.append(other)
    return run[: 1 << (len(run).bit_length() - 1)]


def _is_gather(statement: tirx.Stmt) -> bool:
    """Whether a statement stores a vector, in place, of elements from places of another buffer."""
    if not isinstance(statement, tirx.BufferStore):
        return False
    load = _load_in(statement)
    if load is None or len(load.indices) != 1:
        return False
    lanes, (place, *_) = _lanes(statement), statement.indices
    return (
        1 < lanes <= MOST_LANES
        and lanes & (lanes - 1) == 0
        and len(statement.indices) == 1
        and not dtype_of(load).startswith("bool")
        and not load.source.same_as(statement.buffer)
        and not _is_row(load.indices[0])
        and lane(load.indices[0], 0) is not None
        and (_is_row(place) or dtype_of(place) == "int32")  # of a buffer of vectors
    )


def _load_in(store: tirx.BufferStore) -> TensorLoad | None:
    """The one vector of memory that what is stored is made of, lane by lane."""
    if isinstance(store.value, TensorLoad):
        return store.value
    found: list[Any] = []
    tvm_ffi.structural_walk(store.value, ((TensorLoad, tirx.Shuffle, tirx.Let), found.append))
    first = found[0] if found else None
    alone = isinstance(first, TensorLoad) and all(
        tvm_ffi.structural_equal(first, other) for other in found[1:]
    )
    return first if alone and _lanes_of(first) == _lanes(store) else None


def _is_row(index: Expr) -> bool:
    return isinstance(index, tirx.Ramp) and isinstance(index.stride, tirx.IntImm) and (
        int(index.stride) == 1
    )  # fmt: skip


def _lanes(store: tirx.BufferStore) -> int:
    return _lanes_of(store.value)


def _lanes_of(value: Expr) -> int:
    return int(dtype_of(value).partition("x")[2] or 1)


def _is_beside(
    first: tirx.BufferStore, other: tirx.BufferStore, distance: int, analyzer: Analyzer
) -> bool:
    """Whether a gather reads, in every lane, the element so far behind what the first one reads."""
    a, b = _load_in(first), _load_in(other)
    same = a.source.same_as(b.source) and _lanes(first) == _lanes(other)
    if not same or not first.buffer.same_as(other.buffer):
        return False
    p, q = a.indices[0], b.indices[0]
    if isinstance(p, tirx.Ramp) and isinstance(q, tirx.Ramp):
        pairs = [(p.base + distance, q.base), (p.stride, q.stride)]
    elif _move_alike(p, q):
        pairs = [(_start(p) + distance, _start(q))]
    else:
        lanes = range(_lanes(first))
        pairs = [(lane(p, i) + distance, lane(q, i)) for i in lanes]
    return all(analyzer.can_prove_equal(x, y) for x, y in pairs)


def _terms(index: Expr) -> list[Expr]:
    """What a vector of indices is the sum of."""
    if isinstance(index, tirx.Add):
        return [*_terms(index.a), *_terms(index.b)]
    return [index]


def _move_alike(a: Expr, b: Expr) -> bool:
    """Whether those of their terms that differ from lane to lane are the same."""
    p, q = ([t for t in _terms(i) if not isinstance(t, tirx.Broadcast)] for i in (a, b))
    return len(p) == len(q) and all(map(tvm_ffi.structural_equal, p, q))


def _start(index: Expr) -> Expr:
    """The sum of those that do not differ."""
    return sum((t.value for t in _terms(index) if isinstance(t, tirx.Broadcast)), _ZERO)


def _turned(run: Sequence[tirx.BufferStore]) -> list[tirx.Stmt]:
    """Loads of rows, shuffles, and the stores of a run."""
    side, lanes = len(run), _lanes(run[0])
    load = _load_in(run[0])
    done: list[tirx.Stmt] = []

    def named(value: Expr) -> Expr:
        var = tirx.Var("row", dtype_of(value))
        done.append(tirx.Bind(var, value))
        return var

    def row(number: int) -> Expr:
        start = lane(load.indices[0], number)
        return named(tirx.BufferLoad(load.source, [tirx.Ramp(start, tirx.const(1, "int32"), side)]))

    # Of rows shorter than a vector, several lie in one: each is turned over within its part.
    rows = [
        named(_shuffled([row(r) for r in range(first, lanes, side)], range(lanes)))
        if side < lanes
        else row(first)
        for first in range(side)
    ]
    distance = 1
    while distance < side:
        for low in (r for r in range(side) if not r & distance):
            high = low + distance
            a, b = rows[low], rows[high]
            rows[low] = named(_shuffled([a, b], [
                i if not i & distance else lanes + i - distance for i in range(lanes)
            ]))  # fmt: skip
            rows[high] = named(_shuffled([a, b], [
                i + distance if not i & distance else lanes + i for i in range(lanes)
            ]))  # fmt: skip
        distance *= 2
    return done + [_with_load(s, r) for s, r in zip(run, rows, strict=True)]


def _with_load(store: tirx.BufferStore, row: Expr) -> tirx.BufferStore:
    """A store of what is made of a row instead of its own load."""
    if isinstance(store.value, TensorLoad):
        return tirx.BufferStore(store.buffer, row, store.indices)
    value = tvm_ffi.structural_mutate(store.value, (TensorLoad, lambda load, mutator: row))
    return tirx.BufferStore(store.buffer, value, store.indices)


def _shuffled(vectors: Sequence[Expr], lanes: Sequence[int]) -> Expr:
    return tirx.Shuffle(list(vectors), [tirx.const(i, "int32") for i in lanes])
