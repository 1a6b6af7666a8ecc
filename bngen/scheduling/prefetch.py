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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import tvm_ffi
from tvm import DataType, tirx
from tvm.ir import Var
from tvm.sym import Analyzer

from bngen.lower.lowered import Lowered
from bngen.lower.opaque import Expr
from bngen.scheduling.knobs import LINE
from bngen.scheduling.reading import COLUMN, Access, Nest, mentions, nests, replaced

_LEAST_WORK = 64
"""Vector multiply-adds between two bursts; shorter intervals cost more than they hide."""

_BURST = 8
"""Lines that one burst should not exceed: the memory system queues only so many."""

_LONGEST_BURST, _WORK_A_LINE = 64, 4
"""Lines that no burst exceeds, since each is an instruction of its own, and the multiply-adds of
vectors that each must have to itself: more lines cost more than they hide, too."""


def add_prefetches(func: tirx.PrimFunc, low: Lowered) -> tirx.PrimFunc:
    """Prefetch a kernel's feature maps from within its multiply-adds.

    Worth it where there is enough arithmetic between the slots to hide anything behind.

    Args:
        func: the scheduled kernel.
        low: what it was before; names its blocks.

    Returns:
        The kernel with prefetches, or ``func`` where there is nothing to ask for.
    """
    blocks = nests(func.body)
    # A weight gradient's multiply-adds are in the sum over a tile, which its schedule splits off.
    block = low.nests[0] if low.nests else low.main
    names = (f"{block}{split}_update" for split in ("_rf_rf", "_rf", ""))
    main = next((blocks[name] for name in names if name in blocks), None)
    if main is None:
        return func
    plan = _Plan(main)
    for name in (*low.tiles, *low.sums):
        nest = blocks.get(name) or blocks.get(f"{name}_update")
        if nest is not None and nest is not main:
            _store_slot(plan, nest, func.params)
    # Points are computed from maps that are read in their order, which hardware follows.
    for name in () if low.points else low.pads:
        _load_slot(plan, blocks[name], func.params)
    return plan.applied(func)


@dataclass
class _Plan:
    """Prefetches to put at the head of loops of the main nest.

    Attributes:
        main: the nest of multiply-adds.
        at: loops, and the statements for each.
        known: maps asked for already: the tile at hand's (False), the next iteration's (True).
    """

    main: Nest
    at: list[tuple[tirx.For, list[tirx.Stmt]]] = field(default_factory=list)
    known: list[tuple[Var, bool]] = field(default_factory=list)

    def is_new(self, access: Access, *, ahead: bool) -> bool:
        """Whether this map has not been asked for yet; from now on it has."""
        seen = any(access.buffer.same_as(b) and ahead == a for b, a in self.known)
        self.known.append((access.buffer, ahead))
        return not seen

    def add(self, loop: tirx.For, statements: list[tirx.Stmt]) -> None:
        """Put statements at the head of a loop's body."""
        for known, found in self.at:
            if known.same_as(loop):
                found.extend(statements)
                return
        self.at.append((loop, statements))

    def level(self, shared: int, burst: Callable[[Sequence[tirx.For]], int]) -> int | None:
        """The outermost loop whose bursts are short, else the innermost that may be, or none.

        Args:
            shared: loops around what is prefetched.
            burst: lines of one burst, given the loops over which bursts are spread.
        """
        last = None
        for level in range(shared, len(self.main.loops)):
            inside = self.main.loops[level + 1 :]
            work = math.prod(_extent(loop) for loop in inside if not _is_vector(loop))
            if self.main.loops[level].kind != tirx.ForKind.SERIAL or work < _LEAST_WORK:
                break
            lines = burst(self.main.loops[shared : level + 1])
            if lines <= _BURST:
                return level
            if lines <= min(_LONGEST_BURST, work // _WORK_A_LINE):
                last = level
        return last

    def applied(self, func: tirx.PrimFunc) -> tirx.PrimFunc:
        """The function with what was planned."""

        def insert(loop: tirx.For, mutator: tvm_ffi.StructuralMutator) -> tirx.For:
            new = mutator.default_mutate(loop)
            statements = next((s for known, s in self.at if known.same_as(loop)), None)
            if statements is None:
                return new
            return tirx.For(
                new.loop_var, new.min, new.extent, new.kind,
                tirx.SeqStmt([*statements, new.body]), new.thread_binding, new.annotations,
            )  # fmt: skip

        return tvm_ffi.structural_mutate(func, (tirx.For, insert)) if self.at else func


def ask_for_neighbours(func: tirx.PrimFunc, block: str, distance: int) -> tirx.PrimFunc:
    """Prefetch what lies some columns further in a matrix that a block reads row by row.

    Args:
        func: a scheduled matrix product.
        block: its multiply-adds, or what copies an operand for them.
        distance: columns of a tile, and as many ahead.
    """
    main = nests(func.body)[block]
    serial = [i for i, loop in enumerate(main.loops) if loop.kind == tirx.ForKind.SERIAL]
    tile = main.loops[serial[-1] + 1 :]
    first = {loop.loop_var: _int(0) for loop in tile}
    plan = _Plan(main)
    for access in main.accesses(func.params, rank=2):
        row, column = access.indices
        if mentions(column, tile[-1].loop_var):
            row, column = (replaced(i, first) for i in (row, column))
            line = max(1, LINE // DataType(access.buffer.ty.dtype).itemsize)
            ahead = range(distance, distance + _span(access.indices[1], tile), line)
            lines = [_prefetch(access, [row, column + i]) for i in ahead]
            plan.add(main.loops[serial[-1]], lines)
    return plan.applied(func)


def _store_slot(plan: _Plan, nest: Nest, parameters: Sequence[Var]) -> None:
    """Ask for the maps of the tile at hand, its columns spread over the multiply-adds."""
    shared = nest.shared_with(plan.main)
    own = nest.loops[shared:]
    start = {loop.loop_var: _int(0) for loop in own}
    long = [loop for loop in own if not _is_vector(loop) and _extent(loop) > 1]
    for access in nest.accesses(parameters):
        columns = next(
            (x for x in reversed(long) if mentions(access.indices[COLUMN], x.loop_var)), None
        )
        outer = [loop for loop in long if loop is not columns]
        step, width = access.columns_of_a_line, _extent(columns) if columns else 1
        extents = [*map(_extent, outer), math.ceil(width / step)]
        level = plan.level(shared, lambda loops, e=extents: _share(e, loops))
        if level is None or not plan.is_new(access, ahead=False):
            continue
        statements = []
        for *rest, line in _places(extents, plan.main.loops[shared : level + 1]):
            fixed = start | dict(zip((loop.loop_var for loop in outer), rest, strict=True))
            if columns:
                fixed[columns.loop_var] = tirx.min(line * step, _int(width - 1))
            at = [replaced(i, fixed) for i in access.indices]
            if nest.is_guarded:
                at = [tirx.min(i, _int(e - 1)) for i, e in zip(at, access.shape, strict=True)]
            statements.append(_prefetch(access, at))
        plan.add(plan.main.loops[level], statements)


def _load_slot(plan: _Plan, nest: Nest, parameters: Sequence[Var]) -> None:
    """Ask for the maps of the next iteration: of each channel block, a run of neighbours."""
    shared = nest.shared_with(plan.main)
    own = nest.loops[shared:]
    start = {loop.loop_var: _int(0) for loop in own} | _next(nest.loops[:shared])
    for access in nest.accesses(parameters):
        blocks, _, rows = (_span(i, own) for i in access.indices[:3])
        if not (blocks and rows) or not plan.is_new(access, ahead=True):
            continue
        all_blocks, images, height, width, _ = access.shape
        rows, step = min(rows, height), access.columns_of_a_line
        block, image, row = (replaced(i, start) for i in access.indices[:3])
        image = tirx.max(tirx.min(image, _int(images - 1)), _int(0))
        row = tirx.max(tirx.min(row, _int(height - rows)), _int(0))
        extents = [min(blocks, all_blocks), math.ceil(rows * width / step)]
        level = plan.level(shared, lambda loops, e=extents: _share(e, loops))
        if level is None:
            continue
        statements = []
        for number, line in _places(extents, plan.main.loops[shared : level + 1]):
            # Rows of a block are neighbours in memory: counting columns on leads through them.
            at = [block + number, image, row, line * step, _int(0)]
            statements.append(_prefetch(access, at))
        plan.add(plan.main.loops[level], statements)


def _span(index: Expr, loops: Sequence[tirx.For]) -> int:
    """How many values an index takes over some loops; 0 where no constant steps lead upwards."""
    first = {loop.loop_var: _int(0) for loop in loops}
    count, analyzer = 1, Analyzer()
    for loop in loops:
        if mentions(index, loop.loop_var):
            last = first | {loop.loop_var: loop.extent - 1}
            moved = analyzer.simplify(replaced(index, last) - replaced(index, first))
            if not isinstance(moved, tirx.IntImm) or int(moved) < 0:
                return 0
            count += int(moved)
    return count


def _share(extents: Sequence[int], loops: Sequence[tirx.For]) -> int:
    """How many places of a grid one iteration of the loops has to visit."""
    return math.ceil(math.prod(extents) / _trips(loops))


def _places(extents: Sequence[int], loops: Sequence[tirx.For]) -> list[list[Expr]]:
    """The places of a grid that an iteration visits: all of them are divided among the loops'."""
    share, count = _share(extents, loops), math.prod(extents)
    first = _linear(loops) * share
    return [_digits(tirx.min(first + j, _int(count - 1)), extents) for j in range(share)]


# --- loops ------------------------------------------------------------------------------------


def _next(loops: Sequence[tirx.For]) -> dict[Var, Expr]:
    """The loop variables of the iteration after this one, of the innermost loops of a task."""
    parallel = max(i for i, loop in enumerate(loops) if loop.kind == tirx.ForKind.PARALLEL)
    advancing = loops[parallel + 1 :] or loops[parallel:]
    position = tirx.min(_linear(advancing) + 1, _int(_trips(advancing) - 1))
    values = _digits(position, [_extent(loop) for loop in advancing])
    return dict(zip((loop.loop_var for loop in advancing), values, strict=True))


def _digits(position: Expr, extents: Sequence[int]) -> list[Expr]:
    """A position in a grid of these extents, counted row by row, along each of its axes."""
    digits, rest = [], math.prod(extents)
    for extent in extents:
        rest //= extent
        digits.append(tirx.floormod(tirx.floordiv(position, _int(rest)), _int(extent)))
    return digits


def _linear(loops: Sequence[tirx.For]) -> Expr:
    """The number of an iteration of several loops."""
    position = _int(0)
    for loop in loops:
        position = position * _int(_extent(loop)) + loop.loop_var
    return position


def _trips(loops: Sequence[tirx.For]) -> int:
    return math.prod(map(_extent, loops))


def _extent(loop: tirx.For) -> int:
    return int(loop.extent)


def _is_vector(loop: tirx.For) -> bool:
    return loop.kind == tirx.ForKind.VECTORIZED


def _int(value: int) -> Expr:
    return tirx.const(value, "int32")


def _prefetch(access: Access, indices: Sequence[Expr]) -> tirx.Stmt:
    """One line into all caches; ``address_of`` reads nothing, so any address will do."""
    address = tirx.address_of(access.buffer[tuple(indices)])
    return tirx.Evaluate(
        tirx.call_intrin("void", "tirx.prefetch", address, int(access.writes), 3, 1)
    )
