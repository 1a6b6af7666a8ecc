"""Whether two graphs, or a graph and a run of its plan, mean the same, in double precision."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np

from bngen.ir.interp import Results, run
from bngen.ir.node import Graph
from bngen.ir.types import Value
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


def reference(graph: Graph, args: dict[str, np.ndarray]) -> Results:
    """What `same_results` compares with: results, and all that lies between."""
    return run(graph, args, "float64", keep=True)


def same_results(found: Results, wanted: Results, rtol: float = 1e-9) -> None:
    """Compare outputs and updates; with ``rtol=0``, bit by bit.

    A gradient may be zero but for rounding (a constant added before BN has no effect): what
    roundings leave of the largest number in the program counts as zero.
    """
    pairs = [*zip(found.outputs, wanted.outputs, strict=True)]
    pairs += [(found.updates[name], want) for name, want in wanted.updates.items()]
    floor = 1e-4 * max(1.0, largest(wanted.env.values()))
    for i, (got, want) in enumerate(pairs):
        if rtol:
            assert_same(got, want, f"result {i}", rtol=rtol, floor=floor)
        else:
            np.testing.assert_array_equal(got, want, err_msg=f"result {i}")
    assert found.updates.keys() == wanted.updates.keys()


def largest(arrays: Iterable[np.ndarray]) -> float:
    """The largest finite magnitude among floats."""
    return max(
        (np.abs(a).max(initial=0, where=np.isfinite(a)) for a in arrays if a.dtype.kind == "f"),
        default=0.0,
    )


def same_meaning(before: Graph, after: Graph, seed: int, rtol: float = 1e-9) -> None:
    """Interpret both graphs on the same random arguments."""
    args = random_args(before, seed)
    same_results(run(after, args, "float64"), reference(before, args), rtol)
