"""Knobs: the numbers a schedule has, and how they follow from a machine where nobody tuned them.

Every knob is an integer that divides what it splits unless its strategy says otherwise; `Knobs` of
a kernel are a small dictionary, which is what record files hold. Here is what the analytic choices
of several strategies share; each choice is in the module of its schedule.

All constants were fitted to kernels measured on AVX2 (znver3) and AVX-512 (znver4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from bngen.lower.facts import GradientFacts, MapFacts
from bngen.target.machine import Machine

Knobs = dict[str, int]

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

FOLDED_IN_FLIGHT = 7 / 8
"""Accumulators that are enough where broadcasts are folded, of those that hide the latency."""

BROADCAST_COST, WEIGHT_COST = 1.5, 2.2
"""Loads of one element for all lanes, and of a vector of weights, in multiply-adds that they hold
up where as many loads as multiply-adds can start in a cycle."""

RAGGED_FETCH, LEAST_RAGGED = 6, 0.5
"""Terms of a sum that fetching the code of a ragged last tile takes the time of, and the worst."""

SIZE_MATTERS = 0.002
"""Of two tiles that are equally good, the larger (or, folded, the smaller) one, by so much."""


def register_tiles(
    width: int, blocks: int, depth: int, registers: int, machine: Machine, *, folded: bool
) -> Iterable[tuple[float, int, int]]:
    """Candidate register tiles (score, columns, output blocks), any order.

    ``columns * blocks`` accumulators, ``blocks`` weight vectors and one broadcast must fit into
    ``registers``. The score is the share of time that the multiply-add units work: what a ragged
    last tile leaves idle; the fetching of its code, which it has of its own, against sums of
    ``depth`` terms; the latency that few accumulators do not hide; and the loads for
    columns * blocks multiply-adds, a broadcast a column and a weight a block. Where broadcasts are
    ``folded`` into multiply-adds, one block needs none, and a small tile is best: while its store
    slot waits for memory, the next one begins.
    """
    in_flight = machine.traits.multiply_adds_in_flight
    contention = machine.traits.multiply_add_units / machine.traits.load_ports
    for kb in (d for d in divisors(blocks) if d <= MOST_BLOCKS):
        for tw in range(1, min(width, registers - 2) + 1):
            tile = tw * kb
            if tile_registers(tw, kb) > registers:
                break
            tiles = math.ceil(width / tw)
            full = width / (tiles * tw)
            ragged = 1.0 if width % tw == 0 else max(LEAST_RAGGED, 1 - RAGGED_FETCH / depth)
            if folded:
                busy = min(1.0, tile / (FOLDED_IN_FLIGHT * in_flight))
                loads = 1.0 if kb == 1 else SEVERAL_BLOCKS
                size = 1 - SIZE_MATTERS * tile
            else:
                busy = min(1.0, tile / in_flight)
                loads = min(1.0, tile / ((BROADCAST_COST * tw + WEIGHT_COST * kb) * contention))
                size = 1 + SIZE_MATTERS * tile
            yield full * ragged * busy * loads * size, tw, kb


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
