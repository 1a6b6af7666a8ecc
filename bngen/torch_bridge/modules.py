"""A program as a PyTorch module: the calls that a model of PyTorch would make for it, in its order.

In: a graph. Out: an ``nn.Module`` whose ``state_dict`` has the names of the graph's parameters and
buffers, and which computes its outputs and, in place, its updates. Shapes are the graph's own.

What one call of PyTorch does is one call: a convolution with its bias, a batch normalization with
its running statistics. Activations and sums happen in place where nobody else needs what they
overwrite, as in torchvision's models. Ops without a row in `_CALLS` are called by their meaning in
`ops`. The result is no reference: `reference` evaluates each op by itself.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from bngen.dtypes import DTYPES
from bngen.errors import ProgramError
from bngen.ir.node import Graph, Node
from bngen.ir.ops.gather import Piece, indices_of, pieces_of
from bngen.ir.ops.reduce import normalize_axes
from bngen.ir.types import Value
from bngen.torch_bridge.ops import TORCH_OPS

_Call = Callable[["_Writer", Node, list], Any]
"""Writes the call for a node with the operands given; its first result."""

_OVERWRITABLE = frozenset(
    {"add", "batch_norm", "bias_add", "conv2d", "conv2d_grad_input", "matmul", "mul"}
)
"""Ops that keep no result for their gradient, nor give out a view."""


def module_of(graph: Graph) -> nn.Module:
    """The module, in training mode, with parameters and buffers that hold nothing yet.

    Called with the program's arguments in order it gives a tensor, or a dict or tuple of them as
    the program does.

    Raises:
        ProgramError: for an op that depends on the declared types, or has no PyTorch reference.
    """
    writer = _Writer(graph)
    for node in graph.nodes:
        writer.write(node)
    writer.finish()
    return fx.GraphModule(writer.root, writer.calls, graph.name).train()


class _Writer:
    """A graph of calls in the making."""

    def __init__(self, graph: Graph):
        self.graph, self.root, self.calls = graph, nn.Module(), fx.Graph()
        self.found: dict[Value, Any] = {}
        self.users: dict[Value, list[Node]] = {}
        self.producers = {v: node for node in graph.nodes for v in node.outputs}
        for node in graph.nodes:
            for v in node.operands:
                self.users.setdefault(v, []).append(node)
        self.results = set(graph.outputs)
        self._targets = {new: target for target, new in graph.updates}
        for item in graph.inputs:
            if item.kind == "input":
                self.found[item.value] = self.calls.placeholder(item.name)
            else:
                _hold(self.root, item.name, item.value.type, item.kind == "parameter")
                # All of them here, and in order: the module holds what is named so.
                self.found[item.value] = self.calls.get_attr(item.name)

    def write(self, node: Node) -> None:
        """Append the call of a node, unless it is part of that of another one."""
        if node.op in _PARTS and _PARTS[node.op](self, node):
            return
        self.found[node.outputs[0]] = self.called(node)

    def called(self, node: Node, *more: Any) -> fx.Node:
        """Append the call of a node, perhaps with more than its own operands."""
        operands = [None if v is None else self.found[v] for v in node.inputs]
        return _CALLS.get(node.op, _by_meaning)(self, node, operands, *more)

    def call(self, function: Callable, *args: Any, **kwargs: Any) -> fx.Node:
        """Append a call of a function."""
        return self.calls.call_function(function, args, kwargs)

    def only_user(self, v: Value) -> Node | None:
        """The node that alone needs a value; None where that is an output, or several need it."""
        users = self.users.get(v, [])
        return users[0] if len(users) == 1 and v not in self.results else None

    def overwritable(self, node: Node, v: Value) -> bool:
        """Whether a node may write its result over an operand."""
        made = self.producers.get(v)
        return made is not None and made.op in _OVERWRITABLE and self.only_user(v) is node

    def update_of(self, v: Value) -> Value | None:
        """The parameter or buffer whose new value a value is."""
        return self._targets.get(v)

    def finish(self) -> None:
        """Append the updates that no call makes by itself, and the outputs."""
        for target, new in self.graph.updates:
            if new in self.found:
                self.calls.call_method("copy_", (self.found[target], self.found[new]))
        outputs = [self.found[v] for v in self.graph.outputs]
        if self.graph.output_names:
            self.calls.output(dict(zip(self.graph.output_names, outputs, strict=True)))
        else:
            self.calls.output(tuple(outputs) if self.graph.tuple_output else outputs[0])


def _hold(root: nn.Module, name: str, type_: Any, trained: bool) -> None:
    """Register a tensor under its dotted name."""
    *path, last = name.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    tensor = torch.zeros(type_.shape, dtype=getattr(torch, DTYPES[type_.dtype].torch))
    if trained:
        root.register_parameter(last, nn.Parameter(tensor))
    else:
        root.register_buffer(last, tensor)


# --- nodes that are part of another one's call ----------------------------------------------------


def _before_bias(w: _Writer, node: Node) -> bool:
    """A convolution or product whose only use is to have a bias added."""
    user = w.only_user(node.outputs[0])
    return user is not None and _PARTS.get(user.op) is _biased and _takes_bias(node)


def _takes_bias(node: Node) -> bool:
    """Whether one call of PyTorch can be made of the node, which takes a bias, too."""
    a = node.attrs
    return _even(a["padding"]) if "padding" in a else a["trans_b"] and not a["trans_a"]


def _even(padding: tuple[int, ...]) -> bool:
    top, bottom, left, right = padding
    return top == bottom and left == right


def _running(w: _Writer, node: Node) -> bool:
    """Running statistics of a batch normalization, which updates them itself."""
    made = w.producers.get(node.inputs[2])
    targets = [w.update_of(v) for v in node.outputs]
    return (
        made is not None and _CALLS.get(made.op) is _batch_norm and node.inputs[4] is None
        and targets == list(node.inputs[:2]) and not any(v in w.users for v in node.outputs)
        and all(w.only_user(v) is node for v in made.outputs[1:])
    )  # fmt: skip


def _count(w: _Writer, node: Node) -> bool:
    """A counter of batches."""
    target, one = w.update_of(node.outputs[0]), node.inputs[1]
    counts = target is not None and target == node.inputs[0] and node.outputs[0] not in w.users
    if counts and w.users[target] == [node]:
        w.calls.call_method("add_", (w.found[target], w.found[one]))
        return True
    return False


def _number(w: _Writer, node: Node) -> bool:
    w.found[node.outputs[0]] = node.attrs["value"]
    return True


def _biased(w: _Writer, node: Node) -> bool:
    """A bias, added by the call of what it is added to."""
    made = w.producers.get(node.inputs[0])
    if made is None or _PARTS.get(made.op) is not _before_bias or not _before_bias(w, made):
        return False
    w.found[node.outputs[0]] = w.called(made, w.found[node.inputs[1]])
    return True


_PARTS: Mapping[str, Callable[[_Writer, Node], bool]] = {
    "conv2d": _before_bias,
    "conv2d_grad_input": _before_bias,
    "matmul": _before_bias,
    "bn_update": _running,
    "bias_add": _biased,
    "add": _count,
    "constant": _number,
}
"""Tried first: whether the node needs no call of its own."""


# --- calls ----------------------------------------------------------------------------------------


def _by_meaning(w: _Writer, node: Node, operands: list) -> fx.Node:
    row = TORCH_OPS.get(node.op)
    if row is None or node.row.converts or node.row.random:
        raise ProgramError(f"op {node.op} has no call in PyTorch", loc=node.loc)
    if any(not isinstance(x, fx.Node) and x is not None for x in operands):
        raise ProgramError(f"op {node.op} of a number has no call in PyTorch", loc=node.loc)
    result = w.call(row.meaning, operands, dict(node.attrs))
    if len(node.outputs) == 1:
        return result
    w.found.update((v, w.call(operator.getitem, result, i)) for i, v in enumerate(node.outputs))
    return w.found[node.outputs[0]]


def _conv2d(w: _Writer, node: Node, operands: list, bias: fx.Node | None = None) -> fx.Node:
    a = node.attrs
    if not _takes_bias(node):
        return _by_meaning(w, node, operands)
    padding = a["padding"][0::2]
    return w.call(F.conv2d, *operands, bias, a["stride"], padding, a["dilation"], a["groups"])


def _transposed(w: _Writer, node: Node, operands: list, bias: fx.Node | None = None) -> fx.Node:
    a, (dy, weight) = node.attrs, node.inputs
    if not _takes_bias(node):
        return _by_meaning(w, node, operands)
    padding = a["padding"][0::2]
    sizes = zip(a["shape"][2:], dy.shape[2:], a["stride"], padding, a["dilation"], weight.shape[2:],
                strict=True)  # fmt: skip
    more = tuple(s - ((x - 1) * st - 2 * p + d * (k - 1) + 1) for s, x, st, p, d, k in sizes)
    return w.call(
        F.conv_transpose2d, *operands, bias, a["stride"], padding, more, a["groups"], a["dilation"]
    )


def _matmul(w: _Writer, node: Node, operands: list, bias: fx.Node | None = None) -> fx.Node:
    if _takes_bias(node):
        return w.call(F.linear, *operands, bias)
    return _by_meaning(w, node, operands)


def _batch_norm(w: _Writer, node: Node, operands: list) -> fx.Node:
    x, *affine = operands
    update, running, momentum = w.only_user(node.outputs[1]), [None, None], 0.0
    if update is not None and _running(w, update):
        running, momentum = [w.found[v] for v in update.inputs[:2]], update.attrs["momentum"]
    elif any(v in w.users or v in w.results for v in node.outputs[1:]):
        return _by_meaning(w, node, operands)
    return w.call(F.batch_norm, x, *running, *affine, True, momentum, node.attrs["eps"])


def _sum(w: _Writer, node: Node, operands: list) -> fx.Node:
    """In place where an operand may be overwritten by a sum of its own shape."""
    for v, other in (node.inputs, node.inputs[::-1]):
        if v != other and v.type == node.outputs[0].type and w.overwritable(node, v):
            return w.call(operator.iadd, w.found[v], w.found[other])
    return w.call(operator.add, *operands)


def _operator(function: Callable) -> _Call:
    return lambda w, node, operands: w.call(function, *operands)


def _activation(function: Callable, *attributes: str) -> _Call:
    """An activation that PyTorch has in place, too."""

    def call(w: _Writer, node: Node, operands: list) -> fx.Node:
        numbers = [node.attrs[name] for name in attributes]
        inplace = w.overwritable(node, node.inputs[0])
        return w.call(function, *operands, *numbers, inplace=inplace)

    return call


def _max_pool2d(w: _Writer, node: Node, operands: list) -> fx.Node:
    if node.outputs[1] in w.users or node.outputs[1] in w.results:
        return _by_meaning(w, node, operands)
    sizes = (node.attrs[name] for name in ("kernel", "stride", "padding", "dilation", "ceil_mode"))
    return w.call(F.max_pool2d, *operands, *sizes)


def _mixture(w: _Writer, node: Node, operands: list) -> fx.Node:
    """By the extents alone, where a scale says nothing else."""
    (x,), a = node.inputs, node.attrs
    aligned, size = a["align_corners"], a["output_size"]
    told = [s for s, old, new in zip(a["scale"], x.shape[2:], size, strict=True) if s != old / new]
    if told and not aligned:
        return _by_meaning(w, node, operands)
    mode = node.op.removeprefix("resize_")
    return w.call(F.interpolate, *operands, size=size, mode=mode, align_corners=aligned)


def _gather(w: _Writer, node: Node, operands: list) -> fx.Node:
    """Padding with a number has a call of its own."""
    (x,), a = node.inputs, node.attrs
    inner = [piece for piece in pieces_of(a) if not piece.is_filled]
    if inner != [Piece(x.shape[a["axis"]], 0, 1)]:
        return _by_meaning(w, node, operands)
    before = indices_of(a).index(0)
    sides = (before, node.outputs[0].shape[a["axis"]] - before - inner[0].count)
    axes_after = len(x.shape) - 1 - a["axis"]
    return w.call(F.pad, *operands, (0, 0) * axes_after + sides, value=a["fill"])


def _mean(w: _Writer, node: Node, operands: list) -> fx.Node:
    axes = normalize_axes(node.attrs["axes"], len(node.inputs[0].shape))
    return w.call(torch.mean, *operands, axes, node.attrs["keepdims"])


_CALLS: Mapping[str, _Call] = {
    "conv2d": _conv2d,
    "conv2d_grad_input": _transposed,
    "matmul": _matmul,
    "batch_norm": _batch_norm,
    "add": _sum,
    "sub": _operator(operator.sub),
    "mul": _operator(operator.mul),
    "div": _operator(operator.truediv),
    "relu": _activation(F.relu),
    "hardtanh": _activation(F.hardtanh, "lo", "hi"),
    "hardswish": _activation(F.hardswish),
    "hardsigmoid": _activation(F.hardsigmoid),
    "silu": _activation(F.silu),
    "sigmoid": _operator(torch.sigmoid),
    "max_pool2d": _max_pool2d,
    "adaptive_avg_pool2d": lambda w, node, operands: w.call(
        F.adaptive_avg_pool2d, *operands, node.attrs["output_size"]
    ),
    "gather": _gather,
    "resize_bilinear": _mixture,
    "resize_bicubic": _mixture,
    "mean": _mean,
    "cat": lambda w, node, operands: w.call(torch.cat, operands, node.attrs["axis"]),
    "reshape": lambda w, node, operands: w.calls.call_method(
        "reshape", (*operands, node.attrs["shape"])
    ),
    "broadcast_to": lambda w, node, operands: w.calls.call_method(
        "expand", (*operands, node.attrs["shape"])
    ),
}
"""How a node is called. Others are, by their meaning in `ops`."""
