"""What is recorded while a program runs on symbolic tensors.

In: calls of `Trace.declare`, `Trace.add` and `Trace.set_update`, made by the op functions of this
package. Out: `Trace.finish`, a `Graph`. A trace knows scopes, updates and the user's lines; nodes
and their names are `GraphBuilder`'s.
"""

from __future__ import annotations

import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from bngen.errors import ProgramError, SourceLoc
from bngen.ir.build import GraphBuilder
from bngen.ir.node import Graph, Input
from bngen.ir.types import TensorType, Value

OURS = ("bngen.lang.", "bngen.compiler", "bngen.runtime.")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]*\Z")
"""Of a program, which is a symbol's, too."""
STATE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\Z")
"""Of a parameter, a buffer or an argument: as modules of PyTorch call theirs."""

_active = threading.local()  # its ``stack``: the running traces, innermost last


def user_loc() -> SourceLoc | None:
    """The innermost line on the call stack that is not the language's: the user's own."""
    frame = sys._getframe(1)
    # By module, not by file: what a dataclass generates is in no file.
    while frame is not None and frame.f_globals.get("__name__", "").startswith(OURS):
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
    """Raise unless a name can go wherever a program's goes: texts, symbols."""
    if not isinstance(name, str) or not NAME.match(name):
        hint = "use ASCII letters, digits, underscores, and dots inside"
        raise error(f"{label}: {name!r} cannot be a name", hint)


def check_state_name(label: str, name: str) -> None:
    """Raise unless a name can go wherever an input's goes: texts, keys of a state_dict."""
    if not isinstance(name, str) or not STATE_NAME.match(name):
        hint = "use ASCII letters, digits, underscores, and dots and dashes inside"
        raise error(f"{label}: {name!r} cannot be a name", hint)


class Trace:
    """A graph in the making.

    Attributes:
        name: the program's name.
        tensors: the class of its tensors, see `bngen.lang.traced.wrap`.
        inputs: declared inputs by name, in order of declaration.
        scopes: the prefix that `scope` has opened, innermost last.
        methods: functions that its tensors have as methods, by name.

    Both are given to it: they add nodes, so that they are built on this module.
    """

    def __init__(
        self, name: str, tensors: type, methods: Mapping[str, Callable[..., Any]] | None = None
    ):
        self.name = name
        self.tensors = tensors
        self.methods = methods or {}
        self.inputs: dict[str, Input] = {}
        self.scopes: list[str] = []
        self._builder = GraphBuilder(name=name)
        self._counts: Counter[str] = Counter()
        self._updates: dict[str, Value] = {}
        self._streams = 0
        self._place: SourceLoc | None = None

    # --- growing --------------------------------------------------------------------------

    def qualified(self, name: str) -> str:
        """A parameter's full name inside the open scopes."""
        return ".".join((*self.scopes, name))

    def declare(self, name: str, type_: TensorType, kind: str, init: tuple = ()) -> Value:
        """A new input; the same declaration of a parameter or buffer again gives the first one."""
        check_state_name("argument" if kind == "input" else kind, name)
        known = self.inputs.get(name)
        if known is None:
            value = self._builder.input(name, type_, kind, init)
            if value.name != name:
                raise error(f"{kind} {name!r}: an intermediate value has this name", "rename it")
            self.inputs[name] = Input(value, kind, init)
            return value
        if kind == "input" or known.kind != kind or known.value.type != type_:
            raise error(
                f"{kind} {name!r}: {type_} is already declared as {known.kind} {known.value.type}",
                "open another bg.scope, or declare it with the same kind, shape and dtype",
            )
        return known.value

    def add(
        self,
        op: str,
        operands: Sequence[Value | None],
        attrs: Mapping[str, Any],
        loc: SourceLoc | None = None,
        name: str | None = None,
    ) -> tuple[Value, ...]:
        """Append a node, at the user's line unless another is given; its results.

        They are called by a name that is given, or numbered.

        Raises:
            ShapeError: operands that do not fit.
        """
        self._builder.loc = loc or self._place or user_loc()
        if op == "constant":
            return (self._builder.constant(attrs["value"], attrs["dtype"]),)
        number = self._counts[op]
        self._counts[op] += 1
        # Numbered from the first on: a plain "mean" would take a name that users give to buffers.
        # No name of an input has a colon in it.
        name = f"{name}:{op}" if name else f"{op}_{number}"
        results = self._builder.emit(op, *operands, name=name, **attrs)
        return results if isinstance(results, tuple) else (results,)

    @contextmanager
    def at(self, place: SourceLoc | None) -> Iterator[None]:
        """Let nodes stem from a line that is not on the call stack."""
        before, self._place = self._place, place
        try:
            yield
        finally:
            self._place = before

    def set_update(self, label: str, target: Value, new: Value) -> None:
        """Let an input hold ``new`` once the program has ended; ``label`` is who asks."""
        if target.name not in self.inputs:
            raise error(
                f"{label}: {target.name!r} is computed by the program, so it cannot be updated",
                "update arguments, parameters and buffers",
            )
        if self.inputs[target.name].is_constant:
            what = f"{label}: {target.name!r} is a constant"
            raise error(what, "declare it with bg.buffer, with the constant as its first value")
        if target.type != new.type:
            raise error(f"{label}: {target.name!r} is {target.type}, its new value {new.type}")
        self._updates[target.name] = new

    def latest(self, target: Value) -> Value:
        """What an input is going to hold, as recorded so far: itself or its update."""
        return self._updates.get(target.name, target)

    def next_stream(self) -> int:
        """A number that no other random draw of this program has."""
        self._streams += 1
        return self._streams - 1

    def finish(
        self, outputs: Iterable[Value], output_names: Iterable[str], tuple_output: bool
    ) -> Graph:
        """The graph: arguments first, then parameters and buffers as they were declared."""
        return self._builder.finish(
            outputs,
            updates=[(self.inputs[n].value, new) for n, new in self._updates.items()],
            output_names=output_names,
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
