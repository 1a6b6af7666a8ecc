"""The measurements as Markdown, for `docs/performance.md`.

In: the bench's JSON files. Out: the text between two marks of that page, which a test holds to the
files in ``benchmarks/``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bngen.bench.forms import FORMS
from bngen.bench.turns import unsettled
from bngen.options import FUSION_CHOICES
from tests.readme.goals import shown, verdicts

Json = Mapping[str, Any]

BEGIN = "<!-- measured: generated from benchmarks/*.json -->\n"
END = "<!-- end of measured -->"
_SMALL = 0.02
"""Part of all kernels' time below which a kind of them has no row of its own."""
_VERDICTS = {"aim": "the aim, too", "reached": "reached", "missed": "**not reached**"}


def section(page: str) -> str:
    """What stands between the marks."""
    return re.search(f"{re.escape(BEGIN)}(.*?){re.escape(END)}", page, re.DOTALL)[1]


def with_section(page: str, text: str) -> str:
    """The page with another text between the marks."""
    return page.replace(f"{BEGIN}{section(page)}{END}", f"{BEGIN}{text}{END}")


def measured(files: Mapping[str, Json]) -> str:
    """A table for each race, one of each program's kernels, and one of the goals.

    Args:
        files: reports by the file's name, all of one machine; of none there is nothing to say.
    """
    if not files:
        return ""
    reports = list(files.values())
    machine = reports[0]["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    parts = [f"{machine['cpus']} CPUs of {machine['model']} ({machine['cpu']}); {versions}."]
    for name, report in files.items():
        parts.append(f"`benchmarks/{name}`, {_rounds(report)}:")
        parts += [_steps(race) for race in report["races"] if len(race["contenders"]) > 1]
        parts += map(_kernels, report["kernels"])
    goals = ["| goal | reach | aim | here | |", "|---|--:|--:|--:|---|"]
    for goal, value, verdict in verdicts(reports):
        numbers = (shown(n, goal.unit) for n in (goal.reach, goal.aim, value))
        goals.append(f"| {goal.what} | {' | '.join(numbers)} | {_VERDICTS[verdict]} |")
    if len(goals) > 2:
        parts.append("\n".join(goals))
    return "\n\n".join(parts) + "\n"


def _rounds(report: Json) -> str:
    """How often it was measured, and whether the machine let it."""
    rounds = len(report["races"][0]["contenders"][0]["step"]["samples"])
    noisy, all_turns = map(sum, zip(*map(unsettled, report["races"]), strict=True))
    capped = f"; {noisy} of {all_turns} turns ended before the time was stationary" if noisy else ""
    return f"medians of {rounds} turns{capped}"


def _steps(race: Json) -> str:
    size = f"{race['image']}x{race['image']}"
    lines = [
        f"| {race['program']}, batch {race['batch']}, {size} | forward | backward | step "
        "| over bngen's | peak memory | first step |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in race["contenders"]:
        name = f"bngen `{race['fusion']}`" if row["name"] == "bngen" else _name(row)
        if row["status"] == "unavailable":
            lines.append(f"| {name} | - | - | - | - | - | - |")
            continue
        ratio = row["ratio"]["step"]
        cells = (
            *(f"{1e3 * row[p]['median']:.0f} ms" for p in ("forward", "backward", "step")),
            f"{ratio['median']:.2f}x ({ratio['low']:.2f}-{ratio['high']:.2f})",
            f"{row['peak_bytes'] / 2**20:.0f} MiB",
            _start(row["startup"]),
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _kernels(part: Json) -> str:
    lines = [
        f"| kernels of {part['program']} | calls | all of them | % of peak | oneDNN's bare "
        "| its time over bngen's, mean | worst |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    least = _SMALL * sum(row["seconds"] for row in part["groups"])
    small = [row for row in part["groups"] if row["seconds"] < least]
    for row in (row for row in part["groups"] if row["seconds"] >= least):
        compared = row["compared"] > 0
        cells = (
            f"{row['direction']} {row['window']}",
            str(row["calls"]),
            f"{1e3 * row['seconds']:.0f} ms",
            f"{100 * row['peak_share']:.0f}",
            f"{1e3 * row['onednn_seconds']:.0f} ms" if compared else "",
            f"{row['ratio']:.2f}x" if compared else "",
            f"{row['worst']:.2f}x" if compared else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    if small:
        calls, seconds = (sum(row[what] for row in small) for what in ("calls", "seconds"))
        lines.append(f"| {len(small)} kinds more | {calls} | {1e3 * seconds:.0f} ms | | | | |")
    return "\n".join(lines)


def _name(row: Json) -> str:
    """A contender as a reader knows it: a fusion level, or a form of PyTorch."""
    if row["name"] in FUSION_CHOICES:
        return f"bngen `{row['name']}`"
    other = "" if row["precision"] == "float32" else f" *({row['precision']})*"
    if FORMS[row["name"]].compiler == "bngen":
        return f"PyTorch with bngen as its backend{other}"
    return f"PyTorch {row['name']}{other}"


def _start(startup: Json) -> str:
    warm = startup.get("warm")
    return f"{startup['total']:.0f} s" + (f", then {warm['total']:.1f} s" if warm else "")
