"""From PyTorch's calls to bngen's language: one row a function, and what is supported at all.

In: a node of a graph that Dynamo has captured, and tensors of a running trace for its tensor
arguments. Out: tensors of that trace. bngen's language takes PyTorch's names and arguments, so a
row is little more than the pair of them. Whether a call is supported the language itself says, by
being tried on the types at hand: what it refuses runs in PyTorch, with its words as the reason.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

import bngen
from bngen.errors import BngenError, SourceLoc
from bngen.ir.node import Graph
from bngen.ir.types import TensorType
from bngen.lang import pointwise
from bngen.lang.tensor import Tensor, wrap
from bngen.lang.trace import Trace, running
from bngen.torch_bridge import masks
from bngen.torch_bridge.ops import Spelling, spelling_of

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


def _dropout(input: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    if training and p > 0:
        raise UnsupportedError("dropout whose mask is not drawn by PyTorch's generator")
    return input


def _masked(input: Tensor, mask: Tensor, p: float) -> Tensor:
    """Dropout with a mask that PyTorch has drawn; see `masks.drop`."""
    if p >= 1:
        return pointwise.where(mask, input, 0.0)
    return pointwise.where(mask, input * (1.0 / (1.0 - p)), 0.0)


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

OWN: dict[Any, Callable[..., Any]] = {
    masks.drop: _masked,
    F.dropout: _dropout,
    F.hardsigmoid: _hardsigmoid,
    F.hardswish: _hardswish,
    torch.clamp: _clamp,
    torch.squeeze: _squeeze,
    torch.unsqueeze: _unsqueeze,
    torch.narrow: _narrow,
    torch.split: _split,
    torch.chunk: _chunk,
    operator.getitem: _getitem,
    "clamp": _clamp,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "narrow": _narrow,
    "split": _split,
    "chunk": _chunk,
    "contiguous": _same,
    "clone": _same,
    "to": _cast,
}
"""Calls that the language has other words for than `ops.SPELLINGS` can tell."""


def translation(node: fx.Node) -> Callable[..., Any]:
    """What takes PyTorch's arguments and gives bngen's tensors.

    Raises:
        UnsupportedError: where there is nothing.
    """
    if node.op in ("call_function", "call_method"):
        if node.target in OWN:
            return OWN[node.target]
        if spelling := spelling_of(node.target):
            return functools.partial(_spelled, spelling, node.target)
    raise UnsupportedError(f"bngen has no {called(node)}")


def _spelled(spelling: Spelling, target: Any, *args: Any, **kwargs: Any) -> Any:
    """Call the language's function of a spelling with PyTorch's arguments."""
    function: Any = bngen
    for name in spelling.language.split("."):
        function = getattr(function, name)
    given = dict(kwargs)
    names = _parameters(target) or _parameters(function)
    if len(args) > len(names):
        return function(*args, **kwargs)  # its own *args, as of Tensor.view
    given |= dict(zip(names, args, strict=False))
    if refused := spelling.refusal(given):
        raise UnsupportedError(refused)
    own = {n: v for n, v in given.items() if n not in spelling.only}
    names = _parameters(function)
    in_order = [own.pop(n) for n in list(names)[: len(args)] if n in own] if args else []
    return function(*in_order, **own)


@functools.cache
def _parameters(function: Any) -> tuple[str, ...]:
    """Names of a Python function's parameters; none of a built-in one's."""
    code = getattr(function, "__code__", None)
    return () if code is None else code.co_varnames[: code.co_argcount]


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
