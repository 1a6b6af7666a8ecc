"""Gradients: every rule and random programs against PyTorch's autograd, in double precision."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from bngen.errors import ProgramError, SourceLoc
from bngen.ir.build import GraphBuilder
from bngen.ir.interp import run
from bngen.ir.node import Graph
from bngen.ir.ops import OPS
from bngen.ir.text import parse_graph
from bngen.ir.types import TensorType
from bngen.ir.verify import verify
from bngen.models import make
from bngen.passes.autodiff import differentiate
from bngen.passes.grad_rules import GRAD_RULES, NO_GRADIENT
from bngen.verification.tolerance import largest, nudged
from tests.ir.op_cases import CASES, Case, normal
from tests.oracle import assert_close, assert_same, kink_margin, torch_run, torch_runs
from tests.strategies import programs, random_args

INTERNAL = {
    *(op for op in OPS if "_grad_" in f"{op}_" and op != "conv2d_grad_input"),
    "bn_all_stats", "bn_apply", "bn_merge_mean", "bn_merge_stats", "bn_partial_mean",
    "bn_partial_stats", "bn_partial_var", "bn_scale", "channel_scale", "max_groups", "partial_max",
    "partial_sum", "sum_groups",
}  # fmt: skip
"""Ops that only differentiation and fission make."""

seeds = st.integers(0, 2**32 - 1)


def gradients(graph: Graph, args, wrt=None, dtype="float64"):
    """(ours, in the order of wrt; the cotangents that went in; names)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        joint = differentiate(graph, wrt)
    verify(joint, "autodiff", also=("no dead nodes",))
    known = {i.name for i in graph.inputs}
    seeds_in = [i for i in joint.inputs if i.name not in known]
    rng = np.random.default_rng(1)
    cotangents = {i.name: rng.standard_normal(i.value.shape) for i in seeds_in}
    results = run(joint, {**args, **cotangents}, dtype)
    names = [n.removeprefix("grad:") for n in joint.output_names[len(graph.outputs) :]]
    return results.outputs[len(graph.outputs) :], list(cotangents.values()), names


def test_every_op_is_in_one_table():
    assert GRAD_RULES.keys() | NO_GRADIENT.keys() | INTERNAL == OPS.keys()
    assert not GRAD_RULES.keys() & NO_GRADIENT.keys()
    assert not INTERNAL & (GRAD_RULES.keys() | NO_GRADIENT.keys())


DIFFERENTIABLE = [
    c for c in CASES
    if c.op in GRAD_RULES and any(o and o.type.is_float for o in c.operands)
]  # fmt: skip


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=lambda c: c.id)
def test_every_rule(case: Case):
    graph, args = case.graph, case.args()
    ours, cotangents, names = gradients(graph, args)
    theirs = torch_run(graph, args, torch.float64, names, cotangents).grads
    assert names == [i.name for i in graph.inputs if i.value.type.is_float]
    for name, gradient in zip(names, ours, strict=True):
        assert_same(gradient, theirs[name], f"{case.op} by {name}")


POWERS = (-1.5, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0)


@pytest.mark.parametrize("exponent", POWERS)
def test_powers_by_a_constant(exponent):
    b = GraphBuilder(name="power")
    x = b.input("x", TensorType((6,)))
    graph = b.finish((b.emit("pow", x, exponent),))
    args = {"x": np.array([0.0, 0.5, 1.0, 2.0, 3.0, 0.1])}
    if exponent < 1 and exponent != 0:
        args["x"][0] = 4.0
    (ours,), cotangents, _ = gradients(graph, args)
    theirs = torch_run(graph, args, torch.float64, ["x"], cotangents).grads["x"]
    assert_same(ours, theirs, f"x ** {exponent}")


def test_powers_of_zero_and_to_the_zeroth():
    graph = Case("pow", (normal(5), normal(5))).graph
    args = {"a": np.array([0.0, 0.0, 0.0, 2.0, 2.0]), "b": np.array([0.0, 1.0, 2.0, 0.0, -1.0])}
    ours, cotangents, names = gradients(graph, args)
    theirs = torch_run(graph, args, torch.float64, names, cotangents).grads
    for name, gradient in zip(names, ours, strict=True):
        assert np.isfinite(gradient).all()
        assert_same(gradient, theirs[name], name)


@given(programs(), seeds)
def test_random_programs(graph: Graph, seed: int):
    args = random_args(graph, seed)
    ours, cotangents, names = gradients(graph, args)
    theirs = torch_run(graph, args, torch.float64, names, cotangents).grads
    for name, gradient in zip(names, ours, strict=True):
        assert_same(gradient, theirs[name], name)


@given(programs(), seeds)
def test_random_programs_in_single_precision(graph: Graph, seed: int):
    args = random_args(graph, seed)
    assume(kink_margin(graph, args) > 1e-5)
    ours, cotangents, names = gradients(graph, args, dtype=None)
    narrow = torch_runs(graph, args, names, cotangents)
    wide = torch_run(graph, args, torch.float64, names, cotangents)
    for name, gradient in zip(names, ours, strict=True):
        assert_close(gradient, [t.grads[name] for t in narrow], wide.grads[name], name)


@given(programs(smooth=True), seeds)
def test_awkward_arguments(graph: Graph, seed: int):
    args = random_args(graph, seed, "awkward")
    ours, cotangents, names = gradients(graph, args)
    theirs = torch_run(graph, args, torch.float64, names, cotangents).grads
    # What cancels is no better known than its arguments, whose last digits are rounded.
    rng = np.random.default_rng(0)
    near = [
        torch_run(graph, nudged(args, rng), torch.float64, names, cotangents).grads
        for _ in range(3)
    ]
    for name, gradient in zip(names, ours, strict=True):
        known = max(largest(n[name] - theirs[name], 0.0) for n in near)
        rtol = 1e-7 + 16 * known / largest(theirs[name], 1e-4)
        assert_same(gradient, theirs[name], name, rtol=rtol)


@given(programs(), seeds, st.data())
def test_some_gradients_are_those_among_all(graph: Graph, seed: int, data):
    args = random_args(graph, seed)
    floats = [i.name for i in graph.inputs if i.value.type.is_float]
    wrt = data.draw(st.lists(st.sampled_from(floats), min_size=1, unique=True))
    some, _, names = gradients(graph, args, wrt)
    every, _, order = gradients(graph, args, floats)
    assert names == wrt
    for name, gradient in zip(names, some, strict=True):
        assert_same(gradient, every[order.index(name)], name, rtol=0)


@pytest.mark.parametrize("name", ["densenet", "mobilenet", "resnet", "vgg"])
def test_small_networks_of_every_family(name):
    graph = make(f"tiny_{name}", batch=3, image=32, num_classes=10, loss=True).graph
    args = random_args(graph, 0)
    ours, cotangents, names = gradients(graph, args)
    theirs = torch_run(graph, args, torch.float64, names, cotangents)
    for gradient_of, gradient in zip(names, ours, strict=True):
        assert_same(gradient, theirs.grads[gradient_of], gradient_of)


# --- batch normalization ------------------------------------------------------------------------


def test_statistics_that_somebody_uses_carry_gradients():
    graph = parse_graph("""program p {
      input x : f32[4,3,2,2]
      parameter gamma : f32[3]
      y, m, v = batch_norm(x, gamma, _) : f32[4,3,2,2], f32[3], f32[3]
      spread = exp(v) : f32[3]
      z = bias_add(y, m) : f32[4,3,2,2]
      return z, spread
    }""")
    args = random_args(graph, 0)
    ours, cotangents, names = gradients(graph, args)
    theirs = torch_run(graph, args, torch.float64, names, cotangents).grads
    for name, gradient in zip(names, ours, strict=True):
        assert_same(gradient, theirs[name], name)


FORMS = {
    "coarse": "y, m, v = batch_norm(x, g, b) : f32[4,3,2,2], f32[3], f32[3]",
    "one sweep": """m, v = bn_stats(x) : f32[3], f32[3]
      y = bn_normalize(x, m, v, g, b) : f32[4,3,2,2]""",
    "two sweeps": """m = bn_mean(x) : f32[3]
      v = bn_var(x, m) : f32[3]
      y = bn_normalize(x, m, v, g, b) : f32[4,3,2,2]""",
}


@pytest.mark.parametrize("form", ["one sweep", "two sweeps"])
def test_the_fissioned_form_has_the_gradients_of_the_coarse_one(form):
    def program(form: str) -> Graph:
        return parse_graph(f"""program p {{
          input x : f32[4,3,2,2]
          parameter g : f32[3]
          parameter b : f32[3]
          {FORMS[form]}
          return y
        }}""")

    args = random_args(program("coarse"), 0)
    ours, coarse = (gradients(program(f), args)[0] for f in (form, "coarse"))
    for a, c in zip(ours, coarse, strict=True):
        assert_same(a, c, form, rtol=1e-12)


def test_running_statistics_have_no_gradient_by_default_and_stay_updated():
    graph = parse_graph("""program p {
      input x : f32[4,3,2,2]
      buffer rm : f32[3]
      buffer rv : f32[3]
      y, m, v = batch_norm(x, _, _) : f32[4,3,2,2], f32[3], f32[3]
      nm, nv = bn_update(rm, rv, m, v, _) {count=16} : f32[3], f32[3]
      update rm = nm
      update rv = nv
      return y
    }""")
    joint = differentiate(graph)
    assert joint.updates == graph.updates
    assert joint.output_names == ("output:0", "grad:x")
    with pytest.warns(UserWarning, match="^no output depends on 'rm': the gradient is zero$"):
        joint = differentiate(graph, ["rm"])
    assert not run(joint, {**random_args(joint, 0)}).outputs[1].any()


# --- structure ----------------------------------------------------------------------------------


def dense_block(layers: int) -> Graph:
    b = GraphBuilder(name="dense_block")
    features = [b.input("x", TensorType((2, 8, 4, 4)))]
    for i in range(layers):
        joined = b.emit("cat", *features) if i else features[0]
        w = b.input(f"w{i}", TensorType((4, 8 + 4 * i, 3, 3)), "parameter")
        features.append(b.emit("conv2d", joined, w, padding=(1, 1, 1, 1)))
    return b.finish((b.emit("cat", *features),))


def test_a_dense_blocks_gradient_accumulates_map_by_map():
    """One add a join: its own consumer's part to the slice that a later join hands back."""
    joint = differentiate(dense_block(6))
    adds = [n for n in joint.nodes if n.op == "add"]
    assert len(adds) == 6
    producers = joint.producers()
    for add in adds:
        later, own = (producers[v].op for v in add.inputs)
        assert (later, own) == ("slice", "conv2d_grad_input")
    slices = [n for n in joint.nodes if n.op == "slice"]
    assert len(slices) == 2 * 6
    assert not [n for n in joint.nodes[len(dense_block(6).nodes) :] if n.op == "cat"]


def test_contributions_are_added_from_the_last_consumer_to_the_first():
    graph = parse_graph("""program p {
      input x : f32[2]
      a = exp(x) : f32[2]
      b = tanh(x) : f32[2]
      c = mul(a, b) : f32[2]
      return c, x
    }""")
    joint = differentiate(graph)
    producers = joint.producers()
    last = producers[joint.outputs[-1]]
    first = producers[last.inputs[0]]
    by_exp = producers[last.inputs[1]]
    assert first.op == "add" and first.inputs[0].name == "grad_1"
    assert by_exp.inputs[1] == graph.nodes[0].out


def test_only_what_leads_to_a_target_is_computed():
    graph = dense_block(3)
    joint = differentiate(graph, ["w2"])
    extra = [n.op for n in joint.nodes[len(graph.nodes) :]]
    assert extra == ["slice", "conv2d_grad_weight"]


def test_a_slices_gradient_is_padded_by_a_view_of_a_constant():
    graph = Case("slice", (CASES[0].operands[0],), {"start": 1, "stop": 2}).graph
    ops = [n.op for n in differentiate(graph).nodes]
    assert ops == ["slice", "constant", "broadcast_to", "broadcast_to", "cat"] or ops == [
        "slice", "constant", "broadcast_to", "cat",
    ]  # fmt: skip


def test_gradients_remember_the_users_line():
    b = GraphBuilder()
    x = b.input("x", TensorType((2,)))
    joint = differentiate(b.finish((b.emit("exp", x, loc=SourceLoc("net.py", 5)),)))
    assert {str(n.loc) for n in joint.nodes} == {"net.py:5"}


# --- the interface ------------------------------------------------------------------------------

LOSS = """program loss {
  input x : f32[2,3]
  input labels : i64[2]
  parameter weight : f32[3]
  buffer mean : f32[3]
  y = bias_add(x, weight) : f32[2,3]
  z = sum(y) {axes=(0, 1)} : f32[]
  return z
}"""


def test_the_joint_program():
    joint = differentiate(parse_graph(LOSS))
    assert [i.name for i in joint.inputs] == ["x", "labels", "grad_0", "weight", "mean"]
    assert joint.output_names == ("output:0", "grad:x", "grad:weight")
    assert joint.tuple_output
    named = parse_graph(LOSS.replace("return z", "return total = z"))
    assert differentiate(named).inputs[2].name == "grad_total"
    assert differentiate(named, ["weight", "x"]).output_names == ("total", "grad:weight", "grad:x")


def test_ones_differentiate_the_scalar_itself():
    graph = parse_graph(LOSS)
    joint = differentiate(graph, ["weight"], cotangents="ones")
    assert joint.inputs == graph.inputs
    (_, gradient) = run(joint, random_args(joint, 0)).outputs
    np.testing.assert_array_equal(gradient, [2, 2, 2])


@pytest.mark.parametrize("result", ["y", "z, y", "labels"])
def test_ones_need_a_single_scalar(result):
    graph = parse_graph(LOSS.replace("return z", f"return {result}"))
    with pytest.raises(ProgramError, match="must return a single scalar"):
        differentiate(graph, cotangents="ones")


@pytest.mark.parametrize(
    "wrt, message",
    [
        (["wieght"], r"'wieght', which is no input of it \(did you mean 'weight'\?\)"),
        (["q"], r"\(did you mean 'x' or 'weight' or 'mean'\?\)"),
        (["labels"], r"'labels' : i64\[2\] \(only floating-point inputs have gradients\)"),
        (["y"], "'y', which is no input"),
        (["x", "x"], "names an input twice"),
    ],
)
def test_names_that_cannot_be_differentiated(wrt, message):
    with pytest.raises(ProgramError, match=message):
        differentiate(parse_graph(LOSS), wrt)


def test_an_independent_input_has_a_zero_gradient_and_a_warning():
    with pytest.warns(UserWarning, match="no output depends on 'mean'") as caught:
        joint = differentiate(parse_graph(LOSS), ["mean", "weight"])
    assert len(caught) == 1 and caught[0].filename == __file__
    (_, mean, weight) = run(joint, random_args(joint, 0)).outputs
    assert mean.shape == (3,) and not mean.any() and weight.any()


def test_stop_gradient_cuts_the_path():
    graph = parse_graph("""program p {
      input x : f32[2]
      c = stop_gradient(x) : f32[2]
      y = mul(x, c) : f32[2]
      return y
    }""")
    ones = {"x": np.array([3.0, 5.0]), "grad_0": np.ones(2)}
    np.testing.assert_array_equal(run(differentiate(graph), ones).outputs[1], [3, 5])


def test_gradients_of_gradients_are_refused_with_the_users_line():
    b = GraphBuilder(name="p")
    x, w = b.input("x", TensorType((1, 1, 3, 3))), b.input("w", TensorType((1, 1, 1, 1)))
    b.loc = SourceLoc("net.py", 9)
    joint = differentiate(b.finish((b.emit("conv2d", x, w),)))
    with pytest.raises(ProgramError, match=r"^net.py:9: no gradient rule for conv2d_grad_"):
        differentiate(joint)
