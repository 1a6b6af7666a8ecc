"""The ablation as PNG files, in the manner of the paper's figures.

In: the ablation's JSON and a folder. Out: ``ablation-time.png`` and ``ablation-traffic.png``: a bar
a level, divided into kinds of work. Traffic is what the plan counts; where it was measured, at a
smaller size, what of it a cache brings in stands beside, counted and measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

from bngen.errors import ToolchainError

matplotlib.use("Agg")  # no display is needed to write files
import matplotlib.pyplot as plt  # noqa: E402  (the backend is chosen before)

Json = Mapping[str, Any]
COLOURS = {
    "CONV": "#3b6fb6", "BN": "#d98324", "ReLU": "#b8a11f", "sum": "#4b9b6e", "pool": "#8a63b8",
    "copy": "#8d98a5", "other": "#b3626a", "overhead": "#444444",
}  # fmt: skip
"""Kinds of work, from the bottom of a bar to its top."""


def draw(report: Json, folder: Path) -> list[Path]:
    """Write the plots.

    Raises:
        ToolchainError: when the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [
            _save(_time(report), folder / "ablation-time.png"),
            _save(_traffic(report), folder / "ablation-traffic.png"),
        ]
    except OSError as error:
        hint = "choose another --plot"
        raise ToolchainError(f"cannot write {folder}: {error.strerror}", hint=hint) from error


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)
    return path


def _time(report: Json) -> Any:
    """Milliseconds of each kind of work; the whole step, measured by itself, as a mark.

    Where kernels that are watched take longer than the step, the mark lies within the bar.
    """
    figure, axes = _panels(1, len(report["programs"]))
    for axis, part in zip(axes[0], report["programs"], strict=True):
        rows = {
            level: {work: 1e3 * max(0.0, sum(c.values())) for work, c in row["work"].items()}
            for level, row in part["levels"].items()
        }
        names = _bars(axis, report, rows)
        steps = [1e3 * row["step"]["median"] for row in part["levels"].values()]
        axis.plot(names, steps, "k_", markersize=26, label="whole step")
        axis.set_title(_titled(part["program"], part["batch"], part["image"]))
        axis.set_ylabel("ms a training step")
        axis.set_ylim(0.0, 1.06 * axis.dataLim.ymax)
    _legend(figure)
    return figure


def _traffic(report: Json) -> Any:
    """MiB that kernels of each kind of work read and write: counted, and measured where it was.

    A row a program.
    """
    rows = [_traffic_panels(part) for part in report["programs"]]
    figure, axes = _panels(len(rows), max(map(len, rows)))
    for line, panels in zip(axes, rows, strict=True):
        for axis, (title, bars) in zip(line, panels, strict=False):
            _bars(axis, report, bars)
            axis.set_title(title, fontsize="medium")
            axis.set_ylabel("MiB a training step")
        for axis in line[len(panels) :]:
            axis.set_visible(False)
        top = max((1.06 * axis.dataLim.ymax for axis in line[1 : len(panels)]), default=0.0)
        for axis in line[1 : len(panels)]:  # these two are to be compared
            axis.set_ylim(0.0, top)
    _legend(figure)
    return figure


def _traffic_panels(part: Json) -> list[tuple[str, dict[str, dict[str, float]]]]:
    """Titles and bars of a program."""
    counted = {level: row["bytes_by_work"] for level, row in part["levels"].items()}
    title = _titled(part["program"], part["batch"], part["image"])
    panels = [(f"{title}\ncounted from the plan", _mib(counted))]
    found = part["measured"]
    if "levels" not in found or not all("by_work" in row for row in found["levels"].values()):
        return panels
    title = _titled(part["program"], found["batch"], found["image"])
    for kind, what in (("fetched", "counted"), ("measured", "measured")):
        rows = {
            level: {w: b[kind] for w, b in row["by_work"].items()}
            for level, row in found["levels"].items()
        }
        panels.append((f"{title}\nbrought into a small cache, {what}", _mib(rows)))
    return panels


def _titled(program: str, batch: int | None, image: int | None) -> str:
    name = Path(program.partition(":")[0]).stem
    sizes = (f"batch {batch}" if batch else "", f"{image}x{image}" if image else "")
    return ", ".join(filter(None, (name, *sizes)))


def _mib(rows: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, float]]:
    return {level: {w: b / 2**20 for w, b in row.items()} for level, row in rows.items()}


def _panels(lines: int, columns: int) -> tuple[Any, Any]:
    size = 1.6 + 3.8 * columns, 3.9 * lines
    return plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")


def _legend(figure: Any) -> None:
    """One for all panels, in the order of `COLOURS`."""
    handles = {}
    for axis in figure.axes:
        shown, names = axis.get_legend_handles_labels()
        handles |= dict(zip(names, shown, strict=True))
    order = [name for name in (*reversed(COLOURS), "whole step") if name in handles]
    figure.legend(
        [handles[name] for name in order],
        order,
        fontsize="small",
        loc="outside right upper",
        markerscale=0.4,
    )


def _bars(axis: Any, report: Json, rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Stacked bars, a level each; their names."""
    names = [report["levels"][level] for level in rows]
    bottom = [0.0] * len(rows)
    for work, colour in COLOURS.items():
        heights = [row.get(work, 0.0) for row in rows.values()]
        if any(heights):
            axis.bar(names, heights, bottom=bottom, color=colour, label=work)
            bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    return names
