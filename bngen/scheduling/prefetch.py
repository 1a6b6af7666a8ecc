"""Software prefetches: a convolution asks early for what its load and store slots will read.

In: a scheduled kernel. Out: the same kernel with prefetch instructions between its multiply-adds;
they change what lies in the caches, never a result. The multiply-adds of a register tile touch no
feature map for a thousand cycles or more, so that without help memory idles while they run, and
they wait while the slots read:

::

    for task:                                    for task:
        pad <- load slot                             pad <- load slot
        for tile:                                    for tile:
            for cb, r, s:                  ->            for cb, r, s:
                multiply-adds                                prefetch a share of the store slot's
            store slot                                           maps at this tile
                                                             prefetch a share of the load slot's
                                                                 maps at the next task
                                                             multiply-adds
                                                         store slot

Hardware prefetchers do not do it: they follow a stream only while it is being read, and not from
one channel block's rows to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir import TensorLoad, Var

from bngen.lower.body import Lowered
from bngen.lower.coords import Expr

KINDS = ("conv", "wgrad")
"""Kernels with enough arithmetic between their slots to hide anything behind."""

MAP_RANK = 5
"""Rank of a feature map in memory: block, image, row, column, lane."""

_LEAST_WORK = 192
"""Vector multiply-adds between two bursts; shorter intervals cost more than they hide."""

_BURST = 8
"""Lines that one burst should not exceed: the memory system queues only so many."""


@dataclass(frozen=True)
class _Nest:
    """A block with the loops around it, outermost first."""

    loops: tuple[tirx.For, ...]
    realize: s_tir.SBlockRealize

    @property
    def bindings(self) -> dict[Var, Expr]:
        block = self.realize.block
        return {it.var: v for it, v in zip(block.iter_vars, self.realize.iter_values, strict=True)}


@dataclass(frozen=True)
class _Access:
    """A parameter that holds a feature map, and where a block touches it, in loop variables."""

    buffer: Var
    indices: tuple[Expr, ...]
    writes: bool


@dataclass
class _Insertions:
    """Statements to put at the head of loops of the main nest."""

    at: list[tuple[tirx.For, list[tirx.Stmt]]] = field(default_factory=list)
    done: list[tuple[Var, bool]] = field(default_factory=list)

    def new(self, buffer: Var, ahead: bool) -> bool:
        """Whether this stream has not been asked for yet."""
        known = any(b.same_as(buffer) and a == ahead for b, a in self.done)
        self.done.append((buffer, ahead))
        return not known

    def add(self, loop: tirx.For, statements: list[tirx.Stmt]) -> None:
        """Put statements at the head of a loop's body."""
        for known, found in self.at:
            if known.same_as(loop):
                found.extend(statements)
                return
        self.at.append((loop, statements))


def add_prefetches(func: tirx.PrimFunc, low: Lowered) -> tirx.PrimFunc:
    """Prefetch a kernel's feature maps from within its multiply-adds.

    Args:
        func: the scheduled kernel.
        low: what it was before; names its blocks.

    Returns:
        The kernel with prefetches, or ``func`` where there is nothing to ask for.
    """
    if low.kind not in KINDS:
        return func
    nests = _nests(func.body)
    # A weight gradient's multiply-adds are in the sum over a tile, which its schedule splits off.
    names = (f"{low.main}{split}_update" for split in ("_rf_rf", "_rf", ""))
    main = next((nests[name] for name in names if name in nests), None)
    if main is None:
        return func
    found = _Insertions()
    for name in (*low.tiles, *low.sums):
        nest = nests.get(name) or nests.get(f"{name}_update")
        if nest is not None and nest is not main:
            _store_slot(func, main, nest, found)
    for name in low.pads:
        _load_slot(func, main, nests[name], found)
    return _inserted(func, found)


# --- the two kinds of streams -----------------------------------------------------------------


def _store_slot(func: tirx.PrimFunc, main: _Nest, nest: _Nest, found: _Insertions) -> None:
    """Ask for the maps of the tile at hand, its columns spread over the multiply-adds."""
    shared = _shared(main, nest)
    own = [loop for loop in nest.loops[shared:] if not _is_vector(loop)]
    if not own:
        return
    *outer, columns = own
    extent = _extent(columns)
    rest = math.prod(map(_extent, outer))
    level, trips = _level(main, shared, lambda trips: rest * math.ceil(extent / trips))
    if level is None:
        return
    share = math.ceil(extent / trips)
    first = _linear(main.loops[shared : level + 1]) * share
    zero = {loop.loop_var: _int(0) for loop in nest.loops[shared:] if _is_vector(loop)}
    statements = []
    for access in _accesses(func, nest):
        if not found.new(access.buffer, ahead=False):
            continue
        for place in product(*(range(_extent(loop)) for loop in outer)):
            fixed = {loop.loop_var: _int(i) for loop, i in zip(outer, place, strict=True)}
            for j in range(share):
                column = tirx.min(first + j, _int(extent - 1)) if trips * share > extent else (
                    first + j
                )  # fmt: skip
                at = {**zero, **fixed, columns.loop_var: column}
                statements.append(_prefetch(access, [_replace(i, at) for i in access.indices]))
    if statements:
        found.add(main.loops[level], statements)


def _load_slot(func: tirx.PrimFunc, main: _Nest, nest: _Nest, found: _Insertions) -> None:
    """Ask for the maps of the next iteration, a run of neighbours from the block being read."""
    shared = _shared(main, nest)
    block_index = _first_index(main, _store(nest).buffer)
    blocks, _, rows, columns = nest.loops[shared : shared + 4]
    ahead = _next(nest.loops[:shared])
    for access in _accesses(func, nest):
        if not found.new(access.buffer, ahead=True):
            continue
        shape = [int(e) for e in access.buffer.ty.shape]
        here = {loop.loop_var: _int(0) for loop in nest.loops[shared:]}
        start = [_replace(i, {**here, **ahead}) for i in access.indices]
        height = min(_extent(rows), shape[2])
        run = height * shape[3]
        used = [loop for loop in main.loops[shared:] if _mentions(block_index, loop.loop_var)]
        _spread_run(main, shared, used, block_index, run, start, height, access, found)


def _spread_run(
    main: _Nest,
    shared: int,
    used: Sequence[tirx.For],
    block_index: Expr,
    run: int,
    start: Sequence[Expr],
    height: int,
    access: _Access,
    found: _Insertions,
) -> None:
    """Divide ``run`` neighbours of each channel block among the iterations of the main nest."""

    def lines(level: int) -> tuple[int, list[tirx.For], list[tirx.For]]:
        outside = main.loops[shared : level + 1]
        free = [loop for loop in outside if not _among(loop, used)]
        inner = [loop for loop in used if not _among(loop, outside)]
        share = math.ceil(run / math.prod(map(_extent, free)))
        return share, free, inner

    def burst(level: int) -> int:
        share, _, inner = lines(level)
        return share * math.prod(map(_extent, inner))

    levels = list(_levels(main, shared))
    if not levels:
        return
    level = next((at for at in levels if burst(at) <= _BURST), levels[-1])
    share, free, inner = lines(level)
    shape = [int(e) for e in access.buffer.ty.shape]
    first = _linear(free) * share if free else _int(0)
    first = tirx.min(first, _int(max(0, run - share)))
    row = tirx.max(tirx.min(start[2], _int(shape[2] - height)), _int(0))
    image = tirx.max(tirx.min(start[1], _int(shape[1] - 1)), _int(0))
    statements = []
    for place in product(*(range(_extent(loop)) for loop in inner)):
        fixed = {loop.loop_var: _int(i) for loop, i in zip(inner, place, strict=True)}
        block = _replace(block_index, fixed)
        for j in range(share):
            # Rows of a block are neighbours in memory: counting columns on leads through them.
            statements.append(_prefetch(access, [block, image, row, first + j, _int(0)]))
    found.add(main.loops[level], statements)


# --- loops ------------------------------------------------------------------------------------


def _nests(body: tirx.Stmt) -> dict[str, _Nest]:
    """Every block of a scheduled function by name."""
    found: dict[str, _Nest] = {}

    def visit(statement: tirx.Stmt, loops: tuple[tirx.For, ...]) -> None:
        if isinstance(statement, tirx.For):
            visit(statement.body, (*loops, statement))
        elif isinstance(statement, tirx.SeqStmt):
            for part in statement.seq:
                visit(part, loops)
        elif isinstance(statement, s_tir.SBlockRealize):
            found[statement.block.name_hint] = _Nest(loops, statement)
            visit(statement.block.body, loops)

    visit(body, ())
    return found


def _shared(main: _Nest, nest: _Nest) -> int:
    """How many outer loops two nests have in common."""
    pairs = zip(main.loops, nest.loops, strict=False)
    return next(
        (i for i, (a, b) in enumerate(pairs) if not a.same_as(b)),
        min(len(main.loops), len(nest.loops)),
    )


def _levels(main: _Nest, shared: int) -> Iterator[int]:
    """Loops of the main nest that prefetches may stand in, outermost first.

    Not those over which accumulators outside the stack are carried: the compiler keeps them in
    registers only while nothing else happens that touches memory.
    """
    store = _store(main)
    on_stack = store.buffer.ty.storage_scope == "local"
    indices = [_replace(i, main.bindings) for i in store.indices]
    carried = next(
        i
        for i in reversed(range(len(main.loops)))
        if main.loops[i].kind == tirx.ForKind.SERIAL
        and (on_stack or any(_mentions(e, main.loops[i].loop_var) for e in indices))
    )
    for level in range(shared, carried + 1):
        inside = main.loops[level + 1 :]
        work = math.prod(_extent(loop) for loop in inside if not _is_vector(loop))
        if work < _LEAST_WORK or main.loops[level].kind != tirx.ForKind.SERIAL:
            return
        yield level


def _level(
    main: _Nest, shared: int, burst: Callable[[int], int]
) -> tuple[int | None, int]:  # fmt: skip
    """The outermost loop whose bursts are short, else the innermost; and its iterations."""
    level, trips = None, 1
    for at in _levels(main, shared):
        level, trips = at, trips * _extent(main.loops[at])
        if burst(trips) <= _BURST:
            break
    return level, trips


def _next(loops: Sequence[tirx.For]) -> dict[Var, Expr]:
    """The loop variables of the iteration after this one, of the innermost loops of a task."""
    parallel = max(i for i, loop in enumerate(loops) if loop.kind == tirx.ForKind.PARALLEL)
    advancing = loops[parallel + 1 :] or loops[parallel : parallel + 1]
    last = math.prod(map(_extent, advancing)) - 1
    position, radix, values = tirx.min(_linear(advancing) + 1, _int(last)), last + 1, {}
    for loop in advancing:
        radix //= _extent(loop)
        values[loop.loop_var] = tirx.floormod(
            tirx.floordiv(position, _int(radix)), _int(_extent(loop))
        )
    return values


def _linear(loops: Sequence[tirx.For]) -> Expr:
    """The number of an iteration of several loops."""
    position = _int(0)
    for loop in loops:
        position = position * _int(_extent(loop)) + loop.loop_var
    return position


def _extent(loop: tirx.For) -> int:
    return int(loop.extent)


def _is_vector(loop: tirx.For) -> bool:
    return loop.kind == tirx.ForKind.VECTORIZED


def _among(loop: tirx.For, loops: Sequence[tirx.For]) -> bool:
    return any(loop.same_as(other) for other in loops)


# --- accesses ---------------------------------------------------------------------------------


def _accesses(func: tirx.PrimFunc, nest: _Nest) -> list[_Access]:
    """Feature maps among the parameters that a block reads or writes."""
    found: list[_Access] = []
    bindings = nest.bindings

    def note(buffer: Var, indices: Sequence[Expr], writes: bool) -> None:
        is_parameter = any(buffer.same_as(p) for p in func.params)
        if is_parameter and len(indices) == MAP_RANK:
            bound = tuple(_replace(i, bindings) for i in indices)
            found.append(_Access(buffer, bound, writes))

    body = nest.realize.block.body
    tvm_ffi.structural_walk(body, (TensorLoad, lambda x: note(x.source, x.indices, False)))
    tvm_ffi.structural_walk(body, (tirx.BufferStore, lambda x: note(x.buffer, x.indices, True)))
    return found


def _store(nest: _Nest) -> tirx.BufferStore:
    """The store of a block."""
    found: list[tirx.BufferStore] = []
    tvm_ffi.structural_walk(nest.realize.block.body, (tirx.BufferStore, found.append))
    return found[0]


def _first_index(main: _Nest, buffer: Var) -> Expr:
    """The channel block at which the main nest reads a scratch."""
    found: list[Expr] = []

    def note(load: TensorLoad) -> None:
        if load.source.same_as(buffer):
            found.append(_replace(load.indices[0], main.bindings))

    tvm_ffi.structural_walk(main.realize.block.body, (TensorLoad, note))
    return found[0]


def _mentions(expression: Expr, var: Var) -> bool:
    found: list[Var] = []
    tvm_ffi.structural_walk(
        expression, (Var, lambda v: found.append(v) if v.same_as(var) else None)
    )
    return bool(found)


def _replace(expression: Expr, values: Mapping[Var, Expr]) -> Expr:
    """An expression with variables replaced."""

    def value(var: Var) -> Expr:
        return next((new for old, new in values.items() if var.same_as(old)), var)

    if isinstance(expression, Var):
        return value(expression)
    return tvm_ffi.structural_map(expression, (Var, value))


def _int(value: int) -> Expr:
    return tirx.const(value, "int32")


def _prefetch(access: _Access, indices: Sequence[Expr]) -> tirx.Stmt:
    """One line into all caches; ``address_of`` reads nothing, so any address will do."""
    address = tirx.address_of(access.buffer[tuple(indices)])
    return tirx.Evaluate(
        tirx.call_intrin("void", "tirx.prefetch", address, int(access.writes), 3, 1)
    )


def _inserted(func: tirx.PrimFunc, found: _Insertions) -> tirx.PrimFunc:
    def replace(loop: tirx.For, mutator: tvm_ffi.StructuralMutator) -> tirx.For:
        for known, statements in found.at:
            if known.same_as(loop):
                new = mutator.default_mutate(loop)
                body = tirx.SeqStmt([*statements, new.body])
                return tirx.For(
                    new.loop_var, new.min, new.extent, new.kind, body, new.thread_binding,
                    new.annotations,
                )  # fmt: skip
        return mutator.default_mutate(loop)

    return tvm_ffi.structural_mutate(func, (tirx.For, replace)) if found.at else func
