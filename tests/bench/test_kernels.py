"""Kernels beside bare convolutions: what counts as work, the table's arithmetic, a real run."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import bngen as bg
from bngen.bench import kernels, limits, plots, tables
from bngen.bench.contenders import Entry
from bngen.bench.kernels import (
    Measured,
    convolutions,
    measure_kernels,
    performed,
    report,
    shape_text,
)
from bngen.errors import UsageError
from bngen.ir.build import GraphBuilder
from bngen.ir.types import TensorType
from bngen.lang.gradients import value_and_grad
from bngen.runtime.memory import Arena
from bngen.target.parse import Target
from bngen.torch_bridge.bare import DIRECTIONS, LAYOUTS, bare_convolution, flops, shapes
from bngen.tuning.lone import LoneKernel, fill, timed
from tests.profiles import takes_long

LIMITS = {"gflops": 100.0, "gbytes": 10.0, "threads": 2}


def directions(**conv):
    """The nodes of one convolution in all three directions."""

    @bg.program
    def one(x: bg.Tensor[2, 8, 9, 7], w: bg.Tensor[12, 8 // conv.get("groups", 1), 3, 3]):
        return bg.sum(bg.conv2d(x, w, **conv))

    graph = value_and_grad(one, wrt=["x", "w"]).graph
    return {n.op: n for n in graph.nodes if n.op in DIRECTIONS}


@pytest.mark.parametrize("conv", [{"padding": 1}, {"stride": 2}, {"groups": 4, "dilation": 2}])
def test_all_directions_do_the_same_work(conv):
    nodes = directions(**conv)
    assert set(nodes) == set(DIRECTIONS)
    x, w = torch.zeros(2, 8, 9, 7), torch.zeros(12, 8 // conv.get("groups", 1), 3, 3)
    y = torch.nn.functional.conv2d(x, w, **conv)
    work = 2 * y.numel() * w[0].numel()
    for node in nodes.values():
        assert shapes(node) == (x.shape, w.shape, y.shape)
        assert flops(node) == work


def test_products_at_winograds_points():
    # 5 x 4 tiles of 2x2 outputs on a map of 9 x 7, 16 products each.
    for node in directions(padding=1).values():
        kernel = SimpleNamespace(anchor=node)
        assert performed(kernel, "conv") == flops(node) == 2 * 2 * 12 * 8 * 9 * 63
        for rule in ("winograd", "winograd_wgrad"):
            assert performed(kernel, rule) == 2 * 2 * 12 * 8 * 20 * 16


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", DIRECTIONS)
def test_the_bare_call_is_that_direction(op, layout):
    node = directions(padding=1, stride=2)[op]
    result = bare_convolution(node, layout)()
    if op == "conv2d":
        assert result.shape == node.out.shape
    else:
        made = [t.shape for t in result if t is not None]
        assert made == [node.out.shape]


def test_uneven_padding_has_no_counterpart():
    node = SimpleNamespace(op="conv2d", attrs={"padding": (0, 1, 0, 1)})
    assert bare_convolution(node, "NCHW") is None


def test_shapes_as_text():
    nodes = directions(stride=2, groups=4)
    assert {shape_text(n) for n in nodes.values()} == {"2x8x9x7 k12 3x3 /2 g4"}


def convolution(gradient):
    """A 1x1 convolution of 100 x 100 = 1e4 multiply-adds a pixel, 1000 pixels: 1e7 in all."""
    b = GraphBuilder()
    x, w = b.input("x", TensorType((10, 100, 10, 10))), b.input("w", TensorType((100, 100, 1, 1)))
    y = b.emit("conv2d", x, w)
    return b.producer(b.emit("conv2d_grad_input", y, w, shape=x.shape) if gradient else y)


def measured(ours, bare, calls=1, nbytes=1000, gradient=False):
    kernel = SimpleNamespace(anchor=convolution(gradient), name="k", sublayers=("relu", "conv2d"))
    code = SimpleNamespace(rule="conv", knobs={"rows": 2})
    compiled = SimpleNamespace(kernel=kernel, code=code)
    return Measured(compiled, calls, nbytes, ours, bare)


def test_a_row():
    # 2e7 operations at 100 GFLOP/s take 0.2 ms at least.
    m = measured([4e-4, 5e-4, 4e-4], {"NCHW": [8e-4, 8e-4, 8e-4], "channels-last": [2e-3] * 3})
    (row,) = report("net", [m], LIMITS)["rows"]
    assert row["flops"] == 20_000_000
    assert row["gflops"] == pytest.approx(50)
    assert row["peak_share"] == pytest.approx(0.5)
    assert row["roofline_share"] == pytest.approx(0.5)
    assert row["onednn"]["layout"] == "NCHW"
    assert row["ratio"]["samples"] == pytest.approx([2, 1.6, 2])


def test_traffic_bounds_a_row():
    m = measured([1e-3], {"NCHW": [1e-3]}, nbytes=8_000_000)  # 0.8 ms at 10 GB/s
    (row,) = report("net", [m], LIMITS)["rows"]
    assert row["roofline_share"] == pytest.approx(0.8)


def test_the_summary_weighs_by_calls():
    rows = [
        measured([4e-4], {"NCHW": [8e-4]}, calls=3),
        measured([8e-4], {"NCHW": [4e-4]}, calls=1),
        measured([1e-3], {}),
    ]
    total = report("net", rows, LIMITS)["summary"]
    assert (total["kernels"], total["compared"]) == (3, 2)
    assert total["ratio"] == pytest.approx(1.0)
    assert total["worst"] == pytest.approx(0.5)
    assert total["seconds"] == pytest.approx(3e-3)
    assert total["onednn_seconds"] == pytest.approx(2.8e-3)
    assert total["peak_share"] == total["busy_share"] == pytest.approx(5 * 2e7 / 3e-3 / 1e11)


def test_groups_come_to_what_their_rows_do():
    rows = [measured([4e-4], {"NCHW": [8e-4]}, calls=3), measured([8e-4], {})]
    rows.append(measured([1e-3], {}, gradient=True))
    part = report("net", rows, LIMITS)
    first, second = part["groups"]
    assert (first["direction"], first["window"], first["kernels"], first["calls"]) == (
        "forward", "1x1", 2, 4,
    )  # fmt: skip
    assert first["seconds"] == pytest.approx(2e-3) and first["worst"] == pytest.approx(2.0)
    assert second["direction"] == "data gradient" and second["ratio"] is None
    assert first["kernels"] + second["kernels"] == part["summary"]["kernels"]
    for table in (tables.groups_table(part), tables.slowest_table(part)):
        assert table.row_count == (2 if table.columns[1].header == "window" else 1)


def test_plots_of_kernels(tmp_path):
    rows = [measured([4e-4], {"NCHW": [8e-4]}), measured([4e-4], {})]
    part = report("a/net.py:f", rows, LIMITS)
    figure = plots._roofline(part, LIMITS)
    assert len(figure.axes[0].lines[0].get_xdata()) == 3
    ridge = figure.axes[0].lines[0].get_xdata()[1]
    assert ridge == pytest.approx(10)


def test_kernels_without_a_race_have_no_plot_of_steps(tmp_path):
    part = report("a/net.py:f", [measured([4e-4], {})], LIMITS)
    races = [{"contenders": [{"name": "bngen"}]}]
    paths = plots.draw({"races": races, "kernels": [part], "limits": LIMITS}, tmp_path)
    assert [p.name for p in paths] == ["roofline-a_net.py_f.png"]


def test_bars_run_from_pytorch_to_the_highest_level():
    names = ["bngen", "none", "eager", "bnff"]
    rows = [{"name": n, "status": "ok", "precision": "float32"} for n in names]
    rows.append({"name": "bf16", "status": "ok", "precision": "bfloat16"})
    rows.append({"name": "compile", "status": "unavailable", "precision": "float32"})
    shown = [name for name, _ in plots.bars({"fusion": "icf", "contenders": rows})]
    assert shown == ["eager", "bf16 (bfloat16)", "bngen none", "bngen bnff", "bngen icf"]


# --- kernels by themselves --------------------------------------------------------------------


def test_a_limit_is_the_highest_that_was_measured():
    found = {"gflops": 100.0, "gbytes": 10.0, "threads": 2}
    limits.highest(found, {"gflops": 90.0, "gbytes": 12.0})
    assert found == {"gflops": 100.0, "gbytes": 12.0, "threads": 2}


def test_timed_divides_by_the_calls():
    now, calls = [0.0], []

    def run(times):
        calls.append(times)
        now[0] += 1e-5 * times

    assert timed(run, lambda: now[0]) == pytest.approx(1e-5)
    assert calls[0] == 1 and 1e-5 * calls[-1] >= 2e-3


def test_inputs_that_any_kernel_can_take():
    rng = np.random.default_rng(0)
    arrays = {
        "map": np.zeros((2, 3, 4, 4, 8), np.float32), "variance": np.zeros((3, 8), np.float32),
        "labels": np.ones(4, np.int64), "mask": np.zeros((4, 40), bool),
    }  # fmt: skip
    for array in arrays.values():
        fill(array, rng)
    assert arrays["map"].min() < 0 < arrays["map"].max()
    assert arrays["variance"].min() > 0
    assert not arrays["labels"].any()
    assert 0 < arrays["mask"].mean() < 1


@takes_long("times each kernel of a network")
def test_a_real_network(monkeypatch):
    monkeypatch.setattr("bngen.tuning.lone._SHORTEST", 0.0)
    entry = Entry("tiny_mobilenet", "bngen", batch=1, image=16)
    told = []
    part = measure_kernels(entry, Target.parse(), LIMITS, 1, lambda *state: told.append(state))
    plan = convolutions(entry, Target.parse())
    assert sum(r["calls"] for r in part["rows"]) == len(plan.kernels)
    assert {r["direction"] for r in part["rows"]} == set(DIRECTIONS.values())
    assert any("bn_" in r["sublayers"] for r in part["rows"])
    assert all(r["onednn"] for r in part["rows"])
    assert part["summary"]["compared"] == len(part["rows"]) == told[-1][0]


def test_a_program_without_convolutions(tmp_path, monkeypatch):
    path = tmp_path / "net.py"
    path.write_text(
        "import bngen as bg\n@bg.program\ndef f(x: bg.Tensor[2, 3]):\n    return bg.sum(x * x)\n"
    )
    with pytest.raises(UsageError, match="has no convolutions"):
        measure_kernels(Entry(str(path), "bngen"), Target.parse(), LIMITS, 1, lambda *s: None)


# --- limits -----------------------------------------------------------------------------------


def test_the_peak_loop_computes_and_uses_fma(monkeypatch):
    monkeypatch.setattr(limits, "STEPS", 3)
    texts = []
    compiled = limits._compiled

    def spy(tvm, target, function):
        module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
        texts.append(tvm.compile(module, target=target.tvm()).mod.inspect_source("s"))
        return compiled(tvm, target, function)

    monkeypatch.setattr(limits, "_compiled", spy)
    target = Target.parse()
    run, operations = limits.multiply_adds(target, 2)
    run()
    assert operations == 2 * 2 * 3 * limits.CHAINS * target.machine.lanes("float32")
    if target.fma:
        assert texts[0].count("vfmadd") >= limits.CHAINS


def test_copies_copy(monkeypatch):
    arenas = []

    def spy(nbytes):
        arenas.append(Arena(nbytes))
        return arenas[-1]

    monkeypatch.setattr(limits, "COPY_BYTES", 1 << 16)
    monkeypatch.setattr(limits, "Arena", spy)
    run, moved = limits.copies(Target.parse(), 2)
    halves = arenas[0].view(0, (2, 1 << 16), "uint8")
    halves[0] = np.random.default_rng(0).integers(0, 256, 1 << 16)
    run()
    assert moved == halves.size
    np.testing.assert_array_equal(halves[1], halves[0])


def test_a_limit_is_the_best_of_the_rounds(monkeypatch):
    clock = iter([0, 4, 10, 12, 20, 23, 30, 34, 40, 44, 50, 54, 60, 64])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert limits._best((lambda: None, 8e9)) == 4


def test_a_lone_kernel_repeats_itself():
    target = Target.parse()
    plan = convolutions(Entry("tiny_resnet", "bngen", batch=1, image=16), target)
    (compiled, _), *_ = kernels.compile_distinct(plan, target, lambda *key: None, lambda *s: None)
    first, second = LoneKernel(compiled, seed=4), LoneKernel(compiled, seed=4)
    for a, b in zip(first.results(), second.results(), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.any()
