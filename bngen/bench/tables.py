"""The measurements as tables that people read in a terminal.

In: the bench's JSON. Out: text on standard output, drawn by rich.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from bngen.bench.samples import PHASES

Json = Mapping[str, Any]


def show(report: Json) -> None:
    """Print every table of a report."""
    # Piped, rich would assume 80 columns and cut cells.
    console = Console(highlight=False, width=None if Console().is_terminal else 140)
    console.print(_machine_line(report["machine"]))
    for race in report["races"]:
        console.print(steps_table(race))
        for row in race["contenders"]:
            if row["reason"]:
                console.print(f"{row['name']} {row['status']}: {row['reason']}", markup=False)
    if limits := report.get("limits"):
        console.print(
            f"limits of this machine: {limits['gflops']:.0f} GFLOP/s (FMA), "
            f"{limits['gbytes']:.1f} GB/s (copy, read and written bytes)"
        )
    for part in report["kernels"]:
        console.print(kernels_table(part))


def _machine_line(machine: Json) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    return f"{machine['cpu']} ({machine['model']}), {machine['cpus']} CPUs; {versions}"


def steps_table(race: Json) -> Table:
    """One row a contender: median milliseconds, and ratios with their quartiles."""
    image = f", {race['image']}x{race['image']}" if race["image"] else ""
    batch = f", batch {race['batch']}" if race["batch"] else ""
    rounds = len(race["contenders"][0]["step"]["samples"])
    table = Table(
        title=f"{race['program']}{batch}{image}: ms, medians of {rounds} rounds",
        caption="ratio: the contender's step over bngen's, median (quartiles) of pairs",
    )
    table.add_column("contender")
    for head in (*PHASES, "ratio", "peak MiB", "build s", "first step s"):
        table.add_column(head, justify="right")
    for row in race["contenders"]:
        name = f"bngen {race['fusion']}" if row["name"] == "bngen" else row["name"]
        if row["status"] == "unavailable":
            table.add_row(name, *["-"] * 7)
            continue
        ratio, startup = row["ratio"]["step"], row["startup"]
        table.add_row(
            name,
            *(f"{1e3 * row[p]['median']:.1f}" for p in PHASES),
            f"{ratio['median']:.2f}x ({ratio['low']:.2f}-{ratio['high']:.2f})",
            f"{row['peak_bytes'] / 2**20:.0f}",
            _cold_and_warm(startup, "build"),
            _cold_and_warm(startup, "first_step"),
        )
    return table


def _cold_and_warm(startup: Json, key: str) -> str:
    warm = startup.get("warm")
    return f"{startup[key]:.1f}" + (f" / warm {warm[key]:.1f}" if warm else "")


def kernels_table(part: Json) -> Table:
    """One row a distinct convolution kernel, and the summary in the caption."""
    table = Table(
        title=f"{part['program']}: convolution kernels with their fused sub-layers, and oneDNN's "
        "bare convolutions",
        caption=_summary_line(part["summary"]),
    )
    for head in ("direction", "convolution"):
        table.add_column(head, no_wrap=True)
    for head in ("fused", "calls", "us", "GFLOP/s", "% peak", "% roofline", "oneDNN us", "ratio"):
        table.add_column(head, justify="right")
    for row in part["rows"]:
        bare = row["onednn"]
        table.add_row(
            row["direction"], row["shape"], f"+{len(row['sublayers'].split()) - 1}",
            str(row["calls"]),
            f"{1e6 * row['time']['median']:.0f}", f"{row['gflops']:.0f}",
            f"{100 * row['peak_share']:.0f}", f"{100 * row['roofline_share']:.0f}",
            f"{1e6 * bare['median']:.0f} {bare['layout']}" if bare else "none",
            f"{row['ratio']['median']:.2f}x" if bare else "",
        )  # fmt: skip
    return table


def _summary_line(total: Json) -> str:
    peak = f"{100 * total['peak_share']:.0f} % of FMA peak, FLOP-weighted"
    if not total["compared"]:
        return peak
    alone = total["kernels"] - total["compared"]
    missing = f"; {alone} without a counterpart" if alone else ""
    speed = f"geometric mean {total['ratio']:.2f}x oneDNN's speed, worst {total['worst']:.2f}x"
    return f"{speed}; {peak}{missing}"
