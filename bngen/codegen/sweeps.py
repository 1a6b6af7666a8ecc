"""Strategies of kernels that no products are in: pools, pointwise ops, copies, reductions.

The second part of the table in `bngen.codegen.nests`, which says what its rows are.
"""

from __future__ import annotations

from bngen.codegen.kinds import (
    folds_axes,
    is_partial,
    is_pointwise,
    is_window,
    lowering,
    moves,
    reduces,
)
from bngen.codegen.strategy import Strategy
from bngen.lower.facts import MapFacts
from bngen.lower.sweep_facts import (
    ColumnFacts,
    CopyFacts,
    MergeFacts,
    PackingFacts,
    PlainFacts,
    RowFacts,
)
from bngen.scheduling import (
    columns,
    copies,
    fallback,
    maps,
    merges,
    packing,
    pixels,
    plain,
    rows,
)

SWEEPS: tuple[Strategy, ...] = (
    Strategy(
        "packing",
        "weights in the order in which convolutions read them: squares turned over in registers",
        made_for=moves,
        applies=packing.applies,
        facts=PackingFacts,
        lower=lowering("packing", "lower_packing"),
        knobs=fallback.no_knobs,
        schedule=packing.schedule_packing,
    ),
    Strategy(
        "copies",
        "maps in another layout or place: squares of pixels and channels turned in registers",
        made_for=moves,
        applies=copies.applies,
        facts=CopyFacts,
        lower=lowering("copies", "lower_map_copy"),
        knobs=fallback.no_knobs,
        schedule=copies.schedule_copies,
    ),
    Strategy(
        "window",
        "pools and their gradients: a sweep over a map",
        made_for=is_window,
        applies=maps.applies_window,
        facts=MapFacts,
        lower=lowering("window", "lower_window"),
        knobs=maps.map_knobs,
        space=maps.map_space,
        schedule=maps.schedule_map,
    ),
    Strategy(
        "pointwise",
        "pointwise ops over a map, and partial sums of what they compute: a sweep",
        made_for=is_pointwise,
        applies=maps.applies_pointwise,
        facts=MapFacts,
        lower=lowering("maps", "lower_pointwise"),
        knobs=maps.map_knobs,
        space=maps.map_space,
        schedule=maps.schedule_map,
    ),
    Strategy(
        "plain",
        "pointwise ops over values in plain order: rows of vectors",
        made_for=is_pointwise,
        applies=plain.applies,
        facts=PlainFacts,
        lower=lowering("maps", "lower_pointwise"),
        knobs=fallback.no_knobs,
        schedule=plain.schedule_plain,
    ),
    Strategy(
        "moves",
        "slices, concatenations and other orders of values in plain order: rows of vectors",
        made_for=moves,
        applies=plain.applies,
        facts=PlainFacts,
        lower=lowering("copies", "lower_copy"),
        knobs=fallback.no_knobs,
        schedule=plain.schedule_plain,
    ),
    Strategy(
        "merges",
        "partial results put together, and what follows from them: a vector after the other",
        made_for=reduces,
        applies=merges.applies,
        facts=MergeFacts,
        lower=lowering("reduce", "lower_reduce"),
        knobs=fallback.no_knobs,
        schedule=merges.schedule_merges,
    ),
    Strategy(
        "rows",
        "reductions along the last axes of plain values: a partial result a lane",
        made_for=folds_axes,
        applies=rows.applies,
        facts=RowFacts,
        lower=lowering("rows", "lower_rows", wide=True),
        knobs=fallback.no_knobs,
        schedule=rows.schedule_rows,
    ),
    Strategy(
        "columns",
        "reductions that leave the last axis of plain values: each lane sums a column",
        made_for=folds_axes,
        applies=columns.applies,
        facts=ColumnFacts,
        lower=lowering("columns", "lower_columns", wide=True),
        knobs=fallback.no_knobs,
        schedule=columns.schedule_columns,
    ),
    Strategy(
        "pixels",
        "reductions over the channels of a map in blocks: a partial result a pixel and lane",
        made_for=folds_axes,
        applies=pixels.applies,
        facts=MapFacts,
        lower=lowering("pixels", "lower_pixels"),
        knobs=fallback.no_knobs,
        schedule=pixels.schedule_pixels,
    ),
    Strategy(
        "partial",
        "partial sums of a map that no other kernel took: a sweep",
        made_for=is_partial,
        applies=maps.applies_partial,
        facts=MapFacts,
        lower=lowering("maps", "lower_partial"),
        knobs=maps.map_knobs,
        schedule=maps.schedule_partial,
    ),
)
"""In the order in which they are asked, after those of products."""
