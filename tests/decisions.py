"""What the compiler decides for a program, as rows of plain text that golden files hold.

`decide` is the one function that knows the compiler: it plans a program and asks how each kernel
would be generated, up to machine code. All else here turns rows into a table and knows none of it.
No number or name of a kernel, and no name of a value, comes into the table: what renumbers or
renames leaves it as it is; another strategy, slot, knob, refusal or place in memory does not.

A table has a paragraph for all kernels that hold the same, and in it a line for equal geometry and
knobs: how many there are at each fusion level, and of which channels. Where machines choose other
knobs, they stand in the order of the machines; a line that not all have begins with those that do::

    strategy: load slots | anchor | store slots : values read > written

    conv: relu | conv2d | bn_partial_stats : 2>4
          .  .  .  .  2  7>7 window 1; columns=6/6/7 blocks=2/2/1 rows=1; 2048>512
    16    .  .  .  1  1  14>14 window 1; columns=7 blocks=1 rows=2; 1024>256 1024>512
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from bngen.codegen.nests import choose
from bngen.codegen.signature import overwritten, signature
from bngen.dtypes import FLOAT
from bngen.ir.node import Graph, Node
from bngen.passes.fusion.levels import LEVELS
from bngen.passes.prepare import Joint, join_gradient, prepare
from bngen.plan.calls import BACKWARD, kernels_of, saved
from bngen.plan.kernel import Kernel, KernelPlan
from bngen.plan.memory import MemoryPlan
from bngen.runtime.host import Caches
from bngen.target.cpus import traits_of
from bngen.target.machine import Machine, machine_of


def _machine(features: str) -> Machine:
    """All that decisions may depend on; no machine of anyone's."""
    caches = Caches(l1=32 << 10, l2=512 << 10, l3=4 << 20)
    return machine_of(traits_of("x86_64", "", frozenset(features.split())), caches, threads=4)


MACHINES = {m.lanes(FLOAT): m for m in map(_machine, ("", "avx", "avx512f"))}


def _described(m: Machine) -> str:
    return (
        f"{m.lanes(FLOAT)} lanes, {m.traits.vector_registers} registers, L1 {m.l1 >> 10} KiB, "
        f"L2 {m.l2 >> 10} KiB, {m.threads} threads"
    )


@dataclass(frozen=True)
class Row:
    """One kernel.

    Attributes:
        strategy: how it is generated, and why not in another way where nobody took it.
        load: ops recomputed where it reads.
        anchor: the op whose loop nest it is; empty for a pointwise kernel.
        store: ops computed where its result is stored.
        arity: how many values it reads and writes, and how many of them in the same memory.
        geometry: images, window and stride of a convolution; of other kernels the map's extents.
        channels: its channels, or the extents of a matrix product.
        knobs: those that the strategy chooses by itself.
    """

    strategy: str
    load: tuple[str, ...]
    anchor: str
    store: tuple[str, ...]
    arity: str
    geometry: str
    channels: str
    knobs: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Decisions:
    """What was decided for a program at one fusion level.

    Attributes:
        kernels: a row each.
        facts: numbers of the plan and of its memory, by what they are.
        refusals: of pairs of values, as text.
    """

    kernels: tuple[Row, ...]
    facts: Mapping[str, int]
    refusals: tuple[str, ...]


# --- what knows the compiler ----------------------------------------------------------------------


def decide(graph: Graph, level: str, machine: Machine, *, gradient: bool) -> Decisions:
    """Plan a program, with the gradients of its inputs if asked for."""
    joint = join_gradient(graph) if gradient else Joint(graph, graph)
    planned = prepare(joint, machine.lanes(FLOAT), level).planned
    plan, memory = planned.plan, planned.memory
    rows = [_row(kernel, plan, memory, machine) for kernel in plan.kernels]
    return Decisions(tuple(rows), _facts(plan, memory), _refusals(plan))


def _row(kernel: Kernel, plan: KernelPlan, memory: MemoryPlan, machine: Machine) -> Row:
    strategy, knobs = _strategy(kernel, plan, machine)
    merged = len(overwritten(kernel, memory.places))
    arity = f"{len(kernel.inputs)}>{len(kernel.outputs)}" + (f" {merged} in place" * bool(merged))
    return Row(
        strategy,
        _ops(kernel.load),
        kernel.anchor.op if kernel.anchor else "",
        _ops(kernel.store),
        arity,
        *_extents(kernel),
        knobs,
    )


def _ops(nodes: Iterable[Node]) -> tuple[str, ...]:
    return tuple(n.op for n in nodes if n.op != "constant")


def _strategy(
    kernel: Kernel, plan: KernelPlan, machine: Machine
) -> tuple[str, tuple[tuple[str, int], ...]]:
    """How a kernel is generated, and its knobs; of the fallback's, what all others said."""
    choice = choose(kernel, plan.layouts, machine)
    strategy = choice.strategy.kind
    if strategy == "fallback" and choice.declined:
        strategy += f" ({'; '.join(dict.fromkeys(choice.declined.values()))})"
    return strategy, tuple(choice.knobs(machine).items())


def _extents(kernel: Kernel) -> tuple[str, str]:
    """Geometry and channels of a contraction, of the forward convolution for its gradients."""
    anchor = kernel.anchor
    if anchor is None or anchor.op not in _FORWARD:
        shapes = [v.shape[2:] for v in (*kernel.outputs, *kernel.inputs) if len(v.shape) == 4]
        return (_side(shapes[0]) if shapes else ""), ""
    if anchor.op == "matmul":
        (m, n), k = anchor.out.shape, anchor.inputs[0].shape[1 - anchor.attrs["trans_a"]]
        turned = "t" * anchor.attrs["trans_a"] + "|" + "t" * anchor.attrs["trans_b"]
        return turned, f"{m}x{k}x{n}"
    x, w, y = (v.shape for v in _FORWARD[anchor.op](anchor))
    attrs = anchor.attrs
    geometry = f"{_side(x[2:])}>{_side(y[2:])} window {_side(w[2:])}"
    for name, usual in (("stride", (1, 1)), ("dilation", (1, 1)), ("groups", 1)):
        if attrs[name] != usual and not (name == "groups" and w[1] == 1):
            geometry += f" {name} {attrs[name] if name == 'groups' else _side(attrs[name])}"
    depthwise = " depthwise" * (attrs["groups"] > 1 and w[1] == 1)
    return geometry + depthwise, f"{x[1]}>{w[0]}"


_FORWARD = {
    "conv2d": lambda n: (*n.inputs, n.out),
    "conv2d_grad_input": lambda n: (n.out, n.inputs[1], n.inputs[0]),
    "conv2d_grad_weight": lambda n: (n.inputs[0], n.out, n.inputs[1]),
    "matmul": None,
}


def _side(pair: Sequence[int]) -> str:
    return f"{pair[0]}" if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"


def _facts(plan: KernelPlan, memory: MemoryPlan) -> dict[str, int]:
    backward, kept = kernels_of(plan, BACKWARD), saved(plan)
    facts = {
        "kernels of the first call": len(plan.kernels) - len(backward),
        "kernels of the second call": len(backward),
        "distinct kernels": len({signature(k, plan) for k in plan.kernels}),
        "values kept for the second call": len(kept),
        "bytes of them": sum(map(plan.nbytes, kept)),
        "bytes of the arena": memory.nbytes,
        "buffers in the arena": len(memory.arena),
        "accumulations in place": len(memory.in_place),
        "updates": len(plan.graph.updates),
        "updates by a copy": len(memory.copies),
    }
    views = Counter(n.op for n in plan.views)
    return facts | {f"views by {op}": views[op] for op in ("cat", "slice", "reshape")}


def _refusals(plan: KernelPlan) -> tuple[str, ...]:
    """Each pair of values counts once, however often the question was asked."""
    op = {v.name: n.op for v, n in plan.graph.producers().items()}
    return tuple(
        f"{op[r.producer]} > {op[r.consumer]}: {r.reason}" for r in dict.fromkeys(plan.refused)
    )


# --- tables ---------------------------------------------------------------------------------------

Knobs = tuple[tuple[str, int], ...]


def table(graph: Graph, lanes: Sequence[int], *, gradient: bool = True) -> str:
    """All decisions for a program on machines of these lanes, at every fusion level."""
    found = {
        n: [decide(graph, level, MACHINES[n], gradient=gradient) for level in LEVELS] for n in lanes
    }
    plan: dict[tuple[str, str], list[int]] = {("", _described(MACHINES[n])): [n] for n in lanes}
    refused: dict[tuple[str, str], list[int]] = {}
    for n, decisions in found.items():
        for name in decisions[0].facts:
            line = _numbers(d.facts[name] for d in decisions), name
            plan.setdefault(line, []).append(n)
        for text, numbers in _counted([Counter(d.refusals) for d in decisions]):
            refused.setdefault((numbers, text), []).append(n)
    rows = {n: [Counter(d.kernels) for d in decisions] for n, decisions in found.items()}
    paragraphs = (
        (f"plan at {' '.join(LEVELS)}", plan),
        *sorted(_kernels(rows).items(), key=lambda item: (item[0].split(" | ")[1], item[0])),
        ("refused", refused),
    )
    return "\n".join(_paragraph(head, lines, list(lanes)) for head, lines in paragraphs)


def _kernels(
    rows: Mapping[int, Sequence[Counter[Row]]],
) -> dict[str, dict[tuple[str, str], list[int]]]:
    """Paragraphs by head; in each, the machines for which a line holds."""
    knobs: dict[tuple[Row, str, int], dict[int, Knobs]] = {}
    for lanes, counts in rows.items():
        seen: Counter[tuple[Row, str]] = Counter()
        for row, numbers in sorted(_counted(counts), key=lambda item: (item[0].knobs, item[1])):
            like = replace(row, knobs=()), numbers
            knobs.setdefault((*like, seen[like]), {})[lanes] = row.knobs
            seen[like] += 1
    channels: dict[tuple[str, str, str, tuple[int, ...]], list[str]] = {}
    for (row, numbers, _), chosen in knobs.items():
        what = "; ".join(part for part in (row.geometry, _alternatives(chosen)) if part)
        channels.setdefault((_head(row), what, numbers, tuple(chosen)), []).append(row.channels)
    paragraphs: dict[str, dict[tuple[str, str], list[int]]] = {}
    for (head, what, numbers, lanes), several in channels.items():
        listed = " ".join(sorted(several, key=_natural))
        text = "; ".join(part for part in (what, listed) if part)
        paragraphs.setdefault(head, {})[numbers, text] = list(lanes)
    return paragraphs


def _alternatives(chosen: Mapping[int, Knobs]) -> str:
    """Each knob and its value on each machine, once where it is the same on all."""
    found = [dict(knobs) for knobs in chosen.values()]
    values = {
        name: [str(knobs.get(name, "-")) for knobs in found]
        for name in dict.fromkeys(name for knobs in found for name in knobs)
    }
    return " ".join(
        f"{name}={v[0] if len(set(v)) == 1 else '/'.join(v)}" for name, v in values.items()
    )


def _head(row: Row) -> str:
    slots = (" ".join(part) or "-" for part in (row.load, row.anchor.split(), row.store))
    return f"{row.strategy}: {' | '.join(slots)} : {row.arity}"


def _paragraph(head: str, lines: Mapping[tuple[str, str], list[int]], all_lanes: list[int]) -> str:
    text = f"{head}\n"
    for (numbers, what), lanes in sorted(lines.items(), key=lambda i: (_natural(i[0][1]), i)):
        tag = " ".join(map(str, lanes)) if lanes != all_lanes else ""
        text += f"{tag:5}{numbers}  {what}".rstrip() + "\n"
    return text


def _counted(counts: Sequence[Counter]) -> Iterator[tuple]:
    for item in dict.fromkeys(i for c in counts for i in c):
        yield item, _numbers(c[item] for c in counts)


def _numbers(cells: Iterable[int]) -> str:
    return " ".join(str(c or ".").rjust(2) for c in cells)


def _natural(text: str) -> list[tuple[int, str]]:
    """A key that sorts numbers by their size."""
    return [(int(p or 0), "") if p.isdigit() else (0, p) for p in re.split(r"(\d+)", text)]
