"""What an explanation says of a kernel is what the plan says, for drawn programs and known ones."""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bngen as bg
from bngen.codegen.nests import choose
from bngen.codegen.signature import signature
from bngen.errors import ToolchainError
from bngen.explain.from_manifest import report_of_manifest
from bngen.explain.gather import explained
from bngen.explain.kernels import COLLECTIVE
from bngen.explain.report import ANCHOR, LOAD, STORE, Report
from bngen.explain.text import plan_text, text
from bngen.ir.text import parse_graph
from bngen.models import make
from bngen.passes.prepare import Joint, join_gradient, prepare
from bngen.plan.traffic import kernel_traffic, total
from bngen.stages import Stages
from bngen.target.parse import Target
from bngen.torch_bridge.regions import PREFIX
from bngen.tuning import records
from tests.strategies import programs

TARGET = Target.parse("llvm -mcpu=x86-64-v3")


def report(graph, **asked) -> Report:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some gradients are zero
        return explained(graph, TARGET, **asked).report


@settings(max_examples=7)
@given(programs(heads=False), st.sampled_from(("none", "mvf", "icf")), st.booleans())
def test_kernels_are_the_plans(graph, fusion, grad):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        joint = join_gradient(graph) if grad else Joint(graph, graph)
        plan = prepare(joint, TARGET.channel_block, fusion).planned.plan
    found = report(graph, fusion=fusion, grad=grad)
    assert [k.name for k in found.kernels] == [k.name for k in plan.kernels]
    swept = kernel_traffic(plan)
    for row, kernel, counted in zip(found.kernels, plan.kernels, swept, strict=True):
        assert row.call == ("backward" if counted.backward else "forward")
        for slot, nodes in ((LOAD, kernel.load), (STORE, kernel.store)):
            assert [s.text for s in row.of_slot(slot)] == [str(n) for n in nodes]
        anchors = [kernel.anchor] if kernel.anchor else []
        assert [s.text for s in row.of_slot(ANCHOR)] == [str(n) for n in anchors]
        t = row.traffic
        assert (t.sweeps_read, t.sweeps_written) == (len(counted.read), len(counted.written))
        assert t.map_bytes == counted.traffic.nbytes
        assert t.nbytes == sum(
            plan.nbytes(v) for v in (*dict.fromkeys(kernel.inputs), *kernel.outputs)
        )
        choice = choose(kernel, plan.layouts, TARGET.machine)
        assert (row.strategy, row.declined) == (choice.strategy.kind, choice.declined)
        assert row.record or row.knobs == choice.knobs(TARGET.machine)
        assert all(layer.layer for layer in row.sublayers)
    assert sum(t.traffic.map_bytes for t in found.totals.values()) == total(swept).nbytes
    assert sum(len(g.pairs) for g in found.refused) == len(plan.refused)


@settings(max_examples=6)
@given(programs(heads=False))
def test_kernels_wait_for_those_that_write_what_they_read(graph):
    found = report(graph, grad=True)
    written = {}
    for i, row in enumerate(found.kernels):
        direct = {written[m.name] for m in row.reads if m.name in written}
        assert direct <= set(row.sources) and all(s < i for s in row.sources)
        written.update((m.name, i) for m in row.writes)


def test_stages_are_programs():
    graph = make("tiny_densenet", batch=2, image=32).graph
    found = explained(graph, TARGET)
    assert [s.name for s in found.report.stages][:2] == ["traced", "conversions"]
    assert len(found.graphs) == len(found.report.stages)
    for stage, written in zip(found.report.stages, found.graphs.values(), strict=True):
        parsed = parse_graph(written)
        assert Counter(n.op for n in parsed.nodes if not n.row.literal) == stage.counts
        assert stage.ops == sum(stage.counts.values())


def test_fusion_moves_less_than_its_sub_layers():
    found = report(make("tiny_densenet", batch=2, image=32).graph, grad=True)
    for call, fused in found.totals.items():
        assert fused.traffic.map_bytes < found.unfused[call].traffic.map_bytes
        assert fused.kernels < found.unfused[call].kernels
    for row in found.kernels:
        assert row.traffic.map_bytes <= row.traffic_alone.map_bytes


@bg.program
def small(x: bg.Tensor[2, 16, 8, 8]):
    y = bg.layers.conv2d(x, "conv", 32, 3, padding=1, bias=False)
    y = bg.relu(bg.layers.batch_norm(y, "bn"))
    y = bg.layers.conv2d(y, "second", 16, 1, bias=False)
    return bg.sum(y)


def test_layers_go_by_their_parameters():
    found = report(small, grad=True, wrt=["conv.weight", "bn.weight", "second.weight"])
    of = {s.op: s.layer for k in found.kernels for s in k.sublayers if k.call == "forward"}
    assert (of["bn_partial_stats"], of["bn_apply"], of["relu"]) == ("bn", "bn", "bn relu")
    work = Counter((k.layer, k.work) for k in found.kernels)
    assert work[("conv", "CONV")] == 2  # forward, and the weight's gradient
    assert work[("second", "CONV")] == 3
    weights = [k for k in found.kernels if "conv2d_grad_weight" in {s.op for s in k.sublayers}]
    assert [k.layer for k in weights] == ["second", "conv"]


def test_operations_of_a_convolution():
    graph = make("tiny_densenet", batch=2, image=32).graph
    for row in report(graph).kernels:
        if row.strategy == "conv" and row.layer == "features.conv0":
            products = 2 * 16 * 16 * (8 * 3 * 7 * 7)
            assert row.operations == 2 * products + 2 * 8 * 16 * 16  # and the statistics
            assert row.intensity == row.operations / row.traffic.nbytes
            break
    else:
        raise AssertionError("no kernel of the first convolution")


def test_a_matrix_product_counts_its_inner_extent():
    @bg.program
    def product(a: bg.Tensor[4, 6], b: bg.Tensor[6, 10]):
        return bg.matmul(a, b)

    (row,) = [k for k in report(product).kernels if k.work == "CONV"]
    assert row.operations == 2 * 4 * 6 * 10


def test_a_record_is_named_with_its_line(tmp_path, monkeypatch):
    found = report(small)
    monkeypatch.setenv("BNGEN_SCHEDULES", str(tmp_path))  # as builds read it
    tunable = next(k for k in found.kernels if k.layer == "conv" and k.work == "CONV")
    assert tunable.record == ""
    plan = prepare(Joint(small.graph, small.graph), TARGET.channel_block).planned.plan
    kernel = next(k for k in plan.kernels if k.name == tunable.name)
    choice = choose(kernel, plan.layouts, TARGET.machine)
    other = next(k for k in choice.strategy.candidates(choice.facts) if k != tunable.knobs)
    record = records.Record(
        records.digest(tunable.strategy, signature(kernel, plan)), tunable.strategy, "it",
        choice.facts.extents(), dict(other), 1e-3, 2e-3, 1, 3,
    )  # fmt: skip
    path = tmp_path / "generic.toml"
    records.write(path, [record], {})
    again, same = (next(k for k in report(small, **asked).kernels if k.name == tunable.name)
                   for asked in ({"schedules": tmp_path}, {}))  # fmt: skip
    assert again == same
    line = 1 + path.read_text().split("\n").index(f'id = "{record.id}"')
    assert (again.record, dict(again.knobs)) == (f"{path}:{line}", dict(other))


def test_text_shows_every_kernel_and_every_reason():
    found = report(make("tiny_densenet", batch=2, image=32).graph, grad=True)
    shown = text(found)
    for row in found.kernels:
        assert row.name in shown
    for group in found.refused:
        assert f"{' -> '.join(group.ops)}, {group.slot} slot: {group.reason}" in shown
    assert plan_text(found).count("\nkernel ") == len(found.kernels) - 1


def test_collectives_stand_where_they_start():
    @bg.program
    def synchronized(x: bg.Tensor[2, 16, 8, 8], w: bg.Tensor[16, 16, 3, 3]):
        y = bg.batch_norm(bg.conv2d(x, w, padding=1), None, None, training=True, group="all")
        return bg.relu(y)

    found = report(synchronized, grad=True)
    collectives = [k for k in found.kernels if k.strategy == COLLECTIVE]
    assert [k.call for k in collectives] == ["forward", "backward"]
    assert not any(k.operations or k.knobs for k in collectives)
    assert text(found)


def test_a_manifest_tells_of_the_same_kernels():
    bundle = bg.bundle(small, grad=True, target=TARGET)
    read, planned = report_of_manifest(bundle.manifest()), report(small, grad=True)
    assert read.refused == planned.refused and read.totals == planned.totals
    for one, other in zip(read.kernels, planned.kernels, strict=True):
        assert (one.reads, one.writes, one.traffic) == (other.reads, other.writes, other.traffic)
        assert one.operations == other.operations and one.knobs == other.knobs
        assert one.symbol in bundle.objects
        assert (one.layer, one.work, one.sources) == (other.layer, other.work, other.sources)
        assert one.sublayers == other.sublayers
    assert text(read)


def test_symbols_are_found_where_values_are_exchanged():
    """A collective has no code, and no row among a manifest's kernels."""

    @bg.program
    def synchronized(x: bg.Tensor[2, 16, 8, 8]):
        return bg.relu(bg.batch_norm(x, None, None, training=True, group="all"))

    manifest = bg.bundle(synchronized, grad=True, target=TARGET).manifest()
    symbols = {k["name"]: k["symbol"] for k in manifest["kernels"]}
    shown = explained(synchronized, TARGET, grad=True).with_symbols(symbols).report.kernels
    assert all((k.strategy == COLLECTIVE) == (not k.symbol) for k in shown)
    for told, kernel in zip(manifest["kernels"], report_of_manifest(manifest).kernels, strict=True):
        assert told["name"] == kernel.name
        assert all(s < len(symbols) for s in kernel.sources)


def test_casts_say_what_they_make():
    half = bg.autocast(small)
    found = report(half, grad=True, wrt=["conv.weight", "bn.weight", "second.weight"])
    second = next(k for k in found.kernels if (k.layer, k.call) == ("second", "forward")
                  and k.of_slot(ANCHOR) and k.work == "CONV")  # fmt: skip
    loads = ["to f32", "bn_apply", "to bf16", "relu", "to f32"]  # the last for float multiply-adds
    assert [s.label for s in second.of_slot(LOAD)] == loads
    assert {m.dtype for m in second.reads if m.is_map} == {"bf16"}
    shown, types = text(found), found.map_bytes_by_type()
    assert "load    to f32 ; bn_apply ; to bf16 ; relu ; to f32" in shown
    assert not re.search(r"; cast\b|\bcast ;", shown)
    assert types["bf16"] > 0
    assert " bf16" in shown.split("by type: ")[1].split("\n")[0]
    assert sum(types.values()) == sum(t.traffic.map_bytes for t in found.totals.values())
    assert "by type: " not in text(report(small))


def test_stages_that_change_no_counts_share_a_line():
    found = report(small)
    shown = text(found).split("\n\n")[1].splitlines()
    assert len(shown) < len(found.stages)
    assert all(any(stage.name in line for line in shown) for stage in found.stages)


def test_the_last_line_says_what_fusion_has_saved():
    shown = text(report(small, grad=True)).rstrip().splitlines()[-1]
    assert shown.startswith("in short: icf makes ") and "in short" not in text(
        report(small, fusion="none")
    )


def test_a_manifest_of_something_else_is_refused():
    with pytest.raises(ToolchainError, match="cannot be explained"):
        report_of_manifest({"program": "x", "kernels": [{}]})


def test_stages_are_dumped(tmp_path, monkeypatch):
    monkeypatch.setenv("BNGEN_DUMP", str(tmp_path))
    bg.bundle(small, grad=True, wrt=["conv.weight"], target=TARGET)
    folder = tmp_path / "small"
    stages = sorted(folder.glob("*.txt"))
    assert [p.name for p in stages][:3] == [
        "00-traced.txt",
        "01-differentiated.txt",
        "02-conversions.txt",
    ]
    assert parse_graph(stages[0].read_text()) == small.graph
    assert (folder / "manifest.json").exists()
    symbols = {p.name.partition(".")[0] for p in (folder / "tir").iterdir()}
    for kind in ("ll", "asm"):
        assert {p.name.partition(".")[0] for p in (folder / kind).iterdir()} == symbols
    (folder / "mine.txt").write_text("")
    bg.bundle(small, fusion="none", target=TARGET)  # and is all that is there then
    kernels = json.loads((folder / "manifest.json").read_text())["kernels"]
    names = {p.name.partition(".")[0] for p in (folder / "asm").iterdir()}
    assert names == {k["symbol"] for k in kernels}
    numbers = [p.name[:2] for p in folder.glob("[0-9]*.txt")]
    assert len(numbers) == len(set(numbers)) and (folder / "mine.txt").exists()


def test_what_has_no_name_of_its_own_is_told_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("BNGEN_DUMP", str(tmp_path))
    for asked in (("training", True), ("evaluation", False), ("training", True)):
        Stages.asked(f"{PREFIX}0", asked).graph("traced", small.graph)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_dump_that_cannot_be_written_says_so(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BNGEN_DUMP", str(tmp_path / "file"))
    with pytest.raises(ToolchainError, match="BNGEN_DUMP"):
        bg.bundle(small, target=TARGET)
