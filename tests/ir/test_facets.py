"""Facets of the op table against the meanings in the same rows: what a row says of itself holds."""

from __future__ import annotations

import operator

import numpy as np
import pytest

from bngen.ir.node import Graph
from bngen.ir.ops import FAMILIES, OPS, complete_attrs, infer
from bngen.ir.ops.row import ShapeError
from bngen.ir.types import TensorType
from tests.ir.op_cases import CASES, Case


def with_facet(name: str) -> list:
    """Cases of the ops whose row has the facet; every such op must have one."""
    found = [c for c in CASES if getattr(OPS[c.op], name)]
    assert {c.op for c in found} == {op for op, row in OPS.items() if getattr(row, name)}
    return [pytest.param(c, id=c.id) for c in found]


def evaluated(case: Case) -> tuple[Graph, list[np.ndarray], tuple[np.ndarray, ...]]:
    """A case's graph, operands and results, in the declared types."""
    graph = case.graph
    (node,) = graph.nodes
    given = {i.name: np.asarray(a, i.value.dtype) for i, a in zip(
        graph.inputs, case.args().values(), strict=True)}  # fmt: skip
    operands = [None if v is None else given[v.name] for v in node.inputs]
    return graph, operands, OPS[case.op].evaluate(operands, node.attrs)


def test_no_two_rows_have_one_name():
    assert sum(map(len, FAMILIES)) == len(OPS)


def test_kinds_are_those_of_the_table():
    assert {row.kind for row in OPS.values()} == {
        "pointwise", "reduce", "contract", "window", "view", "copy", "coarse", "collective",
    }  # fmt: skip


@pytest.mark.parametrize("case", with_facet("identity"))
def test_an_identity_hands_elements_on(case):
    _, (x,), (y,) = evaluated(case)
    assert y.dtype == x.dtype
    assert np.isin(y, x).all()
    np.testing.assert_array_equal(y, np.broadcast_to(x, y.shape))


@pytest.mark.parametrize("case", with_facet("converts"))
def test_a_conversion_changes_nothing_but_the_type(case):
    _, (x,), (y,) = evaluated(case)
    np.testing.assert_array_equal(y, x.astype(y.dtype))


@pytest.mark.parametrize("case", with_facet("literal"))
def test_a_literal_is_its_attribute(case):
    graph, operands, (y,) = evaluated(case)
    assert not operands
    assert y.shape == ()
    assert y == np.asarray(graph.nodes[0].attrs["value"], y.dtype)


@pytest.mark.parametrize("case", with_facet("random"))
def test_draws_of_one_stream_are_the_same_and_of_another_are_not(case):
    graph, operands, (y,) = evaluated(case)
    attrs, draw = graph.nodes[0].attrs, OPS[case.op].evaluate
    (again,), (other,) = (
        draw(operands, {**attrs, "stream": attrs["stream"] + more}) for more in (0, 1)
    )
    np.testing.assert_array_equal(y, again)
    assert (y != other).any()


@pytest.mark.parametrize("case", with_facet("relation"))
def test_a_comparison_is_its_sign(case):
    _, (a, b), (y,) = evaluated(case)
    signs = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le,
             "==": operator.eq, "!=": operator.ne}  # fmt: skip
    np.testing.assert_array_equal(y, signs[OPS[case.op].relation](a, b))
    assert y.dtype == bool


BINARY = [op for op, row in OPS.items() if row.kind == "pointwise" and row.operands == ("a", "b")]


@pytest.mark.parametrize("op", BINARY)
def test_what_wraps_in_integers(op):
    """Beyond 255 there is no uint8: sums and products start again at 0, maxima do not."""
    row = OPS[op]
    small = [np.asarray(x, np.uint8) for x in ([200, 3], [100, 200])]
    try:
        infer(op, [TensorType((2,), "uint8")] * 2, complete_attrs(op, {}))
    except ShapeError:
        assert not row.wraps, "defined for floats alone"
        return
    (y,) = row.evaluate(small, {})
    (wide,) = row.evaluate([x.astype(np.int64) for x in small], {})
    assert row.wraps == (wide != y).any()
    if row.wraps:
        np.testing.assert_array_equal(y, wide % 256)


@pytest.mark.parametrize("case", with_facet("class_numbers"))
def test_class_numbers_lie_below_the_attribute_on_an_axis_that_the_operand_lacks(case):
    graph, (labels,), (y,) = evaluated(case)
    axis = OPS[case.op].new_axis
    assert y.shape[axis] == graph.nodes[0].attrs["classes"]
    assert (*y.shape[:axis], *y.shape[axis + 1 :]) == labels.shape
    np.testing.assert_array_equal(y.argmax(axis), labels)


def test_only_what_expands_its_operand_has_a_new_axis():
    assert {op for op, row in OPS.items() if row.new_axis is not None} == {
        op for op, row in OPS.items() if row.class_numbers
    }


@pytest.mark.parametrize("case", with_facet("moves"))
def test_what_moves_computes_nothing(case):
    graph, operands, (y,) = evaluated(case)
    attrs = graph.nodes[0].attrs
    match OPS[case.op].moves:
        case "copies":
            np.testing.assert_array_equal(y, operands[0])
        case "reshapes":
            np.testing.assert_array_equal(y.ravel(), operands[0].ravel())
        case "cuts":
            index = range(attrs["start"], attrs["stop"])
            np.testing.assert_array_equal(y, operands[0].take(index, attrs["axis"]))
        case "joins":
            parts = np.split(y, np.cumsum([x.shape[attrs["axis"]] for x in operands])[:-1],
                             attrs["axis"])  # fmt: skip
            for part, x in zip(parts, operands, strict=True):
                np.testing.assert_array_equal(part, x)
        case other:
            raise AssertionError(f"{case.op} {other}")


def test_views_and_copies_are_what_moves():
    assert {op for op, row in OPS.items() if row.moves} == {
        op for op, row in OPS.items() if row.kind in ("view", "copy")
    }


@pytest.mark.parametrize("case", with_facet("is_partial"))
def test_a_partial_reduction_gives_one_row_a_group(case):
    graph, operands, results = evaluated(case)
    groups = graph.nodes[0].attrs["row_groups"]
    assert {y.shape for y in results} == {(groups, operands[0].shape[1])}
    # What happens in the last group of rows is seen in the last row alone.
    changed = [x if i else np.concatenate([x[:-1], x[-1:] + 1]) for i, x in enumerate(operands)]
    per_image = groups // operands[0].shape[0]
    again = OPS[case.op].evaluate(changed, graph.nodes[0].attrs)
    for before, after in zip(results, again, strict=True):
        np.testing.assert_array_equal(before[:-per_image], after[:-per_image])
    assert any((b != a).any() for b, a in zip(results, again, strict=True))


@pytest.mark.parametrize("case", with_facet("merges"))
def test_a_merge_folds_the_groups(case):
    _, operands, results = evaluated(case)
    assert {x.shape[1:] for x in operands} == {y.shape[-1:] for y in results}
    swapped = OPS[case.op].evaluate([x[::-1] for x in operands], case.graph.nodes[0].attrs)
    for y, again in zip(results, swapped, strict=True):
        np.testing.assert_allclose(y, again[::-1] if y.ndim == 2 else again, rtol=1e-6)


@pytest.mark.parametrize("op", ["sum", "mean", "amax", "bn_mean"])
def test_what_averages_gives_back_a_constant(op):
    x = np.full((2, 3, 4, 4), 5.0, np.float32)
    (y,) = OPS[op].evaluate([x], {"axes": (0, 2, 3), "keepdims": False})
    constant = OPS[op].combine == "max" or OPS[op].averages
    assert (y == 5.0).all() == constant


@pytest.mark.parametrize("case", with_facet("statistics"))
def test_statistics_are_a_mean_and_a_variance(case):
    """Each the same, and 4 times as large, of twice the data."""
    graph, operands, results = evaluated(case)
    row, attrs = OPS[case.op], {**graph.nodes[0].attrs, "momentum": 1.0}
    assert row.results[-2:] == ("mean", "var")
    if row.statistics == "running":
        mean, _ = row.evaluate([*operands[:4], None], attrs)
        np.testing.assert_allclose(mean, operands[2])
        return
    powers = {"sum": 2, "m2": 4, "residual": 2, "x": 2}
    twice = [x if x is None else powers.get(name, 1) * x
             for name, x in zip(row.roles, operands, strict=True)]  # fmt: skip
    mean, var = row.evaluate(twice, attrs)[-2:]
    np.testing.assert_allclose(mean, 2 * results[-2], rtol=1e-5)
    np.testing.assert_allclose(var, 4 * results[-1], rtol=1e-5)


def test_folds_say_how_partial_results_join():
    assert all(bool(row.combine) == (row.kind in ("reduce", "collective")) for row in OPS.values())
    assert {row.combine for row in OPS.values()} == {"", "sum", "max", "moments"}


@pytest.mark.parametrize("case", with_facet("direction"))
def test_directions_of_a_convolution(case):
    """A gradient is the transpose of the forward map: <conv(x, w), dy> is either inner product."""
    graph, (a, b), (y,) = evaluated(case)
    attrs = {k: v for k, v in graph.nodes[0].attrs.items() if k != "shape"}
    forward = next(row for row in OPS.values() if row.direction == "forward").evaluate
    rng = np.random.default_rng(1)
    match OPS[case.op].direction:
        case "input":
            x = rng.standard_normal(y.shape)
            left, right = (forward([x, b], attrs)[0] * a).sum(), (x * y).sum()
        case "weight":
            w = rng.standard_normal(y.shape)
            left, right = (forward([a, w], attrs)[0] * b).sum(), (w * y).sum()
        case "forward":
            left, right = y.shape[:2], (a.shape[0], b.shape[0])
    np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", with_facet("deferrable"))
def test_what_may_be_deferred_is_affine_in_its_first_operand(case):
    graph, (x, *rest), (y,) = evaluated(case)
    attrs = graph.nodes[0].attrs
    (zero,), (twice,) = (OPS[case.op].evaluate([s * x, *rest], attrs) for s in (0, 2))
    np.testing.assert_allclose(twice - zero, 2 * (y - zero), rtol=1e-4, atol=1e-4)


def test_no_pass_adds_to_a_weights_gradient_as_it_is_stored():
    """Its sums run over all pixels; copies, and views that need one, have nests of their own."""
    assert {op for op, row in OPS.items() if not row.store_slot} == {
        op
        for op, row in OPS.items()
        if row.direction == "weight" or row.moves or row.kind == "collective"
    }


def test_free_results_are_no_sublayers_of_a_kernel_unless_they_stop_gradients():
    free = {op for op, row in OPS.items() if row.is_free}
    silent = {op for op, row in OPS.items() if not row.sublayer}
    assert free - silent == {"stop_gradient"}
    assert silent <= free
