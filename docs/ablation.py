"""The ablation of ``benchmarks/ablation.json`` in the documentation: ``python docs/ablation.py``.

In: what ``bngen ablate ... --json benchmarks/ablation.json`` has written. Out: the text between two
marks of ``see.md``, and its plots in ``docs/pictures``. Nothing is measured here.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from bngen.bench import ablation_plots, ablation_tables
from bngen.bench.ablation_tables import Rows

HERE = Path(__file__).parent
RECORDED = HERE.parent / "benchmarks" / "ablation.json"
PAGE = HERE / "see.md"
BEGIN = "<!-- ablation: generated from benchmarks/ablation.json -->\n"
END = "<!-- end of ablation -->"


def with_section(page: str, text: str) -> str:
    """The page with another text between the marks."""
    return re.sub(
        f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: f"{BEGIN}{text}{END}", page,
        flags=re.DOTALL,
    )  # fmt: skip


def section(report: dict[str, Any] | None) -> str:
    """What stands between the marks; nothing where nothing was measured."""
    if report is None:
        return ""
    machine = report["machine"]
    parts = [
        f"Measured on {machine['cpus']} CPUs of {machine['model']} ({machine['cpu']}); "
        f"{ablation_tables.machine(report).removeprefix('this machine: ')}. The paper's Xeon has "
        "many cores that share their memory, so that a byte costs it more operations than it costs "
        "a machine of few, and its baseline is another library: the two percentages stand beside "
        "each other, and are not of one thing.",
    ]
    for part in report["programs"]:
        parts.append(f"### {ablation_tables.titled(report, part)}")
        parts.append(table(ablation_tables.levels(report, part)))
        parts.append("Milliseconds of each kind of work, each kernel timed by itself:")
        parts.append(table(ablation_tables.works(report, part)))
        parts.append(f"{sentence(ablation_tables.verdict(report, part['levels']))}.")
        if part["scarce"]:
            rate, rows = part["scarce"]["gbytes"], part["scarce"]["levels"]
            told = ablation_tables.verdict(report, rows).partition(";")[0]
            parts.append(f"While another process streams {rate:.1f} GB/s through memory: {told}.")
        how, rows = ablation_tables.measured(report, part["measured"])
        parts.append(f"{sentence(how)}{':' if rows else '.'}")
        parts += [table(rows)] if rows else []
    parts.append("![Time of a training step at each level, by kind of work]"
                 "(pictures/ablation-time.png)")  # fmt: skip
    parts.append("![Traffic of a training step at each level, by kind of work]"
                 "(pictures/ablation-traffic.png)")  # fmt: skip
    return "\n\n".join(parts) + "\n"


def table(rows: Rows) -> str:
    """Rows as Markdown, heads first."""
    heads, *others = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join((heads, "|---" + "|--:" * (len(rows[0]) - 1) + "|", *others))


def sentence(text: str) -> str:
    """With a capital at its begin."""
    return text[:1].upper() + text[1:]


def recorded() -> dict[str, Any] | None:
    """The report, if there is one."""
    return json.loads(RECORDED.read_text()) if RECORDED.exists() else None


if __name__ == "__main__":
    found = recorded()
    PAGE.write_text(with_section(PAGE.read_text(), section(found)))
    if found:
        ablation_plots.draw(found, HERE / "pictures")
