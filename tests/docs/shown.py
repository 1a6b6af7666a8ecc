"""What the documentation shows of programs: text between two marks, made by an expression.

In: a page, the names that its snippets have defined. Out: the page with what its marks ask for::

    <!-- shown: kernels(net, "icf") -->
    (a fenced block)
    <!-- end of shown -->
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bngen.explain.gather import explained
from bngen.explain.report import ANCHOR, LOAD, STORE
from bngen.options import FUSION_CHOICES
from bngen.passes.prepare import join_gradient, prepare
from bngen.plan.calls import BACKWARD, FORWARD, collectives_of
from bngen.target.parse import Target

_MARK = re.compile(
    r"(<!-- shown: (?P<what>.*?) -->\n).*?(<!-- end of shown -->)", re.DOTALL
)  # fmt: skip
_TARGET = Target.parse("llvm -mcpu=x86-64-v3")


def with_shown(page: str, names: Mapping[str, Any]) -> str:
    """A page with what its marks ask for."""

    def made(found: re.Match) -> str:
        text = eval(
            found["what"], {"stage": stage, "kernels": kernels, "exchanged": exchanged, **names}
        )
        return f"{found[1]}```text\n{text.strip()}\n```\n{found[3]}"

    return _MARK.sub(made, page)


def stage(program: Any, name: str, fusion: str = "icf") -> str:
    """The ops of a program after a pass, but for counters and running statistics."""
    graphs = explained(program, _TARGET, fusion=fusion).graphs
    text = next(text for key, text in reversed(graphs.items()) if key.endswith(f"-{name}"))
    lines = [line.partition("  # ")[0].strip() for line in text.splitlines()]
    unseen = ("bn_update", "num_batches", "constant", "update ")
    return "\n".join(
        line for line in lines if " = " in line and not any(word in line for word in unseen)
    )


def kernels(
    program: Any, fusion: str, call: str = "forward", wrt: Sequence[str] | None = None
) -> str:
    """The kernels that touch feature maps, slot by slot."""
    asked = {"grad": True, "wrt": list(wrt)} if wrt else {}
    found = explained(program, _TARGET, fusion=fusion, **asked)
    rows = []
    for row in found.report.kernels:
        if row.call != call or not row.traffic.map_bytes or row.sublayers[0].op == "copy":
            continue
        slots = ("; ".join(s.label for s in row.of_slot(slot) if s.op != "constant")
                 for slot in (LOAD, ANCHOR, STORE))  # fmt: skip
        load, anchor, store = slots
        maps = f"{row.traffic.sweeps_read} read, {row.traffic.sweeps_written} written"
        rows.append((load, anchor or "", store, maps))
    return _table(("load slots", "anchor", "store slots", "feature maps"), rows)


def exchanged(program: Any) -> str:
    """How many collectives there are at each level, and how many numbers each call's give."""
    joint, rows = join_gradient(program.graph), []
    for level in FUSION_CHOICES:
        plan, cells = prepare(joint, 8, level).planned.plan, []
        for call in (FORWARD, BACKWARD):
            found = collectives_of(plan, call)
            numbers = sum(math.prod(v.shape) for kernel in found for v in kernel.outputs)
            cells.append(f"{len(found)}, of {numbers} numbers")
        rows.append((level, *cells))
    return _table(("level", "forward", "backward"), rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    table = [heads, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        " | ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip() for r in table
    )
