"""Which knobs can schedule a kernel: every knob with its legal values, given the kernel's extents.

In: a kind of kernel and its extents. Out: a reason against some knobs, or all that there are. Knobs
may change speed, never results; what is not listed here is never applied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from bngen.ir.attributes import shown
from bngen.scheduling.knobs import Declined, Knobs, divisors, winograd_rows

MOST_REGISTERS = 32
"""Vector registers of the targets that have most."""
MOST_UNROLLED = 4 * MOST_REGISTERS
"""Accumulators of a register tile. More spill, and LLVM takes minutes for thousands of them."""

Extents = Mapping[str, int]


def _row_choices(e: Extents, chosen: Knobs) -> list[int]:
    """Whole groups of rows, so that a group's sums belong to one task."""
    group = e.get("group_rows", e.get("spread_h", 1))
    return [r for r in divisors(e["h"]) if r % group == 0]


def _block_choices(e: Extents, chosen: Knobs) -> list[int]:
    """Output blocks of one group of a grouped convolution."""
    return _few(divisors(e["out_blocks"] // e.get("groups", 1)), chosen["columns"])


def _few(choices: Sequence[int], other: int) -> list[int]:
    """Extents of a register tile beside its other one."""
    return [c for c in choices if c == 1 or c * other <= MOST_UNROLLED]


def _columns(e: Extents, chosen: Knobs) -> range:
    return range(1, min(e["w"], MOST_UNROLLED) + 1)


def _phase_columns(e: Extents, chosen: Knobs) -> range:
    return range(1, min(e["w"] // e["spread_w"], MOST_UNROLLED) + 1)


def _tile_columns(e: Extents, chosen: Knobs) -> range:
    tiles = (chosen["rows"] // 2) * math.ceil(e["w"] / 2)
    return range(1, min(tiles, MOST_REGISTERS) + 1)


def _gradient_blocks(e: Extents, chosen: Knobs) -> list[int]:
    """Output blocks in registers, beside input lanes or, of a plain input, a row of the window."""
    return _few(divisors(chosen["out_blocks"]), 1 if e["in_lanes"] > 1 else e["s"])


def _register_lanes(e: Extents, chosen: Knobs) -> list[int]:
    return _few(divisors(e["in_lanes"]), chosen["blocks"])


Choices = Callable[[Extents, Knobs], Sequence[int]]
_ROWS = {"rows": _row_choices}
_WEIGHT_GRADIENT: dict[str, Choices] = {
    "chunks": lambda e, _: divisors(e["n"]),
    "out_blocks": lambda e, _: divisors(e["out_blocks"]),
    "in_blocks": lambda e, _: divisors(e["in_blocks"]),
    "rows": lambda e, _: divisors(e["h"]),
    "blocks": _gradient_blocks,
}
KNOBS: dict[str, dict[str, Choices]] = {
    "conv": {"columns": _columns, "blocks": _block_choices, **_ROWS},
    "phased": {"columns": _phase_columns, "blocks": _block_choices, **_ROWS},
    "winograd": {
        "rows": lambda e, _: winograd_rows(e), "columns": _tile_columns, "blocks": _block_choices,
    },
    "depthwise": _ROWS,
    "wgrad": _WEIGHT_GRADIENT,
    "winograd_wgrad": {**_WEIGHT_GRADIENT, "in_lanes": _register_lanes},
    "depthwise_wgrad": {"rows": lambda e, _: divisors(e["h"])},
    "window": _ROWS,
    "pointwise": _ROWS,
}  # fmt: skip
"""Kind of kernel -> knob -> its legal values, given the extents and the knobs before it."""


def knobs_of(kind: str, extents: Extents) -> dict[str, Choices]:
    """The declared knobs of a kernel, in the order in which they may depend on each other."""
    declared = KNOBS.get(kind, {})
    if kind == "wgrad" and extents["in_lanes"] > 1:
        # A plain input (an image) has no lanes; its register block is a row of the window.
        declared = {**declared, "in_lanes": _register_lanes}
    return declared


def legal(kind: str, extents: Extents, knobs: Mapping[str, int]) -> Declined | None:
    """Why these knobs cannot schedule a kernel of these extents, or None where they can."""
    try:
        declared = knobs_of(kind, extents)
        return _misfit(kind, declared, extents, knobs)
    except KeyError as missing:
        return Declined(f"the extents lack {missing}")


_LISTED = 20


def _misfit(
    kind: str, declared: dict[str, Choices], extents: Extents, knobs: Mapping[str, int]
) -> Declined | None:
    if not declared:
        return Declined(f"{kind} kernels have no knobs")
    if set(knobs) != set(declared):
        given = shown(sorted(knobs))
        return Declined(f"{kind} kernels take {', '.join(declared)}, not {given}")
    chosen: Knobs = {}
    for name, choices in declared.items():
        value, choice = knobs[name], choices(extents, chosen)
        if type(value) is not int or value not in choice:
            rest = ", ..." if len(choice) > _LISTED else ""
            listed = f"{', '.join(map(str, choice[:_LISTED]))}{rest}"
            return Declined(f"{name} {shown(value)} is none of {listed}")
        chosen[name] = value
    return None


def candidates(kind: str, extents: Extents) -> Iterator[Knobs]:
    """Every legal choice of knobs."""

    def extend(chosen: Knobs, rest: list[tuple[str, Choices]]) -> Iterator[Knobs]:
        if not rest:
            yield chosen
            return
        (name, choices), *others = rest
        for value in choices(extents, chosen):
            yield from extend({**chosen, name: value}, others)

    declared = list(knobs_of(kind, extents).items())
    return extend({}, declared) if declared else iter(())
