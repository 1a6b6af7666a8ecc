"""Calls of a captured graph, made in bngen's language: one by one to see, or a region of them.

In: nodes of an evaluated graph. Out: why a call cannot be taken, if so; the program of a region.
Whether a call is supported the language itself says, by being tried on the types at hand: what it
refuses runs in PyTorch, with its words as the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from bngen.errors import BngenError
from bngen.ir.node import Graph
from bngen.lang import pointwise
from bngen.lang.tensor import Tensor
from bngen.lang.trace import Trace, running
from bngen.lang.traced import wrap
from bngen.torch_bridge.element_types import UnsupportedError, type_of
from bngen.torch_bridge.places import AROUND, called, place_of
from bngen.torch_bridge.vocabulary import translation


def refusal(node: fx.Node) -> str | None:
    """Why bngen cannot take a call, or None where it can.

    The call is tried by itself, in a trace of its own, and its results must have the types that
    PyTorch's have.
    """
    operands = list(dict.fromkeys(node.all_input_nodes))
    trace = Trace("call", Tensor)
    try:
        with running(trace):
            env = {n: _declared(trace, f"x{i}", n) for i, n in enumerate(operands)}
            result = translate(node, env)
        _check_types(node, result)
    except (UnsupportedError, BngenError) as error:
        return _reason(error)
    except TypeError as error:  # Arguments that the row does not take.
        return f"{called(node)}: {error}"
    except Exception as error:
        what = f"{called(node)} cannot be translated: {type(error).__name__}: {error}"
        raise BngenError(what, loc=place_of(node), hint=AROUND) from error
    return None


def _reason(error: Exception) -> str:
    what = error.what if isinstance(error, BngenError) else str(error)
    return what.splitlines()[0].partition(" [in ")[0]


def _declared(trace: Trace, name: str, node: fx.Node) -> Any:
    value = node.meta.get("val")
    if isinstance(value, tuple | list):
        return tuple(
            wrap(trace, trace.declare(f"{name}_{i}", type_of(v), "input"))
            for i, v in enumerate(value)
        )
    if not isinstance(value, torch.Tensor):
        raise UnsupportedError(f"what {called(node)} gives is no tensor")
    return wrap(trace, trace.declare(name, type_of(value), "input"))


def _check_types(node: fx.Node, result: Any) -> None:
    value = node.meta.get("val")
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
    return row(*args, **{_NUMPY.get(k, k): v for k, v in kwargs.items() if k != "inplace"})


_NUMPY = {"axis": "dim", "keepdims": "keepdim"}
"""Parameters that PyTorch's built-in functions take by NumPy's names, too."""


def _without_flag(node: fx.Node) -> tuple[Any, ...]:
    """The positional arguments, but for ``inplace``: in-place calls have been rewritten by now."""
    names = getattr(getattr(node.target, "__code__", None), "co_varnames", ())
    at = names.index("inplace") if "inplace" in names else len(node.args)
    return (*node.args[:at], *node.args[at + 1 :])


def trace_region(
    nodes: Sequence[fx.Node], inputs: Sequence[fx.Node], outputs: Sequence[fx.Node], name: str
) -> Graph:
    """The program of a region.

    Args:
        nodes: its calls, in order.
        inputs: nodes outside whose values it reads; the program's arguments, ``a0``, ``a1``, ...
        outputs: nodes inside whose values are read outside; the program's results.
        name: the program's name.

    Raises:
        BngenError: when a call cannot be translated though it could by itself; it names its line.
    """
    trace = Trace(name, Tensor)
    follows = any(n.meta["requires_grad"] for n in nodes)
    with running(trace):
        env = {n: _declared(trace, f"a{i}", n) for i, n in enumerate(inputs)}
        for node in nodes:
            with trace.at(place_of(node)):
                result = _translated(node, env)
                env[node] = _held(node, result) if follows else result
        return trace.finish([env[n].value for n in outputs], (), True)


def _translated(node: fx.Node, env: Mapping[fx.Node, Any]) -> Any:
    try:
        return translate(node, env)
    except Exception as error:
        what = f"{called(node)} cannot be translated in its place: {_named(error)}"
        raise BngenError(what, loc=place_of(node), hint=AROUND) from error


def _named(error: Exception) -> str:
    return error.what if isinstance(error, BngenError) else f"{type(error).__name__}: {error}"


def _held(node: fx.Node, result: Any) -> Any:
    """No gradient flows through what was computed under ``torch.no_grad``."""
    if node.meta["requires_grad"] or not any(i.meta["requires_grad"] for i in node.all_input_nodes):
        return result
    parts = result if isinstance(result, tuple) else (result,)
    held = tuple(pointwise.stop_gradient(p) if p.type.is_float else p for p in parts)
    return held if isinstance(result, tuple) else held[0]
