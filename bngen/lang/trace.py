"""What is recorded while a program runs on symbolic tensors.

In: calls of `Trace.declare`, `Trace.add` and `Trace.set_update`, made by the op functions of this
package. Out: `Trace.finish`, a `Graph`. A trace knows names, source lines and scopes; it does not
know what any op means.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bngen.errors import ProgramError, SourceLoc
from bngen.ir.node import Attrs, Graph, Input, Node, TensorType, Value

HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*\Z")

_active = threading.local()  # its ``stack``: the running traces, innermost last

# What later results of an op are called; the first carries the bare name.
_RESULT_NAMES = {
    "batch_norm": ("mean", "var"),
    "bn_stats": ("var",),
    "bn_update": ("var",),
    "max_pool2d": ("index",),
}


def user_loc() -> SourceLoc | None:
    """The innermost line on the call stack that is not in this package: the user's own."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(HERE):
        frame = frame.f_back
    return None if frame is None else SourceLoc(frame.f_code.co_filename, frame.f_lineno)


def error(what: str, hint: str | None = None) -> ProgramError:
    """A `ProgramError` at the user's line, which names the scope if one is open."""
    stack = getattr(_active, "stack", None)
    if stack and stack[-1].scopes:
        # In a network the same line builds many layers.
        what = f"{what} [in {'.'.join(stack[-1].scopes)}]"
    return ProgramError(what, loc=user_loc(), hint=hint)


def check_name(label: str, name: str) -> None:
    """Raise unless the text form of a graph can hold this name."""
    if not isinstance(name, str) or not NAME.match(name):
        raise error(
            f"{label}: {name!r} cannot be a name",
            "start with an ASCII letter or underscore; then letters, digits, underscores and dots",
        )


class Trace:
    """A graph in the making.

    Attributes:
        name: the program's name.
        inputs: declared inputs by name, in order of declaration.
        scopes: the prefix that `scope` has opened, innermost last.
    """

    def __init__(self, name: str):
        self.name = name
        self.inputs: dict[str, Input] = {}
        self.scopes: list[str] = []
        self._nodes: list[Node] = []
        self._updates: dict[str, Value] = {}
        self._constants: dict[tuple[str, str, str], Value] = {}
        self._counts: dict[str, int] = {}
        self._temporaries: set[str] = set()
        self._streams = 0

    # --- growing --------------------------------------------------------------------------

    def qualified(self, name: str) -> str:
        """A parameter's full name inside the open scopes."""
        return ".".join((*self.scopes, name))

    def declare(self, name: str, type_: TensorType, kind: str, init: tuple = ()) -> Value:
        """A new input; the same declaration of a parameter or buffer again gives the first one."""
        check_name("argument" if kind == "input" else kind, name)
        if name in self._temporaries:
            raise error(f"{kind} {name!r}: an intermediate value has this name", "choose another")
        known = self.inputs.get(name)
        if known is None:
            self.inputs[name] = Input(Value(name, type_), kind, init)
            return self.inputs[name].value
        if kind == "input" or known.kind != kind or known.value.type != type_:
            raise error(
                f"{kind} {name!r}: {type_} is already declared as {known.kind} {known.value.type}",
                "open another bg.scope, or declare it with the same kind, shape and dtype",
            )
        return known.value

    def add(
        self, op: str, inputs: Sequence[Value | None], types: Sequence[TensorType], attrs: Attrs
    ) -> tuple[Value, ...]:
        """Append a node at the user's line and give its results."""
        if op == "constant":
            return (self._constant(types[0], attrs),)
        outputs = self._name_results(op, types)
        self._nodes.append(Node(op, tuple(inputs), outputs, attrs, user_loc()))
        return outputs

    def set_update(self, label: str, target: Value, new: Value) -> None:
        """Let an input hold ``new`` once the program has ended; ``label`` is who asks."""
        if target.name not in self.inputs:
            raise error(
                f"{label}: {target.name!r} is computed by the program, so it cannot be updated",
                "update arguments, parameters and buffers",
            )
        if target.type != new.type:
            raise error(f"{label}: {target.name!r} is {target.type}, its new value {new.type}")
        self._updates[target.name] = new

    def latest(self, target: Value) -> Value:
        """What an input is going to hold, as recorded so far: itself or its update."""
        return self._updates.get(target.name, target)

    def has_update(self, target: Value) -> bool:
        """Whether an input already has a new value."""
        return target.name in self._updates

    def next_stream(self) -> int:
        """A number that no other random draw of this program has."""
        self._streams += 1
        return self._streams - 1

    def _constant(self, type_: TensorType, attrs: Attrs) -> Value:
        # repr tells 0.0 from -0.0 and makes NaN equal to itself, which == does not.
        key = (type_.dtype, type(attrs["value"]).__name__, repr(attrs["value"]))
        if key not in self._constants:
            outputs = self._name_results("constant", (type_,))
            self._nodes.append(Node("constant", (), outputs, attrs, user_loc()))
            self._constants[key] = outputs[0]
        return self._constants[key]

    def _name_results(self, op: str, types: Sequence[TensorType]) -> tuple[Value, ...]:
        suffixes = ("", *(f"_{part}" for part in _RESULT_NAMES.get(op, ())))
        names: list[str] = []
        while not names or any(n in self.inputs for n in names):
            number = self._counts.get(op, 0)
            self._counts[op] = number + 1
            names = [f"{op}_{number}{suffix}" for suffix in suffixes]
        self._temporaries.update(names)
        return tuple(Value(n, t) for n, t in zip(names, types, strict=True))

    # --- closing --------------------------------------------------------------------------

    def finish(
        self, outputs: Sequence[Value], output_names: Sequence[str], tuple_output: bool
    ) -> Graph:
        """The graph: arguments first, then parameters and buffers as they were declared."""
        inputs = self.inputs.values()
        return Graph(
            name=self.name,
            inputs=(
                *(i for i in inputs if i.kind == "input"),
                *(i for i in inputs if i.kind != "input"),
            ),
            nodes=tuple(self._nodes),
            outputs=tuple(outputs),
            updates=tuple((self.inputs[n].value, new) for n, new in self._updates.items()),
            output_names=tuple(output_names),
            tuple_output=tuple_output,
        )


# --- the trace that is running ----------------------------------------------------------------


def current_trace(label: str) -> Trace:
    """The innermost running trace; an error for a call from outside of any."""
    stack = getattr(_active, "stack", None)
    if not stack:
        raise error(
            f"{label}: only works while a program is being traced",
            "call it inside a function marked @bg.program",
        )
    return stack[-1]


def is_tracing() -> bool:
    """Whether a program is being traced on this thread."""
    return bool(getattr(_active, "stack", None))


@contextmanager
def running(trace: Trace) -> Iterator[Trace]:
    """Make ``trace`` the innermost running one."""
    if not hasattr(_active, "stack"):
        _active.stack = []
    _active.stack.append(trace)
    try:
        yield trace
    finally:
        _active.stack.pop()
