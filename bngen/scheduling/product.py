"""Matrix products: one register tile of rows x vectors of columns, operands read where they lie.

::

    parallel rows of a task, columns of a task:
        for part of the inner extent (one, unless it is long):
            left, right <- scratch of an operand that has a load slot, or lies the other way
            for tile of columns, tile of rows (or the other way round):
                tile[rows, blocks, lanes] in registers <- sum over the part
                store slot on the registers, or fold += tile
        store slot on fold, if there are several parts

A weight that lies as ``[out, in]`` is cut into vectors of outputs as a task needs it: it comes from
memory once, and `bngen.codegen.transposes` turns it over in registers.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bngen.ir.types import Value
from bngen.lower.facts import FEW_BLOCKS, Layouts, ProductFacts, element_bytes
from bngen.lower.lowered import Lowered
from bngen.plan.kernel import Kernel
from bngen.scheduling.knobs import Knobs, divisors, tile_cycles, tile_registers
from bngen.scheduling.legality import Space, few
from bngen.scheduling.tools import (
    extent,
    local,
    loops_inside,
    opened,
    set_apart,
    write_out,
)
from bngen.target.machine import Machine

if TYPE_CHECKING:
    from tvm import s_tir


def applies(kernel: Kernel, _: Layouts) -> ProductFacts:
    """Any matrix product."""
    node = kernel.anchor
    (a, b), (m, n) = node.inputs, node.out.shape
    trans_a, trans_b = node.attrs["trans_a"], node.attrs["trans_b"]
    return ProductFacts(
        element_bytes=element_bytes(node.out), m=m, n=n, k=a.shape[0] if trans_a else a.shape[1],
        trans_a=int(trans_a), trans_b=int(trans_b),
        loads_a=int(_is_computed(a, kernel)), loads_b=int(_is_computed(b, kernel)),
    )  # fmt: skip


def of_pairs(facts: ProductFacts, kernel: Kernel) -> ProductFacts:
    """The facts where neighbours along the inner extent are words.

    Only rows of words are read where they lie.
    """
    a = kernel.anchor.inputs[0]
    in_words = a in kernel.inputs and not facts.trans_a and facts.k % 2 == 0
    return replace(facts, k=-(-facts.k // 2), pairs=1, loads_a=int(not in_words), loads_b=1)


def _is_computed(v: Value, kernel: Kernel) -> bool:
    """Whether an operand is not read as it lies in memory."""
    return v not in kernel.inputs or v.type.element.stored_only


# --- knobs ------------------------------------------------------------------------------------

LEAST_PRODUCTS = 1 << 15
"""Multiply-adds, of vectors of 16, under which waking another thread costs more than it gains."""

COPY_CYCLES = 4
"""Cycles to copy a vector of an operand into a task's scratch."""


def product_knobs(facts: ProductFacts, machine: Machine) -> Knobs:
    """Register tile, and what a task owns."""
    rows, blocks = _tile(facts, machine)
    task_rows, task_blocks = _task(facts, rows, blocks, machine)
    return {"rows": rows, "blocks": blocks, "task_rows": task_rows, "task_blocks": task_blocks}


def _tile(facts: ProductFacts, machine: Machine) -> tuple[int, int]:
    """Rows and blocks of columns whose products take the fewest cycles; of equal tiles the largest.

    A row of a product is what a column of a convolution is: an element for all lanes.
    """
    fitting = [
        (r, b)
        for r in divisors(facts.rows)
        for b in divisors(facts.blocks)
        if b <= FEW_BLOCKS and tile_registers(r, b) <= machine.traits.vector_registers
    ]
    return min(
        fitting, key=lambda t: (tile_cycles(*t, machine.traits) / math.prod(t), -math.prod(t))
    )


def _task(facts: ProductFacts, rows: int, blocks: int, machine: Machine) -> tuple[int, int]:
    """Rows, and blocks of columns, that a task computes."""
    units, lanes = machine.traits.multiply_add_units, facts.lanes
    whole = facts.rows * facts.blocks * facts.k / units
    most = max(1, int(facts.rows * facts.blocks * facts.k * lanes / 16 // LEAST_PRODUCTS))

    def cost(task_rows: int, task_blocks: int) -> tuple[float, int]:
        """Time relative to the multiply-adds alone; of equal ones, fewer tasks."""
        down, across = facts.rows // task_rows, facts.blocks // task_blocks
        tasks = down * across
        if tasks > most:
            return math.inf, tasks
        idle = math.ceil(tasks / machine.threads) * machine.threads / tasks
        copies = COPY_CYCLES * facts.k * (
            facts.copies_right * down * facts.blocks
            + facts.copies_left * across * facts.rows / lanes
        )  # fmt: skip
        panel = facts.element_bytes * facts.depth * lanes * task_blocks
        # Of few terms, all columns pass each tile of rows; else all rows a tile of columns.
        near = machine.l2 // (2 if facts.m > facts.k else 4)
        spilled = max(1.0, panel / near)
        return idle * spilled * (1 + copies / whole), tasks

    choices = [
        (r * rows, b * blocks)
        for r in divisors(facts.rows // rows)
        for b in divisors(facts.blocks // blocks)
    ]
    return min(choices, key=lambda t: cost(*t))


def product_space(facts: ProductFacts) -> Space:
    """Register tile, and what a task owns, in whole tiles."""

    def whole(extent: int, name: str) -> Any:
        return lambda chosen: [d for d in divisors(extent) if d % chosen[name] == 0]

    return {
        "rows": lambda _: divisors(facts.rows),
        "blocks": lambda chosen: [
            b for b in few(divisors(facts.blocks), chosen["rows"]) if b <= FEW_BLOCKS
        ],
        "task_rows": whole(facts.rows, "rows"),
        "task_blocks": whole(facts.blocks, "blocks"),
    }


def product_registers(_: ProductFacts, knobs: Knobs) -> int:
    """Vector registers of the register tile."""
    return tile_registers(knobs["rows"], knobs["blocks"])


# --- schedule ---------------------------------------------------------------------------------


def schedule_product(low: Lowered, facts: ProductFacts, knobs: Knobs) -> s_tir.Schedule:
    """Apply knobs ``rows``, ``blocks``, ``task_rows``, ``task_blocks``."""
    sch = opened(low)
    rows, blocks, lanes = knobs["rows"], knobs["blocks"], facts.lanes
    fold = sch.get_sblock("fold")
    i, j, inner = sch.get_loops(fold)
    i, i_tile, i_in = sch.split(i, [None, knobs["task_rows"] // rows, rows])
    j, j_tile, j_in, lane = sch.split(j, [None, knobs["task_blocks"] // blocks, blocks, lanes])
    # The larger one of what is read again and again stays, part by part, in the nearest cache.
    tiles = (i_tile, j_tile) if facts.m > facts.k else (j_tile, i_tile)
    tile = (i_in, j_in, lane)
    if facts.chunks == 1:
        sch.reorder(i, j, *tiles, inner, *tile)
        at = task = sch.fuse(i, j)
        sums, store_at = fold, tiles[-1]
    else:
        sch.reorder(i, j, inner, *tiles, *tile)
        at, task = inner, sch.fuse(i, j)
        sums, store_at = sch.get_sblock("tile"), task
        _written_out(sch, tile)
        sch.compute_at(sums, tiles[-1], preserve_unit_loops=True)
        *_, i_in, columns, e = loops_inside(sch, sums, tiles[-1])
        tile = (i_in, *sch.split(columns, [None, lanes]))
        sch.reorder(e, *tile)
    sch.parallel(task)
    local(sch, [sch.get(sums).name_hint])
    _store_slot(sch, low, store_at, lanes, unroll=facts.chunks == 1)
    # Where all rows pass a tile of columns, that is turned right before, and is still near. Rows
    # are copied as a whole: pieces at a distance of a power of two displace each other.
    near = facts.trans_b and tiles[0] is j_tile
    places = {"left": at, "right": j_tile if near else at}
    _fill_scratch(sch, low, facts, places)
    for loop in tiles:
        set_apart(sch, loop)
    _written_out(sch, tile)
    if facts.chunks > 1:
        _vectorized(sch, sch.decompose_reduction(fold, inner), lanes)
        inner = e
    sch.decompose_reduction(sums, inner)
    return sch if facts.copies_right else _asking_ahead(sch, low, sums, blocks * lanes)


def _asking_ahead(sch: s_tir.Schedule, low: Lowered, reader: Any, columns: int) -> s_tir.Schedule:
    """Ask for the next tile's columns of a row of ``b`` while this one's are used.

    A row of them is short and the next row far away: hardware does not see where that leads.
    """
    from tvm import IRModule, s_tir

    from bngen.scheduling.prefetch import ask_for_neighbours

    func = ask_for_neighbours(sch.mod[low.name], sch.get(reader).name_hint, columns)
    return s_tir.Schedule(IRModule({low.name: func}))


def _written_out(sch: s_tir.Schedule, tile: tuple[Any, ...]) -> None:
    """The loops of a register tile."""
    *written_out, lane = tile
    for loop in written_out:
        sch.unroll(loop)
    sch.vectorize(lane)


def _vectorized(sch: s_tir.Schedule, block: Any, lanes: int) -> None:
    *_, last = sch.get_loops(block)
    if extent(sch, last) > lanes:
        _, last = sch.split(last, [None, lanes])
    if extent(sch, last) > 1:
        sch.vectorize(last)


def _store_slot(sch: s_tir.Schedule, low: Lowered, at: Any, lanes: int, *, unroll: bool) -> None:
    """The store slot over the elements of a tile, or of a task.

    Args:
        sch: the schedule.
        low: the kernel.
        at: the loop of tiles, or of tasks.
        lanes: elements of a vector.
        unroll: write a tile out: its sums are registers only where no loop goes over them.
    """
    for name in low.tiles:
        block = sch.get_sblock(name)
        if name.startswith("mid_"):
            local(sch, [name])
        sch.reverse_compute_at(block, at, preserve_unit_loops=True)
        *rows, columns = loops_inside(sch, block, at)
        if extent(sch, columns) > lanes:
            columns, lane = sch.split(columns, [None, lanes])
            rows.append(columns)
            sch.vectorize(lane)
        else:
            _vectorized(sch, block, lanes)
        for loop in rows:
            if unroll:
                write_out(sch, loop)
            else:
                set_apart(sch, loop)


NEIGHBOURS = 8
"""Tiles of rows whose elements of one inner index are copied together: they share cache lines."""


def _by_lines(sch: s_tir.Schedule, block: Any, at: Any) -> None:
    """Copy tiles of rows that lie across, some at a time.

    Tile by tile, each line is read as often as tiles lie in it; and where lines are at a distance
    of a power of two, it has left the nearest cache each time.
    """
    tiles, e, _ = loops_inside(sch, block, at)
    together = max(d for d in divisors(extent(sch, tiles)) if d <= NEIGHBOURS)
    _, near = sch.split(tiles, [None, together])
    sch.reorder(e, near)


def _fill_scratch(
    sch: s_tir.Schedule, low: Lowered, facts: ProductFacts, places: dict[str, Any]
) -> None:
    """Fill the scratch of operands below a loop each."""
    for name in low.pads:
        block, at = sch.get_sblock(name), places[name]
        sch.compute_at(block, at, preserve_unit_loops=True)
        if name == "left":
            if facts.trans_a:
                _by_lines(sch, block, at)
            _vectorized(sch, block, facts.lanes)
            continue
        blocks, e, lane = loops_inside(sch, block, at)
        if not facts.trans_b:
            set_apart(sch, blocks)
            sch.reorder(e, blocks)
        elif (square := math.gcd(facts.depth, facts.lanes)) > 1:
            _, columns = sch.split(e, [None, square])
            sch.unroll(columns)
        sch.vectorize(lane)
