"""Knobs: the numbers a schedule has, and how they follow from the target where nobody tuned them.

Every knob is an integer that divides what it splits unless its rule says otherwise; `Knobs` of a
kernel are a small dictionary, which is what record files hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

Knobs = dict[str, int]


@dataclass(frozen=True)
class Declined:
    """Why a rule, or a choice of knobs, does not apply."""

    reason: str


class Machine(Protocol):
    """What the analytic choice needs to know of a target (sizes in bytes)."""

    lanes: int
    vector_registers: int
    l1: int
    l2: int
    threads: int


def divisors(n: int) -> list[int]:
    """All divisors, ascending."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


SEVERAL_BLOCKS = 0.94
"""Speed of a tile of several output blocks where one would need no loads of broadcasts."""


def folds_broadcasts(machine: Machine) -> bool:
    """Whether a multiply-add reads its broadcast from memory itself, as with AVX-512."""
    return machine.lanes == 16


def register_tiles(
    width: int, blocks: int, depth: int, registers: int, *, folded: bool
) -> Iterable[tuple[float, int, int]]:
    """Candidate register tiles (score, columns, output blocks), any order.

    ``columns * blocks`` accumulators, ``blocks`` weight vectors and one broadcast must fit. The
    score is the share of time that the multiply-add units work: what a ragged last tile leaves
    idle; the fetching of its code, which it has of its own, against sums of ``depth`` terms; the
    latency that few accumulators do not hide; and the loads for columns * blocks multiply-adds, a
    broadcast a column and a weight a block. Where broadcasts are ``folded`` into multiply-adds,
    one block needs none, and a small tile is best: while its store slot waits for memory, the next
    one begins. The numbers were fitted to tiles measured on AVX2 (znver3) and, for folded ones, on
    AVX-512 (znver4).
    """
    for kb in (d for d in divisors(blocks) if d <= 8):
        for tw in range(1, min(width, registers - 2) + 1):
            tile = tw * kb
            if tile + kb + 1 > registers:
                break
            tiles = math.ceil(width / tw)
            full = width / (tiles * tw)
            ragged = 1.0 if width % tw == 0 else max(0.5, 1 - 6 / depth)
            if folded:
                busy, loads = min(1.0, tile / 7), 1.0 if kb == 1 else SEVERAL_BLOCKS
                size = 1 - 0.002 * tile
            else:
                busy, loads = min(1.0, tile / 8), min(1.0, tile / (1.5 * tw + 2.2 * kb))
                size = 1 + 0.002 * tile
            yield full * ragged * busy * loads * size, tw, kb


def conv_knobs(e: dict[str, int], machine: Machine) -> Knobs:
    """Register tile and rows per task of a convolution nest (forward or data gradient)."""
    per_group = e["out_blocks"] // e.get("groups", 1)
    registers = machine.vector_registers
    # Taps of one channel's row share broadcasts, and LLVM holds on to them: none is folded, and
    # where registers are few, fewer are left.
    shared = e["in_lanes"] == 1
    if shared and registers < 32:
        registers -= 3
    folded = folds_broadcasts(machine) and not shared
    _, columns, blocks = max(register_tiles(e["w"], per_group, _depth(e), registers, folded=folded))
    row_bytes = 4 * e["in_blocks"] * e["in_lanes"] * e["padded_w"]
    return {"columns": columns, "blocks": blocks, "rows": rows_per_task(e, machine, row_bytes)}


def _depth(e: dict[str, int]) -> int:
    """Terms of the sum that a convolution is."""
    return e["in_blocks"] * e["in_lanes"] * e.get("r", 1) * e.get("s", 1)


def phased_knobs(e: dict[str, int], machine: Machine) -> Knobs:
    """The same for a strided data gradient, whose register tile belongs to one phase."""
    width, group = e["w"] // e["spread_w"], e.get("group_rows", e["spread_h"])
    per_group = e["out_blocks"] // e["groups"]
    registers = machine.vector_registers
    folded = folds_broadcasts(machine)
    _, columns, blocks = max(register_tiles(width, per_group, _depth(e), registers, folded=folded))
    row_bytes = 4 * e["in_blocks"] * e["in_lanes"] * e["padded_w"] // e["spread_h"]
    facts = {**e, "group_rows": group, "r": 1}
    # Each task reads all weights. Where L2 cannot hold them, few tasks count for more than scratch.
    if 4 * e["lanes"] * e["out_blocks"] * _depth(e) > machine.l2:
        row_bytes = 0
    return {"columns": columns, "blocks": blocks, "rows": rows_per_task(facts, machine, row_bytes)}


def winograd_knobs(e: dict[str, int], machine: Machine) -> Knobs:
    """Rows per task, and the register tile of products over the 2x2 tiles of those rows.

    Points, products and what the store slot reads and writes of a task should stay in a third of
    L2, as prefetched maps that fall out of it are read twice: four times that much takes some 8 %
    more time.
    """
    channels, columns = e["in_blocks"] * e["in_lanes"], math.ceil(e["w"] / 2)
    registers = machine.vector_registers
    folded = folds_broadcasts(machine)
    best: list[tuple[float, Knobs]] = []
    least, *more = winograd_rows(e)
    for rows in (least, *(r for r in more if e["n"] * (e["h"] // r) >= 4 * machine.threads)):
        tiles = (rows // 2) * columns
        found = register_tiles(tiles, e["out_blocks"], channels, registers, folded=folded)
        score, width, blocks = max(found)
        out = blocks * e["lanes"]
        scratch = 4 * tiles * (16 * (channels + out) + 3 * 4 * out)
        score *= min(1.0, machine.l2 / (3 * scratch)) ** 0.06
        best.append((score, {"columns": width, "blocks": blocks, "rows": rows}))
    return max(best, key=lambda found: (found[0], found[1]["rows"]))[1]


def winograd_rows(e: dict[str, int]) -> list[int]:
    """Rows that a task may have, in whole tiles of 2x2 outputs and whole groups."""
    group, whole = group_of_tiles(e), e["h"] + e["h"] % 2
    return [r for r in divisors(whole) if r % group == 0]


def group_of_tiles(e: dict[str, int]) -> int:
    """Rows of a group in whole tiles: an odd group is the whole image and has a row to spare."""
    group = e.get("group_rows", 2)
    return group + group % 2


def rows_per_task(e: dict[str, int], machine: Machine, row_bytes: int) -> int:
    """Most rows whose scratch stays in an eighth of L2 while every thread has four tasks."""
    group = e.get("group_rows", 1)
    choices = [r for r in divisors(e["h"]) if r % group == 0] or [e["h"]]
    best = choices[0]
    for rows in choices:
        scratch = ((rows - 1) * e.get("stride_h", 1) + e.get("r", 1)) * row_bytes
        tasks = e["n"] * (e["h"] // rows) * e.get("outer_tasks", 1)
        if scratch <= machine.l2 // 8 and tasks >= 4 * machine.threads:
            best = rows
    return best


def map_knobs(e: dict[str, int], machine: Machine) -> Knobs:
    """Rows per task of kernels that sweep feature maps (pools, pointwise, partial sums)."""
    facts = {**e, "outer_tasks": e["out_blocks"]}
    return {"rows": rows_per_task(facts, machine, 4 * e["lanes"] * e["w"] * 4)}


def wgrad_knobs(e: dict[str, int], machine: Machine) -> Knobs:
    """What a task owns, rows per pixel tile, and the register block of a weight gradient."""
    chunks, kb, cb = _wgrad_task(e, machine)
    blocks, lanes = register_block(kb, e["in_lanes"] if e["in_lanes"] > 1 else e["s"], machine)
    rows_of = {r: 4 * e["lanes"] * (
        ((r - 1) * e["stride_h"] + e["r"]) * e["padded_w"] + blocks * r * e["w"]
    ) for r in divisors(e["h"])}  # fmt: skip
    # A window reads the tile once a tap; without one, it should leave room for what comes next.
    room = machine.l1 if e["r"] * e["s"] > 1 else machine.l1 // 2
    fits = [r for r, nbytes in rows_of.items() if nbytes <= room]
    knobs = {"chunks": chunks, "out_blocks": kb, "in_blocks": cb, "rows": fits[-1] if fits else 1}
    knobs |= {"blocks": blocks}
    return knobs | ({"in_lanes": lanes} if e["in_lanes"] > 1 else {})


def winograd_wgrad_knobs(e: dict[str, int], machine: Machine) -> Knobs:
    """The same at Winograd's points, for rows of tiles: those of a task should stay in L2."""
    chunks, kb, cb = _wgrad_task(e, machine)
    blocks, lanes = register_block(kb, e["in_lanes"], machine)
    rows = 1
    for r in divisors(e["h"]):
        panel = 4 * e["lanes"] * r * e["w"]
        scratch = e["r"] * e["s"] * panel * (kb + cb)
        if scratch <= 3 * machine.l2 // 4 and panel * (1 + blocks) <= machine.l1 // 2:
            rows = r
    return {
        "chunks": chunks, "out_blocks": kb, "in_blocks": cb, "rows": rows, "blocks": blocks,
        "in_lanes": lanes,
    }  # fmt: skip


def _wgrad_task(e: dict[str, int], machine: Machine) -> tuple[int, int, int]:
    """Chunks of the batch, and the output and input blocks that a task owns."""
    taps = e["r"] * e["s"]
    out, inner = e["out_blocks"], e["in_blocks"]
    per_block = 4 * e["in_lanes"] * e["lanes"] * taps

    def cost(chunks: int, kb: int, cb: int) -> float:
        """Time relative to the multiply-adds alone."""
        task_out, task_in = out // kb, inner // cb
        tasks = chunks * task_out * task_in
        idle = math.ceil(tasks / machine.threads) * machine.threads / tasks
        spilled = max(1.0, kb * cb * per_block / (machine.l2 // 4))
        # Each task applies the load slots anew: some 8 cycles a vector, against multiply-adds.
        slots = 8 * (inner * task_out + out * task_in) / (out * inner * taps * e["in_lanes"] / 2)
        # Each sum of a chunk is written, read and added: some 8 cycles a vector, too.
        merge = 8 * chunks / (e["n"] * e["h"] * e["w"] / 2) if chunks > 1 else 0.0
        return idle * spilled * (1 + slots + merge)

    choices = ((n, k, c) for n in divisors(e["n"]) for k in divisors(out) for c in divisors(inner))
    return min(choices, key=lambda t: cost(*t))


def register_block(out_blocks: int, in_lanes: int, machine: Machine) -> tuple[int, int]:
    """Output blocks and input channels of the accumulators; all of ``in_lanes`` for a window row.

    The score is that of `register_tiles`: latency hidden, and loads per multiply-add.
    """
    registers = machine.vector_registers

    def score(kb: int, cl: int) -> tuple[float, int]:
        busy = min(1.0, kb * cl / 12)
        if folds_broadcasts(machine):
            return busy * (1.0 if kb == 1 else SEVERAL_BLOCKS), kb * cl
        return busy * min(1.0, kb * cl / (kb + cl) / 1.3), kb * cl

    fitting = [
        (kb, cl)
        for kb in divisors(out_blocks)
        for cl in divisors(in_lanes)
        if kb * cl + kb + 1 <= registers
    ]
    return max(fitting, key=lambda t: score(*t))
