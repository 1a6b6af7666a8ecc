"""The measurements as tables that people read in a terminal.

In: the bench's JSON. Out: text, drawn by rich for the terminal where standard output goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from bngen.bench.turns import PHASES, unsettled

Json = Mapping[str, Any]

SLOWEST = 10
"""Kernels that are listed one by one; all are in the JSON."""
LEAST_WIDTH = 140
"""Columns in which no table is cut: with fewer rich would cut numbers. A terminal breaks lines."""


def text(report: Json) -> str:
    """Every table of a report."""
    # A program may be called like rich's markup: /home/[me]/net.py.
    width = max(Console().width, LEAST_WIDTH)
    console = Console(highlight=False, markup=False, width=width)
    with console.capture() as captured:
        _print(console, report)
    return captured.get()


def _print(console: Console, report: Json) -> None:
    console.print(_machine_line(report["machine"]))
    for race in report["races"]:
        console.print(steps_table(race))
        for row in race["contenders"]:
            if row["reason"]:
                console.print(f"{row['name']} {row['status']}: {row['reason']}")
    if limits := report.get("limits"):
        console.print(
            f"limits of this machine: {limits['gflops']:.0f} GFLOP/s (FMA), "
            f"{limits['gbytes']:.1f} GB/s (copy, read and written bytes)"
        )
    for part in report["kernels"]:
        console.print(groups_table(part))
        console.print(slowest_table(part))


def _machine_line(machine: Json) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    return f"{machine['cpu']} ({machine['model']}), {machine['cpus']} CPUs; {versions}"


def steps_table(race: Json) -> Table:
    """One row a contender: median milliseconds, and ratios with their quartiles."""
    image = f", {race['image']}x{race['image']}" if race["image"] else ""
    batch = f", batch {race['batch']}" if race["batch"] else ""
    rounds = len(race["contenders"][0]["step"]["samples"])
    noisy, turns = unsettled(race)
    capped = f"; {noisy} of {turns} turns ended before the time was stationary" if noisy else ""
    table = Table(
        title=f"{race['program']}{batch}{image}: ms, medians of {rounds} turns",
        caption=f"ratio: the contender's step over bngen's, median (quartiles) of pairs{capped}",
    )
    table.add_column("contender")
    for head in (*PHASES, "ratio", "peak MiB", "overhead ms", "first step s"):
        table.add_column(head, justify="right")
    for row in race["contenders"]:
        name = f"bngen {race['fusion']}" if row["name"] == "bngen" else row["name"]
        if row["precision"] != "float32":
            name = f"{name} ({row['precision']})"
        if row["status"] == "unavailable":
            table.add_row(name, *["-"] * 7)
            continue
        ratio, startup = row["ratio"]["step"], row["startup"]
        table.add_row(
            name,
            *(f"{1e3 * row[p]['median']:.1f}" for p in PHASES),
            f"{ratio['median']:.2f}x ({ratio['low']:.2f}-{ratio['high']:.2f})",
            f"{row['peak_bytes'] / 2**20:.0f}",
            "-" if row["overhead"] is None else f"{1e3 * row['overhead']:.1f}",
            _cold_and_warm(startup),
        )
    return table


def _cold_and_warm(startup: Json) -> str:
    """Seconds from the start of a process to the end of its first step."""
    warm = startup.get("warm")
    return f"{startup['total']:.1f}" + (f" / warm {warm['total']:.1f}" if warm else "")


def groups_table(part: Json) -> Table:
    """One row a direction and window, and the summary in the caption."""
    table = Table(
        title=f"{part['program']}: convolution kernels with their fused sub-layers, and oneDNN's "
        "bare convolutions",
        caption=_summary_line(part["summary"]),
    )
    for head in ("direction", "window"):
        table.add_column(head, no_wrap=True)
    for head in ("kernels", "calls", "ms", "% peak", "oneDNN ms", "ratio, mean", "worst"):
        table.add_column(head, justify="right")
    for row in part["groups"]:
        compared = row["compared"] > 0
        table.add_row(
            row["direction"], row["window"], str(row["kernels"]), str(row["calls"]),
            f"{1e3 * row['seconds']:.1f}", f"{100 * row['peak_share']:.0f}",
            f"{1e3 * row['onednn_seconds']:.1f}" if compared else "none",
            f"{row['ratio']:.2f}x" if compared else "",
            f"{row['worst']:.2f}x" if compared else "",
        )  # fmt: skip
    return table


def slowest_table(part: Json) -> Table:
    """The kernels that compare worst with oneDNN's convolution.

    Operations are those of direct convolutions, but for the roofline, which takes those performed.
    """
    rows = sorted((r for r in part["rows"] if r["ratio"]), key=lambda r: r["ratio"]["median"])
    rows = rows[:SLOWEST]
    table = Table(title=f"{part['program']}: the {len(rows)} kernels that compare worst")
    for head in ("direction", "convolution"):
        table.add_column(head, no_wrap=True)
    for head in ("fused", "calls", "us", "GFLOP/s", "% peak", "% roofline", "oneDNN us", "ratio"):
        table.add_column(head, justify="right")
    for row in rows:
        bare = row["onednn"]
        table.add_row(
            row["direction"], row["shape"], f"+{len(row['sublayers'].split()) - 1}",
            str(row["calls"]),
            f"{1e6 * row['time']['median']:.0f}", f"{row['gflops']:.0f}",
            f"{100 * row['peak_share']:.0f}", f"{100 * row['roofline_share']:.0f}",
            f"{1e6 * bare['median']:.0f} {bare['layout']}", f"{row['ratio']['median']:.2f}x",
        )  # fmt: skip
    return table


def _summary_line(total: Json) -> str:
    peak = (
        f"{100 * total['peak_share']:.0f} % of FMA peak by the operations of direct convolutions, "
        f"{100 * total['busy_share']:.0f} % by those performed"
    )
    if not total["compared"]:
        return peak
    alone = total["kernels"] - total["compared"]
    missing = f"; {alone} without a counterpart" if alone else ""
    speed = f"geometric mean {total['ratio']:.2f}x oneDNN's speed, worst {total['worst']:.2f}x"
    return f"{speed}; {peak}{missing}"
