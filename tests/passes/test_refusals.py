"""Refusals: each reason that fusion has, provoked by a small program, with the user's lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given

from bngen.errors import SourceLoc
from bngen.ir.build import GraphBuilder
from bngen.ir.node import Graph, Node
from bngen.ir.types import TensorType, Value
from bngen.manifest import described_refusals
from bngen.passes.fusion import legality, profit, slots
from bngen.passes.fusion.dataflow import is_partial_reduction, is_pointwise, is_small
from bngen.passes.fusion.levels import LEVELS
from bngen.passes.pipeline import plan_program
from bngen.plan.kernel import KernelPlan
from tests.passes.meaning import joint_program
from tests.strategies import programs

MAP = TensorType((2, 16, 6, 6))


@dataclass
class Written:
    """A program under way, one op a line."""

    b: GraphBuilder = field(default_factory=GraphBuilder)
    line: int = 0

    def __call__(self, op: str, *operands, **attrs):
        self.line += 1
        return self.b.emit(op, *operands, loc=SourceLoc("net.py", self.line), **attrs)

    def map(self, name: str = "x", type: TensorType = MAP) -> Value:
        return self.b.input(name, type)

    def conv(self, x: Value, k: int = 16) -> Value:
        w = self.b.input("w", TensorType((k, x.shape[1], 3, 3)), "parameter")
        return self("conv2d", x, w, padding=(1, 1, 1, 1))

    def batch_norm(self, x: Value) -> Value:
        return self("batch_norm", x)[0]


# --- programs, each of which provokes a refusal between two lines -------------------------------


def chain(p: Written) -> list[Value]:
    return [p("tanh", p("neg", p.conv(p.map())))]


def result(p: Written) -> list[Value]:
    x, w = p.map("x", TensorType((4, 16))), p.map("w", TensorType((16, 16)))
    a = p("tanh", p("matmul", x, w))
    return [a, p("matmul", a, w)]


def exchanged(p: Written) -> list[Value]:
    x, w = p.map("x", TensorType((4, 16))), p.map("w", TensorType((16, 16)))
    return [p("all_reduce", p("tanh", p("matmul", x, w)))]


def pooled(p: Written) -> list[Value]:
    return [p("max_pool2d", p("neg", p.map()), kernel=(2, 2), stride=(2, 2))[0]]


def normalized(p: Written) -> list[Value]:
    return [p.conv(p.batch_norm(p.conv(p.map())))]


def residual(p: Written) -> list[Value]:
    x = p.map()
    return [p.conv(p("add", p("exp", x), p("neg", p.conv(x))))]


def joined(p: Written) -> list[Value]:
    """Its second line is a part of a concatenation, and read by a convolution as well."""
    a = p("neg", p.conv(p.map()))
    return [p("cat", a, p("exp", a), axis=1), p.conv(a)]


def many(p: Written) -> list[Value]:
    """A sum of two maps that four convolutions read."""
    total = p("add", p.map("a"), p.map("b"))
    return [p.conv(total) for _ in range(4)]


def long(p: Written) -> list[Value]:
    x = p.map()
    for _ in range(profit.MOST_OPS + 2):
        x = p("tanh", x)
    return [x]


def long_store(p: Written) -> list[Value]:
    x = p.conv(p.map())
    for _ in range(profit.MOST_OPS + 2):
        x = p("tanh", x)
    return [p.conv(x)]


def again(p: Written) -> list[Value]:
    x = p.map()
    for _ in range(profit.MOST_OPS_AGAIN + 1):
        x = p("tanh", x)
    return [p.conv(x), p.conv(x)]


def both_summed(p: Written) -> list[Value]:
    x = p.map()
    return [p("add", p.conv(x), p.conv(x))]


def spread(p: Written) -> list[Value]:
    """A map of one pixel, added to all of a larger one."""
    return [p("add", p.conv(p.map("s", TensorType((2, 16, 1, 1)))), p("exp", p.map()))]


def given_later(p: Written) -> list[Value]:
    return [p("mul", p.conv(p.map()), p.map("cotangent"))]


def three_behind(p: Written) -> list[Value]:
    """In the store slot of a convolution a sum of what is stored too and two other maps."""
    a, b, c = p.map("a"), p.map("b"), p.map("c")
    z = p.conv(a)
    s = p("add", p("add", z, b), c)
    return [z, p.conv(p("mul", s, s))]


def unstored(p: Written) -> list[Value]:
    z = p("neg", p.conv(p.map()))
    return [p.conv(z), p.conv(z)]


def elsewhere(p: Written) -> list[Value]:
    z = p.conv(p.map())
    return [p.conv(p("neg", z)), p.conv(z)]


def beside(p: Written) -> list[Value]:
    a = p("neg", p.conv(p.map()))
    return [p.conv(a), p("max_pool2d", a, kernel=(2, 2), stride=(2, 2))[0]]


def moved(p: Written) -> list[Value]:
    return [p("gather", p.conv(p.map()), axis=3, pieces=(6, 5, -1))]


def read_around(p: Written) -> list[Value]:
    """A map that one convolution reads as it is, the other mirrored."""
    a = p("neg", p.map())
    return [p.conv(p("gather", a, axis=3, pieces=(6, 5, -1))), p.conv(a)]


def weight_update(p: Written) -> list[Value]:
    few = TensorType((2, 4, 6, 6))
    x, dy = p.map("x", few), p.map("dy", few)
    dw = p("conv2d_grad_weight", x, dy, padding=(1,) * 4, shape=(4, 4, 3, 3))
    return [p("tanh", dw)]


CASES = [
    ("none", chain, "load", "pointwise ops join loads from rcf on", 2, 3),
    ("none", chain, "store", "sub-layers join stores of convolutions from bnff on", 1, 2),
    ("none", chain, "store", "sub-layers join stores of pools", 2, 3),
    ("icf", result, "load", "it is a result of the program", 2, 3),
    ("bnff", pooled, "load", "pools, copies and whole reductions load stored", 1, 2),
    ("rcf", normalized, "load", "batch statistics join loads from bnff on", 2, 3),
    ("icf", normalized, "store", legality.WAITS, 1, 2),
    ("bnff", residual, "load", "sums of feature maps join loads from icf on", 3, 4),
    ("bnff", residual, "store", "sums of feature maps join stores from icf on", 3, 4),
    ("icf", joined, "load", "a concatenation, slice or reshape of it", 2, 5),
    ("icf", many, "load", profit.SWEEPS, 1, 2),
    ("icf", long, "load", profit.LONG, profit.MOST_OPS, profit.MOST_OPS + 1),
    ("icf", long_store, "store", profit.LONG, profit.MOST_OPS, profit.MOST_OPS + 1),
    ("icf", again, "load", profit.AGAIN, profit.MOST_OPS_AGAIN + 1, profit.MOST_OPS_AGAIN + 2),
    ("icf", both_summed, "store", "it is computed in the store slot of another kernel", 2, 3),
    ("icf", spread, "store", "it has another shape", 1, 3),
    ("icf", given_later, "store", "it belongs to the backward call", 1, 2),
    ("icf", three_behind, "load", slots.MAPS, 4, 5),
    ("icf", unstored, "load", slots.UNSTORED, 2, 3),
    ("icf", elsewhere, "store", slots.ELSEWHERE, 1, 2),
    ("bnff", beside, "load", slots.BESIDE, 2, 3),
    ("icf", moved, "store", "it reads elements from other places", 1, 2),
    ("icf", exchanged, "load", "it is sent to other processes", 2, 3),
    ("icf", read_around, "load", "it is read at several places at once", 1, 2),
    ("icf", weight_update, "store", "a weight's gradient is complete only", 1, 2),
]


@pytest.mark.parametrize("level, program, slot, reason, producer, consumer", CASES)
def test_each_reason(level, program, slot, reason, producer, consumer):
    plan = planned(program, level)
    found = [(r.slot, r.reason, *(loc and loc.line for loc in r.lines)) for r in plan.refused]
    assert any(
        (s, a, b) == (slot, producer, consumer) and why.startswith(reason) for s, why, a, b in found
    ), found


def planned(program, level: str) -> KernelPlan:
    p = Written()
    graph = p.b.finish(program(p))
    given = [i.value for i in graph.inputs if i.name == "cotangent"]
    return plan_program(graph, level, 16, cotangents=given or None).plan


def test_every_reason_has_a_case():
    rules = (
        *legality.STORED_ALWAYS, *legality.STORED_OTHERWISE, *legality.LOAD_RULES,
        *legality.SLOT_RULES, *legality.STORE_RULES,
    )  # fmt: skip
    reasons = {rule.reason for rule in rules}
    reasons |= {legality.WAITS, profit.SWEEPS, profit.LONG, profit.AGAIN}
    reasons |= {slots.MAPS, slots.UNSTORED, slots.BESIDE, slots.ELSEWHERE}
    provoked = {r for r in reasons for case in CASES if r.startswith(case[3])}
    # Nobody is told of vectors, and feature maps are copied where layouts differ.
    silent = {"it is a vector, which costs no sweep", "it lies in another layout"}
    # An op with several results that no level would store anyway is of vectors.
    silent.add("an op with several results stores them")
    assert reasons - provoked == silent


# --- all of them, and nothing else --------------------------------------------------------------


def candidates(plan: KernelPlan) -> Iterator[tuple[str, Node, Node]]:
    """Pairs of ops that a slot might hold, the second of which reads the first from memory."""
    producer = plan.graph.producers()
    homes: dict[Node, set[str]] = {}
    for kernel in plan.kernels:
        for node in kernel.nodes:
            homes.setdefault(node, set()).add(kernel.name)
    written = {v for k in plan.kernels for v in k.outputs}
    for reader in homes:
        for v in dict.fromkeys(reader.operands):
            node = producer.get(v)
            stored = v in written and not is_small(v)
            if not stored or not homes[node].isdisjoint(homes[reader]):
                continue
            if is_pointwise(node):
                yield "load", node, reader
            joins = is_pointwise(reader) or is_partial_reduction(reader)
            if joins and node.row.kind in ("pointwise", "contract", "window"):
                yield "store", node, reader


@given(programs())
def test_each_pair_of_candidates_that_is_apart_has_one_reason(graph: Graph):
    joint, given = joint_program(graph)
    for level in LEVELS:
        plan = plan_program(joint, level, 16, cotangents=given).plan
        pairs = [(r.slot, r.producer, r.consumer) for r in plan.refused]
        assert len(set(pairs)) == len(pairs)
        assert {(s, a.out.name, b.out.name) for s, a, b in candidates(plan)} <= set(pairs)
        together = [{n.out.name for n in k.nodes} for k in plan.kernels]
        assert not any({a, b} <= names for _, a, b in pairs for names in together)


def test_the_manifest_lists_pairs_by_reason():
    assert {
        "slot": "load",
        "reason": "pointwise ops join loads from rcf on",
        "ops": ["neg", "tanh"],
        "pairs": [["neg", "tanh", "net.py:2", "net.py:3"]],
    } in described_refusals(planned(chain, "none"))
