"""Goals: which number of a report each reads, and what it amounts to."""

import pytest

from tests.readme.goals import GOALS, shown, verdicts


def row(name, ratio, peak=100, **more):
    step = {"step": {"median": ratio}}
    return {"name": name, "status": "ok", "ratio": step, "peak_bytes": peak, **more}


def race(program, batch, *rows):
    return {"program": program, "batch": batch, "contenders": list(rows)}


def report(races=(), kernels=()):
    return {"races": list(races), "kernels": list(kernels)}


def part(program, *ratios, busy_share=0.5):
    rows = [{"ratio": None if r is None else {"median": r}} for r in ratios]
    return {"program": program, "rows": rows, "summary": {"busy_share": busy_share}}


def found(*reports):
    return {goal.what: (value, verdict) for goal, value, verdict in verdicts(reports)}


def test_an_empty_report_says_nothing():
    assert found(report()) == {}


def test_steps_are_compared_with_the_fastest_of_pytorch():
    start = {"total": 80.0, "warm": {"total": 0.5}}
    ours = row("bngen", 1.0, 27, overhead=0.004, startup=start)
    eager, last = row("eager", 2.1), row("channels-last", 1.8)
    broken = {"name": "compile", "status": "unavailable"}
    half = row("bf16", 0.9)  # faster for being less exact: no rival of float32's goals
    wrong = {**row("none", 9.0), "status": "disagrees"}
    here = found(
        report([race("densenet121", 8, ours, eager, last, half, broken, wrong, row("mvf", 1.1))]),
        report([race("densenet121", 32, row("bngen", 1.0), last, row("jemalloc", 1.6))]),
    )
    assert here == {
        "densenet121, batch 8: PyTorch's fastest": (1.8, "missed"),
        "densenet121, batch 32: PyTorch's fastest": (1.6, "missed"),
        "densenet121, batch 32: eager with jemalloc": (1.6, "aim"),
        "densenet121, batch 8: fused BN baseline (mvf)": (1.1, "missed"),
        "densenet121, batch 8: memory of PyTorch": (0.27, "aim"),
        "densenet121: first step, empty cache": (80.0, "missed"),
        "densenet121: first step, warm cache": (0.5, "aim"),
        "densenet121: a step without its kernels": (4.0, "reached"),
    }


def test_steps_are_those_of_the_race_that_is_about_them():
    """Not of one from empty caches, of one turn, nor of bngen alone, whatever comes last."""
    start = {"total": 80.0, "warm": {"total": 0.5}}
    here = found(
        report([race("densenet121", 8, row("bngen", 1.0, 30), row("eager", 2.1), row("mvf", 1.2))]),
        report([race("densenet121", 8, row("bngen", 1.0, 99))]),
        report([race("densenet121", 8, row("bngen", 1.0, 99, startup=start), row("eager", 1.2))]),
    )
    assert here["densenet121, batch 8: PyTorch's fastest"][0] == 2.1
    assert here["densenet121, batch 8: memory of PyTorch"][0] == 0.3
    assert here["densenet121: first step, empty cache"][0] == 80.0


def test_bfloat16_is_compared_with_autocast_and_with_float32():
    ours = [row("bngen", 1.0, 50), row("backend", 1.02), row("backend-bf16", 0.8, 30)]
    here = found(
        report([race("resnet50", 8, *ours, row("bf16", 1.5), row("jemalloc-bf16", 1.2))]),
        report([race("densenet121", 8, *ours, row("bf16", 2.0, 120))]),
    )
    assert here["resnet50 in bfloat16: PyTorch's autocast"] == (pytest.approx(1.5), "reached")
    assert here["resnet50 in bfloat16: bngen in float32"] == (pytest.approx(1.275), "missed")
    assert "densenet121, batch 8: memory of PyTorch" not in here


def test_a_start_from_a_full_cache_is_no_cold_one():
    ours = row("bngen", 1.0, startup={"total": 2.0}, overhead=None)
    assert found(report([race("densenet121", 8, ours)])) == {}


def test_kernels_of_both_networks_count_together():
    here = found(
        report(kernels=[part("densenet121", 2.0, None, busy_share=0.80)]),
        report(kernels=[part("resnet50", 0.5), part("mobilenet_v2", 0.1)]),
    )
    assert here == {
        "kernels, geometric mean: oneDNN's bare convolution": (pytest.approx(1.0), "missed"),
        "kernels, the worst: oneDNN's bare convolution": (0.5, "missed"),
        "share of FMA peak by operations performed, DenseNet-121": (80.0, "reached"),
    }


def test_aims_lie_beyond_what_must_be_reached():
    for goal in GOALS:
        assert goal.verdict(goal.aim) == "aim"
        assert goal.aim <= goal.reach if goal.least else goal.aim >= goal.reach
        assert goal.verdict(0.0 if not goal.least else 1e9) == "missed"


def test_numbers_with_their_units():
    assert [shown(1.257, "x"), shown(79.6, "%"), shown(3, "s"), shown(4.567, "ms")] == [
        "1.26x", "80 %", "3.00 s", "4.57 ms",
    ]  # fmt: skip
