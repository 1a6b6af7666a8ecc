"""3x3 convolutions at the points of Winograd's tiles; see `bngen.lower.winograd`."""

from __future__ import annotations

from tvm import IRModule, s_tir

from bngen.lower.body import Lowered
from bngen.lower.winograd import TILE
from bngen.scheduling.knobs import Knobs, group_of_tiles
from bngen.scheduling.tools import (
    attach_loads,
    attach_store_slot,
    cut_into_tasks,
    loops_inside,
    set_apart,
    spell_out,
    vectorize_last,
)


def schedule_winograd(low: Lowered, knobs: Knobs) -> s_tir.Schedule:
    """A 3x3 convolution at the 16 points of tiles of 2x2 outputs.

    ::

        parallel block of taps: taps <- weights
        parallel image, row tile:
            for input block:
                pad <- load slot of the rows this tile needs
                points <- pad
            for output block tile:
                for each point, column tile:
                    product[columns, blocks, lanes] in registers <- sum over input block, lane
                for group of rows:
                    merge <- product
                    store slot on these rows, sums, second pass of moments

    Knobs as for `schedule_conv`; ``columns`` counts tiles of a task.
    """
    sch = s_tir.Schedule(IRModule({low.name: low.func}))
    sch.work_on(low.name)
    group = group_of_tiles(low.extents)
    task, kb_tile, h_group, _, inside = cut_into_tasks(sch, low, knobs, group, (TILE, TILE))
    h_in, w, w_in, kb_in, lane = inside
    sch.reorder(w, kb_in, h_in, w_in, lane)
    attach_store_slot(sch, low, h_group, None, h_group, unroll=False)
    spell_out(sch, h_in, w_in, lane)
    _schedule_product(sch, kb_tile, knobs["columns"])
    attach_loads(sch, low, task)
    i, j, kb, cb, cl, lane = sch.get_loops(sch.get_sblock("taps"))
    sch.reorder(kb, cb, cl, i, j, lane)
    sch.parallel(sch.fuse(kb, cb))
    spell_out(sch, i, j, lane)
    return sch


def _schedule_product(sch: s_tir.Schedule, at, columns: int) -> None:
    """The products of matrices of a task, a register tile at a time."""
    product = sch.get_sblock("product")
    sch.compute_at(product, at, preserve_unit_loops=True)
    i, j, kb, n, h, w, lane, cb, cl = loops_inside(sch, product, at)
    t_tile, t_in = sch.split(sch.fuse(n, h, w), [None, columns])
    sch.reorder(i, j, t_tile, cb, cl, t_in, kb, lane)
    set_apart(sch, t_tile)
    for loop in (t_in, kb):
        sch.unroll(loop)
    sch.vectorize(lane)
    sch.decompose_reduction(product, cb)
    vectorize_last(sch, sch.get_sblock("product_init"))
