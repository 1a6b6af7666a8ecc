"""A profile: every step of a module is timed, and what is shown follows from the times."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from bngen.bench import profile as profiling
from bngen.bench.contenders import OURS, BngenStep, Entry
from bngen.bench.profile import OVERHEAD, Timed, profile, with_limits
from bngen.cli.main import main
from bngen.cli.profile import lines
from bngen.target.parse import Target

NET = """
import bngen as bg

@bg.program
def net(x: bg.Tensor[2, 8, 6, 6]):
    y = bg.layers.conv2d(x, "conv", 16, 3, padding=1, bias=False)
    y = bg.relu(bg.layers.batch_norm(y, "bn"))
    return bg.sum(bg.layers.conv2d(y, "last", 8, 1, bias=False))
"""
LIMITS = {"gflops": 100.0, "gbytes": 10.0, "threads": 1}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("profile") / "net.py"
    path.write_text(NET)
    entry = Entry(f"{path}:net", OURS, threads=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiling, "measure_limits", lambda *a: dict(LIMITS))
        return profile(entry, Target.parse("llvm -mcpu=native"), 2, lambda text: None)


def test_every_kernel_is_timed(found):
    kernels = found.explained.report.kernels
    timed = {row.name: row for row in found.rows}
    for kernel in kernels:
        row = timed[kernel.name]
        assert (row.call, row.layer, row.work) == (kernel.call, kernel.layer, kernel.work)
        assert (row.nbytes, row.operations) == (kernel.traffic.nbytes, kernel.operations)
        assert row.lasted > 0 and row.seconds >= 0
    assert {"conv", "bn", "last"} <= {row.layer for row in found.rows}


def test_a_program_of_several_ranks_runs_as_one_alone(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(NET.replace('"bn")', '"bn", group="all")'))
    assert math.isfinite(BngenStep(Entry(f"{path}:net", OURS, threads=1)).forward())


def test_what_is_shown_adds_up(found):
    data = json.loads(json.dumps(found.data()))
    total = sum(row["seconds"] for row in data["kernels"])
    for parts in (data["work"], data["layers"]):
        shown = sum(sum(p.values()) for name, p in parts.items() if name != OVERHEAD)
        assert shown == pytest.approx(total)
    whole = sum(sum(p.values()) for p in data["work"].values())
    assert whole == pytest.approx(data["step"]["forward"] + data["step"]["backward"])
    text = "\n".join(lines(data))
    for word in ("CONV", OVERHEAD, "1 threads", "100 GFLOP/s", "of the roofline", "in float32"):
        assert word in text
    layers = text.split("layer  ")[1].split("slowest")[0]
    assert OVERHEAD in layers and "more" not in layers


def test_what_is_not_shown_and_what_does_not_add_up_is_told(found):
    data = found.data()
    data["step"] = {k: v / 1000 for k, v in data["step"].items()}
    data["work"] = dataclasses.replace(found, step=data["step"]).by_work()
    data["layers"] = {f"layer{i}": {"forward": 1e-3, "backward": 1e-3} for i in range(14)}
    text = "\n".join(lines({**data, "dtype": "bfloat16"}))
    assert "watched one by one, kernels take " in text and "and 2 more layers, 4.00 ms" in text
    assert "pairs of bfloat16" in text


def test_a_trace_is_one_step(found):
    events = [e for e in found.trace()["traceEvents"] if e["ph"] == "X"]
    kernels = [e for e in events if e["tid"] == 1]
    assert [e["name"] for e in kernels] == [row.name for row in found.rows]
    for before, after in zip(kernels, kernels[1:], strict=False):
        assert after["ts"] >= before["ts"] + before["dur"]
    calls = [e for e in events if e["tid"] == 3]
    assert [e["name"] for e in calls] == ["forward", "backward"]


def test_the_command_writes_what_is_asked_for(found, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(profiling, "profile", lambda *a, **k: found)
    out = {name: tmp_path / "out" / name for name in ("trace.json", "page.html")}
    words = ("--trace", str(out["trace.json"]), "--html", str(out["page.html"]))
    assert main(["profile", "net", *words, "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["program"] == found.program
    assert json.loads(out["trace.json"].read_text())["traceEvents"]
    assert "<title>net at icf</title>" in out["page.html"].read_text()
    (tmp_path / "file").write_text("")
    assert main(["profile", "net", "--trace", str(tmp_path / "file" / "t")]) == 2
    assert "--trace" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("nbytes", "operations", "bound", "share"),
    [(10_000_000, 1_000_000, "memory", 0.5), (1000, 100_000_000, "arithmetic", 0.5), (0, 0, "", 0)],
)
def test_the_nearer_limit_is_what_bounds(nbytes, operations, bound, share):
    row = Timed("k", "forward", "l", "CONV", 2e-3, 0.0, 2e-3, nbytes, operations)
    limited = with_limits(row, LIMITS)
    assert limited.bound == bound and limited.share == pytest.approx(share)


def test_watched_steps_do_the_same_and_can_be_left_again(found):
    import numpy as np

    import bngen as bg

    @bg.program
    def one(x: bg.Tensor[4, 4]):
        return bg.exp(bg.sum(x * 2.0, 0))

    module, seen = bg.build(one), []
    x = np.ones((4, 4), np.float32)
    before = module(x)
    module.watch(lambda i, began, ended: seen.append((i, ended >= began)))
    np.testing.assert_array_equal(module(x), before)
    count = len(module.bundle.built.steps)
    assert seen == [(i, True) for i in range(count)]
    module.watch(None)
    np.testing.assert_array_equal(module(x), before)
    assert len(seen) == count
