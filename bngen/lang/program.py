"""Programs: typed Python functions that are traced into graphs.

In: a function whose arguments are annotated with `Tensor[...]`, or a function and its argument
types, or a finished graph. Out: a `Program`, whose ``graph`` is what the compiler takes. Called
while another program is being traced, a program becomes part of it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bngen.errors import BngenError, ProgramError, SourceLoc
from bngen.ir.node import Graph, Input
from bngen.ir.types import TensorType
from bngen.labels import handed_out
from bngen.lang.methods import METHODS
from bngen.lang.mistakes import blame, check_function, name_and_loc, not_a_program
from bngen.lang.tensor import Tensor
from bngen.lang.trace import Trace, check_name, current_trace, error, is_tracing, running
from bngen.lang.traced import check_tensor, wrap
from bngen.lang.types import kind_of


class Program:
    """A typed function of tensors; made by `program`, `trace` or `Program.from_graph`.

    Attributes:
        name: the graph's name.
        fn: the Python function; ``None`` for a program made from a graph.
        arguments: types of its arguments by name, in order.
    """

    def __init__(
        self,
        fn: Callable[..., Any] | None,
        name: str,
        arguments: Mapping[str, TensorType],
        graph: Graph | None = None,
    ):
        self.fn = fn
        self.name = name
        self.arguments = dict(arguments)
        self.__doc__ = getattr(fn, "__doc__", None)
        self._graph = graph

    @classmethod
    def from_graph(cls, graph: Graph) -> Program:
        """A program whose graph exists already, for instance one made by differentiation.

        Called inside a trace it is inlined: its parameters and buffers are declared there by
        their names, its updates become the trace's.
        """
        graph = graph_of(graph, "Program.from_graph")
        arguments = {i.name: i.value.type for i in graph.inputs if i.kind == "input"}
        return cls(None, graph.name, arguments, graph)

    @property
    def graph(self) -> Graph:
        """The traced graph; the function runs once, when this is first asked for."""
        if self._graph is None:
            self._graph = self._trace()
        return self._graph

    @property
    def parameters(self) -> dict[str, TensorType]:
        """Types of all parameters and buffers by name."""
        return {i.name: i.value.type for i in self.graph.inputs if i.kind != "input"}

    def __repr__(self) -> str:
        arguments = ", ".join(f"{n}: {t}" for n, t in self.arguments.items())
        return f"<bngen.Program {self.name}({arguments})>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Inside another program's trace: this program's operations become part of it."""
        if not is_tracing():
            raise error(
                f"{self.name}: a program computes only once it is built",
                f"mod = bg.build({self.name}); mod(...)",
            )
        given = self._bind(args, kwargs)
        for name, expected in self.arguments.items():
            if name not in given:
                raise error(f"{self.name}: missing argument {name!r}", f"it is {expected}")
            x = check_tensor(self.name, f"argument {name!r}", given[name])
            if x.type != expected:
                raise error(f"{self.name}: argument {name!r} takes {expected}, got {x.type}")
        if self.fn is not None:
            return self.fn(*args, **kwargs)
        return inline(self.graph, [given[n] for n in self.arguments])

    def _bind(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name; those of ``*args`` as `trace` names them."""
        if self.fn is None:
            if len(args) > len(self.arguments) or not set(kwargs) <= set(self.arguments):
                raise error(f"{self.name}: takes the arguments {list(self.arguments)}")
            return {**dict(zip(self.arguments, args, strict=False)), **kwargs}
        signature = inspect.signature(self.fn)
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as e:
            raise error(f"{self.name}: {e}") from None
        for arg in signature.parameters.values():
            if arg.kind is arg.VAR_POSITIONAL:
                rest = given.pop(arg.name, ())
                given.update((f"{arg.name}_{i}", x) for i, x in enumerate(rest))
        return given

    def _trace(self) -> Graph:
        trace = Trace(self.name, Tensor, METHODS)
        with running(trace):
            tensors = {
                name: wrap(trace, trace.declare(name, type_, "input"))
                for name, type_ in self.arguments.items()
            }
            try:
                result = _call_by_name(self.fn, tensors)
            except BngenError:
                raise
            except Exception as e:
                told = blame(self.name, e)
                if told is None:
                    raise  # not the user's to mend
                raise told from e
            outputs, names, is_tuple = _check_result(self, result, trace)
            return trace.finish([t.value for t in outputs], names, is_tuple)


# --- making programs --------------------------------------------------------------------------


def program(fn: Callable[..., Any]) -> Program:
    """Turn a function with `Tensor` annotations into a `Program`.

    Arguments with a default value and no `Tensor` annotation are ordinary Python values.

    Raises:
        ProgramError: an annotation is missing or is no tensor type.
    """
    scope = sys._getframe(1).f_locals
    if isinstance(fn, Program):
        return fn
    check_function(fn)
    name, loc = name_and_loc(fn)
    arguments: dict[str, TensorType] = {}
    for arg in _parameters(name, fn):
        if arg.kind in (arg.VAR_POSITIONAL, arg.VAR_KEYWORD):
            raise ProgramError(
                f"{name}: *{arg.name} has no fixed types", loc=loc,
                hint="name every argument, or use bg.trace(fn, *types)",
            )  # fmt: skip
        type_ = _evaluate(name, fn, arg, scope, loc)
        if isinstance(type_, TensorType):
            arguments[arg.name] = type_
        elif arg.default is arg.empty:
            got = "has no type" if type_ is arg.empty else f"is annotated with {type_!r}"
            hint = f"write {arg.name}: bg.Tensor[8, 64, 56, 56]"
            if arg.name in ("self", "cls") and not arguments:
                hint = "a method is a program of its object: bg.trace(obj.method, *types)"
            raise ProgramError(f"{name}: argument {arg.name!r} {got}", loc=loc, hint=hint)
    return Program(fn, name, arguments)


def trace(fn: Callable[..., Any], *types: TensorType, name: str | None = None) -> Program:
    """A `Program` from a function and the types of its arguments, in order.

    For programs made in loops and factories, where shapes are computed. Arguments keep the
    function's own names; those of ``*args`` are called ``args_0``, ``args_1`` and so on.

    Raises:
        ProgramError: the number of types does not fit the function, or one is no tensor type.
    """
    check_function(fn, "trace")
    own_name, loc = name_and_loc(fn)
    name = own_name if name is None else name
    check_name("program", name)
    for t in types:
        if not isinstance(t, TensorType):
            raise error(f"{name}: {t!r} is no tensor type", "write bg.Tensor[8, 64, 56, 56]")
    names: list[str] = []
    for arg in _parameters(name, fn):
        room = len(types) - len(names)
        if arg.kind is arg.VAR_POSITIONAL:
            names += [f"{arg.name}_{i}" for i in range(room)]
        elif arg.kind in (arg.POSITIONAL_ONLY, arg.POSITIONAL_OR_KEYWORD) and room:
            names.append(arg.name)
        elif arg.kind is not arg.VAR_KEYWORD and arg.default is arg.empty:
            raise error(f"{name}: argument {arg.name!r} has no type", "pass one type an argument")
    if len(names) != len(types):
        raise error(f"{name}: takes {len(names)} arguments, got {len(types)} types")
    return Program(fn, name, dict(zip(names, types, strict=True)))


def inline(graph: Graph, arguments: Sequence[Tensor]) -> Any:
    """Replay a graph into the running trace; returns what a call of its program would."""
    into = current_trace(graph.name)
    given = iter(arguments)
    inputs = {
        item.name: next(given).value
        if item.kind == "input"
        else into.declare(_held_name(into, item), item.value.type, item.kind, item.init)
        for item in graph.inputs
    }
    # What a program updates it finds up to date: running statistics, when it is called twice.
    updated = {target.name for target, _ in graph.updates}
    table = {n: into.latest(v) if n in updated else v for n, v in inputs.items()}
    streams: dict[int, int] = {}
    for node in graph.nodes:
        attrs = dict(node.attrs)
        if node.row.random:
            # Draws that share a stream must go on sharing it: a mask that backward recomputes.
            if attrs["stream"] not in streams:
                streams[attrs["stream"]] = into.next_stream()
            attrs["stream"] = streams[attrs["stream"]]
        operands = [None if v is None else table[v.name] for v in node.inputs]
        results = into.add(node.op, operands, attrs, node.loc)
        table.update((old.name, new) for old, new in zip(node.outputs, results, strict=True))
    for target, new in graph.updates:
        into.set_update(graph.name, inputs[target.name], table[new.name])
    outputs = [wrap(into, table[v.name]) for v in graph.outputs]
    return handed_out(outputs, graph.output_names, graph.tuple_output)


def _held_name(into: Trace, item: Input) -> str:
    """What a module holds it under; equal constants are one, wherever they come from."""
    return item.name if item.is_constant else into.qualified(item.name)


def graph_of(program: Any, label: str) -> Graph:
    """The graph of what was passed as a program to the function called ``label``.

    Raises:
        ProgramError: for what is none, with what to do about it, and for a mistake in it.
    """
    # By type: whether `graph` is there cannot be asked of a program whose trace fails.
    if isinstance(program, Program):
        return program.graph
    if not isinstance(program, Graph):
        raise not_a_program(label, program)
    return program


# --- helpers ----------------------------------------------------------------------------------


def _parameters(name: str, fn: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(fn).parameters.values())
    except ValueError:
        raise error(f"{name}: has no signature", "wrap it in a function of your own") from None


def _evaluate(
    name: str, fn: Callable, arg: inspect.Parameter, scope: Mapping[str, Any], loc: SourceLoc | None
) -> Any:
    """An argument's annotation; one that is text is evaluated where the program is defined."""
    if not isinstance(arg.annotation, str):
        return arg.annotation
    try:
        return eval(arg.annotation, fn.__globals__, dict(scope))
    except ProgramError:
        raise
    except Exception as e:
        what = f"{name}: the annotation {arg.annotation!r} of {arg.name!r} fails: {e}"
        raise ProgramError(what, loc=loc) from e


def _call_by_name(fn: Callable[..., Any], tensors: Mapping[str, Tensor]) -> Any:
    """Call with each tensor in its place: by keyword wherever the function allows it."""
    parameters = inspect.signature(fn).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return fn(*tensors.values())
    first = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.name in tensors]
    rest = {name: x for name, x in tensors.items() if name not in first}
    return fn(*(tensors[name] for name in first), **rest)


def _check_result(
    program_: Program, result: Any, trace_: Trace
) -> tuple[list[Tensor], tuple[str, ...], bool]:
    """What the function returned, as (tensors, labels, whether it is a tuple)."""
    _, loc = name_and_loc(program_.fn)
    if isinstance(result, Tensor):
        found, names, is_tuple = [result], (), False
    elif isinstance(result, Mapping):
        found, names, is_tuple = list(result.values()), tuple(result), True
    elif isinstance(result, tuple | list):
        found, names, is_tuple = list(result), (), True
    else:
        found, names, is_tuple = [result], (), False
    hint = "return a tensor, or a tuple, list or dict of tensors"
    if result is None or not found:
        raise ProgramError(f"{program_.name}: returns nothing", loc=loc, hint=hint)
    if not all(isinstance(n, str) for n in names):
        raise ProgramError(f"{program_.name}: returns a dict with keys that are no text", loc=loc)
    for x in found:
        if not isinstance(x, Tensor):
            what = f"{program_.name}: returns {kind_of(x)}, which is no tensor"
            raise ProgramError(what, loc=loc, hint=hint)
        if x.trace is not trace_:
            what = f"{program_.name}: returns {x.name!r}, which belongs to a trace of "
            raise ProgramError(f"{what}{x.trace.name!r}", loc=loc, hint="pass it as an argument")
    return found, names, is_tuple
