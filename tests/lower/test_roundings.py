"""Which roundings a convolution's kernel leaves out, and how near to exact its results then are."""

from __future__ import annotations

import re

import numpy as np
import pytest

import bngen as bg
from bngen.codegen.compile import compile_plan
from bngen.ir.interp import run
from bngen.lower.roundings import not_rounded, only_rounds
from bngen.passes.prepare import join_gradient, prepare
from bngen.plan.layout import PackedWeight
from bngen.target.parse import Target

LANES = Target.parse().channel_block


def kernels(function, *shapes):
    """Those of a program in mixed precision, and of its gradient."""
    graph = bg.autocast(bg.trace(function, *(bg.Tensor(s) for s in shapes))).graph
    return prepare(join_gradient(graph), LANES).planned.plan.kernels


def layer(activation):
    """A convolution between two normalizations."""

    def net(x, w, v):
        x = bg.batch_norm(bg.conv2d(x, w, padding=1), None, None, training=True)
        return bg.batch_norm(bg.conv2d(activation(x), v), None, None, training=True)

    return kernels(net, (2, 16, 6, 6), (16, 16, 3, 3), (32, 16, 1, 1))


def roundings(kernel):
    return {n.out for n in kernel.nodes if only_rounds(n)}


def rounded_sums(kernel):
    """What a convolution's sums are rounded to."""
    return next(n.out for n in kernel.nodes if only_rounds(n) and n.inputs == kernel.anchor.outputs)


@pytest.mark.parametrize("activation", [bg.relu, bg.relu6])
def test_what_a_data_gradient_computes_with_is_not_rounded(activation):
    """Neither its sums nor what their mask is of; all that lies in memory is."""
    found = layer(activation)
    masked = (k for k in found if any(n.row.relation for n in k.nodes))
    (kernel,) = (k for k in masked if k.anchor and k.anchor.op == "conv2d_grad_input")
    left_out = not_rounded(kernel)
    masks = {n.operands[0] for n in kernel.nodes if n.row.relation}
    assert masks | {rounded_sums(kernel)} <= left_out
    for k in found:
        assert not_rounded(k).isdisjoint(k.outputs)
        if k.anchor is None or not k.anchor.row.direction:
            assert not not_rounded(k)


def test_statistics_are_of_what_is_stored():
    forward = [k for k in layer(bg.relu) if k.anchor and k.anchor.op == "conv2d"]
    for kernel in forward:
        assert any(n.op == "bn_partial_stats" for n in kernel.store)
        assert roundings(kernel) & set(kernel.outputs)
        assert not not_rounded(kernel)


def test_what_is_compared_with_another_number_is_rounded():
    """An equal one would not be equal any more."""

    def net(x, w, y):
        z = bg.conv2d(x, w)
        return bg.where(z == y, 0.0, z * 2.0), bg.where(z > y, 0.0, z * 3.0)

    found = kernels(net, (2, 16, 4, 4), (16, 16, 1, 1), (2, 16, 4, 4))
    (kernel,) = (k for k in found if k.anchor and k.anchor.op == "conv2d")
    assert [n.row.relation for n in kernel.nodes if n.row.relation] == ["==", ">"]
    assert rounded_sums(kernel) not in not_rounded(kernel)


def test_results_are_nearer_to_exact_ones():
    """Than those of the interpreter, which rounds whatever mixed precision rounds."""

    def net(x, w, v):
        x = bg.batch_norm(bg.conv2d(x, w, padding=1), None, None, training=True)
        return bg.conv2d(bg.relu6(x + 3.0), v, groups=16)

    shapes = (4, 16, 9, 7), (16, 16, 3, 3), (16, 1, 1, 1)
    graph = bg.autocast(bg.trace(net, *(bg.Tensor(s) for s in shapes))).graph
    rng = np.random.default_rng(0)
    args = {i.name: rng.standard_normal(i.value.shape).astype("f4") for i in graph.inputs}
    module = bg.build(graph, grad=True)
    y = module(*args.values())
    joint = join_gradient(graph)
    (cotangent,) = joint.cotangents
    dy = rng.standard_normal(y.shape).astype(y.dtype)
    ours = [y, *module.backward(dy).values()]
    given = args | {cotangent.name: dy}
    meant, exact = run(joint.graph, given).outputs, run(joint.graph, given, "float64").outputs
    for got, rounded, want in zip(ours, meant, exact, strict=True):
        assert distance(got, want) <= 1.05 * distance(rounded, want)


def distance(a, b):
    return np.linalg.norm(np.asarray(a, float) - np.asarray(b, float))


def test_where_pairs_are_slow_floats_are_multiplied():
    """Weights are packed as such, once, and numbers are converted as vectors alone."""
    target = Target.parse("llvm -mtriple=x86_64-linux-gnu -mcpu=emeraldrapids -mattr=-amx-bf16")

    def net(x, w, v):
        return bg.conv2d(bg.relu(bg.conv2d(x, w, padding=1)), v)

    shapes = (2, 32, 8, 8), (32, 32, 3, 3), (48, 32, 1, 1)
    graph = bg.autocast(bg.trace(net, *(bg.Tensor(s) for s in shapes))).graph
    plan = prepare(join_gradient(graph), target.channel_block, pairs=target.pairs).planned.plan
    packed = [v for v, layout in plan.layouts.items() if isinstance(layout, PackedWeight)]
    assert packed and {v.dtype for v in packed} == {"float32"}
    texts = [c.code.text("asm") for c in compile_plan(plan, target)]
    assert any("vcvtneps2bf16" in text for text in texts)
    for text in texts:
        assert "vdpbf16ps" not in text
        assert not re.search(r"vcvtneps2bf16\s+%xmm|vpinsrw|vpextrw", text)
