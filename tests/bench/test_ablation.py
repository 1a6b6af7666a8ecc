"""The ablation: arithmetic on known numbers, counting in a simulated cache, what is shown."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

import bngen as bg
from bngen.bench import ablation, ablation_plots, simulated
from bngen.bench.ablation import NAMES, WITHIN, Asked, ablate, compared, counted, faster_percent
from bngen.bench.process import Unavailable
from bngen.bench.simulated import Caches, Missed, by_function, widened
from bngen.bench.streaming import Streaming
from bngen.cli.ablate import lines
from bngen.cli.main import main
from bngen.errors import ToolchainError, UsageError
from bngen.explain.gather import explained
from bngen.options import FUSION_CHOICES
from bngen.target.parse import Target

RECORDED = Path(__file__).parents[2] / "benchmarks" / "traffic.json"
TARGET = Target.parse("llvm -mcpu=x86-64-v3")
COUNTS = """version: 1
events: Ir I1mr ILmr Dr D1mr DLmr Dw D1mw DLmw
fl=???
fn=k0_compute_
0 9 0 0 5 4 3 2 1 1
0 9 0 0 5 4 2 2 1 0
fn=main
12 1 0 0 0 0 7 0 0 7
summary: 0 0 0 0 0 0 0 0 0
"""


@bg.program
def net(x: bg.Tensor[2, 16, 8, 8]):
    y = bg.layers.conv2d(x, "conv", 16, 3, padding=1, bias=False)
    y = bg.relu(bg.layers.batch_norm(y, "bn"))
    return bg.sum(bg.layers.conv2d(y, "last", 16, 1, bias=False))


@pytest.fixture(scope="module")
def report():
    return explained(net, TARGET, grad=True).report


# --- arithmetic -------------------------------------------------------------------------------


def test_misses_are_bytes_of_lines_by_function():
    found = by_function(iter(COUNTS.splitlines(keepends=True)))
    assert found == {"k0_compute_": Missed(5 * 64, 64), "main": Missed(7 * 64, 7 * 64)}
    assert simulated.sum_of(found, ("k0_compute_", "nothing")) == found["k0_compute_"]


def test_what_is_overwritten_is_brought_in_once():
    @bg.program
    def chain(x: bg.Tensor[2, 8, 6, 6], y: bg.Tensor[2, 8, 6, 6]):
        return bg.exp(bg.sum(bg.relu(x + y) * 2.0, 0)) + 1.0

    for fusion in FUSION_CHOICES:
        found = explained(net, TARGET, grad=True, fusion=fusion).report.kernels
        for row in (*found, *explained(chain, TARGET, fusion=fusion).report.kernels):
            assert 0 <= row.overwritten <= sum(m.nbytes for m in row.writes)
    assert any(row.overwritten for row in explained(net, TARGET, grad=True, fusion="none").before)


def test_counted_traffic_is_all_of_the_kernels(report):
    found = counted(report)
    moved = sum(k.traffic.nbytes for k in report.kernels)
    assert sum(found["bytes_by_work"].values()) == moved
    assert sum(c["bytes"] for c in found["calls"].values()) == moved
    assert found["memory"]["arena"] > 0


def test_kernels_beyond_the_cache_are_compared(report):
    rows = report.kernels
    symbols = [k.name for k in rows]
    large = [k for k in rows if any(m.is_map for m in (*k.reads, *k.writes))]
    # one kernel is off by more than may be, all others by less
    missed = {k.name: Missed(int(1.1 * (k.traffic.nbytes - k.overwritten)), 0) for k in rows}
    missed[large[0].name] = Missed(large[0].traffic.nbytes, large[0].traffic.nbytes)
    found = compared(rows, symbols, missed, cache=1)
    assert {k["kernel"] for k in found["large_kernels"]} == {k.name for k in large}
    assert found["large_kernels_agreeing"] == len(large) - 1
    assert found["counted"] == sum(k.traffic.nbytes for k in rows)
    assert compared(rows, symbols, missed, cache=1 << 40)["large_kernels"] == []


def test_equal_kernels_are_compared_together(report):
    rows = (report.kernels[0], report.kernels[0])
    missed = {"k": Missed(2 * rows[0].traffic.nbytes, 0)}
    found = compared(rows, ["k", "k"], missed, cache=0)
    assert found["counted"] == found["measured"] == 2 * rows[0].traffic.nbytes


def test_faster_is_in_steps_a_second():
    levels = {name: {"step": {"median": t}} for name, t in (("none", 1.257), ("icf", 1.0))}
    assert faster_percent(levels) == pytest.approx(25.7)


# --- libraries --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled():
    found = bg.bundle(net, grad=True, target=Target.parse("llvm -mcpu=native"))
    if found.library is None:
        pytest.skip("there is no C compiler here")
    return found


def test_functions_reach_to_the_next(compiled):
    wide = widened(compiled.library)
    assert len(wide) == len(compiled.library)
    before, after = functions(compiled.library), functions(wide)
    assert before.keys() == after.keys() and any("_compute_" in name for _, name in after)
    ordered = sorted({(section, start, size) for (section, _), (start, size) in after.items()})
    for (section, start, size), (other, following, _) in zip(ordered, ordered[1:], strict=False):
        assert section != other or start + size == following
    assert all(after[key][1] >= size for key, (_, size) in before.items())


def functions(library: bytes) -> dict[tuple[int, str], tuple[int, int]]:
    """Address and size of each function, by section and name."""
    (start,) = struct.unpack_from("<Q", library, 0x28)
    step, count = struct.unpack_from("<HH", library, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", library, start + i * step) for i in range(count)]
    (table,) = [s for s in sections if s[1] == 2]
    found = {}
    for at in range(table[4], table[4] + table[5], 24):
        name, info, _, section, value, size = struct.unpack_from("<IBBHQQ", library, at)
        if info & 15 == 2 and section:
            begin = sections[table[6]][4] + name
            found[section, library[begin : library.index(0, begin)].decode()] = value, size
    return found


def test_other_libraries_are_refused():
    with pytest.raises(ToolchainError, match="ELF"):
        widened(b"MZ" + bytes(100))


def test_a_simulation_that_fails_says_so(monkeypatch):
    monkeypatch.setattr(simulated.shutil, "which", lambda name: None)
    assert simulated.obstacle() == "valgrind is not installed"
    with pytest.raises(ToolchainError, match="C compiler"):
        simulated.simulate(bg.Bundle(None, {}, {}), Caches())


# --- scarce memory ----------------------------------------------------------------------------


def test_a_stream_states_its_rate():
    with Streaming() as streaming:
        process = streaming._process
        assert streaming.rate() > 0
        assert os.getsid(process.pid) == process.pid  # Ctrl-C is not for it
    assert process.poll() is not None


def test_one_cpu_cannot_do_both(monkeypatch):
    monkeypatch.setattr(ablation.host, "cpu_count", lambda: 1)
    with pytest.raises(UsageError, match="one CPU streams"):
        ablate(asked(scarce=True), lambda text: None)


def asked(**given) -> Asked:
    plain = {
        "programs": ("net",), "target": TARGET, "batch": 2, "image": 8, "threads": 1,
        "schedules": None, "seed": 0, "rounds": 1, "scarce": False, "traffic": False,
    }  # fmt: skip
    return Asked(**{**plain, **given})


# --- what is shown ----------------------------------------------------------------------------


@pytest.fixture
def measured(report):
    time = {"median": 2e-3}
    row = {
        "forward": time, "backward": time, "step": time, "ratio": {"median": 1.0}, "peak_bytes": 1,
        "work": {"CONV": {"forward": 1e-3, "backward": 1e-3}}, **counted(report),
    }  # fmt: skip
    levels = dict.fromkeys(FUSION_CHOICES, row)
    part = {
        "program": "net", "batch": 2, "image": 8, "levels": levels,
        "scarce": {"gbytes": 5.0, "levels": levels},
        "measured": {
            "tool": "valgrind cachegrind", "target": "x86-64-v3", "batch": 2, "image": 8,
            "last_level_cache": 2 << 20, "levels": dict.fromkeys(FUSION_CHOICES, {
                "by_work": {"CONV": {"counted": 4 << 20, "fetched": 2 << 20, "measured": 3 << 20}},
                "counted": 4 << 20, "fetched": 2 << 20, "measured": 3 << 20,
                "large_kernels": [{}, {}],
                "large_kernels_agreeing": 1,
            }),
        },
    }  # fmt: skip
    limits = {"gflops": 240.0, "gbytes": 12.0}
    shown = {"levels": NAMES, "threads": 1, "paper": ablation.PAPER}
    return {**shown, "limits": limits, "programs": [part]}


def test_tables_say_what_was_measured_and_how(measured):
    text = "\n".join(lines(measured, measured["programs"][0]))
    told = (
        "0.0 % faster", "25.7 %", "streams 5.0 GB/s", "cachegrind", "a last level of 2 MiB",
        "20 operations a byte", "1 of 2", "activations MiB",
    )  # fmt: skip
    for word in (*NAMES.values(), *told):
        assert word in text
    part = {**measured["programs"][0], "scarce": None, "measured": {"why_not": "no valgrind"}}
    assert "traffic was not measured: no valgrind" in "\n".join(lines(measured, part))


def test_plots_are_drawn(measured, tmp_path):
    paths = ablation_plots.draw(measured, tmp_path / "plots")
    assert [p.name for p in paths] == ["ablation-time.png", "ablation-traffic.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in paths)
    (tmp_path / "file").write_text("")
    with pytest.raises(ToolchainError, match="--plot"):
        ablation_plots.draw(measured, tmp_path / "file" / "plots")


# --- the recorded experiment ------------------------------------------------------------------


KNOWN = {
    "winograd_wgrad": "accumulates at 16 points in scratch that a small last level does not hold",
    "partial": "reads its map once for each of two sums",
    "winograd": "unfused, its rows are stored by the C library's memcpy, which counts for nobody",
}
"""Strategies whose kernels may disagree, and why; fused, no kernel of the last one does."""


def test_measured_traffic_is_what_the_plan_counts():
    """Of `RECORDED`; how it was made stands beside it."""
    (part,) = json.loads(RECORDED.read_text())["programs"]
    for level, found in part["measured"]["levels"].items():
        assert abs(found["measured"] / found["fetched"] - 1) < 0.1
        large = found["large_kernels"]
        agreeing = [k for k in large if abs(k["ratio"] - 1) <= WITHIN]
        assert len(agreeing) == found["large_kernels_agreeing"] > 0.8 * len(large)
        others = {k["strategy"] for k in large if k not in agreeing}
        assert others <= KNOWN.keys()
        assert level in ("none", "rcf", "mvf") or "winograd" not in others


def test_a_step_is_simulated(compiled, monkeypatch):
    """The process that valgrind runs, without valgrind: it takes the step."""
    taken = []

    class Done:
        def __init__(self, command, **asked):
            folder = Path(command[-1])
            simulated.one_step(folder)
            (folder / "counts").write_text(COUNTS)
            taken.append(command)

        def wait(self):
            return 0

        kill = wait

    monkeypatch.setattr(simulated.subprocess, "Popen", Done)
    missed = simulated.simulate(compiled, Caches(last=1 << 20))
    assert set(missed) == set(compiled.objects)
    assert "--LL=1048576,16,64" in taken[0]


# --- at what size -----------------------------------------------------------------------------


def test_what_is_simulated_is_bearable():
    sizes = {name: ablation.reduced(asked(batch=8, image=None), name, TARGET) for name in
             ("mobilenet_v2", "resnet50", "vgg16_bn")}  # fmt: skip
    assert sizes == {"mobilenet_v2": (2, 112), "resnet50": (1, 112), "vgg16_bn": (1, 64)}


def test_a_network_is_not_asked_for_an_image_that_it_cannot_take(monkeypatch):
    monkeypatch.setattr(ablation, "MOST_OPERATIONS", 0)
    taken = []
    network = ablation.MODELS["inception_v3"]
    monkeypatch.setattr(ablation, "step_program", lambda name, *sizes: taken.append(sizes) or net)
    assert ablation.reduced(asked(batch=8, image=None), "inception_v3", TARGET) is None
    least = network.smallest(training=True)
    assert min(image for _, image, _ in taken) == least and {b for b, *_ in taken} == {1, 2}


def test_a_program_of_ones_own_keeps_its_size(monkeypatch):
    taken = []
    monkeypatch.setattr(ablation, "step_program", lambda name, *sizes: taken.append(sizes) or net)
    assert ablation.reduced(asked(batch=None, image=None), "net.py", TARGET) == (None, None)
    assert ablation.reduced(asked(batch=4, image=64), "net.py", TARGET) == (2, 64)
    assert [sizes[:2] for sizes in taken] == [(None, None), (2, 64)]


def test_the_cache_is_smaller_as_maps_are():
    whole = Caches()
    assert whole.for_maps(56, 56) == whole
    assert whole.for_maps(112, 224).last == 512 << 10
    assert whole.for_maps(32, 224).last == simulated.LEAST


def test_times_are_not_lost_for_traffic(monkeypatch):
    def fail(*given):
        raise ToolchainError("valgrind ended with status 1: out of memory")

    monkeypatch.setattr(ablation.counters, "obstacle", lambda: "perf cannot count")
    monkeypatch.setattr(ablation, "_simulated", fail)
    found = ablation._traffic(asked(traffic=True), "net", (), {}, print)
    assert "out of memory" in found["why_not"]


def test_times_are_not_lost_for_counters(monkeypatch):
    def dead(entry):
        raise Unavailable("its process ended with status -9")

    monkeypatch.setattr(ablation.counters, "obstacle", lambda: None)
    monkeypatch.setattr(ablation.counters, "bytes_of_step", dead)
    levels = {level: {"calls": {}} for level in FUSION_CHOICES}
    entries = [asked().entry("net", level, 1) for level in ablation._ORDER]
    assert "-9" in ablation._traffic(asked(traffic=True), "net", entries, levels, print)["why_not"]


def test_what_cannot_be_measured_is_told_first(monkeypatch):
    monkeypatch.setattr(ablation, "measure_limits", None)
    with pytest.raises(UsageError, match="'tiny_densenot'"):
        ablate(asked(programs=("tiny_densenet", "tiny_densenot"), image=32), print)
    monkeypatch.setattr(ablation.counters, "obstacle", lambda: "perf is not installed")
    monkeypatch.setattr(simulated.shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match="perf is not installed, and valgrind .*install valgrind"):
        ablate(asked(traffic=True), print)


def test_a_report_is_kept_after_each_program(monkeypatch, tmp_path):
    kept = []
    monkeypatch.setattr(ablation, "measure_limits", lambda *given: {})
    monkeypatch.setattr(ablation, "step_program", lambda *given: None)
    monkeypatch.setattr(ablation, "_program", lambda a, p, *given: {"program": p, "levels": {}})
    ablate(asked(programs=("one", "two")), print, lambda r: kept.append(len(r["programs"])))
    assert kept == [1, 2]

    def interrupted(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(ablation, "_traffic", interrupted)
    monkeypatch.setattr(ablation.counters, "obstacle", lambda: None)
    with pytest.raises(KeyboardInterrupt):
        ablate(asked(programs=("one", "two"), traffic=True), print, kept.append)
    (part,) = kept[-1]["programs"]
    assert part["measured"] == {"why_not": "it was interrupted"}


def test_an_interrupt_shows_and_keeps_what_was_measured(monkeypatch, tmp_path, measured, capsys):
    def one_program(asked, tell, keep):
        keep(measured)
        raise KeyboardInterrupt

    monkeypatch.setattr(ablation, "ablate", one_program)
    path, plots = tmp_path / "new" / "a.json", tmp_path / "plots"
    words = ["ablate", "tiny_densenet", "--json", str(path), "--plot", str(plots)]
    assert main(words) == 130
    out, err = capsys.readouterr()
    assert "all levels together" in out and "nothing was written" not in err
    assert json.loads(path.read_text())["programs"] and (plots / "ablation-time.png").exists()
    assert main(["ablate", "tiny_densenet", "--plot", str(path)]) == 2
    assert "is no folder (choose another --plot)" in capsys.readouterr().err
