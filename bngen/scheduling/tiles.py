"""Convolutions and data gradients of bfloat16 whose sums are in the tiles of a matrix unit.

The loops are those of `bngen.scheduling.conv` and `phased`, and so is all that is fused around
them; `bngen.codegen.tiles` puts registers of tiles in place of a register tile's::

    conv[columns, blocks, lanes] <- sum over input block, r, s, word of the input block

A register has sums of up to 16 columns of one output block. What it is multiplied of, pixels and
weights, has 8 words of two channels, or 16 where pixels of neighbouring taps are neighbours, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from bngen.lower.facts import ConvFacts, Declined, Layouts, PhasedFacts
from bngen.lower.geometry import direct_products
from bngen.plan.kernel import Kernel
from bngen.scheduling import conv, phased, winograd
from bngen.scheduling.conv import packing
from bngen.scheduling.knobs import Knobs, divisors
from bngen.scheduling.legality import Space, whole_groups
from bngen.target.cpus import Tiles
from bngen.target.machine import Machine
from bngen.target.tiles import MOST_ROWS, MOST_WORDS, SUMS, rows_for

AnyFacts = ConvFacts | PhasedFacts


def applies(kernel: Kernel, layouts: Layouts) -> ConvFacts | Declined:
    """A convolution or data gradient over words of pairs of channels."""
    return _unfit(kernel, layouts) or _checked(conv.applies(kernel, layouts))


def applies_to_phases(kernel: Kernel, layouts: Layouts) -> PhasedFacts | Declined:
    """A data gradient in phases, over such words."""
    return _unfit(kernel, layouts) or _checked(phased.applies(kernel, layouts))


def _unfit(kernel: Kernel, layouts: Layouts) -> Declined | None:
    packed = packing(kernel, layouts)
    if not packed.paired:
        return Declined("its weight does not lie in pairs of channels")
    if packed.by_channel:
        return Declined("its groups fill blocks in part")
    return None


def _checked(facts: AnyFacts | Declined) -> AnyFacts | Declined:
    if isinstance(facts, Declined):
        return facts
    if facts.lanes != MOST_WORDS:
        return Declined(f"a block of {facts.lanes} channels is no row of a tile")
    return facts


def declines_on(kernel: Kernel, facts: AnyFacts, machine: Machine) -> Declined | None:
    """Why a kernel is not computed in tiles on a machine; None where it is."""
    tiles = machine.traits.tiles
    if tiles is None:
        return Declined("the CPU has no matrix unit for bfloat16")
    node = kernel.anchor
    points = winograd.pays(node, node.out, node.inputs[1], facts.group_rows)
    if points is None and facts.in_lanes > 1:
        per_cycle = machine.traits.multiply_add_units * facts.lanes
        if winograd.products(kernel) / per_cycle < _cycles_of_all(kernel, facts, tiles):
            return Declined("Winograd's tiles take fewer cycles")
    return None


def _cycles_of_all(kernel: Kernel, facts: AnyFacts, tiles: Tiles) -> float:
    """Cycles of all products of a kernel, as many at once as words of two have; see `best`."""
    at_once = 2 * facts.in_lanes * facts.lanes
    return direct_products(kernel.anchor) / at_once * best(facts, tiles)[0]


def _width(facts: AnyFacts) -> int:
    """Columns that lie side by side in what a nest reads."""
    return facts.w // facts.spread_w if isinstance(facts, PhasedFacts) else facts.w


# --- knobs ------------------------------------------------------------------------------------


def register_columns(width: int) -> list[int]:
    """Columns of a register tile; of a ragged last one, too, there must be a register full."""
    most = min(width, SUMS * MOST_ROWS)
    return [c for c in range(1, most + 1) if max(_registers(width, c)[1:]) <= SUMS]


def register_blocks(facts: AnyFacts, columns: int) -> list[int]:
    """Output blocks of a register tile."""
    most = SUMS // max(_registers(_width(facts), columns)[1:])
    return [b for b in divisors(facts.out_blocks // facts.groups) if b <= most]


def _registers(width: int, columns: int) -> tuple[int, int, int]:
    """Rows of a register; how many of them a register tile's columns need, and the last one's."""
    extents = columns, width % columns
    rows = min(rows_for(c) for c in extents if c)
    return rows, *(math.ceil(c / rows) for c in extents)


def best(facts: AnyFacts, tiles: Tiles) -> tuple[float, int, int]:
    """The register tile (cycles of a step for each column and block, columns, blocks).

    A step is over the words of a block of channels; a product waits for no other.
    """
    return min(_costs(facts, tiles), key=lambda found: (found[0], -found[1]))


def _costs(facts: AnyFacts, tiles: Tiles) -> Iterator[tuple[float, int, int]]:
    """Products and loads go on side by side, but for a part of the loads."""
    words = min(MOST_WORDS, facts.in_lanes)
    width = _width(facts)
    for columns in register_columns(width):
        rows, *registers = _registers(width, columns)
        product = max(tiles.least_cycles, rows * tiles.row_cycles)
        for blocks in register_blocks(facts, columns):
            cycles = 0.0
            for times, count in zip((width // columns, 1), registers, strict=True):
                loads = count and count * rows + (count * (blocks - 1) + 1) * words
                loading = loads * tiles.load_cycles
                cycles += times * (max(count * blocks * product, loading) + SHARE * loading)
            yield cycles / (width * blocks), columns, blocks


SCRATCH = 4
"""A task's scratch of several images may take one part in so many of L2."""

SHARE = 0.25
"""Part of the time of loads that no product hides."""


def conv_knobs(facts: ConvFacts, machine: Machine) -> Knobs:
    """Register tile, and rows and images per task."""
    knobs = _knobs(facts, machine, conv.conv_knobs)
    return {**knobs, "images": _images(facts, knobs["rows"], machine)}


def _images(facts: ConvFacts, rows: int, machine: Machine) -> int:
    """Images of a task: several where L2 cannot hold the weights, which each of them reads again.

    All of a few output blocks' weights then serve one image after the other.
    """
    word = facts.element_bytes
    if word * facts.terms * facts.lanes * facts.out_blocks <= machine.l2:
        return 1
    read = (rows - 1) * facts.stride_h + facts.r
    scratch = word * facts.in_blocks * facts.in_lanes * facts.padded_w * read

    def fits(images: int) -> bool:
        tasks = facts.n // images * (facts.h // rows)
        return images * scratch <= machine.l2 // SCRATCH and tasks % machine.threads == 0

    return max((i for i in divisors(facts.n) if fits(i)), default=1)


def phased_knobs(facts: PhasedFacts, machine: Machine) -> Knobs:
    """The same; the register tile belongs to one phase."""
    return _knobs(facts, machine, phased.phased_knobs)


def _knobs(facts: AnyFacts, machine: Machine, others: Callable[..., Knobs]) -> Knobs:
    _, columns, blocks = best(facts, machine.traits.tiles)
    return {**others(facts, machine), "columns": columns, "blocks": blocks}


def conv_space(facts: ConvFacts) -> Space:
    """Register tile, and rows and images per task."""
    return {**_space(facts, 1), "images": lambda chosen: divisors(facts.n)}


def phased_space(facts: PhasedFacts) -> Space:
    """Register tile of one phase, and rows per task."""
    return _space(facts, facts.spread_h)


def _space(facts: AnyFacts, group: int) -> Space:
    return {
        "columns": lambda chosen: register_columns(_width(facts)),
        "blocks": lambda chosen: register_blocks(facts, chosen["columns"]),
        "rows": whole_groups(facts, group),
    }
