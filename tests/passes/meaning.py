"""Whether two graphs, or a graph and a run of its plan, mean the same, in double precision."""

from __future__ import annotations

import warnings

import numpy as np

from bngen.ir.interp import Results, run
from bngen.ir.node import Graph, Value
from bngen.passes.autodiff import differentiate
from tests.oracle import assert_same
from tests.strategies import random_args


def joint_program(graph: Graph) -> tuple[Graph, list[Value]]:
    """The program with all of its gradients, and the inputs that only the backward call has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some gradients are zero
        joint = differentiate(graph)
    own = {i.name for i in graph.inputs}
    return joint, [i.value for i in joint.inputs if i.name not in own]


def same_results(found: Results, reference: Results, rtol: float = 1e-9) -> None:
    """Compare outputs and updates; with ``rtol=0``, bit by bit."""
    pairs = [*zip(found.outputs, reference.outputs, strict=True)]
    pairs += [(found.updates[name], want) for name, want in reference.updates.items()]
    for i, (got, want) in enumerate(pairs):
        if rtol:
            assert_same(got, want, f"result {i}", rtol=rtol)
        else:
            np.testing.assert_array_equal(got, want, err_msg=f"result {i}")
    assert found.updates.keys() == reference.updates.keys()


def same_meaning(before: Graph, after: Graph, seed: int, rtol: float = 1e-9) -> None:
    """Interpret both graphs on the same random arguments."""
    args = random_args(before, seed)
    same_results(run(after, args, "float64"), run(before, args, "float64"), rtol)
