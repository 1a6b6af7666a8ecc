"""Small moves that several rules share, on a `tvm.s_tir.Schedule`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bngen.lower.lowered import Lowered
from bngen.scheduling.knobs import LINE, Knobs

if TYPE_CHECKING:
    from tvm import s_tir

UNROLL_LIMIT = 32
"""Longest loop that is written out."""

SET_REACH = 4096
"""Bytes after which addresses fall into the same set of a level-1 cache again.

A level-1 cache whose sets the offset in a page chooses has this reach on all CPUs with such pages.
"""


def opened(low: Lowered) -> s_tir.Schedule:
    """A schedule of a kernel to which nothing is applied yet."""
    from tvm import IRModule, s_tir

    sch = s_tir.Schedule(IRModule({low.name: low.func}))
    sch.work_on(low.name)
    return sch


def extent(sch: s_tir.Schedule, loop: Any) -> int:
    """Extent of a loop; 0 where it is not a constant."""
    return int(getattr(sch.get(loop).extent, "value", 0))


def vectorize_last(sch: s_tir.Schedule, block: Any, limit: int = 64) -> None:
    """Vectorize a block's innermost loop if it is short enough for registers."""
    loops = sch.get_loops(block)
    if loops and 1 < extent(sch, loops[-1]) <= limit:
        sch.vectorize(loops[-1])


def loops_inside(sch: s_tir.Schedule, block: Any, outer: Any) -> list[Any]:
    """The block's loops below the loop ``outer``."""
    loops = sch.get_loops(block)
    target = sch.get(outer)
    for i, loop in enumerate(loops):
        if sch.get(loop).same_as(target):
            return list(loops[i + 1 :])
    raise AssertionError("the block is not below that loop")


def cut_into_tasks(
    sch: s_tir.Schedule, low: Lowered, knobs: Knobs, group: int, steps: tuple[int, int]
) -> tuple[Any, Any, Any, Any, tuple[Any, ...]]:
    """Split the loops of a main block that is put together some rows and columns at a time.

    Args:
        sch: the schedule.
        low: the kernel, whose main block is named.
        knobs: ``rows`` of a task and output ``blocks`` of a tile.
        group: rows of a group.
        steps: rows and columns that belong together.

    Returns:
        From the outside in: tasks, which run in parallel; tiles of output blocks; groups; their
        rows of steps; and, inside, row in the step, columns of steps, column in the step, output
        block, lane.
    """
    kb, n, h, w, lane = sch.get_loops(sch.get_sblock(low.main))
    rows, columns = steps
    h_task, h_group, h_row, h_in = sch.split(h, [None, knobs["rows"] // group, group // rows, rows])
    w, w_in = sch.split(w, [None, columns])
    kb_tile, kb_in = sch.split(kb, [None, knobs["blocks"]])
    inside = (h_in, w, w_in, kb_in, lane)
    sch.reorder(n, h_task, kb_tile, h_group, h_row, *inside)
    task = sch.fuse(n, h_task)
    sch.parallel(task)
    local(sch, [low.main])
    return task, kb_tile, h_group, h_row, inside


def attach_sum(
    sch: s_tir.Schedule, name: str, at: Any, init_at: Any | None, *, unroll: bool
) -> None:
    """Move a reduction over rows and columns below a loop, lanes innermost.

    Args:
        sch: the schedule.
        name: block ``(Cb, N, group, lanes)`` reducing (row, column).
        at: loop whose tile the reduction reads.
        init_at: loop before which the sum is cleared; None: right before the reduction's own loops.
        unroll: write out the tile's columns too, not only its blocks.
    """
    block = sch.get_sblock(name)
    sch.reverse_compute_at(block, at, preserve_unit_loops=True)
    cb, n, group, lane, row, column = loops_inside(sch, block, at)[-6:]
    sch.reorder(n, group, row, column, cb, lane)
    sch.vectorize(lane)
    # Blocks written out are accumulators in registers; rolled, each addition waits for a store.
    for loop in (column, cb) if unroll else (cb,):
        write_out(sch, loop)
    sch.decompose_reduction(block, init_at if init_at is not None else n)
    vectorize_last(sch, sch.get_sblock(f"{name}_init"))


def local(sch: s_tir.Schedule, names: Sequence[str]) -> None:
    """Keep the results of these blocks in registers or on the stack."""
    for name in names:
        sch.set_scope(sch.get_sblock(name), 0, "local")


def attach_store_slot(
    sch: s_tir.Schedule, low: Lowered, tile: Any, row: Any | None, group: Any, *, unroll: bool
) -> None:
    """Move a kernel's store slot below the loops of its main block.

    The tile is gone over once: a vector passes the whole slot, its sums included, before the next
    one does, so that nothing of it waits in memory. What reads the main block itself beside that
    has a pass of its own.

    Args:
        sch: the schedule.
        low: the kernel, whose blocks are named.
        tile: loop below which a tile is computed: elementwise blocks and sums follow it.
        row: loop over the rows of a group; sums are cleared before it. None: a tile is a group.
        group: loop over groups of rows; second passes follow a whole group.
        unroll: write out the tile's columns.
    """
    over: list[Any] = []  # the loops of the pass
    passed: set[str] = set()  # the blocks in it
    for name in low.tiles:
        if name == low.main:
            continue
        block = sch.get_sblock(name)
        if name.startswith("mid_"):
            local(sch, [name])
        joins = bool(over) and _reads(sch, block) <= passed
        sch.reverse_compute_at(block, over[-1] if joins else tile, preserve_unit_loops=True)
        vectorize_last(sch, block)
        if not over:
            *over, _ = loops_inside(sch, block, tile)
            passed.add(name)
        elif joins:
            passed.add(name)
        elif unroll:
            for loop in loops_inside(sch, block, tile)[:-1]:
                write_out(sch, loop)
    for name in low.sums:
        if over and _reads(sch, sch.get_sblock(name)) <= passed:
            cleared = over[0] if row is None else row
            attach_sum(sch, name, over[-1], cleared, unroll=unroll)
        else:
            attach_sum(sch, name, tile, row, unroll=unroll)
    if unroll:
        for loop in over:
            write_out(sch, loop)
    for name in low.deviations:
        attach_sum(sch, name, group, None, unroll=False)


def _reads(sch: s_tir.Schedule, block: Any) -> set[str]:
    """The blocks whose results a block reads."""
    return {sch.get(producer).name_hint for producer in sch.get_producers(block)}


def attach_loads(sch: s_tir.Schedule, low: Lowered, at: Any) -> None:
    """Fill the scratch of the load slots below a loop, lanes vectorized.

    Where the main nest reads points of tiles instead, those are computed there, one channel block
    after the other, and its scratch is only as large as that.
    """
    for name in low.pads:
        if name not in low.points.values():
            attach_scratch(sch, name, at)
    for name, source in low.points.items():
        block = sch.get_sblock(name)
        sch.compute_at(block, at, preserve_unit_loops=True)
        i, j, cb, *tiles, lane = loops_inside(sch, block, at)
        sch.reorder(cb, *tiles, i, j, lane)
        spell_out(sch, i, j, lane)
        in_other_sets(sch, name, 1)
        if source in low.pads:
            attach_scratch(sch, source, cb)


def attach_scratch(sch: s_tir.Schedule, name: str, at: Any) -> None:
    """Fill the scratch of one load slot below a loop, lanes vectorized."""
    block = sch.get_sblock(name)
    sch.compute_at(block, at, preserve_unit_loops=True)
    vectorize_last(sch, block)
    *_, columns, _ = loops_inside(sch, block, at)
    set_apart(sch, columns)


def in_other_sets(sch: s_tir.Schedule, name: str, axis: int) -> None:
    """Let what a block writes at successive places along an axis lie in successive cache lines.

    Where the places are a multiple of a cache's reach apart, their lines all belong to one of its
    sets, and side by side they put each other out.
    """
    from tvm import DataType

    block = sch.get_sblock(name)
    element = DataType(sch.get(block).writes[0].source.ty.dtype).itemsize
    sch.storage_align(block, 0, axis, SET_REACH // element, LINE // element)


def write_out(sch: s_tir.Schedule, loop: Any) -> None:
    """Unroll a loop that is short enough."""
    if 0 < extent(sch, loop) <= UNROLL_LIMIT:
        sch.unroll(loop)


def spell_out(sch: s_tir.Schedule, i: Any, j: Any, lane: Any) -> None:
    """Unroll the rows and columns of a transform, whose coefficients depend on them."""
    sch.unroll(i)
    sch.unroll(j)
    sch.vectorize(lane)


def set_apart(sch: s_tir.Schedule, loop: Any) -> None:
    """Code of its own for the iterations at the ends, so that those between ask no questions.

    Those are a ragged last tile, or columns outside the image; where there are none, nothing
    changes. A loop of one iteration stays without a mark, since TVM removes it only then, and LLVM
    takes what a loop left standing reads before its multiply-adds, and spills it.
    """
    if extent(sch, loop) != 1:
        sch.annotate(loop, "pragma_loop_partition_hint", True)
