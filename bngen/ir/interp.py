"""The meaning of a graph: evaluate it node by node with NumPy.

In: a graph and one array an input, by name; or those of several ranks, whose collectives meet. Out:
arrays for its outputs and updates. With
``dtype="float64"`` the same program is evaluated in double precision throughout: inputs, constants,
random numbers, casts. This is the reference for every pass and every kernel; it is not fast.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bngen.dtypes import DTYPES
from bngen.errors import CallError
from bngen.ir.node import Graph, Node
from bngen.ir.ops import op_def
from bngen.ir.types import Attrs, TensorType, Value
from bngen.ir.verify import InternalError


@dataclass(frozen=True)
class Results:
    """What a run gives.

    Attributes:
        outputs: in the order of the graph's outputs.
        updates: new contents of updated inputs, by name.
        env: every value by name, when asked for.
    """

    outputs: tuple[np.ndarray, ...]
    updates: dict[str, np.ndarray]
    env: dict[str, np.ndarray] | None = None


def run(
    graph: Graph, args: Mapping[str, np.ndarray], dtype: str | None = None, *, keep: bool = False
) -> Results:
    """Evaluate a graph.

    Args:
        graph: what to evaluate.
        args: an array for each input but constants, by name; floats of another width are
            converted.
        dtype: the float type everything is computed in; as declared when None.
        keep: return every intermediate value; otherwise each is freed after its last use.

    Raises:
        CallError: for arguments that are missing or have the wrong shape.
    """
    (results,) = run_ranks([graph], [args], dtype, keep=keep)
    return results


def run_ranks(
    graphs: Sequence[Graph],
    args: Sequence[Mapping[str, np.ndarray]],
    dtype: str | None = None,
    *,
    keep: bool = False,
) -> tuple[Results, ...]:
    """Evaluate a program on several ranks.

    Args:
        graphs: the program of each rank, which may be for another batch size on each.
        args: as for `run`, of each rank.
        dtype: see `run`.
        keep: see `run`.

    Raises:
        CallError: see `run`; for ranks whose collectives are not the same.
    """
    walks = [_walk(g, a, dtype, keep) for g, a in zip(graphs, args, strict=True)]
    given: list[Any] = [None] * len(walks)
    # Bad numbers propagate as they do in the compiled program, without warnings.
    with np.errstate(all="ignore"):
        while True:
            steps = [_next(walk, sent) for walk, sent in zip(walks, given, strict=True)]
            if all(isinstance(step, Results) for step in steps):
                return tuple(steps)
            given = _across(steps)


def _next(walk: _Walk, sent: Any) -> Any:
    try:
        return walk.send(sent)
    except StopIteration as stop:
        return stop.value


def _across(steps: Sequence[Any]) -> Sequence[tuple[np.ndarray, ...]]:
    """The results of a collective on each rank."""
    nodes = [None if isinstance(step, Results) else step[0] for step in steps]
    said = ["nothing" if n is None else _exchanged(n) for n in nodes]
    for rank, words in enumerate(said):
        if words != said[0]:
            raise CallError(f"rank 0 exchanges {said[0]} while rank {rank} exchanges {words}")
    arrays = [a for _, a in steps]
    if "count" not in nodes[0].attrs:
        return op_def(nodes[0].op).across(arrays, nodes[0].attrs)
    # A batch of its own size on each.
    counts = [n.attrs["count"] for n in nodes]
    return op_def(nodes[0].op).across(arrays, {**nodes[0].attrs, "count": counts})


def _exchanged(node: Node) -> str:
    group = node.attrs["group"]
    types = ", ".join(str(v.type) for v in node.outputs if len(v.shape) < 2)
    return f"{node.op} in {group!r}: {types}"


_Walk = Generator[tuple[Node, list[np.ndarray | None]], tuple[np.ndarray, ...], Results]


def _walk(graph: Graph, args: Mapping[str, np.ndarray], dtype: str | None, keep: bool) -> _Walk:
    """Evaluates a graph, and stops at each collective for what it gives."""
    args = {**given_constants(graph), **args}
    env = {v: _argument(v, args, dtype) for v in graph.input_values()}
    needed = set(graph.results())
    last_use = {v: node for node in graph.nodes for v in node.operands}
    for node in graph.nodes:
        arrays = [None if v is None else env[v] for v in node.inputs]
        if node.row.across is None:
            results = evaluate(node, arrays, dtype)
        else:
            results = _checked(node, (yield node, arrays), dtype)
        env.update(zip(node.outputs, results, strict=True))
        if not keep:
            dying = {v for v in node.operands if last_use[v] is node}
            dying.update(v for v in node.outputs if v not in last_use)
            for v in dying - needed:
                del env[v]
    return Results(
        tuple(env[v] for v in graph.outputs),
        {target.name: env[new] for target, new in graph.updates},
        {v.name: a for v, a in env.items()} if keep else None,
    )


def evaluate(
    node: Node, arrays: list[np.ndarray | None], dtype: str | None = None
) -> tuple[np.ndarray, ...]:
    """Evaluate one node, in the float type ``dtype`` or as declared.

    Raises:
        InternalError: when the op's meaning contradicts its shape rule.
    """
    return _checked(node, op_def(node.op).evaluate(arrays, _attrs_in(node.attrs, dtype)), dtype)


def _checked(
    node: Node, results: tuple[np.ndarray, ...], dtype: str | None
) -> tuple[np.ndarray, ...]:
    """What a node means, if that has its types."""
    types = [TensorType(v.shape, element_type(v.type, dtype)) for v in node.outputs]
    if dtype is not None:
        # Some ops make floats out of nothing (random numbers, one_hot), always in one type.
        results = tuple(r.astype(t.dtype, copy=False) for r, t in zip(results, types, strict=True))
    for array, want in zip(results, types, strict=True):
        if array.shape != want.shape or array.dtype.name != want.dtype:
            got = f"{array.dtype.name}{list(array.shape)}"
            raise InternalError(f"{node.op} of {node.out.name!r} means {got}, typed {want}")
    return results


def element_type(type_: TensorType, dtype: str | None) -> str:
    """The element type of a value when floats are computed in ``dtype``."""
    return dtype if dtype is not None and type_.is_float else type_.dtype


def given_constants(graph: Graph) -> dict[str, np.ndarray]:
    """What the program's constants hold, by name."""
    types = {v.name: v.type for v in graph.input_values()}
    return {
        name: np.array(values, types[name].dtype).reshape(types[name].shape)
        for name, values in graph.constants().items()
    }


def _argument(value: Value, args: Mapping[str, np.ndarray], dtype: str | None) -> np.ndarray:
    if value.name not in args:
        raise CallError(f"no argument for input {value.name!r} : {value.type}")
    array = np.asarray(args[value.name], element_type(value.type, dtype))
    if array.shape != value.shape:
        raise CallError(f"argument {value.name!r} has shape {list(array.shape)}, not {value.type}")
    return array


def _attrs_in(attrs: Attrs, dtype: str | None) -> Attrs:
    """Attributes with float element types (of constants and casts) replaced by ``dtype``."""
    if dtype is None or "dtype" not in attrs or not DTYPES[attrs["dtype"]].is_float:
        return attrs
    return Attrs.of(**{**attrs, "dtype": dtype})
