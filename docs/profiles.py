"""The profiles of ``benchmarks/profile`` in the documentation: ``python docs/profiles.py``.

In: what ``bngen profile NETWORK --fusion LEVEL --json`` has printed into
``benchmarks/profile/LEVEL.json``, of levels `LEVELS`. Out: the text between two marks of
``see.md``, and the pictures that it shows. Nothing is measured here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from bngen.bench.ablation_plots import COLOURS

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend is chosen before)

Json = Mapping[str, Any]

HERE = Path(__file__).parent
RECORDED = HERE.parent / "benchmarks" / "profile"
PAGE = HERE / "see.md"
LEVELS = "none", "icf"
BEGIN = "<!-- profiles: generated from benchmarks/profile/*.json -->\n"
END = "<!-- end of profiles -->"
SMALL = 64 << 10
"""Bytes up to which starting a kernel takes as long as what it does."""


def recorded() -> list[Json]:
    """The profiles of `LEVELS`, or none where one is missing."""
    paths = [RECORDED / f"{level}.json" for level in LEVELS]
    return [json.loads(p.read_text()) for p in paths] if all(p.exists() for p in paths) else []


def with_section(page: str, text: str) -> str:
    """The page with another text between the marks."""
    return re.sub(
        f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: f"{BEGIN}{text}{END}", page,
        flags=re.DOTALL,
    )  # fmt: skip


def section(found: Sequence[Json]) -> str:
    """What stands between the marks; nothing where nothing was measured."""
    if not found:
        return ""
    before, after = found
    limits, machine = after["limits"], after["machine"]
    ms = [1e3 * p["step"]["step"] for p in found]
    return (
        f"The same, measured by `bngen profile` on {machine['cpus']} CPUs of {machine['model']} "
        f"({machine['cpu']}): {after['program']}'s step takes {ms[0]:.0f} ms at `{LEVELS[0]}` and "
        f"{ms[1]:.0f} ms at `{LEVELS[1]}`, on {after['threads']} threads. The roof is what was "
        f"measured there, too: {limits['gflops']:.0f} GFLOP/s, {limits['gbytes']:.1f} GB/s. A "
        "kernel above the slope reads from a cache.\n\n"
        "![Kernels under the roofline, measured, before and after fusion]"
        "(pictures/roofline-measured.png)\n\n"
        "![A training step from left to right, measured, before and after fusion]"
        "(pictures/timeline-measured.png)\n"
    )  # fmt: skip


def roofline(found: Sequence[Json], path: Path) -> None:
    """Every kernel where its operations a byte and its speed are; areas are milliseconds."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for axis, profile in zip(axes, found, strict=True):
        limits = profile["limits"]
        ridge = limits["gflops"] / limits["gbytes"]
        rows = [k for k in profile["kernels"] if k["nbytes"] > SMALL and k["operations"]]
        axis.plot([0.03, ridge, 400], [0.03 * limits["gbytes"], *[limits["gflops"]] * 2], "k-")
        for work, colour in COLOURS.items():
            own = [k for k in rows if k["work"] == work]
            axis.scatter(
                [k["operations"] / k["nbytes"] for k in own],
                [k["operations"] / max(k["seconds"], 1e-9) / 1e9 for k in own],
                s=[3e4 * k["seconds"] for k in own], color=colour, alpha=0.5,
                label=work if own else "_",
            )  # fmt: skip
        axis.set_title(f"{profile['fusion']}: {1e3 * profile['step']['step']:.0f} ms a step")
        axis.set(xscale="log", yscale="log", xlabel="operations a byte")
        axis.set_ylim(0.2, 3 * limits["gflops"])
    axes[0].set_ylabel("GFLOP/s that it reaches")
    for handle in axes[0].legend(fontsize="small", loc="lower right").legend_handles:
        handle.set_sizes([30])
    _save(figure, path)


def timeline(found: Sequence[Json], path: Path) -> None:
    """A training step from left to right, each kernel in the time that it takes by itself."""
    figure, axis = plt.subplots(figsize=(11, 2.6), layout="constrained")
    for y, profile in enumerate(found):
        left = 0.0
        for row in profile["kernels"]:
            width = 1e3 * row["seconds"]
            axis.barh(y, width, left=left, color=COLOURS[row["work"]], height=0.7)
            left += width
        own = [k for k in profile["kernels"] if k["call"] == "forward"]
        forward = 1e3 * sum(k["seconds"] for k in own)
        axis.plot([forward] * 2, [y - 0.42, y + 0.42], "k-", lw=1)
        axis.text(left, y, f" {left:.0f} ms", va="center", fontsize=9)
    axis.set_yticks(range(len(found)), [p["fusion"] for p in found])
    axis.invert_yaxis()
    axis.margins(x=0.06)
    axis.set_xlabel("ms, each kernel timed by itself; the line: forward ends")
    works = [w for w in COLOURS if any(k["work"] == w for p in found for k in p["kernels"])]
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[w]) for w in works]
    axis.legend(handles, works, fontsize="small", loc="upper right", ncols=len(works),
                bbox_to_anchor=(1.0, 1.28))  # fmt: skip
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    profiles = recorded()
    PAGE.write_text(with_section(PAGE.read_text(), section(profiles)))
    if profiles:
        roofline(profiles, HERE / "pictures" / "roofline-measured.png")
        timeline(profiles, HERE / "pictures" / "timeline-measured.png")
