"""The pictures of the documentation, drawn anew: ``python docs/pictures.py``.

In: plans of built-in networks, and the limits of a machine that ``benchmarks/znver4/kernels.json``
has. Out: PNG files in ``docs/pictures``. Nothing is measured here: times are the least that the
limits allow for what the plan says a kernel moves and does.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import matplotlib

from bngen import cache
from bngen.explain.gather import explained
from bngen.explain.report import KernelRow
from bngen.options import FUSION_CHOICES
from bngen.programs import step_program, trained

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend is chosen before)

HERE = Path(__file__).parent
LIMITS = json.loads((HERE.parent / "benchmarks" / "znver4" / "kernels.json").read_text())["limits"]
TARGET = "llvm -mcpu=x86-64-v4"
COLOURS = {
    "CONV": "#3b6fb6", "BN": "#d98324", "ReLU": "#b8a11f", "sum": "#4b9b6e", "pool": "#8a63b8",
    "copy": "#8d98a5", "other": "#b3626a",
}  # fmt: skip


@functools.cache
def kernels(fusion: str, program: str = "densenet121") -> tuple[KernelRow, ...]:
    """The kernels of a training step."""
    graph = step_program(program, 8, 224)
    wrt = trained(graph.graph)
    found = explained(graph, cache.target(TARGET), fusion=fusion, grad=True, wrt=wrt)
    return found.report.kernels


def least(row: KernelRow) -> float:
    """The least seconds that the limits allow."""
    by_memory = row.traffic.nbytes / LIMITS["gbytes"]
    return max(by_memory, row.operations / LIMITS["gflops"]) / 1e9


def roofline(path: Path) -> None:
    """Every kernel under the roof, before and after fusion; areas are bytes."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    ridge = LIMITS["gflops"] / LIMITS["gbytes"]
    for axis, level in zip(axes, ("none", "icf"), strict=True):
        over = [k for k in kernels(level) if k.traffic.map_bytes]
        rows = [k for k in over if k.operations]  # a copy has no place among logarithms
        axis.plot([0.03, ridge, 3000], [0.03 * LIMITS["gbytes"], *[LIMITS["gflops"]] * 2], "k-")
        for work, colour in COLOURS.items():
            own = [k for k in rows if k.work == work]
            axis.scatter(
                [k.intensity for k in own],
                [k.operations / least(k) / 1e9 for k in own],
                s=[k.traffic.nbytes / 2e5 for k in own], color=colour, alpha=0.5, label=work,
            )  # fmt: skip
        moved = sum(k.traffic.map_bytes for k in over) / 2**30
        copied = f", {len(over) - len(rows)} of them copies" if len(over) > len(rows) else ""
        axis.set_title(f"{level}: {moved:.1f} GiB of maps by {len(over)} kernels{copied}")
        axis.title.set_fontsize(11)
        axis.set(xscale="log", yscale="log", xlabel="operations a byte")
    axes[0].set_ylabel("GFLOP/s that the machine allows")
    legend = axes[0].legend(fontsize="small", loc="lower right")
    for handle in legend.legend_handles:
        handle.set_sizes([30])
    _save(figure, path)


def of_layer(level: str, layer: str, call: str) -> list[KernelRow]:
    """The kernels over feature maps that a dense layer is computed by.

    Besides those that are built around its own layers these are the concatenation that it reads and
    the sum of gradients, which are of no one layer.
    """
    rows = kernels(level)
    block = layer.rpartition(".")[0]
    own = [k for k in rows if (k.call, k.layer[: len(layer)]) == (call, layer)]
    joins = [rows[i] for i in dict.fromkeys(i for k in own for i in k.sources)
             if rows[i].work in ("copy", "sum") and rows[i].call == call
             and not rows[i].layer.startswith(block)]  # fmt: skip
    return [k for k in (*joins, *own) if k.traffic.map_bytes]


def levels(path: Path) -> None:
    """What each level moves in one dense layer, forward and backward, kernel by kernel."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    layer = "features.denseblock1.denselayer3"
    for axis, call in zip(axes, ("forward", "backward"), strict=True):
        for y, level in enumerate(FUSION_CHOICES):
            left = 0.0
            rows = of_layer(level, layer, call)
            for row in rows:
                width = row.traffic.map_bytes / 2**20
                axis.barh(y, width, left=left, color=COLOURS[row.work], edgecolor="white")
                left += width
            axis.text(left, y, f" {len(rows)} kernels", va="center", fontsize=8)
        axis.set_yticks(range(len(FUSION_CHOICES)), FUSION_CHOICES)
        axis.invert_yaxis()
        axis.margins(x=0.16)
        axis.set(title=f"{layer}, {call}", xlabel="MiB of feature maps read and written")
        axis.title.set_fontsize(10)
    handles = [plt.Rectangle((0, 0), 1, 1, color=c) for c in COLOURS.values()]
    figure.legend(handles, COLOURS, fontsize="small", loc="outside lower center", ncols=7)
    _save(figure, path)


def timeline(path: Path) -> None:
    """A training step from left to right, before and after fusion, in its least time."""
    figure, axis = plt.subplots(figsize=(11, 2.6), layout="constrained")
    for y, level in enumerate(("none", "icf")):
        left = 0.0
        for row in kernels(level):
            width = 1e3 * least(row)
            axis.barh(y, width, left=left, color=COLOURS[row.work], height=0.7)
            left += width
        forward = 1e3 * sum(least(k) for k in kernels(level) if k.call == "forward")
        axis.plot([forward] * 2, [y - 0.42, y + 0.42], "k-", lw=1)
        axis.text(left, y, f" {left:.0f} ms", va="center", fontsize=9)
    axis.set_yticks([0, 1], ["none", "icf"])
    axis.invert_yaxis()
    axis.margins(x=0.06)
    axis.set_xlabel(
        f"ms at {LIMITS['gflops']:.0f} GFLOP/s and {LIMITS['gbytes']:.0f} GB/s; the line: forward "
        "ends"
    )
    handles = [plt.Rectangle((0, 0), 1, 1, color=c) for c in COLOURS.values()]
    axis.legend(handles, COLOURS, fontsize="small", loc="upper right", ncols=7,
                bbox_to_anchor=(1.0, 1.28))  # fmt: skip
    _save(figure, path)


def _save(figure, path: Path) -> None:
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    folder = HERE / "pictures"
    folder.mkdir(exist_ok=True)
    for draw in (roofline, levels, timeline):
        draw(folder / f"{draw.__name__}.png")
