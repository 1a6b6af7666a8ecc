"""Sweeps over feature maps: definitions, golden counts, what is kept for backward, the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from bngen.ir.build import GraphBuilder
from bngen.ir.types import TensorType, Value
from bngen.passes.fusion.levels import LEVELS
from bngen.passes.pipeline import plan_program
from bngen.plan.calls import saved
from bngen.plan.traffic import (
    KernelTraffic,
    Traffic,
    feature_maps,
    kernel_traffic,
    total,
)
from tests.passes.meaning import joint_program
from tests.passes.sweeps import (
    LAYERS,
    NETWORKS,
    layer_table,
    network_table,
    page_of_sweeps,
    planned,
    rows_of,
)
from tests.profiles import some, takes_long

PAGE = Path(__file__).parents[2] / "docs" / "how" / "sweeps.md"


# --- definitions ----------------------------------------------------------------------------------


def residual():
    """x, weights; z = conv(relu(x)); y = z + x."""
    b = GraphBuilder()
    x = b.input("x", TensorType((2, 16, 6, 6)))
    w = b.input("w", TensorType((16, 16, 3, 3)), "parameter")
    z = b.emit("conv2d", b.emit("relu", b.emit("neg", x)), w, padding=(1, 1, 1, 1))
    return b.finish([b.emit("add", z, b.emit("exp", x))])


def test_weights_are_no_feature_maps():
    joint, _ = joint_program(residual())
    found = {v.name for v in feature_maps(joint)}
    weights = {v.name for n in joint.nodes if n.op == "conv2d_grad_weight" for v in n.outputs}
    assert {"x", "conv2d", "add", "conv2d_grad_input"} <= found
    assert weights and found.isdisjoint({"w", *weights})


def test_updated_weights_are_none_either():
    b = GraphBuilder()
    x = b.input("x", TensorType((2, 4, 6, 6)))
    w = b.input("w", TensorType((4, 4, 3, 3)), "parameter")
    dw = b.emit("conv2d_grad_weight", x, b.emit("exp", x), padding=(1,) * 4, shape=(4, 4, 3, 3))
    b.emit("conv2d", x, w)
    new = b.emit("sub", w, b.emit("mul", dw, 0.1))
    found = feature_maps(b.finish([], updates=[(w, new)]))
    assert {v.name for v in found} == {"x", "exp", "conv2d"}


def test_a_map_of_one_pixel_is_a_vector():
    b = GraphBuilder()
    x = b.input("x", TensorType((2, 4, 6, 6)))
    small = b.emit("adaptive_avg_pool2d", x, output_size=(1, 1))
    assert feature_maps(b.finish([small])) == {x}


def test_sweeps_and_bytes_of_a_residual_sum():
    """Copied in and out of blocks; in between one kernel: relu on load, the sum on store."""
    graph = residual()
    rows = kernel_traffic(plan_program(graph, "icf", 16).plan)
    swept = [r for r in rows if r.traffic.sweeps]
    map_bytes = 2 * 16 * 6 * 6 * 4
    assert [r.kernel.anchor.op for r in swept] == ["copy", "conv2d", "copy"]
    one = Traffic(1, 1, map_bytes, map_bytes)
    assert [r.traffic for r in swept] == [one] * 3
    assert total(rows) == one + one + one
    assert total(rows).sweeps == 6 and total(rows).nbytes == 6 * map_bytes


def test_padding_lanes_are_moved_too():
    b = GraphBuilder()
    x = b.input("x", TensorType((2, 10, 6, 6)))
    w = b.input("w", TensorType((10, 10, 1, 1)), "parameter")
    graph = b.finish([b.emit("conv2d", x, w)])
    rows = kernel_traffic(plan_program(graph, "icf", 16).plan)
    (conv,) = (r for r in rows if "conv2d" in r.kernel.sublayers)
    assert conv.traffic.bytes_read == 2 * 16 * 6 * 6 * 4


def test_saved_values_are_found_through_concatenations():
    """The concatenation that backward reads was written piece by piece in forward."""
    graph = LAYERS["DenseNet"](3)
    joint, late = joint_program(graph)
    plan = plan_program(joint, "icf", 16, cotangents=late).plan
    values = set(saved(plan))
    written = {v for k in plan.kernels for v in k.outputs}
    cats = [n for n in plan.views if n.op == "cat" and len(n.out.shape) == 4]
    assert cats and values <= written
    assert all(v in values for n in cats for v in n.inputs if v in written)


def test_without_a_second_call_nothing_is_saved():
    plan = plan_program(residual(), "icf", 16).plan
    assert saved(plan) == ()
    assert not any(r.backward for r in kernel_traffic(plan))


# --- golden counts --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", LAYERS)
def test_composite_layer(family, golden):
    golden(layer_table(family) + "\n")


@pytest.mark.parametrize("level", ["bnff", "icf"])
@pytest.mark.parametrize("family", LAYERS)
def test_kernels_of_a_block(family, level, golden):
    """The kernels themselves, of a network of one block of three layers."""
    golden(listing(rows_of(LAYERS[family](3), level)))


def listing(rows: tuple[KernelTraffic, ...]) -> str:
    """Each kernel that sweeps feature maps: load slots | anchor | store slots : maps -> maps."""
    return "".join(f"{described(r)}\n" for r in rows if r.traffic.sweeps)


def described(row: KernelTraffic) -> str:
    kernel = row.kernel
    anchor = (kernel.anchor,) if kernel.anchor else ()
    slots = (
        " ".join(n.op for n in nodes if n.op != "constant") or "-"
        for nodes in (kernel.load, anchor, kernel.store)
    )
    call = "backward" if row.backward else "forward"
    return f"{call}: {' | '.join(slots)} : {shapes(row.read)} -> {shapes(row.written)}"


def shapes(values: tuple[Value, ...]) -> str:
    return ", ".join("x".join(map(str, v.shape[1:])) for v in values) or "-"


@pytest.mark.parametrize("name", some(NETWORKS[::-1], 1))
def test_training_step(name, golden):
    golden(network_table(name) + "\n")


@takes_long("plans DenseNet-121 and ResNet-50 at five levels")
def test_the_page(request):
    """The page is made by `page_of_sweeps`; ``--update-golden`` writes it anew."""
    if request.config.getoption("--update-golden"):
        PAGE.write_text(page_of_sweeps())
    assert PAGE.read_text() == page_of_sweeps()


# --- nothing extra is kept ------------------------------------------------------------------------


def writers_of_saved(name: str, level: str) -> set[str]:
    """The ops that made the feature maps that are kept for backward."""
    plan = planned(name, level)
    maps, producers = feature_maps(plan.plan.graph), plan.plan.graph.producers()
    return {producers[v].op for v in saved(plan.plan) if v in maps}


def test_densenet_keeps_nothing_normalized_or_rectified():
    assert writers_of_saved("densenet121", "icf") == {"conv2d", "max_pool2d", "avg_pool2d"}


def test_resnet_keeps_its_sums_besides():
    assert writers_of_saved("resnet50", "icf") == {"conv2d", "max_pool2d", "add"}


@pytest.mark.parametrize("name, sums", [("densenet121", set()), ("resnet50", {"add"})])
def test_forward_writes_what_is_kept_and_no_more(name, sums):
    plan = planned(name, "icf")
    rows = kernel_traffic(plan.plan)
    producers = plan.plan.graph.producers()
    written = {producers[v].op for r in rows if not r.backward for v in r.written}
    assert written <= {"conv2d", "max_pool2d", "avg_pool2d"} | sums


def test_without_fusion_normalized_maps_are_kept():
    assert {"relu", "bn_apply"} & writers_of_saved("densenet121", "none")


def test_all_that_is_kept_besides_maps_is_small():
    plan = planned("densenet121", "icf")
    maps = feature_maps(plan.plan.graph)
    rest = [v for v in saved(plan.plan) if v not in maps]
    assert sum(map(plan.plan.nbytes, rest)) < 2**20


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_accumulate_in_place(name):
    """Whatever adds to a gradient in memory writes it where it was, and no mask is stored."""
    plan = planned(name, "icf")
    rows = [r for r in kernel_traffic(plan.plan) if r.backward]
    done = {(kernel, read) for kernel, read, _ in plan.memory.in_place}
    adding = 0
    for row in rows:
        assert all(v.dtype != "bool" for v in row.written)
        for node in row.kernel.store:
            added = [v for v in node.operands if v in row.read]
            if node.op == "add" and added:
                adding += 1
                assert any((row.kernel.name, v) in done for v in added)
    assert adding >= {"densenet121": 58, "resnet50": 16}[name]


def test_levels_never_sweep_more():
    for name in NETWORKS:
        steps = [total(kernel_traffic(planned(name, level).plan)) for level in LEVELS]
        assert steps == sorted(steps, key=lambda t: (-t.sweeps, -t.nbytes))
