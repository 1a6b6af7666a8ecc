"""Knobs: the numbers a schedule has, and how they follow from a machine where nobody tuned them.

Every knob is an integer that divides what it splits unless its strategy says otherwise; `Knobs` of
a kernel are a small dictionary, which is what record files hold. Here is what the analytic choices
of several strategies share; each choice is in the module of its schedule.

Constants were fitted to kernels measured on AVX2 (znver3) and AVX-512, with one unit of 512 bits
(znver4) and with two (an Intel Xeon with AVX512-FP16).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from bngen.lower.facts import GradientFacts, MapFacts
from bngen.target.cpus import Traits
from bngen.target.machine import Machine

Knobs = dict[str, int]

LINE = 64
"""Bytes of a cache line."""

TASKS = 4
"""Tasks a thread should have, so that none waits long for the last."""

SCRATCH = 8
"""A task's scratch may take one part in so many of L2."""

MAPS_AT_ONCE = 4
"""Maps of which a task that sweeps them reads and writes the same rows."""


def divisors(n: int) -> list[int]:
    """All divisors, ascending."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


# --- register tiles ---------------------------------------------------------------------------

MOST_BLOCKS = 8
"""Output blocks of a register tile."""

SEVERAL_BLOCKS = 0.94
"""Speed of a tile of several output blocks where one would need no loads of broadcasts."""

FREE_IN_FLIGHT = 7
"""Accumulators that are enough where broadcasts are free."""

BROADCAST_COST, WEIGHT_COST = 0.57, 1.05
"""Cycles that a load port's load of one element for all lanes, and of a vector of weights, adds to
a step of the multiply-adds: with both units at work, loads hide behind them in part only."""

MANY_STREAMS = 0.37
"""Cycles that each output block beyond the second adds: its weights lie far from the others'."""

STREAMED_COST, STAYS = 0.8, 0.75
"""Cycles that a vector of weights adds that is a whole cache line and comes from L2 each time:
where those of a register tile, for all terms of its sums, take more than so much of L1. Of narrower
vectors a line has several, and what was measured of them is explained without."""

LARGE_TILE, NOT_LARGE = 0.008, 1.75
"""What each accumulator adds to the time, beyond so many times those that are under way at once:
while the store slot of a small tile waits for memory, the next tile begins; that of a large one is
out of the CPU's reach."""

TAIL_OVERLAPS = 0.6
"""Part of the latency that a tile of few accumulators waits for: the next one has begun by then."""

RAGGED_FETCH, LEAST_RAGGED = 6, 0.5
"""Terms of a sum that fetching the code of a ragged last tile takes the time of, and the worst."""

SIZE_MATTERS = 0.002
"""Of two tiles that are equally good where broadcasts are free, the smaller one, by so much."""


def register_tiles(
    width: int, blocks: int, depth: int, registers: int, machine: Machine, *, shared: bool = False
) -> Iterable[tuple[float, int, int]]:
    """Candidate register tiles (score, columns, output blocks), any order.

    ``columns * blocks`` accumulators, ``blocks`` weight vectors and one broadcast must fit into
    ``registers``. The score is the share of time that the multiply-add units work: it counts what a
    ragged last tile leaves idle, and the fetching of its code, which it has of its own, against
    sums of ``depth`` terms; the latency that few accumulators do not hide; the loads for
    columns * blocks multiply-adds, a broadcast a column and a weight a block, and whether L1 has
    those weights; and that a small tile's store slot waits behind the next tile's products.

    Where broadcasts are free (`Traits.broadcasts_are_free`) and not ``shared`` by several
    multiply-adds, which LLVM holds on to in registers, one block needs no loads of them, and a
    small tile is best: while its store slot waits for memory, the next one begins.
    """
    share = _share_where_free if machine.traits.broadcasts_are_free and not shared else _share
    most_terms = STAYS * machine.l1 / machine.traits.vector_bytes
    for kb in (d for d in divisors(blocks) if d <= MOST_BLOCKS):
        for tw in range(1, min(width, registers - 2) + 1):
            if tile_registers(tw, kb) > registers:
                break
            ragged = 1.0 if width % tw == 0 else max(LEAST_RAGGED, 1 - RAGGED_FETCH / depth)
            streamed = kb * depth > most_terms
            yield ragged * share(width, tw, kb, machine.traits, streamed), tw, kb


def _share_where_free(width: int, tw: int, kb: int, traits: Traits, streamed: bool) -> float:
    full = width / (math.ceil(width / tw) * tw)
    busy = min(1.0, tw * kb / FREE_IN_FLIGHT)
    return full * busy * (1.0 if kb == 1 else SEVERAL_BLOCKS) * (1 - SIZE_MATTERS * tw * kb)


def _share(width: int, tw: int, kb: int, traits: Traits, streamed: bool) -> float:
    tiles, rest = divmod(width, tw)
    cycles = tiles * tile_cycles(tw, kb, traits, streamed)
    cycles += tile_cycles(rest, kb, traits, streamed) if rest else 0.0
    large = 1 + LARGE_TILE * max(0.0, tw * kb - NOT_LARGE * traits.multiply_adds_in_flight)
    return width * kb / traits.multiply_add_units / cycles / large


def tile_cycles(columns: int, blocks: int, traits: Traits, streamed: bool = False) -> float:
    """Cycles of one step of a register tile's sums: a weight a block times an element a column.

    Fitted to kernels of ResNet-50, DenseNet-121 and MobileNetV2 with 1 to 28 columns and 1 to 6
    blocks on two CPUs with two units and two load ports. On one of them (Emerald Rapids) its
    choices for 18 kernels take 1.7 % longer than the best ones in the mean, 8 % at most.
    """
    multiply_adds = columns * blocks / traits.multiply_add_units
    least = TAIL_OVERLAPS * traits.multiply_add_latency
    loads = (WEIGHT_COST * blocks + BROADCAST_COST * columns) / traits.load_ports
    if streamed and traits.vector_bytes >= LINE:
        loads += STREAMED_COST * blocks
    return max(multiply_adds, least) + loads + MANY_STREAMS * max(0, blocks - 2)


def tile_registers(columns: int, blocks: int) -> int:
    """Registers of a tile: its accumulators, a weight a block, one broadcast."""
    return columns * blocks + blocks + 1


# --- rows -------------------------------------------------------------------------------------


def rows_per_task(
    facts: MapFacts | GradientFacts,
    machine: Machine,
    scratch: Callable[[int], int],
    *,
    group: int | None = None,
    tasks: int = 1,
) -> int:
    """Most rows whose scratch stays in its part of L2 while every thread has its tasks.

    Args:
        facts: the map.
        machine: caches and threads.
        scratch: bytes that a task of so many rows needs.
        group: rows that belong together; those of the map's partial sums by default.
        tasks: into how many the same rows are cut in other ways.
    """
    group = group or facts.group_rows or 1
    choices = [r for r in divisors(facts.h) if r % group == 0] or [facts.h]
    best = choices[0]
    for rows in choices:
        enough = facts.n * (facts.h // rows) * tasks >= TASKS * machine.threads
        if scratch(rows) <= machine.l2 // SCRATCH and enough:
            best = rows
    return best
