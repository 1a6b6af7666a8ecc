"""What PyTorch computes for a graph: the other opinion that `bngen verify` compares with.

In: a graph before fission and one array an input, by name. Out: outputs and updates, as
`bngen.ir.interp` gives them. In float32 the numbers are PyTorch's own; with ``dtype="float64"``
every floating-point value is double precision, which serves as the exact answer.

`OPERATORS` is a second, independent meaning of the ops a program can contain, one PyTorch call
each. Gradients and the pieces of BN that only passes make are not in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from bngen.errors import ProgramError
from bngen.ir.interp import Results
from bngen.ir.node import Graph, Node
from bngen.ir.ops import op_def
from bngen.ir.ops.reduce import normalize_axes
from bngen.ir.types import TensorType

Tensors = Sequence["torch.Tensor | None"]
Attributes = Mapping[str, object]
_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "bool": torch.bool,
}


def run(
    graph: Graph,
    args: Mapping[str, np.ndarray],
    dtype: str | None = None,
    *,
    channels_last: bool = False,
) -> Results:
    """Evaluate a graph with PyTorch, freeing each value after its last use.

    Args:
        graph: a program as traced.
        args: an array for each input, by name.
        dtype: the float type everything is computed in; as declared when None.
        channels_last: keep feature maps in that layout, for which PyTorch has other kernels.

    Raises:
        ProgramError: for an op that has no row in `OPERATORS`.
    """
    env = {v: _tensor(args[v.name], v.type, dtype) for v in graph.input_values()}
    if channels_last:
        layout = torch.channels_last
        env = {v: t.to(memory_format=layout) if t.ndim == 4 else t for v, t in env.items()}
    last_use = {v: node for node in graph.nodes for v in node.operands}
    needed = set(graph.results())
    with torch.no_grad():
        for node in graph.nodes:
            values = _evaluate(node, [None if v is None else env[v] for v in node.inputs], dtype)
            # A pool's index tensor is not PyTorch's: its row gives the pooled values alone.
            env.update(zip(node.outputs, values, strict=False))
            for v in {*node.operands, *node.outputs} - needed:
                if last_use.get(v, node) is node:
                    env.pop(v, None)
    return Results(
        outputs=tuple(env[v].numpy() for v in graph.outputs),
        updates={target.name: env[new].numpy() for target, new in graph.updates},
    )


def _tensor(array: np.ndarray, type_: TensorType, dtype: str | None) -> torch.Tensor:
    # A copy: the caller's array may be read-only or updated in place by the module under test.
    return torch.tensor(np.asarray(array), dtype=_dtype(type_.dtype, dtype))


def _dtype(declared: str, computed: str | None) -> torch.dtype:
    is_float = declared in ("float32", "float64")
    return _DTYPES[computed if computed and is_float else declared]


def _evaluate(node: Node, values: Tensors, dtype: str | None) -> tuple[torch.Tensor, ...]:
    if node.op not in OPERATORS:
        raise ProgramError(f"op {node.op} has no PyTorch reference", loc=node.loc)
    result = OPERATORS[node.op](values, node.attrs)
    results = result if isinstance(result, tuple) else (result,)
    # Constants, random numbers and casts are made in their declared type.
    return tuple(r.to(_dtype(v.dtype, dtype)) for r, v in zip(results, node.outputs, strict=False))


# --- the meanings -----------------------------------------------------------------------------


def _unary(function: Callable) -> Callable:
    return lambda values, attrs: function(values[0])


def _binary(function: Callable) -> Callable:
    return lambda values, attrs: function(values[0], values[1])


def _conv2d(values: Tensors, a: Attributes) -> torch.Tensor:
    x, weight = values
    top, bottom, left, right = a["padding"]
    symmetric = top == bottom and left == right
    if not symmetric:
        x = F.pad(x, (left, right, top, bottom))
    padding = (top, left) if symmetric else 0
    return F.conv2d(x, weight, None, a["stride"], padding, a["dilation"], a["groups"])


def _max_pool2d(values: Tensors, a: Attributes) -> torch.Tensor:
    return F.max_pool2d(
        values[0], a["kernel"], a["stride"], a["padding"], a["dilation"], a["ceil_mode"]
    )


def _avg_pool2d(values: Tensors, a: Attributes) -> torch.Tensor:
    return F.avg_pool2d(
        values[0], a["kernel"], a["stride"], a["padding"], a["ceil_mode"], a["count_include_pad"]
    )


def _matmul(values: Tensors, a: Attributes) -> torch.Tensor:
    left, right = values
    return (left.T if a["trans_a"] else left) @ (right.T if a["trans_b"] else right)


def _reduce(function: Callable) -> Callable:
    def evaluate(values: Tensors, a: Attributes) -> torch.Tensor:
        axes = normalize_axes(a["axes"], values[0].ndim)
        # PyTorch takes an empty list of axes to mean all of them.
        return function(values[0], dim=axes, keepdim=a["keepdims"]) if axes else values[0]

    return evaluate


def _sample_axes(x: torch.Tensor) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))


def _along_channel(vector: torch.Tensor, rank: int) -> torch.Tensor:
    return vector.reshape(1, -1, *(1,) * (rank - 2))


def _bn_stats(values: Tensors, a: Attributes) -> tuple[torch.Tensor, ...]:
    var, mean = torch.var_mean(values[0], _sample_axes(values[0]), correction=0)
    return mean, var


def _bn_var(values: Tensors, a: Attributes) -> torch.Tensor:
    x, mean = values
    return (x - _along_channel(mean, x.ndim)).square().mean(_sample_axes(x))


def _batch_norm(values: Tensors, a: Attributes) -> tuple[torch.Tensor, ...]:
    """PyTorch's layer; with momentum 1 its running statistics are those of this batch."""
    x, weight, bias = values
    mean, unbiased = (torch.zeros(x.shape[1], dtype=x.dtype) for _ in range(2))
    y = F.batch_norm(x, mean, unbiased, weight, bias, training=True, momentum=1.0, eps=a["eps"])
    count = math.prod(x.shape) // x.shape[1]
    return y, mean, unbiased * ((count - 1) / count)


def _bn_normalize(values: Tensors, a: Attributes) -> torch.Tensor:
    x, mean, var, weight, bias = values
    return F.batch_norm(x, mean, var, weight, bias, training=False, eps=a["eps"])


def _bn_update(values: Tensors, a: Attributes) -> tuple[torch.Tensor, ...]:
    running_mean, running_var, mean, var, momentum = values
    share = a["momentum"] if momentum is None else momentum
    count = a["count"]
    unbiased = var * (count / (count - 1) if count > 1 else math.nan)
    return (
        (1 - share) * running_mean + share * mean,
        (1 - share) * running_var + share * unbiased,
    )


def _constant(values: Tensors, a: Attributes) -> torch.Tensor:
    # In double precision first: rounded to float32, 0.1 would be another number in a float64 run.
    return torch.tensor(a["value"], dtype=_dtype(a["dtype"], "float64"))


def _one_hot(values: Tensors, a: Attributes) -> torch.Tensor:
    (labels,) = values
    classes = torch.arange(a["classes"]).reshape(-1, *(1,) * (labels.ndim - 1))
    return labels.unsqueeze(1) == classes


def _random_uniform(values: Tensors, a: Attributes) -> torch.Tensor:
    """Random numbers as the op table defines them: PyTorch cannot reproduce them."""
    (numbers,) = op_def("random_uniform").evaluate([values[0].numpy()], a)
    return torch.from_numpy(numbers)


OPERATORS: dict[str, Callable] = {
    "add": _binary(torch.add),
    "sub": _binary(torch.sub),
    "mul": _binary(torch.mul),
    "div": _binary(torch.div),
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "pow": _binary(torch.pow),
    "greater": _binary(torch.gt),
    "greater_equal": _binary(torch.ge),
    "less": _binary(torch.lt),
    "less_equal": _binary(torch.le),
    "equal": _binary(torch.eq),
    "not_equal": _binary(torch.ne),
    "exp": _unary(torch.exp),
    "log": _unary(torch.log),
    "sqrt": _unary(torch.sqrt),
    "rsqrt": _unary(torch.rsqrt),
    "tanh": _unary(torch.tanh),
    "sigmoid": _unary(torch.sigmoid),
    "silu": _unary(F.silu),
    "neg": _unary(torch.neg),
    "abs": _unary(torch.abs),
    "relu": _unary(F.relu),
    "leaky_relu": lambda v, a: F.leaky_relu(v[0], a["slope"]),
    "hardtanh": lambda v, a: F.hardtanh(v[0], a["lo"], a["hi"]),
    "where": lambda v, a: torch.where(*v),
    "cast": _unary(lambda x: x),
    "copy": _unary(lambda x: x),
    "stop_gradient": _unary(lambda x: x),
    "constant": _constant,
    "broadcast_to": lambda v, a: v[0].expand(a["shape"]),
    "random_uniform": _random_uniform,
    "one_hot": _one_hot,
    "bias_add": lambda v, a: v[0] + _along_channel(v[1], v[0].ndim),
    "bn_normalize": _bn_normalize,
    "bn_update": _bn_update,
    "batch_norm": _batch_norm,
    "bn_stats": _bn_stats,
    "bn_mean": lambda v, a: v[0].mean(_sample_axes(v[0])),
    "bn_var": _bn_var,
    "sum": _reduce(torch.sum),
    "mean": _reduce(torch.mean),
    "amax": _reduce(torch.amax),
    "conv2d": _conv2d,
    "matmul": _matmul,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": lambda v, a: F.adaptive_avg_pool2d(v[0], a["output_size"]),
    "cat": lambda v, a: torch.cat(tuple(v), a["axis"]),
    "slice": lambda v, a: v[0].narrow(a["axis"], a["start"], a["stop"] - a["start"]),
    "reshape": lambda v, a: v[0].reshape(a["shape"]),
}
