"""Each convolution kernel of a network, with what is fused in, beside oneDNN's bare convolution.

In: an `Entry`, the machine's limits. Out: the program's part of the bench's JSON. Both sides take
turns in this process, on the same threads; of oneDNN the better of two memory layouts counts.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bngen.bench.contenders import Entry
from bngen.bench.limits import highest, measure_limits
from bngen.bench.samples import geometric_mean, ratios, roofline, summary
from bngen.bench.turns import CALLS, take
from bngen.codegen.compile import CompiledKernel, KnobLookup, compile_plan
from bngen.codegen.nests import BY_KIND
from bngen.errors import UsageError
from bngen.passes.prepare import join_gradient, prepare
from bngen.plan.kernel import Kernel, KernelPlan
from bngen.programs import step_program, trained
from bngen.runtime import threads as thread_pool
from bngen.target.parse import Target
from bngen.torch_bridge.bare import DIRECTIONS, LAYOUTS, bare_convolution, flops, shapes
from bngen.torch_bridge.training import use_threads
from bngen.tuning import records
from bngen.tuning.lone import LoneKernel, timed

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Measured:
    """One distinct kernel.

    Attributes:
        compiled: the kernel.
        calls: kernels of the step that are equal to it.
        nbytes: what it reads and writes at least.
        ours: seconds of a call, turn by turn.
        bare: the same for the bare convolution, by layout; empty where there is none.
    """

    compiled: CompiledKernel
    calls: int
    nbytes: int
    ours: Sequence[float]
    bare: Mapping[str, Sequence[float]]


def measure_kernels(
    entry: Entry, target: Target, limits: dict[str, Any], rounds: int, progress: Progress
) -> dict[str, Any]:
    """Time every distinct convolution kernel of a training step.

    Args:
        entry: the program, fusion level, threads and records.
        target: what to compile for.
        limits: see `limits.measure_limits`; measured once more at the end, and raised if that is
            higher.
        rounds: turns of each side.
        progress: called with (done, total, name).

    Returns:
        The program's part of the report; after an interrupt, of the kernels measured until then.
    """
    use_threads(entry.threads)
    thread_pool.install()
    plan = convolutions(entry, target)
    tuned = records.find(target, entry.schedules)
    compiled = compile_distinct(plan, target, tuned.lookup, progress)
    if not compiled:
        raise UsageError(f"{entry.program} has no convolutions", hint="leave --kernels out")
    measured, interrupted = [], False
    try:
        for i, (kernel, calls) in enumerate(compiled, start=1):
            measured.append(_measure(kernel, calls, plan, rounds, entry.threads or 0))
            progress(i, len(compiled), f"timing {kernel.kernel.name}")
    except KeyboardInterrupt:
        if not measured:
            raise
        interrupted = True
    # What else runs on the machine can lower a measured limit, and nothing can raise it.
    highest(limits, measure_limits(target, entry.threads))
    return report(entry.program, measured, limits, interrupted)


def convolutions(entry: Entry, target: Target) -> KernelPlan:
    """The plan of a program's training step, its convolution kernels alone."""
    graph = step_program(entry.program, entry.batch, entry.image, entry.dtype).graph
    plan = prepare(
        join_gradient(graph, trained(graph)),
        target.channel_block,
        entry.fusion,
        pairs=target.pairs,
    ).planned.plan
    kept = tuple(k for k in plan.kernels if k.anchor and k.anchor.op in DIRECTIONS)
    return replace(plan, kernels=kept)


def compile_distinct(
    plan: KernelPlan, target: Target, knobs: KnobLookup, progress: Progress
) -> list[tuple[CompiledKernel, int]]:
    """One kernel of each set of equal ones, and how many there are."""
    kinds: dict[tuple[str, tuple[int, ...]], list[CompiledKernel]] = {}
    for compiled in compile_plan(plan, target, knobs=knobs, progress=progress):
        kinds.setdefault((compiled.code.symbol, compiled.code.numbers), []).append(compiled)
    return [(same[0], len(same)) for same in kinds.values()]


def _measure(
    compiled: CompiledKernel, calls: int, plan: KernelPlan, rounds: int, threads: int
) -> Measured:
    kernel = compiled.kernel
    alone = LoneKernel(compiled, threads)
    rivals = {name: bare_convolution(kernel.anchor, name) for name in LAYOUTS}
    rivals = {name: call for name, call in rivals.items() if call is not None}
    ours: list[float] = []
    bare: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, call in rivals.items():
            bare[name].append(_turn(_repeated(call)))
        ours.append(_turn(alone.run))
    nbytes = sum(plan.nbytes(v) for v in (*kernel.inputs, *kernel.outputs))
    return Measured(compiled, calls, nbytes, ours, bare)


def _turn(run: Callable[[int], None]) -> float:
    """Seconds of a call when calls follow one another."""
    return statistics.median(take(lambda: timed(run), CALLS).counted)


def _repeated(call: Callable[[], Any]) -> Callable[[int], None]:
    def run(times: int) -> None:
        for _ in range(times):
            call()

    return run


# --- arithmetic -------------------------------------------------------------------------------


def report(
    program: str,
    measured: Sequence[Measured],
    limits: Mapping[str, Any],
    interrupted: bool = False,
) -> dict[str, Any]:
    """The measurements as the JSON file holds them: a row a kernel, and what they come to."""
    rows = [_row(m, limits) for m in measured]
    return {
        "program": program, "interrupted": interrupted, "rows": rows,
        "summary": total(rows, limits), "groups": groups(rows, limits),
    }  # fmt: skip


def groups(rows: Sequence[Mapping[str, Any]], limits: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the rows of each direction and window come to, the longest time first."""
    kinds: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        kinds.setdefault((row["direction"], row["window"]), []).append(row)
    found = [
        {
            "direction": direction, "window": window, "calls": sum(r["calls"] for r in same),
            **total(same, limits),
        }
        for (direction, window), same in kinds.items()
    ]  # fmt: skip
    return sorted(found, key=lambda g: -g["seconds"])


def _row(m: Measured, limits: Mapping[str, Any]) -> dict[str, Any]:
    node = m.compiled.kernel.anchor
    time = summary(m.ours)
    work, done = flops(node), performed(m.compiled.kernel, m.compiled.code.rule)
    gflops = work / time["median"] / 1e9
    least = roofline(done, m.nbytes, limits["gflops"], limits["gbytes"])
    fastest = min(m.bare, key=lambda name: summary(m.bare[name])["median"], default=None)
    bare = {"layout": fastest, **summary(m.bare[fastest])} if fastest else None
    return {
        "name": m.compiled.kernel.name,
        "direction": DIRECTIONS[node.op],
        "shape": shape_text(node),
        "window": window_text(node),
        "sublayers": " ".join(m.compiled.kernel.sublayers),
        "rule": m.compiled.code.rule,
        "knobs": dict(m.compiled.code.knobs),
        "calls": m.calls,
        "flops": work,
        "performed": done,
        "bytes": m.nbytes,
        "time": time,
        "gflops": gflops,
        "peak_share": gflops / limits["gflops"],
        "roofline_share": least / time["median"],
        "onednn": bare,
        "ratio": ratios(m.ours, m.bare[fastest]) if fastest else None,
    }


def performed(kernel: Kernel, rule: str) -> int:
    """Operations of the kernel's products, two a multiplication: at Winograd's points fewer."""
    return 2 * BY_KIND[rule].products(kernel)


def total(rows: Sequence[Mapping[str, Any]], limits: Mapping[str, Any]) -> dict[str, Any]:
    """What the rows come to.

    ``ratio`` is the geometric mean of oneDNN's time over ours, each distinct kernel once; ``worst``
    the smallest; ``peak_share`` all operations of a step, as direct convolutions, over all of its
    time at the peak; ``busy_share`` the same with the operations that are performed.
    """
    compared = [r["ratio"]["median"] for r in rows if r["ratio"]]
    work = sum(r["flops"] * r["calls"] for r in rows)
    done = sum(r["performed"] * r["calls"] for r in rows)
    seconds = sum(r["time"]["median"] * r["calls"] for r in rows)
    return {
        "kernels": len(rows),
        "compared": len(compared),
        "ratio": geometric_mean(compared) if compared else None,
        "worst": min(compared, default=None),
        "peak_share": work / seconds / 1e9 / limits["gflops"],
        "busy_share": done / seconds / 1e9 / limits["gflops"],
        "seconds": seconds,
        "onednn_seconds": sum(r["onednn"]["median"] * r["calls"] for r in rows if r["onednn"]),
    }


def shape_text(node: Any) -> str:
    """A convolution in one word: ``8x128x28x28 k32 3x3 /2 g4``."""
    x, (k, *_), _ = shapes(node)
    return f"{'x'.join(map(str, x))} k{k} {window_text(node)}"


def window_text(node: Any) -> str:
    """The window of a convolution, its stride and groups if there are any: ``3x3 /2 g4``."""
    _, (_, _, r, s), _ = shapes(node)
    stride, groups = node.attrs["stride"], node.attrs["groups"]
    words = [f"{r}x{s}"]
    if stride != (1, 1):
        words.append("/" + "x".join(map(str, dict.fromkeys(stride))))
    return " ".join([*words, *([f"g{groups}"] if groups > 1 else [])])
