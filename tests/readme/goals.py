"""What bngen means to reach, and what a report says of it.

In: the bench's JSON. Out: a verdict for each goal that the report has numbers for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bngen.bench.forms import FORMS
from bngen.bench.samples import geometric_mean

Json = Mapping[str, Any]

_DENSENET = "densenet121"
_FRAMEWORK = tuple(
    name for name, form in FORMS.items() if form.precision == "float32" and form.compiler != "bngen"
)
"""PyTorch at what bngen computes in; what is faster for being less exact is another race."""
_HALF = tuple(
    name
    for name, form in FORMS.items()
    if form.precision == "bfloat16" and form.compiler != "bngen"
)
_OUR_HALF = "backend-bf16"
"""bngen under PyTorch's autocast, and PyTorch under it."""


@dataclass(frozen=True)
class Goal:
    """A number to reach.

    Attributes:
        what: what is measured.
        unit: ``x``, ``%``, ``s`` or ``ms``.
        reach: what it must come to.
        aim: what it should come to.
        of: reports to the number, None where they do not have it.
        least: whether less is better.
    """

    what: str
    unit: str
    reach: float
    aim: float
    of: Callable[[Sequence[Json]], float | None]
    least: bool = False

    def verdict(self, value: float) -> str:
        """``aim``, ``reached`` or ``missed``."""
        good = -1 if self.least else 1
        if good * value >= good * self.aim:
            return "aim"
        return "reached" if good * value >= good * self.reach else "missed"


def verdicts(reports: Sequence[Json]) -> list[tuple[Goal, float, str]]:
    """Each goal that the reports have a number for, the number, and what it amounts to."""
    found = ((goal, goal.of(reports)) for goal in GOALS)
    return [(goal, value, goal.verdict(value)) for goal, value in found if value is not None]


def shown(value: float, unit: str) -> str:
    """A number with its unit."""
    return f"{value:.0f} %" if unit == "%" else f"{value:.2f}{'' if unit == 'x' else ' '}{unit}"


def _rows(reports: Sequence[Json], program: str, batch: int) -> dict[str, Json]:
    """The contenders that took part in a race, by name.

    Of several races the first counts that was run for its steps; then one from empty caches, which
    has few turns, since it is about the first step; last one of bngen alone, about its kernels.
    """

    def rank(race: Json) -> tuple[bool, bool]:
        cold = any("warm" in row.get("startup", {}) for row in race["contenders"])
        return len(race["contenders"]) == 1, cold

    rows = [row for race in sorted(_races(reports, program, batch), key=rank, reverse=True)
            for row in race["contenders"] if row["status"] == "ok"]  # fmt: skip
    return {row["name"]: row for row in rows}


def _races(reports: Sequence[Json], program: str, batch: int) -> list[Json]:
    """All of a program, the last first."""
    races = [r for report in reports for r in report["races"]]
    return [r for r in reversed(races) if (r["program"], r["batch"]) == (program, batch)]


def _against(
    names: Iterable[str], program: str = _DENSENET, batch: int = 8
) -> Callable[[Sequence[Json]], float | None]:
    """How many times longer the fastest of several contenders takes."""

    return lambda reports: _times(_rows(reports, program, batch), names)


def _times(rows: Mapping[str, Json], names: Iterable[str]) -> float | None:
    """The least time of these, in steps of bngen's."""
    return min((rows[n]["ratio"]["step"]["median"] for n in names if n in rows), default=None)


def _between(
    ours: str, others: Iterable[str], program: str
) -> Callable[[Sequence[Json]], float | None]:
    """How many times longer than one contender the fastest of others takes."""

    def value(reports: Sequence[Json]) -> float | None:
        rows = _rows(reports, program, 8)
        own, other = _times(rows, [ours]), _times(rows, others)
        return other / own if own and other else None

    return value


def _kernels(reports: Sequence[Json]) -> list[Json]:
    wanted = (_DENSENET, "resnet50")
    parts = {p["program"]: p for report in reports for p in report["kernels"]}
    return [parts[name] for name in wanted if name in parts]


def _kernel_ratios(reports: Sequence[Json]) -> list[float]:
    rows = (row for part in _kernels(reports) for row in part["rows"])
    return [row["ratio"]["median"] for row in rows if row["ratio"]]


def _mean_kernel(reports: Sequence[Json]) -> float | None:
    found = _kernel_ratios(reports)
    return geometric_mean(found) if found else None


def _busy_share(reports: Sequence[Json]) -> float | None:
    own = [p for p in _kernels(reports) if p["program"] == _DENSENET]
    return 100 * own[0]["summary"]["busy_share"] if own else None


def _memory(reports: Sequence[Json]) -> float | None:
    """Of bngen's own module: what its backend takes when it compiles is not the step's."""
    rows = _rows(reports, _DENSENET, 8)
    least = min((rows[n]["peak_bytes"] for n in _FRAMEWORK if n in rows), default=None)
    return rows["bngen"]["peak_bytes"] / least if least and "bngen" in rows else None


def _start(reports: Sequence[Json], warm: bool) -> float | None:
    races = _races(reports, _DENSENET, 8)
    own = [row for race in races for row in race["contenders"] if row["name"] == "bngen"]
    # Others have not begun with empty caches.
    found = [row["startup"] for row in own if "warm" in row.get("startup", {})]
    if not found:
        return None
    return found[0]["warm"]["total"] if warm else found[0]["total"]


def _overhead(reports: Sequence[Json]) -> float | None:
    seconds = _rows(reports, _DENSENET, 8).get("bngen", {}).get("overhead")
    return None if seconds is None else 1e3 * seconds


GOALS = (
    Goal("densenet121, batch 8: PyTorch's fastest", "x", 2.4, 2.8, _against(_FRAMEWORK)),
    Goal("resnet50, batch 8: PyTorch's fastest", "x", 1.7, 2.0,
         _against(_FRAMEWORK, "resnet50")),
    Goal("mobilenet_v2, batch 8: PyTorch's fastest", "x", 2.9, 3.6,
         _against(_FRAMEWORK, "mobilenet_v2")),
    Goal("densenet121, batch 32: PyTorch's fastest", "x", 2.8, 3.6,
         _against(_FRAMEWORK, batch=32)),
    Goal("densenet121, batch 32: eager with jemalloc", "x", 1.6, 1.6,
         _against(("jemalloc",), batch=32)),
    Goal("densenet121 in bfloat16: PyTorch's autocast", "x", 2.0, 2.4,
         _between(_OUR_HALF, _HALF, _DENSENET)),
    Goal("resnet50 in bfloat16: PyTorch's autocast", "x", 1.4, 1.8,
         _between(_OUR_HALF, _HALF, "resnet50")),
    Goal("mobilenet_v2 in bfloat16: PyTorch's autocast", "x", 2.5, 3.5,
         _between(_OUR_HALF, _HALF, "mobilenet_v2")),
    Goal("densenet121 in bfloat16: bngen in float32", "x", 1.6, 1.9,
         _between(_OUR_HALF, ["backend"], _DENSENET)),
    Goal("resnet50 in bfloat16: bngen in float32", "x", 1.6, 1.9,
         _between(_OUR_HALF, ["backend"], "resnet50")),
    Goal("kernels, geometric mean: oneDNN's bare convolution", "x", 1.2, 1.35, _mean_kernel),
    Goal("kernels, the worst: oneDNN's bare convolution", "x", 0.75, 0.9,
         lambda reports: min(_kernel_ratios(reports), default=None)),
    Goal("share of FMA peak by operations performed, DenseNet-121", "%", 75, 85, _busy_share),
    Goal("densenet121, batch 8: fusion none", "x", 1.257, 1.5, _against(("none",))),
    Goal("densenet121, batch 8: fused BN baseline (mvf)", "x", 1.15, 1.3, _against(("mvf",))),
    Goal("densenet121, batch 8: memory of PyTorch", "x", 0.5, 0.35, _memory, least=True),
    Goal("densenet121: first step, empty cache", "s", 35, 20,
         lambda reports: _start(reports, warm=False), least=True),
    Goal("densenet121: first step, warm cache", "s", 1, 0.5,
         lambda reports: _start(reports, warm=True), least=True),
    Goal("densenet121: a step without its kernels", "ms", 5, 1, _overhead, least=True),
)  # fmt: skip
"""Ratios are the other's time over bngen's, but for memory: bngen's bytes over the other's."""
