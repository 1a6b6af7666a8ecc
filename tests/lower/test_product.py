"""Matrix products: shapes that fit nothing, operands however they lie, vectors of each width."""

import re
from dataclasses import replace

import numpy as np
import pytest

import bngen as bg
from bngen.codegen.compile import compile_plan
from bngen.codegen.nests import BY_KIND, choose
from bngen.ir.build import GraphBuilder
from bngen.ir.interp import run
from bngen.ir.types import TensorType
from bngen.lower.facts import LONG, MOST_ROWS, ProductFacts
from bngen.passes.prepare import Joint, prepare
from bngen.scheduling.product import product_knobs
from bngen.target.parse import Target
from tests.compiled import check, check_forward, compiled
from tests.guarded_programs import examine, targets
from tests.strategies import random_args


def product(m, k, n, trans_a=False, trans_b=False, dtype="float32", *, slots=False):
    """One product; with ``slots``, of what is computed as it is loaded, a bias and SiLU behind."""
    b = GraphBuilder(name="product")
    x = b.input("x", TensorType((k, m) if trans_a else (m, k), dtype))
    w = b.input("w", TensorType((n, k) if trans_b else (k, n), dtype), "parameter")
    if slots:
        x, w = b.emit("silu", x), b.emit("tanh", w)
    y = b.emit("matmul", x, w, trans_a=trans_a, trans_b=trans_b)
    if slots:
        bias = b.input("bias", TensorType((n,), dtype), "parameter")
        y = b.emit("silu", b.emit("bias_add", y, bias))
    return b.finish([y])


def kernel_of(graph, target):
    plan = prepare(Joint(graph, graph), target.channel_block).planned.plan
    (kernel,) = plan.kernels
    return kernel, plan


@pytest.mark.parametrize("width", range(len(targets())), ids=targets().__getitem__)
@pytest.mark.parametrize(
    ("m", "k", "n", "trans_a", "trans_b"),
    [
        (1, 1, 1, False, True),
        (7, 33, 10, False, True),
        (17, 2 * LONG + 1, 20, True, False),  # no even parts: the last one is shorter
        (19, 24, 113, True, True),  # rows, and blocks of columns, that fill no register tile
        (3, 40, 48, False, False),  # read where it lies
    ],
)
def test_touches_its_operands_alone(width, m, k, n, trans_a, trans_b):
    graph = product(m, k, n, trans_a, trans_b, slots=(m + n) % 2 == 1)
    assert not examine(graph, "icf", targets()[width], m, grad=False, drawn=True)


def test_a_linear_layer_and_its_gradients():
    def net(x, w, b):
        return bg.relu(bg.linear(x, w, b))

    graph = bg.trace(net, bg.Tensor[20, 50], bg.Tensor[70, 50], bg.Tensor[70]).graph
    module = check(graph, random_args(graph, 1))
    rules = [k["rule"] for k in module.manifest()["kernels"] if "matmul" in k["sublayers"]]
    assert rules == ["product"] * 3


def test_double_precision():
    graph = product(21, 500, 9, False, True, "float64", slots=True)
    args = random_args(graph, 2)
    check_forward(compiled(graph, grad=False), graph, args)
    assert run(graph, args).outputs[0].dtype == np.float64


def test_weights_are_turned_over_in_registers():
    """A weight that lies as ``[out, in]`` is read in rows: no element is gathered alone."""
    target = Target.parse("llvm -mcpu=x86-64-v3")
    kernel, plan = kernel_of(product(8, 64, 40, False, True), target)
    (made,) = compile_plan(replace(plan, kernels=(kernel,)), target, jobs=1)
    text = made.code.text("ll")
    assert text.count("shufflevector <8 x float>") >= 24
    gathered = re.findall(r"insertelement <8 x float> .*, i64 [1-7],", text)
    assert not gathered  # The first lane alone is how a number is spread over all of them.


SHAPES = [
    (1, 1, 1),
    (8, 512, 1000),
    (37, 1009, 10),
    (1000, 64, 25088),
    (64, 25088, 4096),
    (15, 7, 80),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mcpu", ["x86-64", "x86-64-v3", "x86-64-v4"])
def test_own_knobs_are_legal_and_fit_the_registers(mcpu, shape):
    machine = Target.parse(f"llvm -mcpu={mcpu}").machine
    m, k, n = shape
    for trans_a in (0, 1):
        for trans_b in (0, 1):
            facts = ProductFacts(
                m=m, n=n, k=k, trans_a=trans_a, trans_b=trans_b, lanes=machine.lanes("float32")
            )
            knobs, row = product_knobs(facts, machine), BY_KIND["product"]
            assert row.misfit(facts, knobs) is None
            assert row.registers(facts, knobs) <= machine.traits.vector_registers
            assert facts.rows >= m and facts.columns >= n and facts.chunks * facts.depth >= k
            assert facts.rows - m < MOST_ROWS and facts.depth <= LONG
            assert ProductFacts.read(facts.extents()) == facts


def test_a_short_weight_gradient_has_no_scratch_of_its_size():
    """dW = dy^T x: it is written from registers; nothing as large as the weight lies beside it."""
    target = Target.parse()
    kernel, plan = kernel_of(product(300, 8, 200, True, False), target)
    assert choose(kernel, plan.layouts, target.machine).strategy.kind == "product"
    (made,) = compile_plan(replace(plan, kernels=(kernel,)), target, jobs=1)
    asked = [int(x) for x in _workspaces(made.code.text("ll"))]
    assert sum(asked) < 4 * 300 * 200 // 8


def _workspaces(text):
    """Bytes of the scratch buffers that a kernel asks the runtime for."""
    return re.findall(r"i64 (\d+), i32 2, i32 32\)", text)
