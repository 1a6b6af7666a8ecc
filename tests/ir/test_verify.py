"""Each invariant lets a good graph pass, and names the pass, itself and the node it caught."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bngen.errors import BngenError
from bngen.ir.node import Graph, Input, Node
from bngen.ir.text import parse_graph
from bngen.ir.types import Attrs, TensorType, Value
from bngen.ir.verify import INVARIANTS, STAGE_INVARIANTS, InternalError, verify

GOOD = parse_graph("""program p {
  input x : f32[2,3,4,4]
  buffer s : f32[3]
  y, m, v = batch_norm(x, _, _) : f32[2,3,4,4], f32[3], f32[3]
  z = relu(y) : f32[2,3,4,4]
  update s = m
  return z
}""")
BN, RELU = GOOD.nodes
X, S = GOOD.input_values()
OTHER = Value("other", TensorType((3,)))
WIDE = Value("y", TensorType((3,)))


def nodes(*new: Node) -> Graph:
    return replace(GOOD, nodes=new)


def relu(**changes) -> Graph:
    return nodes(BN, replace(RELU, **changes))


BREACHES = {
    "known ops": [
        (relu(op="rellu"), "unknown op: z = rellu"),
        (relu(inputs=(None,)), r"takes \(x\)"),
        (relu(inputs=(BN.out, BN.out)), r"takes \(x\)"),
        (relu(op="cat", inputs=(BN.out, None)), r"takes \(x\)"),
    ],
    "single assignment": [
        (nodes(BN, RELU, RELU), "'z' is assigned 2 times"),
        (replace(GOOD, inputs=(*GOOD.inputs, Input(BN.out))), "'y' is assigned 2 times"),
    ],
    "defined before use": [
        (nodes(RELU, BN), "'y' is used before it is assigned"),
        (relu(inputs=(WIDE,)), r"'y' is f32\[2,3,4,4\], used as f32\[3\]"),
    ],
    "complete attributes": [
        (nodes(replace(BN, attrs=Attrs()), RELU), r"attributes \['eps'\] are not filled in"),
        (relu(attrs=Attrs.of(slope=1)), "unknown attributes"),
    ],
    "inferred types": [
        (relu(outputs=(replace(RELU.out, type=OTHER.type),)), r"gives f32\[2,3,4,4\]"),
        (
            relu(op="matmul", inputs=(X, X), attrs=Attrs.of(trans_a=False, trans_b=False)),
            "matrices",
        ),
        (nodes(replace(BN, outputs=BN.outputs[:1]), RELU), "gives"),
    ],
    "signature": [
        (replace(GOOD, inputs=(Input(X, "weight"), GOOD.inputs[1])), "unknown kind 'weight'"),
        (replace(GOOD, output_names=("a", "b")), "2 labels for 1 outputs"),
        (replace(GOOD, outputs=(X, S), output_names=("a", "a")), "2 outputs are called 'a'"),
        (replace(GOOD, inputs=(*GOOD.inputs, Input(Value("q", TensorType((1,), "half"))))), "'q'"),
    ],
    "outputs defined": [
        (replace(GOOD, outputs=(OTHER,)), "result 'other' : f32.3. is not assigned"),
        (replace(GOOD, updates=((S, OTHER),)), "result 'other'"),
        (replace(GOOD, outputs=(WIDE,)), "result 'y' : f32.3. is not assigned"),
    ],
    "updates of inputs": [
        (replace(GOOD, updates=((BN.outputs[2], BN.outputs[1]),)), "'v', which is no input"),
        (replace(GOOD, updates=((S, BN.outputs[1]),) * 2), "'s' is updated 2 times"),
        (replace(GOOD, updates=((S, X),)), r"'s' : f32\[3\] is updated with f32\[2,3,4,4\]"),
    ],
    "no coarse ops": [(GOOD, "coarse op is left: y, m, v = batch_norm")],
    "no dead nodes": [
        (replace(GOOD, outputs=(BN.out,)), "nothing needs z = relu"),
    ],
}
ROWS = [(name, *row) for name, rows in BREACHES.items() for row in rows]


def test_every_invariant_is_tried():
    assert set(BREACHES) == {*INVARIANTS, *STAGE_INVARIANTS}


def test_a_good_graph_passes():
    verify(GOOD, "tracing")
    verify(GOOD, "simplify", also=("no dead nodes",))


@pytest.mark.parametrize("name, graph, message", ROWS, ids=[f"{n}: {m}" for n, _, m in ROWS])
def test_a_breach_is_named(name, graph, message):
    also = (name,) if name in STAGE_INVARIANTS else ()
    with pytest.raises(InternalError, match=message) as error:
        verify(graph, "fission", also)
    assert str(error.value).startswith(f"after fission: 'p' breaks {name!r}: ")
    assert not isinstance(error.value, BngenError)


def test_many_breaches_are_counted():
    many = nodes(*(replace(RELU, outputs=(Value(f"z{i}", X.type),)) for i in range(5)))
    with pytest.raises(InternalError, match=r"\(and 2 more\)"):
        verify(replace(many, outputs=(), updates=()))
