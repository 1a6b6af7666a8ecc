"""The ablation's numbers as tables of words, for a terminal and for a page.

In: the ablation's JSON. Out: rows of cells, heads first; who shows them decides how.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bngen.bench.ablation import faster_percent

Json = Mapping[str, Any]
Rows = list[tuple[str, ...]]


def titled(report: Json, part: Json) -> str:
    """What was measured: the program, its sizes, the threads."""
    batch = f", batch {part['batch']}" if part["batch"] else ""
    image = f", {part['image']}x{part['image']}" if part["image"] else ""
    threads = f"{report['threads']} thread{'' if report['threads'] == 1 else 's'}"
    return f"{part['program']}{batch}{image}, {threads}"


def machine(report: Json) -> str:
    """What the machine can do, and what follows from it."""
    gflops, gbytes = report["limits"]["gflops"], report["limits"]["gbytes"]
    return (
        f"this machine: {gflops:.0f} GFLOP/s, {gbytes:.1f} GB/s from memory, "
        f"{gflops / gbytes:.0f} operations a byte; the more, the more fusion saves"
    )


def levels(report: Json, part: Json) -> Rows:
    """Time, traffic by the plan, and the memory of what forward leaves for backward, by level."""
    heads = (
        "", "forward ms", "backward ms", "step ms", "over +ICF", "traffic MiB", "sweeps",
        "activations MiB",
    )  # fmt: skip
    return [heads, *(_level(report["levels"][k], row) for k, row in part["levels"].items())]


def works(report: Json, part: Json) -> Rows:
    """Milliseconds of each kind of work, each kernel timed by itself."""
    kinds = dict.fromkeys(w for row in part["levels"].values() for w in row["work"])
    return [
        ("", *kinds),
        *((report["levels"][level], *(_ms(sum(row["work"].get(w, {}).values())) for w in kinds))
          for level, row in part["levels"].items()),
    ]  # fmt: skip


def measured(report: Json, found: Json) -> tuple[str, Rows]:
    """Measured traffic: how, and a table of it; without rows where it was not measured."""
    if "why_not" in found:
        return f"traffic was not measured: {found['why_not']}", []
    cache = found.get("last_level_cache", 0) / 2**20
    sizes = [f"batch {found['batch']}"] * bool(found["batch"])
    sizes += [f"{found['image']} pixels"] * bool(found["image"])
    how = f"traffic measured by {found['tool']}, {found['target']} code, {', '.join(sizes)}"
    heads: tuple[str, ...] = ("", "counted MiB", "brought in MiB", "measured MiB")
    if cache:
        how += f", a last level of {cache:g} MiB"
        heads += ("kernels beyond the cache that agree within 25 %",)
    rows = [_measured(report["levels"][level], row) for level, row in found["levels"].items()]
    return how, [heads, *rows]


def verdict(report: Json, rows: Json) -> str:
    """What all levels come to, and what they do in the paper."""
    paper = report["paper"]
    return (
        f"all levels together: {faster_percent(rows):.1f} % faster; in the paper "
        f"{paper['program']} is {paper['faster_percent']} % faster, on {paper['machine']}"
    )


def _level(name: str, row: Json) -> tuple[str, ...]:
    calls = row["calls"].values()
    return (
        name, *(_ms(row[phase]["median"]) for phase in ("forward", "backward", "step")),
        f"{row['ratio']['median']:.2f}x", f"{sum(c['map_bytes'] for c in calls) / 2**20:,.0f}",
        str(sum(c["sweeps"] for c in calls)), f"{row['memory']['saved'] / 2**20:,.0f}",
    )  # fmt: skip


def _measured(name: str, row: Json) -> tuple[str, ...]:
    kinds = ("counted", "fetched", "measured")
    cells = (name, *(f"{row[kind] / 2**20:,.0f}" if kind in row else "" for kind in kinds))
    if "large_kernels" not in row:
        return cells
    return (*cells, f"{row['large_kernels_agreeing']} of {len(row['large_kernels'])}")


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f}"
