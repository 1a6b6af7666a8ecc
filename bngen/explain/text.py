"""A report as text for a terminal, and a plan as text.

In: a `Report`. Out: lines. Kernels that touch no feature map take one line each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from bngen.explain.report import (
    ANCHOR,
    LOAD,
    STORE,
    KernelRow,
    Map,
    Refused,
    Report,
    SubLayer,
    Total,
    Traffic,
)

_MOST_PAIRS = 4
"""Places of a refusal that are named, before it only says how many more there are."""

_LEGEND = (
    "kernels, in the order in which they run",
    "  load: ops that are computed as their operand is read; anchor: what the loops are; store:",
    "  ops before the result goes to memory; by: the strategy, and why those before it declined",
)
_UNTOLD = frozenset({"constant"})
"""Ops of which nothing is to be told: numbers."""


def text(report: Report) -> str:
    """All of a report."""
    parts = (
        [f"{report.program} at {report.fusion} for {report.target.get('cpu', 'unknown')}"],
        _stages(report),
        _totals(report),
        [*_LEGEND, *(line for row in report.kernels for line in kernel_lines(row))],
        _refused(report.refused),
        _in_short(report),
    )
    return "\n\n".join("\n".join(lines) for lines in map(list, parts) if lines)


def plan_text(report: Report) -> str:
    """The kernels alone, each op as the graph's text form has it."""
    lines: list[str] = []
    for row in report.kernels:
        lines += [f"kernel {row.name} {{  # {row.call}, {row.layer}, {row.strategy}"]
        lines += [f"  read {_shown(m)}" for m in row.reads]
        lines += [f"  {s.slot:6} {s.text}{f'  # {s.line}' if s.line else ''}"
                  for s in row.sublayers]  # fmt: skip
        lines += [f"  write {_shown(m)}" for m in row.writes]
        lines += ["}"]
    return "\n".join(lines) + "\n"


# --- the program ------------------------------------------------------------------------------


def _stages(report: Report) -> Iterator[str]:
    if not report.stages:
        return
    yield "stages, how many ops the program has after each, and the most frequent of them"
    width = max(len(s.name) for s in report.stages)
    idle: list[str] = []
    before = None
    for stage in report.stages:
        if stage.counts == before:
            idle.append(stage.name)
            continue
        yield from _idle(idle)
        before, idle = stage.counts, []
        most = sorted(stage.counts.items(), key=lambda item: -item[1])[:5]
        listed = ", ".join(f"{count} {op}" for op, count in most)
        yield f"  {stage.name.ljust(width)}  {stage.ops:>6}  {listed}"
    yield from _idle(idle)


def _idle(names: Sequence[str]) -> Iterator[str]:
    if names:
        yield f"  (as many after {', '.join(dict.fromkeys(names))})"


def _totals(report: Report) -> Iterator[str]:
    yield (f"{'':18}  kernels  maps read  maps written  bytes of maps   all bytes  operations")
    for call, total in report.totals.items():
        if call in report.unfused and report.fusion != "none":
            yield _total(f"{call} none", report.unfused[call])
        yield _total(f"{call} {report.fusion}", total)
    types = report.map_bytes_by_type()
    if set(types) - {"f32"}:
        listed = ", ".join(f"{size(nbytes)} {name}" for name, nbytes in types.items())
        yield f"  bytes of maps at {report.fusion} by type: {listed}"


def _total(name: str, total: Total) -> str:
    t = total.traffic
    return (
        f"  {name:16}  {total.kernels:>7}  {t.sweeps_read:>9}  {t.sweeps_written:>12}  "
        f"{size(t.map_bytes):>13}  {size(t.nbytes):>10}  {amount(total.operations):>10}"
    )


def _in_short(report: Report) -> Iterator[str]:
    """What a reader of the last screen wants to know."""
    now, then = (sum(parts.values(), Total()) for parts in (report.totals, report.unfused))
    if not then.kernels or report.fusion == "none":
        return
    yield (
        f"in short: {report.fusion} makes {now.kernels} kernels of {then.kernels}, which move "
        f"{size(now.traffic.map_bytes)} of feature maps instead of "
        f"{size(then.traffic.map_bytes)}"
    )


# --- kernels ----------------------------------------------------------------------------------


def kernel_lines(row: KernelRow) -> Iterator[str]:
    """One kernel: what it holds, reads and writes, and how it is computed."""
    head = f"  {row.name}  {', '.join(filter(None, (row.call, row.layer, row.work)))}"
    if not row.traffic.sweeps_read + row.traffic.sweeps_written:
        held = _held(row.sublayers)
        yield f"{head}: {held}, {size(row.traffic.nbytes)}, by {row.strategy}"
        return
    yield head
    for slot in (LOAD, ANCHOR, STORE):
        if held := [s for s in row.of_slot(slot) if s.op not in _UNTOLD]:
            lines = dict.fromkeys(s.line for s in held if s.line)
            where = f"   {', '.join(lines)}" if lines else ""
            yield f"    {slot:7} {_held(held)}{where}"
    yield f"    reads   {_maps(row.reads)}"
    yield f"    writes  {_maps(row.writes)}"
    yield f"    moves   {_moved(row.traffic, row.traffic_alone)}"
    yield f"    does    {amount(row.operations)} operations, {row.intensity:.1f} a byte"
    yield f"    by      {_computed(row)}"


def _held(sublayers: Iterable[SubLayer]) -> str:
    return " ; ".join(s.label for s in sublayers if s.op not in _UNTOLD)


def _maps(values: Sequence[Map]) -> str:
    shown = [_shown(m) for m in values if m.is_map]
    rest = [m.nbytes for m in values if not m.is_map]
    if rest:
        shown.append(f"and {len(rest)} without pixels, {size(sum(rest))} in all")
    return ", ".join(shown)


def _shown(m: Map) -> str:
    return f"{m.name}: {m.type} {m.layout} {size(m.nbytes)}"


def _moved(now: Traffic, alone: Traffic | None) -> str:
    if alone is None or not alone.nbytes:
        return size(now.nbytes)
    return f"{size(now.nbytes)}; {size(alone.nbytes)} if each of its sub-layers swept for itself"


def _computed(row: KernelRow) -> str:
    words = [row.strategy, *(f"{k}={v}" for k, v in row.knobs.items())]
    if row.record:
        words.append(f"from {row.record}")
    why = [f"{kind}: {reason}" for kind, reason in row.declined.items()]
    return " ".join(words) + (f"   (not {'; not '.join(why)})" if why else "")


# --- refusals ---------------------------------------------------------------------------------


def _refused(groups: Iterable[Refused]) -> Iterator[str]:
    ordered = sorted(groups, key=lambda g: -len(g.pairs))
    if ordered:
        yield "not fused"
    for group in ordered:
        producer, consumer = group.ops
        count = f"{len(group.pairs)}x " if len(group.pairs) > 1 else ""
        yield f"  {count}{producer} -> {consumer}, {group.slot} slot: {group.reason}"
        for first, second, *lines in group.pairs[:_MOST_PAIRS]:
            places = " -> ".join(dict.fromkeys(line or "?" for line in lines))
            yield f"    {first} -> {second}  {places}"
        if more := len(group.pairs) - _MOST_PAIRS:
            if more > 0:
                yield f"    and {more} more"


def size(nbytes: float) -> str:
    """Bytes for people."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= factor:
            return f"{nbytes / factor:.1f} {unit}"
    return f"{nbytes:.0f} B"


def amount(number: float) -> str:
    """A count for people."""
    for unit, factor in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number:.0f}"
