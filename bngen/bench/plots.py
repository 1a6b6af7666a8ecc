"""The measurements as PNG files: steps as bars, kernels under the roofline.

In: the bench's JSON and a folder. Out: ``steps.png``, unless kernels are all that was measured, and
``roofline-<program>.png`` for each program whose kernels were timed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

from bngen.errors import ToolchainError

matplotlib.use("Agg")  # no display is needed to write files
import matplotlib.pyplot as plt  # noqa: E402  (the backend is chosen before)

Json = Mapping[str, Any]
_MARKS = {"forward": "o", "data gradient": "^", "weight gradient": "s"}
_FUSION_ORDER = ("none", "rcf", "mvf", "bnff", "icf")


def draw(report: Json, folder: Path) -> list[Path]:
    """Write every plot that the report has numbers for.

    Raises:
        ToolchainError: when the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        raced = any(len(race["contenders"]) > 1 for race in report["races"])
        alone = report["kernels"] and not raced
        paths = [] if alone else [_save(_steps(report), folder / "steps.png")]
        for part in report["kernels"]:
            name = re.sub(r"[^\w.-]+", "_", part["program"])
            figure = _roofline(part, report["limits"])
            paths.append(_save(figure, folder / f"roofline-{name}.png"))
    except OSError as error:
        hint = "choose another --plot"
        raise ToolchainError(f"cannot write {folder}: {error.strerror}", hint=hint) from error
    return paths


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)
    return path


def bars(race: Json) -> list[tuple[str, Json]]:
    """The contenders that ran, PyTorch's first, then bngen's fusion levels from low to high."""
    rows = [r for r in race["contenders"] if r["status"] != "unavailable"]
    named = [(race["fusion"] if r["name"] == "bngen" else r["name"], r) for r in rows]
    torch = [(_told(name, r), r) for name, r in named if name not in _FUSION_ORDER]
    ours = sorted(
        ((name, r) for name, r in named if name in _FUSION_ORDER),
        key=lambda pair: _FUSION_ORDER.index(pair[0]),
    )
    return [*torch, *((f"bngen {_told(name, r)}", r) for name, r in ours)]


def _told(name: str, row: Json) -> str:
    """A contender's name, which says what is not float32."""
    return name if row["precision"] == "float32" else f"{name} ({row['precision']})"


def _steps(report: Json) -> Any:
    """Stacked bars of forward and backward, one panel a program, whiskers for the quartiles."""
    races = report["races"]
    figure, axes = plt.subplots(
        1, len(races), figsize=(1 + 4.2 * len(races), 4), squeeze=False, layout="constrained"
    )
    for axis, race in zip(axes[0], races, strict=True):
        rows = bars(race)
        names = [name for name, _ in rows]
        forward = [1e3 * r["forward"]["median"] for _, r in rows]
        step = [1e3 * r["step"]["median"] for _, r in rows]
        backward = [s - f for s, f in zip(step, forward, strict=True)]
        spread = [
            [1e3 * (r["step"]["median"] - r["step"]["low"]) for _, r in rows],
            [1e3 * (r["step"]["high"] - r["step"]["median"]) for _, r in rows],
        ]
        axis.bar(names, forward, label="forward", color="#4477aa")
        axis.bar(
            names, backward, bottom=forward, yerr=spread, capsize=3, label="backward",
            color="#ccbb44",
        )  # fmt: skip
        batch = f", batch {race['batch']}" if race["batch"] else ""
        axis.set_title(f"{race['program']}{batch}")
        plt.setp(axis.get_xticklabels(), rotation=45, ha="right", rotation_mode="anchor")
        axis.set_ylabel("ms a training step")
    # Beside the bars, which a legend among them would cover.
    named = axes[0][0].get_legend_handles_labels()
    figure.legend(*named, loc="outside upper right", ncols=2)
    return figure


def _roofline(part: Json, limits: Json) -> Any:
    """GFLOP/s of each kernel over its operations a byte, and what the machine can do.

    The operations are those of direct convolutions, so that both sides do the same; at Winograd's
    points a kernel can lie above the roof.
    """
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    rows = [{**r, "intensity": r["flops"] / r["bytes"]} for r in part["rows"]]
    ridge = limits["gflops"] / limits["gbytes"]
    lowest = min(ridge / 4, *(r["intensity"] / 1.5 for r in rows))
    highest = max(ridge * 4, *(r["intensity"] * 1.5 for r in rows))
    axis.plot(
        [lowest, ridge, highest],
        [lowest * limits["gbytes"], limits["gflops"], limits["gflops"]],
        color="black", label=f"{limits['gflops']:.0f} GFLOP/s, {limits['gbytes']:.1f} GB/s",
    )  # fmt: skip
    for direction, mark in _MARKS.items():
        own = [r for r in rows if r["direction"] == direction]
        if not own:
            continue
        at = [r["intensity"] for r in own]
        axis.scatter(at, [r["gflops"] for r in own], marker=mark, label=f"bngen, {direction}")
        compared = [r for r in own if r["onednn"]]
        axis.scatter(
            [r["intensity"] for r in compared],
            [r["flops"] / r["onednn"]["median"] / 1e9 for r in compared],
            marker=mark, facecolors="none", edgecolors="gray", linewidths=0.8,
        )  # fmt: skip
    axis.scatter([], [], facecolors="none", edgecolors="gray", label="oneDNN, bare")
    axis.set(xscale="log", yscale="log", xlabel="FLOP a byte (fused kernel)")
    axis.set_ylabel("GFLOP/s, operations of direct convolutions")
    axis.set_title(f"{part['program']}: convolution kernels with fused sub-layers")
    axis.legend(fontsize="small")
    return figure
