"""Which knobs can schedule a kernel: every knob of a strategy with its legal values, given facts.

In: a `Space` and knobs. Out: a reason against some knobs, or all that there are. Knobs may change
speed, never results; what is in no space is never applied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from bngen.ir.attributes import shown
from bngen.lower.facts import Declined, MapFacts
from bngen.scheduling.knobs import Knobs, divisors

MOST_REGISTERS = 32
"""Vector registers of the targets that have most."""
MOST_UNROLLED = 4 * MOST_REGISTERS
"""Accumulators of a register tile. More spill, and LLVM takes minutes for thousands of them."""

Choices = Callable[[Knobs], Sequence[int]]
"""The values that a knob may have, given those before it."""

Space = Mapping[str, Choices]
"""The knobs of a kernel, in the order in which they may depend on each other."""


def few(choices: Sequence[int], other: int) -> list[int]:
    """Extents of a register tile beside its other one."""
    return [c for c in choices if c == 1 or c * other <= MOST_UNROLLED]


def whole_groups(facts: MapFacts, group: int = 1) -> Choices:
    """Rows of a task: whole groups, so that a group's sums belong to one task."""
    group = facts.group_rows or group
    return lambda chosen: [r for r in divisors(facts.h) if r % group == 0]


def tile_columns(width: int) -> Choices:
    """Columns of a register tile; the last tile of a row may be ragged."""
    return lambda chosen: range(1, min(width, MOST_UNROLLED) + 1)


def tile_blocks(facts: MapFacts, groups: int = 1) -> Choices:
    """Output blocks of a register tile, all of one group of a grouped convolution."""
    return lambda chosen: few(divisors(facts.out_blocks // groups), chosen["columns"])


def misfit(kind: str, space: Space, knobs: Mapping[str, int]) -> Declined | None:
    """Why these knobs cannot schedule a kernel of this space, or None where they can."""
    if not space:
        return Declined(f"{kind} kernels have no knobs")
    if set(knobs) != set(space):
        given = shown(sorted(knobs))
        return Declined(f"{kind} kernels take {', '.join(space)}, not {given}")
    chosen: Knobs = {}
    for name, choices in space.items():
        value, choice = knobs[name], choices(chosen)
        if type(value) is not int or value not in choice:
            rest = ", ..." if len(choice) > _LISTED else ""
            listed = f"{', '.join(map(str, choice[:_LISTED]))}{rest}"
            return Declined(f"{name} {shown(value)} is none of {listed}")
        chosen[name] = value
    return None


_LISTED = 20


def choices_in(space: Space) -> Iterator[Knobs]:
    """Every legal choice of knobs."""

    def extend(chosen: Knobs, rest: list[tuple[str, Choices]]) -> Iterator[Knobs]:
        if not rest:
            yield chosen
            return
        (name, choices), *others = rest
        for value in choices(chosen):
            yield from extend({**chosen, name: value}, others)

    return extend({}, list(space.items())) if space else iter(())
