"""What PyTorch computes for a graph: the other opinion that `bngen verify` compares with.

In: a graph and one array an input, by name. Out: outputs and updates, as `bngen.ir.interp` gives
them. In float32 the numbers are PyTorch's own; with ``dtype="float64"`` every floating-point value
is double precision, which serves as the exact answer. What each op means is said in `ops`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from bngen.dtypes import DTYPES
from bngen.errors import ProgramError
from bngen.ir.interp import Results, element_type, given_constants
from bngen.ir.node import Graph, Node
from bngen.ir.types import TensorType, Value
from bngen.torch_bridge.element_types import array_of, tensor_of
from bngen.torch_bridge.ops import TORCH_OPS

Tensors = dict[Value, Tensor]


def run(
    graph: Graph,
    args: Mapping[str, np.ndarray],
    dtype: str | None = None,
    *,
    channels_last: bool = False,
) -> Results:
    """Evaluate a graph with PyTorch, freeing each value after its last use.

    Args:
        graph: a program.
        args: an array for each input, by name.
        dtype: the float type everything is computed in; as declared when None.
        channels_last: keep feature maps in that layout, for which PyTorch has other kernels.

    Raises:
        ProgramError: for an op that has no row in `TORCH_OPS`.
    """
    tensors = inputs(graph, args, dtype)
    if channels_last:
        layout = torch.channels_last
        tensors = {v: t.to(memory_format=layout) if t.ndim == 4 else t for v, t in tensors.items()}
    with torch.no_grad():
        env = evaluate(graph, tensors, dtype)
    return Results(
        outputs=tuple(array_of(env[v]) for v in graph.outputs),
        updates={target.name: array_of(env[new]) for target, new in graph.updates},
    )


def inputs(graph: Graph, args: Mapping[str, np.ndarray], dtype: str | None) -> Tensors:
    """A tensor for each input of a graph; floats in ``dtype``, or as declared when None."""
    args = {**given_constants(graph), **args}
    # Copies: the caller's array may be read-only or updated in place by the module under test.
    return {
        v: tensor_of(np.asarray(args[v.name])).to(_torch_type(v.type, dtype))
        for v in graph.input_values()
    }


def evaluate(graph: Graph, tensors: Tensors, dtype: str | None) -> Tensors:
    """Every result of a graph, outputs and updates, from a tensor for each of its inputs.

    Under autograd the results are differentiable by those inputs that require it.

    Raises:
        ProgramError: for an op that has no row in `TORCH_OPS`.
    """
    env = dict(tensors)
    last_use = {v: node for node in graph.nodes for v in node.operands}
    needed = set(graph.results())
    for node in graph.nodes:
        operands = [None if v is None else env[v] for v in node.inputs]
        env.update(zip(node.outputs, _evaluate_node(node, operands, dtype), strict=True))
        for v in {*node.operands, *node.outputs} - needed:
            if last_use.get(v, node) is node:
                env.pop(v, None)
    return {v: env[v] for v in needed}


def _evaluate_node(
    node: Node, operands: list[Tensor | None], dtype: str | None
) -> tuple[Tensor, ...]:
    if node.op not in TORCH_OPS:
        raise ProgramError(f"op {node.op} has no PyTorch reference", loc=node.loc)
    if node.row.accumulates:
        wide = [DTYPES[v.dtype].accumulator for v in node.operands]
        operands = [
            t.to(_torch_type(TensorType((), w), dtype)) for t, w in zip(operands, wide, strict=True)
        ]
    result = TORCH_OPS[node.op].meaning(operands, node.attrs)
    results = result if isinstance(result, tuple) else (result,)
    # Constants, random numbers and casts are made in their declared type.
    return tuple(
        r.to(_torch_type(v.type, dtype)) for r, v in zip(results, node.outputs, strict=True)
    )


def _torch_type(type_: TensorType, dtype: str | None) -> torch.dtype:
    return getattr(torch, DTYPES[element_type(type_, dtype)].torch)
