"""From PyTorch's calls to bngen's language: one row a function, and what is supported at all.

In: a node of a graph that Dynamo has captured, and tensors of a running trace for its tensor
arguments. Out: tensors of that trace. bngen's language takes PyTorch's names and arguments, so a
row is little more than the pair of them. Whether a call is supported the language itself says, by
being tried on the types at hand: what it refuses runs in PyTorch, with its words as the reason.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from bngen.errors import BngenError, SourceLoc
from bngen.ir.node import Graph, TensorType
from bngen.lang import loss, normalization, pointwise, reductions, shapes, windows
from bngen.lang.tensor import Tensor, wrap
from bngen.lang.trace import Trace, running
from bngen.torch_bridge import masks

DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.uint8: "uint8",
    torch.bool: "bool",
}


class UnsupportedError(Exception):
    """A call that bngen's language has no words for; the message is the reason."""


# --- translations that are more than a name ---------------------------------------------------


def _scaled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``add`` and ``sub`` of PyTorch scale the second operand by ``alpha``."""

    def translated(input: Any, other: Any, *, alpha: float = 1) -> Tensor:
        return function(input, other if alpha == 1 else pointwise.mul(other, alpha))

    return translated


def _divided(input: Any, other: Any, *, rounding_mode: str | None = None) -> Tensor:
    if rounding_mode is not None:
        raise UnsupportedError(f"div with rounding_mode={rounding_mode!r}")
    return pointwise.div(input, other)


def _max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    if return_indices:
        raise UnsupportedError("max_pool2d with return_indices")
    return windows.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    if training and p > 0:
        raise UnsupportedError("dropout whose mask is not drawn by PyTorch's generator")
    return input


def _masked(input: Tensor, mask: Tensor, p: float) -> Tensor:
    """Dropout with a mask that PyTorch has drawn; see `masks.drop`."""
    if p >= 1:
        return pointwise.where(mask, input, 0.0)
    return pointwise.where(mask, input * (1.0 / (1.0 - p)), 0.0)


def _softmax(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def translated(
        input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
    ) -> Tensor:
        if dim is None or dtype is not None:
            raise UnsupportedError("softmax without dim, or with a dtype")
        return function(input, dim)

    return translated


def _reduction(name: str) -> Callable[..., Tensor]:
    def translated(
        input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
    ) -> Tensor:
        if dtype is not None:
            input = input.to(_dtype(dtype))
        return getattr(input, name)(_plain(dim), keepdim)

    return translated


def _cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    if size_average is not None or reduce is not None:
        raise UnsupportedError("cross_entropy with size_average or reduce, which are deprecated")
    return loss.cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing)


def _hardsigmoid(input: Tensor) -> Tensor:
    return pointwise.relu6(input + 3.0) / 6.0


def _hardswish(input: Tensor) -> Tensor:
    return input * _hardsigmoid(input)


def _same(input: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return input


def _cast(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    wanted = [*args, *kwargs.values()]
    if len(wanted) != 1 or not isinstance(wanted[0], torch.dtype):
        raise UnsupportedError("to(...) with more than a dtype")
    return input.to(_dtype(wanted[0]))


def _view(input: Tensor, *shape: Any) -> Tensor:
    if any(isinstance(s, torch.dtype) for s in shape):
        raise UnsupportedError("view as another dtype")
    flat = shape[0] if len(shape) == 1 and isinstance(shape[0], Sequence) else shape
    return input.reshape(tuple(flat))


def _clamp(input: Tensor, min: Any = None, max: Any = None) -> Tensor:
    if min is not None:
        input = pointwise.maximum(input, min)
    return input if max is None else pointwise.minimum(input, max)


def _split(input: Tensor, size: Any, dim: int = 0) -> tuple[Tensor, ...]:
    extent = input.shape[dim]
    if isinstance(size, int):
        size = [size] * (extent // size) + ([extent % size] if extent % size else [])
    starts = [sum(size[:i]) for i in range(len(size))]
    return tuple(_narrow(input, dim, a, n) for a, n in zip(starts, size, strict=True))


def _chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    return _split(input, -(-input.shape[dim] // chunks), dim)


def _narrow(input: Tensor, dim: int, start: int, length: int) -> Tensor:
    index = [slice(None)] * input.ndim
    index[dim] = slice(start, start + length)
    return input[tuple(index)]


def _getitem(value: Any, index: Any) -> Any:
    if isinstance(value, Tensor) and _holds_tensor(index):
        raise UnsupportedError("indexing by a tensor")
    return value[index]


def _holds_tensor(index: Any) -> bool:
    items = index if isinstance(index, tuple | list) else (index,)
    return any(isinstance(i, Tensor | list) for i in items)


def _squeeze(input: Tensor, dim: Any = None) -> Tensor:
    dims = range(input.ndim) if dim is None else (dim if isinstance(dim, Sequence) else (dim,))
    gone = {d % input.ndim for d in dims if input.shape[d] == 1}
    return input.reshape(tuple(s for i, s in enumerate(input.shape) if i not in gone))


def _unsqueeze(input: Tensor, dim: int) -> Tensor:
    at = dim % (input.ndim + 1)
    return input.reshape((*input.shape[:at], 1, *input.shape[at:]))


def _dtype(dtype: torch.dtype) -> str:
    if dtype not in DTYPES:
        raise UnsupportedError(f"{dtype}")
    return DTYPES[dtype]


def _plain(dim: Any) -> Any:
    return tuple(dim) if isinstance(dim, list) else dim


# --- the table --------------------------------------------------------------------------------

FUNCTIONS: dict[Any, Callable[..., Any]] = {
    torch.conv2d: windows.conv2d,
    F.linear: windows.linear,
    torch.matmul: windows.matmul,
    torch.mm: windows.matmul,
    F.batch_norm: normalization.batch_norm,
    F.max_pool2d: _max_pool2d,
    torch.max_pool2d: _max_pool2d,
    F.avg_pool2d: windows.avg_pool2d,
    F.adaptive_avg_pool2d: windows.adaptive_avg_pool2d,
    F.dropout: _dropout,
    torch.dropout: _dropout,
    masks.drop: _masked,
    F.relu: pointwise.relu,
    torch.relu: pointwise.relu,
    F.relu6: pointwise.relu6,
    F.hardtanh: pointwise.hardtanh,
    F.leaky_relu: pointwise.leaky_relu,
    F.silu: pointwise.silu,
    F.hardsigmoid: _hardsigmoid,
    F.hardswish: _hardswish,
    F.sigmoid: pointwise.sigmoid,
    torch.sigmoid: pointwise.sigmoid,
    F.tanh: pointwise.tanh,
    torch.tanh: pointwise.tanh,
    torch.exp: pointwise.exp,
    torch.log: pointwise.log,
    torch.sqrt: pointwise.sqrt,
    torch.rsqrt: pointwise.rsqrt,
    torch.abs: pointwise.abs,
    torch.neg: pointwise.neg,
    torch.add: _scaled(pointwise.add),
    torch.sub: _scaled(pointwise.sub),
    torch.mul: pointwise.mul,
    torch.div: _divided,
    torch.true_divide: pointwise.div,
    torch.pow: pointwise.pow,
    torch.maximum: pointwise.maximum,
    torch.minimum: pointwise.minimum,
    torch.where: pointwise.where,
    torch.clamp: _clamp,
    torch.gt: pointwise.greater,
    torch.ge: pointwise.greater_equal,
    torch.lt: pointwise.less,
    torch.le: pointwise.less_equal,
    torch.eq: pointwise.equal,
    torch.ne: pointwise.not_equal,
    torch.cat: shapes.cat,
    torch.concat: shapes.cat,
    torch.flatten: shapes.flatten,
    torch.reshape: shapes.reshape,
    torch.squeeze: _squeeze,
    torch.unsqueeze: _unsqueeze,
    torch.narrow: _narrow,
    torch.split: _split,
    torch.chunk: _chunk,
    torch.sum: _reduction("sum"),
    torch.mean: _reduction("mean"),
    torch.amax: _reduction("amax"),
    F.softmax: _softmax(reductions.softmax),
    F.log_softmax: _softmax(reductions.log_softmax),
    F.cross_entropy: _cross_entropy,
    operator.add: pointwise.add,
    operator.sub: pointwise.sub,
    operator.mul: pointwise.mul,
    operator.truediv: pointwise.div,
    operator.pow: pointwise.pow,
    operator.neg: pointwise.neg,
    operator.matmul: windows.matmul,
    operator.gt: pointwise.greater,
    operator.ge: pointwise.greater_equal,
    operator.lt: pointwise.less,
    operator.le: pointwise.less_equal,
    operator.eq: pointwise.equal,
    operator.ne: pointwise.not_equal,
    operator.getitem: _getitem,
}
"""What PyTorch calls -> the same in bngen's language, arguments as PyTorch passes them."""

METHODS: dict[str, Callable[..., Any]] = {
    **{f.__name__: g for f, g in FUNCTIONS.items() if getattr(torch.Tensor, f.__name__, None)},
    "view": _view,
    "reshape": _view,
    "contiguous": _same,
    "clone": _same,
    "detach": pointwise.detach,
    "float": lambda input: input.to("float32"),
    "double": lambda input: input.to("float64"),
    "to": _cast,
    "type": _cast,
    "size": lambda input, dim=None: input.size(dim),
}
"""Methods of tensors, by name."""


def translation(node: fx.Node) -> Callable[..., Any]:
    """The row of a call.

    Raises:
        UnsupportedError: where there is none.
    """
    found = None
    if node.op == "call_function":
        found = FUNCTIONS.get(node.target)
    elif node.op == "call_method":
        found = METHODS.get(str(node.target))
    if found is None:
        raise UnsupportedError(f"bngen has no {called(node)}")
    return found


def called(node: fx.Node) -> str:
    """What a node calls, as a user would write it."""
    if isinstance(node.target, str):
        return f"Tensor.{node.target}" if node.op == "call_method" else node.target
    return getattr(node.target, "__name__", str(node.target))


# --- types and places -------------------------------------------------------------------------


def type_of(value: torch.Tensor) -> TensorType:
    """A tensor's type in bngen.

    Raises:
        UnsupportedError: for a tensor that bngen has no type for, or that is on another device.
    """
    if type(value) not in (torch.Tensor, torch.nn.Parameter) and not _is_fake(value):
        raise UnsupportedError(f"a {type(value).__name__}")
    if value.device.type != "cpu":
        raise UnsupportedError(f"a tensor on {value.device}")
    if value.layout != torch.strided or value.is_quantized or value.is_nested:
        raise UnsupportedError(f"a {value.layout} tensor")
    if not all(isinstance(s, int) and s > 0 for s in value.shape):
        raise UnsupportedError(f"a tensor of shape {list(value.shape)}")
    return TensorType(tuple(value.shape), _dtype(value.dtype))


def _is_fake(value: object) -> bool:
    return isinstance(value, torch._subclasses.FakeTensor)


def place_of(node: fx.Node) -> SourceLoc | None:
    """The model's own line that a node stems from, as Dynamo has noted it."""
    trace = (node.meta.get("stack_trace") or "").strip().splitlines()
    for line in reversed(trace):
        if line.lstrip().startswith('File "'):
            path, number, *_ = line.split(", ")
            return SourceLoc(path.split('"')[1], int(number.split()[1]))
    return None


# --- tracing ----------------------------------------------------------------------------------


def refusal(node: fx.Node) -> str | None:
    """Why bngen cannot take a call, or None where it can.

    The call is tried by itself, in a trace of its own, and its results must have the types that
    PyTorch's have.
    """
    operands = list(dict.fromkeys(node.all_input_nodes))
    trace = Trace("call")
    try:
        with running(trace):
            env = {n: _declared(trace, f"x{i}", n) for i, n in enumerate(operands)}
            result = translate(node, env)
        _check_types(node, result)
    except (UnsupportedError, BngenError) as error:
        return str(error).splitlines()[0].partition(" [in ")[0]
    except TypeError as error:  # Arguments that the row does not take.
        return f"{called(node)}: {error}"
    return None


def _declared(trace: Trace, name: str, node: fx.Node) -> Any:
    value = node.meta["val"]
    if isinstance(value, tuple | list):
        return tuple(
            wrap(trace, trace.declare(f"{name}_{i}", type_of(v), "input"))
            for i, v in enumerate(value)
        )
    return wrap(trace, trace.declare(name, type_of(value), "input"))


def _check_types(node: fx.Node, result: Any) -> None:
    value = node.meta["val"]
    expected = value if isinstance(value, tuple | list) else (value,)
    found = result if isinstance(result, tuple) else (result,)
    if len(found) != len(expected):
        raise UnsupportedError(f"{called(node)} with {len(expected)} results")
    for ours, theirs in zip(found, expected, strict=True):
        if not isinstance(ours, Tensor) or not isinstance(theirs, torch.Tensor):
            raise UnsupportedError(f"{called(node)}, which gives no tensor")
        if ours.type != type_of(theirs):
            raise UnsupportedError(f"{called(node)} as {type_of(theirs)}")


def translate(node: fx.Node, env: Mapping[fx.Node, Any]) -> Any:
    """Apply a call to tensors of the running trace."""
    row = translation(node)
    args = fx.node.map_arg(_without_flag(node), lambda n: env[n])
    kwargs = fx.node.map_arg(node.kwargs, lambda n: env[n])
    return row(*args, **{k: v for k, v in kwargs.items() if k != "inplace"})


def _without_flag(node: fx.Node) -> tuple[Any, ...]:
    """The positional arguments, but for ``inplace``: in-place calls have been rewritten by now."""
    names = getattr(getattr(node.target, "__code__", None), "co_varnames", ())
    at = names.index("inplace") if "inplace" in names else len(node.args)
    return (*node.args[:at], *node.args[at + 1 :])


def trace_region(
    nodes: Iterable[fx.Node], inputs: Sequence[fx.Node], outputs: Sequence[fx.Node], name: str
) -> Graph:
    """The program of a region.

    Args:
        nodes: its calls, in order.
        inputs: nodes outside whose values it reads; the program's arguments, ``a0``, ``a1``, ...
        outputs: nodes inside whose values are read outside; the program's results.
        name: the program's name.
    """
    trace = Trace(name)
    with running(trace):
        env = {n: _declared(trace, f"a{i}", n) for i, n in enumerate(inputs)}
        for node in nodes:
            with trace.at(place_of(node)):
                env[node] = translate(node, env)
        return trace.finish([env[n].value for n in outputs], (), True)
