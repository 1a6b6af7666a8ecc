"""A turn: steps in a row until their time is stationary, and the last of them count.

In: a step that can be taken. Out: a `Turn`. Whoever has waited is cold: caches hold the other
contenders' data, threads sleep, an allocator has given memory back. A training loop meets that once
and then never again, so the steps in which it wears off are taken and discarded.

The rule compares two neighbouring windows of steps::

    t t t t t t [t t t] [t t t]    stationary once both medians agree; the last window counts
                earlier  latest

and moves on by a third of a window until they do. A time that still falls makes them differ, a
single outlier does not. On a machine too noisy for that the cap ends the turn, which then says so.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PHASES = ("forward", "backward", "step")
"""What is timed; the whole step is forward and backward together."""

Times = Mapping[str, float]
"""Seconds of a step by its parts."""


@dataclass(frozen=True)
class Rule:
    """When a turn's time is stationary, and when to stop waiting for that.

    Attributes:
        window: steps of a window, at least.
        span: seconds that a window lasts, at least.
        tolerance: how far the medians of two windows may lie apart, relatively.
        windows: the cap, in windows, ...
        seconds: ... and in seconds; whichever comes first, but never before there are two windows.
    """

    window: int = 3
    span: float = 0.5
    tolerance: float = 0.02
    windows: int = 4
    seconds: float = 30.0

    def length(self, seconds: Sequence[float]) -> int:
        """Steps of a window, by the first few times."""
        usual = statistics.median(seconds)
        return max(self.window, math.ceil(self.span / usual) if usual > 0 else 0)

    def stationary(self, seconds: Sequence[float], length: int) -> bool:
        """Whether the medians of the last two windows agree."""
        if len(seconds) < 2 * length:
            return False
        earlier = statistics.median(seconds[-2 * length : -length])
        latest = statistics.median(seconds[-length:])
        return abs(latest - earlier) <= self.tolerance * min(earlier, latest)

    def over(self, seconds: Sequence[float], length: int) -> bool:
        """Whether the cap is reached."""
        long = len(seconds) >= self.windows * length or sum(seconds) >= self.seconds
        return long and len(seconds) >= 2 * length


STEPS = Rule()
"""For training steps."""

CALLS = Rule(span=0.0)
"""For calls of one kernel, each of which stands for several that last long enough together."""


@dataclass(frozen=True)
class Turn:
    """What a turn came to.

    Attributes:
        counted: seconds of the steps that count, in order.
        discarded: steps taken before those.
        stationary: whether the time was stationary, or the cap ended the turn.
    """

    counted: tuple[float, ...]
    discarded: int
    stationary: bool


def take(step: Callable[[], float], rule: Rule = STEPS) -> Turn:
    """Take steps until the rule is content.

    Args:
        step: takes one and returns its seconds.
        rule: when to stop.
    """
    seconds = [step() for _ in range(rule.window)]
    length = rule.length(seconds)
    while True:
        seconds += [step() for _ in range(max(1, length // rule.window))]
        settled = rule.stationary(seconds, length)
        if settled or rule.over(seconds, length):
            discarded = len(seconds) - length
            return Turn(tuple(seconds[discarded:]), discarded, settled)


def take_steps(step: Callable[[], Times], rule: Rule = STEPS) -> dict[str, float | int | bool]:
    """A turn of training steps, as a line of the race's protocol.

    Args:
        step: takes one and returns its ``forward`` and ``backward`` seconds.
        rule: when to stop; by the whole step.

    Returns:
        The medians of `PHASES` over the steps that count, how many ``steps`` these are, how many
        were ``discarded``, and whether the time was ``stationary``.
    """
    taken: list[Times] = []

    def whole() -> float:
        taken.append(step())
        return taken[-1]["forward"] + taken[-1]["backward"]

    turn = take(whole, rule)
    counted = taken[turn.discarded :]
    return {
        "forward": statistics.median(t["forward"] for t in counted),
        "backward": statistics.median(t["backward"] for t in counted),
        "step": statistics.median(turn.counted),
        "steps": len(counted),
        "discarded": turn.discarded,
        "stationary": turn.stationary,
    }


def unsettled(race: Mapping[str, Any]) -> tuple[int, int]:
    """Of a race in the bench's JSON: turns that the cap has ended, and all turns."""
    taken = [row["turns"] for row in race["contenders"] if "turns" in row]
    stationary = [s for turns in taken for s in turns["stationary"]]
    return stationary.count(False), len(stationary)
